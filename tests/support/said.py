"""A progress that keeps its permanent lines."""

from __future__ import annotations

from tidemill.pipelines.run.progress import QuietProgress


class Said(QuietProgress):
    """Keeps what a person is told.

    Attributes:
        lines: What was said.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
