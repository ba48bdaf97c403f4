"""`tidemill upgrade` of a stream that replays files with late rows, repeats and late requests.

One source is much slower than the other, so many requests wait for some views, and were answered by
others, when the stream stops.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    BY_ZONE,
    EVALUATE_UNTIL,
    QUOTES,
    RIDES,
    STREAM_UNTIL,
    configuration,
    write_sources,
)
from tidemill import FeatureView, Project, col, count, first, last, sum
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.forget.forget import forget
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.stream_beginning import carried_joiners
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.upgrade.upgrade import upgrade
from tidemill.pipelines.verify.verify import verify

SLOW_RIDES = replace(RIDES, name="slow_rides", out_of_orderness="3h")
SLOW = FeatureView(
    "slow",
    entity=BY_DRIVER.entity,
    stream=SLOW_RIDES,
    hop="5m",
    features={"rides_6h": count(over="6h"), "last_fare": last(col("fare"), over="1d")},
)
NEW = FeatureView(
    "new",
    entity=BY_DRIVER.entity,
    stream=RIDES,
    hop="10m",
    features={
        "first_fare": first(col("fare"), over="6h"),
        "minutes": sum(col("minutes"), over="2h"),
    },
)
OTHER_ZONE = replace(BY_ZONE, features={**BY_ZONE.features, "more_1d": count(over="1d")})
OTHER_SLOW = replace(SLOW, hop="10m")
PART = (STREAM_UNTIL - EVALUATE_UNTIL) // 5


def version(
    config: Configuration, views: Sequence[FeatureView], shards: int = 2, joiners: int = 1
) -> Configuration:
    """Return the configuration of a version of the project."""
    project = Project("rides_project", request=QUOTES, views=list(views))
    options = replace(config.stream, joiners=joiners, poll_rows=40)
    return replace(config, project=project, shards=shards, stream=options, pinned=None)


def begun(folder: Path, mode: str) -> Configuration:
    """Return the first version, whose stream has stopped at a savepoint."""
    write_sources(folder)
    shutil.copy(folder / "rides.csv", folder / "slow.csv")
    config = configuration(folder, folder / "run", mode)
    slow = Source("slow_rides", (str(folder / "slow.csv"),), received="received_at")
    config = replace(config, sources={**config.sources, "slow_rides": slow})
    config = version(config, [BY_DRIVER, BY_ZONE, SLOW])
    backfill(config, QuietProgress(), publish=True)
    run(config, EVALUATE_UNTIL + PART, resume=False)
    return config


def run(config: Configuration, until_us: int | None, *, resume: bool = True) -> dict[str, Any]:
    return stream(config, QuietProgress(), engine="fnapi", until_us=until_us, resume=resume)


def proved(config: Configuration) -> dict[str, Any]:
    found = verify(config, QuietProgress(), sample=10)
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def carried(config: Configuration) -> int:
    folder = config.pin()
    run_of = StreamRun.read(stream_of(config.root))
    assert run_of is not None
    return carried_joiners(folder, run_of).requests_pending


@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_versions_one_after_the_other_are_proven(tmp_path: Path, mode: str) -> None:
    first_version = begun(tmp_path, mode)
    versions = [
        # Dropped, changed, kept, added, in another order.
        version(first_version, [SLOW, NEW, OTHER_ZONE]),
        # The slow one is changed: it answers requests that the others have answered.
        version(first_version, [OTHER_ZONE, OTHER_SLOW, NEW], joiners=2),
        # Other shards.
        version(first_version, [OTHER_ZONE, OTHER_SLOW, NEW], shards=3, joiners=2),
    ]
    if mode == "eager":
        del versions[1:]
    for number, config in enumerate(versions, start=2):
        done = upgrade(config, QuietProgress())
        assert done["upgraded"] == 1
        assert upgrade(config, QuietProgress())["upgraded"] == 0
        if mode == "exact":
            assert carried(config) > 5
        found = run(config, EVALUATE_UNTIL + number * PART)
        assert found["predictions"] > 5
        assert proved(config)["predictions"] == found["predictions"]
    upgrade(first_version, QuietProgress())  # back
    run(first_version, None)
    assert proved(first_version)["waiting_requests"] == 0


def test_an_entity_is_forgotten_in_a_stream_that_was_upgraded(tmp_path: Path) -> None:
    first_version = begun(tmp_path, "exact")
    config = version(first_version, [SLOW, BY_ZONE, NEW])
    upgrade(config, QuietProgress())
    waited = carried(config)
    backfill(config, QuietProgress())  # states of a build are made again, too
    figures = forget(config, "driver", "d3", QuietProgress())
    assert figures["removed"]["rows of logs"] > 50
    assert carried(config) < waited
    run(config, EVALUATE_UNTIL + 2 * PART)
    assert proved(config)["forgotten_rows"] > 0
