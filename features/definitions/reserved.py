"""Names of columns that the pipelines add; a definition that uses one is refused.

`tests/pipelines/reserved_names_test.py` compares them with what the pipelines write.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from tidemill.features.errors import DefinitionError, shown

EVENT_TIMESTAMP: Final = "event_timestamp"
"""The column of the instant from which a publication holds."""
VALID_UNTIL: Final = "tidemill_valid_until"
"""The Int64 field (microseconds) of the instant up to which a publication holds."""
REVISION: Final = "tidemill_revision"
"""The Int64 field that counts the events applied to the entity in the view."""

PUBLICATION_COLUMNS: Final = (EVENT_TIMESTAMP, VALID_UNTIL, REVISION)
"""Columns of every publication, beside its join key and its features."""

LOG_COLUMNS: Final = (
    "_position",
    "_received",
    "_partition",
    "_sent",
    "__reject__",
    "__drop__",
)
"""Columns that are added to those of a stream or a request when its rows are read."""

ANSWER_COLUMNS: Final = ("_as_of", "_release", "_shard", "values", "nulls")
"""Columns that are added to those of a request when it is answered."""

TRAINING_COLUMNS: Final = ("request_id", "request_time", "label", "label_time")
"""Columns of the training table, beside the model inputs."""

PREDICTION_COLUMNS: Final = (
    "request_id",
    "request_time",
    "partition",
    "position",
    "score",
    "bundle_version",
    "transform_hash",
    "spec_hash",
    "device",
    "tensorflow",
    "xla",
    "padded_rows",
    "call_row",
    "received_us",
    "sent_us",
    "created_us",
)
"""Columns of a prediction, beside the model inputs that it was made from."""


def check_not_reserved(name: str, reserved: Collection[str], what: str, owner: str) -> None:
    """Check that a name is free.

    Args:
        name: The name.
        reserved: The names that are taken.
        what: What the name is for; used in the error.
        owner: What has columns of the reserved names; used in the error.
    """
    if name in reserved:
        raise DefinitionError(
            f"{what} {shown(name)} is the name of a column that {owner} carries "
            f"({', '.join(reserved)}); rename it"
        )
