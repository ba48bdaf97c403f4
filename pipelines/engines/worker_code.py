"""What a worker must have imported before it takes work: the program's own code, and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace

IMPORTS: Final = "path"
"""The pool's parameter with the places that a worker imports from, as JSON."""


@dataclass(frozen=True)
class WorkerCode:
    """The code of the program that submits a job.

    Attributes:
        code: The code itself.
        attempt: The attempt.
        exchange: Where workers meet the program, if they do not share its disk.
        ends: Whether the job ends by itself, as that of a stream does not.
    """

    code: ProgramCode
    attempt: Attempt
    exchange: ExchangePlace | None = None
    ends: bool = False

    @staticmethod
    def here(
        project: str,
        definitions: str,
        attempt: Attempt,
        exchange: ExchangePlace | None = None,
        *,
        ends: bool = False,
    ) -> WorkerCode:
        """Return that of this program."""
        return WorkerCode(ProgramCode.here(project, definitions), attempt, exchange, ends=ends)

    def params(self) -> dict[str, str]:
        """Return it as parameters of a worker."""
        return {
            **asdict(self.code),
            "attempt": str(self.attempt.folder.absolute()),
            **({} if self.exchange is None else {"exchange": json.dumps(asdict(self.exchange))}),
            "ends": str(self.ends),
        }

    @staticmethod
    def of_params(params: Mapping[str, str]) -> WorkerCode | None:
        """Return that of parameters; None if they have none."""
        if "project" not in params:
            return None
        meets = json.loads(params.get("exchange", "null"))
        return WorkerCode(
            ProgramCode(params["project"], params["definitions"], params["kernel"]),
            Attempt(Path(params["attempt"])),
            None if meets is None else ExchangePlace(**meets),
            params["ends"] == str(True),
        )

    def take_up_work(self, process: dict[str, str | int]) -> None:
        """Tell the program of this process, before it works.

        Args:
            process: What names it.

        Raises:
            EngineLost: The attempt is over.
            ExchangeError: The program is on another disk, and not reached from here.
        """
        if self.exchange is None:
            self.attempt.take_up_work(process)
        else:
            end = self.exchange.here()
            end.join()
            if self.ends:
                end.wait_for_tasks()

    def report(self, problem: str) -> None:
        """Leave the program what is wrong with this process, which takes up no work.

        Raises:
            ExchangeError: The program is on another disk, and not reached from here.
        """
        if self.exchange is None:
            self.attempt.report(problem)
        else:
            self.exchange.here().report_problem(problem)

    def check(self) -> None:
        """Import the project in this process, and compare.

        Raises:
            WorkerLacksModule: It cannot be imported.
            WorkerCodeDiffers: It is another one, or Tidemill is.
        """
        self.code.check()
