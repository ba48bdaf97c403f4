"""Epochs: which outputs of a run come before a savepoint, and which behind it.

A run of a live stream keeps its state at savepoints without stopping: marks travel with the rows,
and each stage keeps its state between what comes before a mark and what comes behind it. The
*epoch* of a poll, and of everything that is made from it, is how many marks its run has sent before
it. Files are named by it (`serving.files.segment_names`): epoch 0 is the run's first segment.

A record batch has its epoch in the metadata of its schema, where no stage but a sink looks.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

_EPOCH: Final = b"epoch"


def epoch_field(epoch: int) -> dict[str, int]:
    """Return the field of an epoch in a message or a state.

    Epoch 0 is left out: replays have no other, and versions without marks wrote no epoch.
    """
    return {"epoch": epoch} if epoch else {}


def with_epoch(batch: pa.RecordBatch, epoch: int) -> pa.RecordBatch:
    """Return a batch with its epoch; epoch 0 is not written down."""
    found = {key: value for key, value in (batch.schema.metadata or {}).items() if key != _EPOCH}
    if epoch:
        found[_EPOCH] = str(epoch).encode()
    return batch.replace_schema_metadata(found or None)


def epoch_of(batch: pa.RecordBatch) -> int:
    """Return the epoch of a batch."""
    return int((batch.schema.metadata or {}).get(_EPOCH, b"0"))
