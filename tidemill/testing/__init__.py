"""Tests of your own features, without Beam, a store or a folder.

* `features_at`: values of a view or a project at given instants, from a few rows.
* `ShardPlayer`: play sequenced batches in any order, with duplicates and restarts.
* `compare_with_run`: compare what a recorded run served with what the current definitions give.
"""

from tidemill.testing.feature_values import features_at, rejected_rows
from tidemill.testing.recorded_run import RunComparison, compare_with_run
from tidemill.testing.shard_player import Checkpoint, Released, ShardPlayer

__all__ = [
    "Checkpoint",
    "Released",
    "RunComparison",
    "ShardPlayer",
    "compare_with_run",
    "features_at",
    "rejected_rows",
]
