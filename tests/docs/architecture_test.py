"""docs/architecture.md draws the layers that are checked, and names only files that exist."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.markdown import DOCS, ROOT, prose

ROOMS = ("features", "serving", "pipelines")
ARCHITECTURE = DOCS / "architecture.md"
PAGES = tuple(sorted(DOCS.glob("*.md")))
ADRS = tuple(sorted((DOCS / "adr").glob("*.md")))
_NAMED = re.compile(r"`([\w/]+\.py)`")
_LINK = re.compile(r"\]\(([^)#]*)(#[^)]*)?\)")


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def contracts() -> dict[str, list[set[str]]]:
    """The layers that `lint-imports` checks, from the top, by package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {
        contract["containers"][0]: [set(layer.split(" | ")) for layer in contract["layers"]]
        for contract in settings["contracts"]
        if contract["type"] == "layers"
    }


def drawn_layers() -> dict[str, list[set[str]]]:
    """The layers that the page draws; text after two spaces is a remark."""
    found = re.findall(
        r"<!-- layers: (\S+) -->\n```\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL
    )
    return {
        package: [set(re.split(r"\s{2,}", line)[0].split(" | ")) for line in lines.splitlines()]
        for package, lines in found
    }


def test_the_page_draws_the_layers_that_are_checked() -> None:
    assert drawn_layers() == contracts()


@pytest.mark.parametrize("room", ROOMS)
def test_every_package_says_what_it_promises(room: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / room).rglob("__init__.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


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
