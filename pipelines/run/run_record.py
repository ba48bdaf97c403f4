"""The record of whether a root holds all data or the configuration's sample.

Commands on an existing root (train, stream, verify, ...) must use the splits it was made with, or
they would look for requests that were never read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.run import paths
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import read_json

_MEND: Final = (
    'write {"sample": false} into it if the root holds all data, true if `demo --sample` made it'
)


def sampled(config: Configuration) -> Configuration:
    """Return the configuration of a run on the sample: its splits, and no rows received later.

    Raises:
        ConfigurationError: The configuration has no sample.
    """
    if config.sample is None:
        raise ConfigurationError(
            f"{config.path}: --sample needs a `sample` block with its own train_until, "
            "evaluate_until and stream_until"
        )
    return dataclasses.replace(
        config, splits=config.sample, read_until_us=config.sample.stream_until_us
    )


def remember(root: Path, sample: bool) -> None:
    """Record below the root whether it holds the sample."""
    with atomic_write(root / paths.RUN_RECORD) as unfinished:
        unfinished.write_text(json.dumps({"sample": sample}) + "\n")


def for_existing_run(config: Configuration) -> Configuration:
    """Return the configuration that the root was made with: the sample's if it holds that."""
    path = config.root / paths.RUN_RECORD
    if not path.exists():
        return config
    return sampled(config) if read_json(path, _is_sample, _MEND) else config


def _is_sample(stored: Any) -> bool:
    if not isinstance(stored["sample"], bool):
        raise TypeError(f"'sample' is {stored['sample']!r}, expected true or false")
    return bool(stored["sample"])
