"""Sentences of docstrings, as text of a page."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from typing import Any, Final

_ENTRY: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)
_INTERNAL: Final = re.compile(r"\s*\((?:in )?`[\w.]+`(?:, `[\w.]+`)*\)")


def entries(documented: Any, section: str) -> dict[str, str]:
    """Return the entries of a section of a docstring, such as ``Attributes``, by name.

    A class has those of the classes that it extends too. References to the code's own modules in
    parentheses are left out.
    """
    if inspect.isclass(documented):
        parents = [base for base in documented.__bases__ if base.__module__ != "builtins"]
        inherited = [entries(base, section) for base in parents if has(base, section)]
        own = _entries(documented, section)
        return {name: words for found in (*inherited, own) for name, words in found.items()}
    return _entries(documented, section)


def has(documented: Any, section: str) -> bool:
    """Tell whether a docstring has a section."""
    return f"\n{section}:\n" in (inspect.getdoc(documented) or "")


def _entries(documented: Any, section: str) -> dict[str, str]:
    text = inspect.getdoc(documented) or ""
    _, found, rest = text.partition(f"\n{section}:\n")
    if not found:
        raise ValueError(f"{documented} has no {section} in its docstring")
    part = re.split(r"\n\n", rest)[0]
    return {name: sentence(words) for name, words in _ENTRY.findall(part)}


def summary(documented: Any) -> str:
    """Return the first paragraph of a docstring."""
    return sentence((inspect.getdoc(documented) or "").split("\n\n")[0])


def constants(module: str) -> dict[str, str]:
    """Return the texts after a module's constants, by name."""
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    return {
        before.target.id: sentence(after.value.value)
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


def sentence(text: str) -> str:
    """Write a text on one line, with single backticks."""
    return _INTERNAL.sub("", " ".join(text.split()).replace("``", "`"))


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
