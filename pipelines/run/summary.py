"""The summary of a run: what each stage counted and measured, kept in ``root/summary.json``.

What is promised here: the file always holds a whole summary. A stage's figures replace those of
its last run and leave the other stages' alone, also when two stages end at the same time.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from tidemill.features.errors import InputError, StateError
from tidemill.pipelines.run import paths
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading

_LISTED: Final = 8
"""Up to this many items of a list are printed; of a longer one the number."""
_ROWS: Final = 20
"""So many rows of a list of mappings are printed at most; the file has them all."""


@dataclass(frozen=True)
class Table:
    """A table for a reader.

    Attributes:
        title: Above it; may be empty.
        columns: Their headings.
        rows: Texts, as many in each row as there are columns.
        numbers: The places of the columns that are aligned on the right.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


_ORDER: Final = ("backfill", "train", "stream", "verify")
"""The stages of which each builds on those before it."""


def read_summary(root: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of the last run of each stage, by stage; empty before the first.

    Raises:
        StateError: The file is no summary.
    """
    path = root / paths.SUMMARY
    if not path.exists():
        return {}
    with reading(path, "remove it and run again"):
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path} is no JSON ({error}); remove it and run again") from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise StateError(f"{path} must map stages to their figures; remove it and run again")
    return found


def write_summary(root: Path, stage: str, figures: Mapping[str, Any]) -> None:
    """Put a stage's figures into the summary, in place of those of its last run.

    The figures of the stages that build on it are removed: they are of what was there before.

    Args:
        root: The run's root; made if it is missing.
        stage: The stage's name.
        figures: JSON values by name: numbers, texts, booleans, None, lists and mappings of these.

    Raises:
        InputError: A figure is no JSON value (NaN and infinity are none).
        StateError: The file that is there is no summary.
    """
    _check(figures, stage)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        summary = read_summary(root)
        summary[stage] = dict(figures)
        if stage in _ORDER:
            for later in _ORDER[_ORDER.index(stage) + 1 :]:
                summary.pop(later, None)
        with atomic_write(root / paths.SUMMARY, durable=True) as unfinished:
            unfinished.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", "utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _check(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"summary: {name} has the key {key!r}, expected a text")
            _check(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check(item, f"{name}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"summary: {name} is {value}; write None for what has no value")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise InputError(
            f"summary: {name} is a {type(value).__name__}, expected a JSON value; convert it"
        )


def figure_tables(title: str, figures: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a stage's figures.

    Args:
        title: Above the first one.
        figures: As for `write_summary`.

    Returns:
        One table of names and values, those of inner mappings with the names above them; then one
        table for each list of flat mappings, its columns the keys.
    """
    rows: list[tuple[str, str]] = []
    lists: list[Table] = []
    _collect(figures, (), rows, lists, title)
    main = [Table(title, ("figure", "value"), rows, frozenset([1]))] if rows else []
    return [*main, *lists]


def _collect(
    value: Any,
    above: tuple[str, ...],
    rows: list[tuple[str, str]],
    lists: list[Table],
    title: str,
) -> None:
    name = " / ".join(above)
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, (*above, str(key).replace("_", " ")), rows, lists, title)
    elif _lists_mappings(value) and any(
        isinstance(inner, Mapping) or _lists_mappings(inner)
        for item in value
        for inner in item.values()
    ):
        # Too deep for one table: each item is a mapping of its own, by its name if it has one.
        for place, item in enumerate(value):
            inner = {key: figure for key, figure in item.items() if key != "name"}
            _collect(inner, (*above, str(item.get("name", place))), rows, lists, title)
    elif _lists_mappings(value):
        keys = list(dict.fromkeys(key for item in value for key in item))
        cut = f" (the first {_ROWS} of {len(value):,})" if len(value) > _ROWS else ""
        lists.append(
            Table(
                f"{title}: {name}{cut}",
                [key.replace("_", " ") for key in keys],
                [[write_value(item.get(key)) for key in keys] for item in value[:_ROWS]],
                frozenset(
                    place
                    for place, key in enumerate(keys)
                    if all(type(item.get(key)) in (int, float, type(None)) for item in value)
                ),
            )
        )
    else:
        rows.append((name, write_value(value)))


def _lists_mappings(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Mapping) for item in value)
    )


def write_value(value: Any) -> str:
    """Write a figure for a reader.

    >>> write_value(336776), write_value(0.23714), write_value(None)
    ('336,776', '0.2371', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        if len(value) > _LISTED:
            return f"{len(value):,} values"
        return ", ".join(map(write_value, value)) or "none"
    return str(value)


def print_tables(tables: Sequence[Table], stream: TextIO) -> None:
    """Print tables: drawn on a terminal, aligned with spaces elsewhere.

    Args:
        tables: What to print, one below the other.
        stream: Where to, as a rule ``sys.stdout``.
    """
    if not stream.isatty():
        stream.write("\n".join("\n".join(_plain(table)) + "\n" for table in tables))
        stream.flush()
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(file=stream)
    for table in tables:
        drawn = Drawn(
            title=Text(table.title) if table.title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for place, heading in enumerate(table.columns):
            side = "right" if place in table.numbers else "left"
            drawn.add_column(Text(heading), justify=side, overflow="fold")  # type: ignore[arg-type]
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)


def _plain(table: Table) -> Iterator[str]:
    """Yield the lines of a table for a file or a pipe."""
    if table.title:
        yield table.title
    lines = [table.columns, *table.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if place in table.numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def columns_as_rows(columns: Mapping[str, Sequence[Any]], title: str = "") -> Table:
    """Turn columns into a table with one row for each, for few rows of many columns.

    Args:
        columns: Values by column name, written in full; those of the first column become the
            headings.
        title: Above the table.
    """
    (first, headings), *others = columns.items()
    return Table(
        title,
        (first, *map(_in_full, headings)),
        [(name, *map(_in_full, values)) for name, values in others],
        frozenset(range(1, len(headings) + 1)),
    )


def _in_full(value: Any) -> str:
    return "-" if value is None else str(value)
