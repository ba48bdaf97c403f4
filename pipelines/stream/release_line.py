"""The evidence of a release, as JSON in one line."""

from __future__ import annotations

import json
from typing import Final

from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.release import Release

LINE: Final = "release"
"""The column of the lines where releases are rows."""
RELEASE_VERSION: Final = 3
"""The version of the JSON. JSON without a version is version 1, which has no marks; up to version 2
operators counted from the beginning of history, and conflicts."""


def release_line(operator: ShardOperator, release: Release) -> str:
    """Return the evidence of a release of an operator as JSON in one line.

    It is a function of the polls, so a repeated release has the same line.
    """
    evidence = {
        "version": RELEASE_VERSION,
        "view": operator.key.view,
        "shard": operator.key.shard,
        "number": release.number,
        "mark_before": release.mark_before.hex(),
        "mark": release.mark.hex(),
        "frontier_us": release.frontier_us,
        "positions": list(release.positions),
        "events": release.events,
        "answers": release.answers.num_rows,
        "publications": release.publications.num_rows,
        # Counted since the stream began:
        "seen": release.seen,
        "kernel": release.kernel,
    }
    return json.dumps(evidence)
