"""The clock by which Feast's programs judge the age of values: that of the stream that fills them.

A stream records the clock of its sources (`StreamRun.clock`). `tidemill apply` writes it into the
``feature_store.yaml``, and a live stream does so when it begins, so readers change to the wall
clock once it feeds the store.
"""

from __future__ import annotations

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.serving.generations.current import find_current
from tidemill.serving.stores.feast_config import FEATURE_STORE_YAML, write_feature_store_yaml
from tidemill.serving.stores.online_places import Clock


def reader_clock(config: Configuration) -> Clock:
    """Return the clock of the root's stream; before a stream has begun that of its sources.

    Raises:
        StateVersionError: The record of the stream has a version that is not supported.
        DamagedState: It is damaged.
    """
    current = find_current(config.root)
    run = None if current is None else StreamRun.read(current.stream_folder)
    return config.clock if run is None else run.clock


def show_live_clock(config: Configuration, run: StreamRun) -> None:
    """Let Feast's programs judge age by the wall clock, if a live stream begins.

    Only an existing ``feature_store.yaml`` is written; that of a replay is left alone, since its
    clock may have been chosen (`tidemill apply --clock`).
    """
    if run.clock == "wall" and (config.places.root / FEATURE_STORE_YAML).exists():
        write_feature_store_yaml(config.project.name, config.places, clock=run.clock)
