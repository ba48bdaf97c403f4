"""The names of all folders and files below a run's root, each once.

Stores and bundles are named by what writes them (`serving.stores.places`, `serving.bundles`), the
log by its reader and writer (`pipelines.io.log`).
"""

from __future__ import annotations

from typing import Final

from tidemill.pipelines.io.log import LOG as LOG
from tidemill.serving.bundles.current import BUNDLES as BUNDLES
from tidemill.serving.stores.places import OFFLINE as OFFLINE

RUN_RECORD: Final = "run.json"
"""Says whether the root holds all data or a sample."""
SUMMARY: Final = "summary.json"
"""What each stage counted and measured."""
REPORT: Final = "report.html"
SCRATCH: Final = "scratch"
"""Files that a stage needs while it runs."""

REJECTED: Final = "rejected"
"""Records that were refused when the sources' files were read."""
EXPORT: Final = "export"
"""Below `REJECTED`: those records as texts, for a person to mend."""
MENDED: Final = "mended"
"""Payloads that a person has mended, by source."""
TRAINING_TABLE: Final = "features"
"""The features of the requests that a bundle is trained on."""

STATES: Final = "states"
"""The states that a backfill hands over."""
SAVEPOINTS: Final = "stops"
"""A folder of states for each savepoint at which the stream stopped."""
HANDOFF: Final = "handoff.json"
"""Makes a folder of states count."""

STREAM_RUN: Final = "stream.json"
"""How the root's stream is being run."""
PREDICTIONS: Final = "predictions"
RELEASES: Final = "releases"
"""The evidence of every step of the stream's operators."""
PUBLICATIONS: Final = "publications"
"""Every publication of the stream, by view."""
REJECTED_BY_STREAM: Final = "rejected_by_stream"
"""Records that the stream refused, and requests that it could not answer."""
