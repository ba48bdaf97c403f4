"""A project of payments whose history is replayed, as a folder for the command line."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support import fork_server
from tests.support.folders import stream_of
from tests.support.live_project import CARDS, PROJECT, instant
from tests.support.stream_outputs import rows_in
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import join_outputs

BEGIN: Final = 1_790_000_000 * SECOND // MINUTE * MINUTE
CONFIGURATION: Final = """
project: project:project
root: run
shards: 2
sources:
  payments: {{files: [payments.csv], received: sent_at}}
  checks: {{files: [checks.csv], received: sent_at}}
splits: {{train_until: "{train}", evaluate_until: "{evaluate}", stream_until: "{stream}"}}
online_store: {store}
stream: {{engine: fnapi, poll_rows: 40}}
"""
REQUESTS: Final = 150


@dataclass
class Replayed:
    """A project whose history is replayed.

    Attributes:
        folder: Its folder.
        store: The online store, as in the configuration.
    """

    folder: Path
    store: str = "{type: sqlite, path: online.db}"

    def __post_init__(self) -> None:
        chance = random.Random(3)
        self.folder.mkdir(parents=True)
        evaluate, end = BEGIN + 4 * HOUR, BEGIN + 6 * HOUR
        (self.folder / "project.py").write_text(PROJECT)
        (self.folder / "tidemill.yaml").write_text(
            CONFIGURATION.format(
                train=instant(BEGIN + 3 * HOUR),
                evaluate=instant(evaluate),
                stream=instant(end),
                store=self.store,
            )
        )
        payments = ["payment,paid_at,sent_at,card,amount"]
        for number, second in enumerate(sorted(chance.randrange(6 * 3_600) for _ in range(900))):
            at, card = instant(BEGIN + second * SECOND), f"c-{chance.randrange(CARDS)}"
            payments.append(f"p-{number},{at},{at},{card},{chance.randrange(99_999) / 100}")
        checks = ["check,asked_at,sent_at,card,wanted"]
        seconds = [chance.randrange(2 * 3_600) for _ in range(REQUESTS - 1)]
        for number, second in enumerate([*sorted(seconds), 2 * 3_600 - 1]):
            at, card = instant(evaluate + second * SECOND), f"c-{chance.randrange(CARDS)}"
            checks.append(f"q-{number},{at},{at},{card},1.5")
        (self.folder / "payments.csv").write_text("\n".join(payments) + "\n")
        (self.folder / "checks.csv").write_text("\n".join(checks) + "\n")
        self.run("backfill")

    def run(self, *arguments: str) -> str:
        done = fork_server.run_command(arguments, self.folder, 400)
        assert done.status == 0, f"status {done.status}: {done.printed}"
        return done.printed

    def verify(self) -> None:
        assert re.search(r"^0 mismatches in [0-9,]+ values$", self.run("verify"), re.MULTILINE)

    @property
    def stream(self) -> Path:
        return stream_of(self.folder / "run")

    def outputs(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of all outputs, without stamps of the wall clock."""
        join_outputs(self.stream, 99)
        folders = [paths.PREDICTIONS, paths.RELEASES, paths.REJECTED_BY_STREAM]
        folders += [f"{paths.PUBLICATIONS}/by_card"]
        found = {}
        for name in folders:
            rows = rows_in(self.stream / name)
            for row in rows:
                for stamp in ("sent_us", "created_us"):
                    row.pop(stamp, None)
            found[name] = rows
        return found
