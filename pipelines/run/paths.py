"""The names of all folders and files below a run's root.

The modules that write stores, bundles and the log define those names.
"""

from __future__ import annotations

from typing import Final

from tidemill.pipelines.io.log import LOG as LOG
from tidemill.serving.bundles.current import BUNDLES as BUNDLES

RUN_RECORD: Final = "run.json"
"""Whether the root holds all data or a sample."""
ROOT_ID: Final = "root-id.json"
"""A random text that tells this root from all others."""
SUMMARY: Final = "summary.json"
"""The figures of each stage."""
REPORT: Final = "report.html"
PROOF: Final = "proof"
"""The record and the page of a proof that follows a stream (`pipelines.run.proof_record`)."""
SCRATCH: Final = "scratch"
"""Temporary files of a stage."""

JOBS: Final = "jobs"
"""Jobs in batch whose workers are other processes, while they run."""

REJECTED: Final = "rejected"
"""Records rejected while the files of the sources were read."""
EXPORT: Final = "export"
"""Below `REJECTED`: those records as text, for a person to repair."""
MENDED: Final = "mended"
"""Repaired payloads, by source."""
MENDED_LIVE: Final = "mended_live"
"""Repaired payloads of records of topics, by replay."""
TRAINING_TABLE: Final = "features"
"""The training table: requests with features and labels."""

STATES: Final = "states"
"""The states that a backfill writes for the stream."""
SAVEPOINTS: Final = "stops"
"""A folder of states for each savepoint."""
SAVEPOINT: Final = "savepoint.json"
"""Which savepoint of a stream is the last one."""
HANDOFF: Final = "handoff.json"
"""The record of a folder of states; a folder without it is ignored."""

STREAM_RUN: Final = "stream.json"
"""Mode and start of the root's stream, and whether it has ended."""
STREAM_BEGINS: Final = "begins.json"
"""The same of a stream whose start has not filled the online store yet."""
UPGRADE: Final = "upgrade.json"
"""Of a stream that goes on with one of another version of the project: how it began."""
CARRIED: Final = "carried"
"""The requests that the stream before had not answered, and what it had of their answers."""
DELIVERED: Final = "delivered.json"
"""Where the stream's messages begin in the topics that it writes to."""
CUTS: Final = "cuts.log"
"""Where the stream's savepoints have cut its polls."""
PREDICTIONS: Final = "predictions"
RELEASES: Final = "releases"
"""The evidence of every step of the stream's operators."""
PUBLICATIONS: Final = "publications"
"""Every publication of the stream, by view."""
REJECTED_BY_STREAM: Final = "rejected_by_stream"
"""Records that the stream rejected, and requests that it could not answer."""
STREAM_OUTPUTS: Final = (PREDICTIONS, RELEASES, PUBLICATIONS, REJECTED_BY_STREAM)
"""The folders whose files begin with the number of the segment that wrote them."""
