"""The rejected records of a source in short, and the error where there are too many of them.

The promise: a source of which more rows are rejected than its ``max_rejected`` fails the command
that reads it. The error names the source, the most frequent reason, its column, an example and how
to mend it; the rejected records are kept all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.errors import TooManyRejected
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.run import paths

EXAMPLES: Final = "rejected_examples"
"""The key of a source's examples among its counts."""

_COLUMN: Final = r"""column (?P<column>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_VALUES: Final = "declare another dtype, name texts that mean null in nulls, or convert the values"
_NULLS: Final = "fill the column, or drop such rows in the source's transform"
REMEDIES: Final[Mapping[str, str]] = {
    Reason.BROKEN_CSV_LINE: "declare the source's format, or correct the lines",
    Reason.BROKEN_JSON: "declare the source's format, or correct the lines",
    Reason.DUPLICATE_KEY: "write each key of an object once",
    Reason.TOO_MANY_KEYS: "put varying keys into one object, or remove the source's transform",
    Reason.INVALID_UTF8: "save the files as UTF-8",
    Reason.TRANSFORM: "correct the source's transform or the rows",
    Reason.MISSING_COLUMN: "name the column in the file as it is declared",
    Reason.WRONG_TYPE: _VALUES,
    Reason.NULL_TIME: _NULLS,
    Reason.NULL_ID: _NULLS,
    Reason.TOO_LONG: "send shorter ids, or shorten them in the source's transform",
    Reason.MENDED: "correct the mended record",
    Reason.NAN: _VALUES,
    Reason.INFINITY: _VALUES,
    Reason.TIME_OUT_OF_RANGE: "correct the times, or name texts that mean null in nulls",
    Reason.NAIVE_TIME: "declare the source's zone",
    Reason.AMBIGUOUS_LOCAL_TIME: "declare the source's rule (ambiguous), or write offsets",
    Reason.NONEXISTENT_LOCAL_TIME: "declare the source's right zone, or correct the times",
    Reason.TOO_LATE: "raise the stream's out_of_orderness or allowed_lateness",
    Reason.REPEATED_REQUEST_ID: "give each request its own id, or declare repeated='count'",
    Reason.AHEAD: "raise the stream's max_ahead, or correct the clock",
    Reason.NO_VALUE: "declare tombstones: ignore for the source, or send a row",
    Reason.METADATA_CONFLICT: "rename the column that comes from beside the payload",
    Reason.REPEATED_HEADER: "send the header once, or take last_header:NAME",
    Reason.BROKEN_ARROW: "declare the format of the messages, or send whole Arrow streams",
    Reason.BROKEN_AVRO: "declare the schema and the frame that the messages have",
    Reason.BROKEN_PROTOBUF: "declare the message type that the messages have",
    Reason.NO_SCHEMA_ID: "remove the registry, or send messages with a schema id",
    Reason.UNKNOWN_SCHEMA: "name the registry that has the schema, or register it",
    Reason.TOO_LARGE: "send smaller messages",
}
"""What mends the records of a source that are rejected for a reason, in the configuration, the
definitions or the files."""


EXAMPLE_COLUMNS: Final = ("reason", "origin", "detail")
"""The columns of rejected records that `examples` needs."""


def examples(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """Return the first rejected record of each reason and column, the most frequent first.

    Args:
        batches: Rejected records of one source, at least one: the columns ``reason``, ``origin``
            and ``detail`` (`EXAMPLE_COLUMNS`) of `features.rows.rejected.SCHEMA`.

    Returns:
        ``reason``, ``column`` (None where the reason is about the whole line), ``records`` (how
        many have this reason and column), ``origin`` and ``detail`` of the first.
    """
    table = pa.Table.from_batches(batches)
    named = pc.extract_regex(table["detail"], _COLUMN)
    column = pc.utf8_slice_codeunits(pc.struct_field(named, "column"), 1, -1)
    rows = pa.table(
        {
            "reason": table["reason"],
            "column": column,
            "row": pa.array(np.arange(len(table))),
        }
    )
    found = rows.group_by(["reason", "column"]).aggregate([("row", "count"), ("row", "min")])
    found = found.sort_by([("row_count", "descending"), ("row_min", "ascending")])
    first = table.take(found["row_min"])
    return [
        {"reason": reason, "column": column, "records": count, "origin": origin, "detail": detail}
        for reason, column, count, origin, detail in zip(
            *(found[name].to_pylist() for name in ("reason", "column", "row_count")),
            *(first[name].to_pylist() for name in ("origin", "detail")),
            strict=True,
        )
    ]


def too_many(config: Configuration, sources: Mapping[str, Any]) -> TooManyRejected | None:
    """Return the error about the sources with too many rejected records; None if there are none.

    Args:
        config: The configuration.
        sources: The counts of each source (`pipelines.ingest.ingest`).
    """
    failed = {
        name: counts
        for name, counts in sources.items()
        if _share(counts) > config.sources[name].max_rejected
    }
    if not failed:
        return None
    name, counts = max(failed.items(), key=lambda item: _share(item[1]))
    worst = counts[EXAMPLES][0]
    others = f" (as in {', '.join(other for other in failed if other != name)})"
    return TooManyRejected(
        f"{name}: {counts['rejected']:,} of {counts['read'] - counts['dropped']:,} rows are "
        f"rejected, more than its max_rejected of {config.sources[name].max_rejected:.4g}"
        f"{others if len(failed) > 1 else ''}. {worst['records']:,} are {worst['reason']}, such as "
        f"{worst['origin']}: {_short(worst['detail'])}; to mend: "
        f"{REMEDIES.get(worst['reason'], 'correct the records')}. All are in {paths.REJECTED}/",
        sources,
    )


def _share(counts: Mapping[str, Any]) -> float:
    # Rows that the transform dropped are no rows of this stream.
    return float(counts["rejected"] / max(counts["read"] - counts["dropped"], 1))


def _short(detail: str) -> str:
    return detail if len(detail) <= 80 else f"{detail[:80].rpartition(' ')[0].rstrip(',')} ..."
