"""The evidence of a release, as JSON in one line."""

from __future__ import annotations

import dataclasses
import json
from typing import Final

from tidemill.pipelines.stream.operator import Release, ShardOperator

RELEASE_VERSION: Final = 1
"""The version of the JSON; JSON without a version is version 1, too."""


def release_line(operator: ShardOperator, release: Release) -> str:
    """Return the evidence of a release as JSON in one line."""
    evidence = {
        "version": RELEASE_VERSION,
        "view": operator.key.view,
        "shard": operator.key.shard,
        "number": release.number,
        "frontier_us": release.frontier_us,
        "positions": list(release.positions),
        "events": release.events,
        "answers": release.answers.num_rows,
        "publications": release.publications.num_rows,
        # Counted since the operator's start:
        "seen": dataclasses.asdict(operator.counters),
        "kernel": dataclasses.asdict(operator.state.counters),
    }
    return json.dumps(evidence)
