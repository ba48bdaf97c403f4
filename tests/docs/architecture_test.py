"""docs/architecture.md names every module of the three rooms, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.markdown import DOCS, ROOT, prose

ROOMS = ("features", "serving", "pipelines")
ARCHITECTURE = DOCS / "architecture.md"
PAGES = tuple(sorted(DOCS.glob("*.md")))
ADRS = tuple(sorted((DOCS / "adr").glob("*.md")))
_NAMED = re.compile(r"`([\w/]+\.py)`")
_LINK = re.compile(r"\]\(([^)#]*)(#[^)]*)?\)")


def sections(text: str) -> dict[str, str]:
    """The section of each room, by room."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    found = {room: part for part in parts for room in ROOMS if part.startswith(f"{room}/: ")}
    assert set(found) == set(ROOMS)
    return found


def modules(room: str) -> set[str]:
    """The modules of a room, relative to it."""
    found = (ROOT / room).rglob("*.py")
    return {str(path.relative_to(ROOT / room)) for path in found if path.name != "__init__.py"}


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as they are made on the web."""
    found = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_of_a_room_stands_in_its_section_once(room: str) -> None:
    rows = sections(prose(ARCHITECTURE))[room].split("\n| what | modules |\n")[1].splitlines()
    named = [name for row in rows for name in _NAMED.findall(row.split(" | ")[-1])]
    assert sorted(modules(room) - set(named)) == [], f"name these in {ARCHITECTURE.name}"
    assert sorted(set(named) - modules(room)) == [], "these are named and do not exist"
    assert sorted(name for name in set(named) if named.count(name) > 1) == []


@pytest.mark.parametrize("document", [*PAGES, *ADRS], ids=lambda document: document.name)
def test_modules_named_in_full_exist(document: Path) -> None:
    full = [name for name in _NAMED.findall(document.read_text()) if name.split("/")[0] in ROOMS]
    assert [name for name in full if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("document", [*PAGES, *ADRS], ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in _LINK.findall(prose(document)):
        if target.startswith("http"):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), target
        if anchor:
            assert anchor[1:] in headings(path), target + anchor


def test_decisions_are_numbered_without_a_gap_and_say_context_decision_consequence() -> None:
    numbers = [document.name[:4] for document in ADRS]
    assert numbers == [f"{number:04}" for number in range(1, len(ADRS) + 1)]
    for document in ADRS:
        text = document.read_text()
        title, *parts = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert title.startswith(f"{int(document.name[:4])}. "), document.name
        assert parts == ["Context", "Decision", "Consequence"], document.name
        # Half a page.
        assert len(text.split()) < 400, document.name
