"""What proofs have found, as gauges of the stream that they prove."""

from __future__ import annotations

from pathlib import Path

from tidemill.features.contract import SECOND
from tidemill.features.errors import TidemillError
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.proof_record import Cause, ProofRecord, record_path
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.exposition import Values


class ProofFigures:
    """Reads what the last `tidemill verify`, and the one that follows, have found.

    A file is read when it has changed. One that is damaged says nothing: the commands that read it
    say what is wrong with it.

    Args:
        root: The root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[Path, int] = {}
        self._values: dict[Path, Values] = {}

    def __call__(self) -> Values:
        """Return the gauges."""
        found: dict[tuple[str, tuple[str, ...]], float] = {}
        for path, read in (
            (self._root / paths.SUMMARY, self._of_summary),
            (record_path(self._root), self._of_record),
        ):
            try:
                written = path.stat().st_mtime_ns
            except OSError:
                continue
            if self._seen.get(path) != written:
                self._seen[path] = written
                try:
                    self._values[path] = read()
                except (TidemillError, OSError):
                    self._values[path] = {}
            found |= self._values[path]
        return found

    def _of_summary(self) -> Values:
        proof = read_summary(self._root).get("verify", {})
        named = (
            ("mismatches", metrics.MISMATCHES),
            ("values", metrics.PROVEN),
            ("lost_requests", metrics.LOST_REQUESTS),
        )
        return {
            (metric.name, ()): float(proof[name])
            for name, metric in named
            if isinstance(proof.get(name), int)
        }

    def _of_record(self) -> Values:
        record = ProofRecord.read(self._root)
        if record is None:
            return {}
        found: dict[tuple[str, tuple[str, ...]], float] = {
            (metrics.PROOF_ROUND.name, ()): record.at_us / SECOND,
            (metrics.PROOF_CHECKED.name, ()): float(record.values),
            (metrics.PROOF_SHARE.name, ()): record.share,
            (metrics.PROOF_LOST_REQUESTS.name, ()): float(len(record.lost_requests)),
            **{
                (metrics.PROOF_DIFFERENCES.name, (str(cause),)): float(record.causes.get(cause, 0))
                for cause in Cause
            },
        }
        if record.up_to_us:
            found[metrics.PROOF_UP_TO.name, ()] = record.up_to_us / SECOND
        return found
