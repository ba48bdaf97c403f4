"""Tables of figures: drawn on a terminal, aligned with spaces in a file."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TextIO

from tidemill.features.contract import time_of, write_instant

_INSTANT: Final = "_us"
"""The end of the name of a figure that is an instant: microseconds, UTC."""
_LISTED: Final = 8
"""A list of at most so many items is printed; of a longer list, its length."""
_LONG: Final = 1_000
_SHOWN: Final = 100
"""Of a text that is long, such as the id of a hostile request, the beginning is printed."""
_ROWS: Final = 20
"""Of a list of mappings, at most so many rows are printed; the summary has them all."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: The title; may be empty.
        columns: The headings.
        rows: The rows, each with one text per column.
        numbers: The indices of the columns to align on the right.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


def figure_tables(title: str, figures: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a stage's figures.

    Returns:
        A table of names and values, where a value of an inner mapping has its path as name, and a
        figure whose name ends in ``_us`` is an instant; then one table for each list of flat
        mappings, with the keys as columns.
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
            if str(key).endswith(_INSTANT):
                item, key = _instants(item), str(key).removesuffix(_INSTANT)
            _collect(item, (*above, str(key).replace("_", " ")), rows, lists, title)
    elif _lists_mappings(value) and any(
        isinstance(inner, Mapping) or _lists_mappings(inner)
        for item in value
        for inner in item.values()
    ):
        # Too deep for one table: list each item as a mapping, by its name if it has one.
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


def _instants(value: Any) -> Any:
    """Write the instants in a figure as texts."""
    if isinstance(value, Mapping):
        return {key: _instants(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_instants(item) for item in value]
    return value if value is None else write_instant(value)


def _lists_mappings(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Mapping) for item in value)
    )


def write_value(value: Any) -> str:
    """Format a figure.

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
    text = str(value)
    if len(text) > _LONG:
        return f"{text[:_SHOWN]}… ({len(text):,} characters)"
    return text


def print_tables(tables: Sequence[Table], stream: TextIO) -> None:
    """Print tables: drawn on a terminal, aligned with spaces elsewhere."""
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
    """Yield the aligned lines of a table."""
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
    """Return a table with a row for each column and the first column as headings."""
    (first, headings), *others = columns.items()
    return Table(
        title,
        (first, *map(_in_full, headings)),
        [(name, *map(_in_full, values)) for name, values in others],
        frozenset(range(1, len(headings) + 1)),
    )


def _in_full(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return write_instant(time_of(value))
    return "-" if value is None else str(value)
