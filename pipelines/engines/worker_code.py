"""What a worker must have imported before it takes work: the program's own code, and no other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import WorkerCodeDiffers, WorkerLacksModule
from tidemill.features.kernel.code_cache import digest
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.servers.python_path import import_path

IMPORTS: Final = "path"
"""The parameter with the places that a worker imports from, as JSON."""


@dataclass(frozen=True)
class WorkerCode:
    """The code of the program that submits a job.

    Attributes:
        project: ``module:attribute`` of the project.
        definitions: The hash of its definitions.
        kernel: The digest of the kernel's sources.
        attempt: The attempt.
        exchange: Where workers meet the program, if they do not share its disk.
    """

    project: str
    definitions: str
    kernel: str
    attempt: Attempt
    exchange: ExchangePlace | None = None

    @staticmethod
    def here(
        project: str, definitions: str, attempt: Attempt, exchange: ExchangePlace | None = None
    ) -> WorkerCode:
        """Return that of this program."""
        return WorkerCode(project, definitions, digest(), attempt, exchange)

    def params(self) -> dict[str, str]:
        """Return it as parameters of the request for a worker."""
        return {
            IMPORTS: json.dumps(import_path()),
            "project": self.project,
            "definitions": self.definitions,
            "kernel": self.kernel,
            "attempt": str(self.attempt.folder),
            **({} if self.exchange is None else {"exchange": json.dumps(asdict(self.exchange))}),
        }

    @staticmethod
    def of_params(params: Mapping[str, str]) -> WorkerCode | None:
        """Return that of parameters; None if they have none."""
        if "project" not in params:
            return None
        meets = json.loads(params.get("exchange", "null"))
        return WorkerCode(
            params["project"],
            params["definitions"],
            params["kernel"],
            Attempt(Path(params["attempt"])),
            None if meets is None else ExchangePlace(**meets),
        )

    def take_up_work(self, process: dict[str, str | int]) -> None:
        """Tell the program of this process, before it works.

        Args:
            process: What names it.

        Raises:
            EngineLost: The attempt is over.
            ExchangeUnreachable: The program is on another disk, and not reached from here.
        """
        if self.exchange is None:
            self.attempt.take_up_work(process)
        else:
            self.exchange.here().join()

    def check(self) -> None:
        """Import the project in this process, and compare.

        Raises:
            WorkerLacksModule: It cannot be imported.
            WorkerCodeDiffers: It is another one, or Tidemill is.
        """
        module, _, attribute = self.project.partition(":")
        try:
            project: Any = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise WorkerLacksModule(
                f"a worker cannot import the project {self.project!r}: {type(error).__name__}: "
                f"{error}; let the worker pool run in the environment of the program that "
                "submits the job (`tidemill down`, and `tidemill up --flink` again)"
            ) from error
        if project.hash != self.definitions:
            raise WorkerCodeDiffers(
                f"a worker has imported the project {self.project!r} with the definitions "
                f"{project.hash}, and the stream runs those of {self.definitions}: its files "
                "were changed meanwhile; run the stream again"
            )
        if digest() != self.kernel:
            raise WorkerCodeDiffers(
                f"a worker has Tidemill's kernel {digest()}, and the program that submits the job "
                f"{self.kernel}: let both run in one environment"
            )
