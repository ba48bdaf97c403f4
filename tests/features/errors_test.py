"""The tree of errors: complete, as the drawing shows it, and every leaf is raised somewhere."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.markdown import ROOT
from tidemill.features import errors
from tidemill.features.errors import TidemillError

ROOMS = ("features", "serving", "pipelines", "tidemill/testing")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, TidemillError)
]
LEAVES = [kind for kind in TREE if not kind.__subclasses__()]


def drawn() -> dict[str, tuple[str, set[str]]]:
    """The parent and the builtins of each class of the drawing, by name."""
    assert errors.__doc__ is not None
    lines = errors.__doc__.split("```")[1].strip().splitlines()
    found: dict[str, tuple[str, set[str]]] = {}
    above = [lines[0].strip()]
    for line in lines[1:]:
        match = re.fullmatch(r"([│ ]*)[├└]── (\w+)(?: \((.*?)\))?(?: {2,}.*)?", line)
        assert match is not None, line
        depth = len(match[1]) // 4 + 1
        assert match[2] not in found, line
        found[match[2]] = (above[depth - 1], set(re.findall(r"\w+", match[3] or "")))
        above = [*above[:depth], match[2]]
    return found


def test_the_drawing_is_the_tree() -> None:
    declared = {}
    for kind in TREE:
        if kind is TidemillError:
            continue
        ours = [base.__name__ for base in kind.__bases__ if issubclass(base, TidemillError)]
        others = {base.__name__ for base in kind.__bases__ if not issubclass(base, TidemillError)}
        assert len(ours) == 1, kind
        declared[kind.__name__] = (ours[0], others)
    assert drawn() == declared


def exception_classes(path: Path, known: set[str]) -> Iterator[str]:
    """The classes of a file whose bases are exceptions, by name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if bases & known:
                known.add(node.name)
                yield node.name


def test_every_exception_class_of_the_product_is_in_the_tree() -> None:
    """Except a private one that only its own module raises and catches."""
    known = {
        name
        for name, kind in vars(builtins).items()
        if isinstance(kind, type) and issubclass(kind, BaseException)
    } | {kind.__name__ for kind in TREE}
    outside = [
        (path, name)
        for path in SOURCES
        for name in exception_classes(path, known)
        if not (path.name == "errors.py" and path.parent.name == "features")
    ]
    assert [f"{path.relative_to(ROOT)}: {n}" for path, n in outside if n[0] != "_"] == []
    for path, name in outside:
        text = path.read_text()
        assert f"except {name}" in text, f"{path}: {name} is caught nowhere in its module"
        assert not [p for p in SOURCES if p != path and re.search(rf"\b{name}\b", p.read_text())]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_is_raised_somewhere(kind: type[TidemillError]) -> None:
    made = re.compile(rf"\b{kind.__name__}\(|\({kind.__name__},")
    where = [path for path in SOURCES if path.name != "errors.py" and made.search(path.read_text())]
    assert where, f"nothing raises {kind.__name__}"


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_a_message_reads_as_it_was_written(kind: type[TidemillError]) -> None:
    """Also of a KeyError and an OSError, and of an error that an engine rebuilds from a message."""
    assert str(kind("what, where, what to do")) == "what, where, what to do"
    again = kind(f"{kind('a').args[0]} [while running 'Step']")
    assert isinstance(again, kind)
