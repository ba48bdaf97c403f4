"""The names of engines and modes, for the configuration and the command line; quick to import."""

from __future__ import annotations

from typing import Final

ENGINES_HERE: Final = ("fnapi", "prism", "flink")
"""The engines that run a stream on this machine."""
ENGINES: Final = (*ENGINES_HERE, "dataflow")
"""The engines of a stream; `pipelines.engines.choosing.Engine` also has one for tests."""
BATCH_ENGINES: Final = ENGINES
"""The engines that run what is in batch: backfills, and the analysis before training."""
MODES: Final = ("exact", "eager")
"""exact: answer a request when the frontier has passed it; eager: answer it at once."""
LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
