"""Commands run in this process, on a small root that the commands have made without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.proof_run import score_without_models
from tidemill.pipelines.commands.explained import COLUMNS, LINES

HALF_WAY = "--until 2026-01-03T12:00:00Z"


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def is_explained(self, *names: str) -> None:
        """Check that the command failed with one paragraph of three lines at most, with names."""
        said = f"status {self.status}\n{self.out}\n{self.err}"
        assert self.status == 1, said
        assert "Traceback" not in self.err, said
        assert self.err.startswith("error: "), said
        assert self.err.count("\n") == 1, said
        assert len(self.err.rstrip()) <= LINES * COLUMNS, said
        for name in names:
            assert name in self.err, said


Run = Callable[..., Ended]


def arguments(command: str, project: Path, root: Path | None = None) -> list[str]:
    """Return the arguments of a command on a project, with ``--quiet`` where it exists."""
    given = {
        "features": ["by_driver", "d1"],
        "explain": ["q000"],
        "lineage": ["q000"],
        "verify": ["--sample", "1"],
        "forget": ["driver", "d1"],
    }.get(command, [])
    places = ["--config", str(project / "tidemill.yaml")]
    if root is not None:
        places += ["--root", str(root)]
    loud = ("features", "explain", "lineage", "apply", "clean-store", "report", "status")
    return [*command.split(), *given, *places, *([] if command.split()[0] in loud else ["--quiet"])]


def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stream score without a bundle until the test ends."""
    score_without_models(monkeypatch)
