"""The code blocks, links and named files of a document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"

_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"# ((?:features|serving|pipelines)/[\w/]+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Attributes:
        document: Where it stands.
        line: The line of its first line, from 1.
        language: What follows the fence.
        text: What is in it.
    """

    document: Path
    line: int
    language: str
    text: str

    @property
    def is_session(self) -> bool:
        """True for an interpreter's session: prompts and their output."""
        return self.text.startswith(">>> ")

    @property
    def file(self) -> str | None:
        """The file that a fragment is to be put into, which its first line names."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(document: Path) -> list[Block]:
    """Return a document's fenced blocks, in order."""
    text = document.read_text()
    return [
        Block(document, text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in _BLOCK.finditer(text)
    ]


def session(document: Path) -> str:
    """Return a document's sessions as one, each on its own lines, for errors to name them."""
    lines = [""] * (document.read_text().count("\n") + 1)
    for block in blocks(document):
        if block.language == "python" and block.is_session:
            text = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(text)] = text
    return "\n".join(lines) + "\n"


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return _BLOCK.sub("", document.read_text())


def table_names(document: Path, heading: str) -> list[str]:
    """Return the names in the first cells of a table, in backticks; find it by its header line."""
    rows = document.read_text().split(heading + "\n")[1].split("\n\n")[0].splitlines()[1:]
    return [row.split("`")[1] for row in rows]
