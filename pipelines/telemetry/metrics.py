"""Every metric of a stream: its name, what it counts, and its labels.

The names follow Prometheus's conventions: counters end in ``_total``, times are in seconds, sizes
in bytes. A label has as many values as the project has sources, views, partitions or reasons, never
as many as there are entities or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Combine = Literal["max", "min", "sum"]

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    1800.0,
)  # fmt: skip
"""The upper bounds of the buckets of times, in seconds."""
ROWS: Final = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
"""The upper bounds of the buckets of numbers of rows."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name.
        kind: A counter only rises; a gauge has a value; a histogram counts values by size.
        help: What it says, in one line.
        labels: The names of its labels.
        buckets: The upper bounds of a histogram's buckets, ascending, without infinity.
        combine: How the parts of a gauge, such as those of a view's shards, make one value.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    combine: Combine = "max"


_all: list[Metric] = []


def _declared(metric: Metric) -> Metric:
    _all.append(metric)
    return metric


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return _declared(Metric(name, "counter", help_, labels))


def _gauge(name: str, help_: str, *labels: str, combine: Combine = "max") -> Metric:
    return _declared(Metric(name, "gauge", help_, labels, combine=combine))


def _histogram(name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return _declared(Metric(name, "histogram", help_, labels, buckets))


STREAM: Final = _gauge(
    "tidemill_stream_info", "1; the labels say which stream this is.",
    "run", "project", "engine", "mode", "version",
)  # fmt: skip
STARTED: Final = _gauge("tidemill_stream_start_timestamp_seconds", "When the stream started.")
PROCESSES: Final = _gauge("tidemill_processes", "The processes of the stream that report figures.")

ROWS_READ: Final = _counter("tidemill_rows_read_total", "Rows that were read.", "source")
ROWS_ACCEPTED: Final = _counter(
    "tidemill_rows_accepted_total", "Rows that went into the log of a source.", "source"
)
ROWS_REJECTED: Final = _counter(
    "tidemill_rows_rejected_total", "Records that were rejected.", "source", "stage", "reason"
)
LATE_AFTER_QUIET: Final = _counter(
    "tidemill_rows_late_after_quiet_total",
    "Rows that were late because their partition had been taken for silent.", "source",
)  # fmt: skip
POLLS: Final = _counter("tidemill_polls_total", "Polls that were written down.")
POLLS_TAKEN: Final = _gauge(
    "tidemill_polls_taken", "The number of the last poll that an operator has taken."
)
POLLS_AHEAD: Final = _gauge(
    "tidemill_polls_ahead", "Polls that are written down and that no operator has taken."
)
OFFSET: Final = _gauge(
    "tidemill_source_offset", "The offset of the next message to read.", "source", "partition"
)
LAG: Final = _gauge(
    "tidemill_source_lag_messages",
    "Messages between the offset and the end of the partition, when the broker was last asked.",
    "source", "partition",
)  # fmt: skip
WATERMARK: Final = _gauge(
    "tidemill_source_watermark_timestamp_seconds",
    "Before this instant no row is expected from the partition.", "source", "partition",
)  # fmt: skip
WATERMARK_LAG: Final = _gauge(
    "tidemill_source_frontier_lag_seconds",
    "How far the least watermark of a source is behind the clock.", "source",
)  # fmt: skip
LAST_MESSAGE: Final = _gauge(
    "tidemill_source_last_message_timestamp_seconds",
    "When the partition's last message was read.", "source", "partition",
)  # fmt: skip
LOSSES: Final = _counter(
    "tidemill_source_losses_accepted_total",
    "Times that a partition had lost messages before they were read, and it was accepted.",
    "source",
)  # fmt: skip
LOST_MESSAGES: Final = _counter(
    "tidemill_source_lost_messages_total",
    "Messages that were lost so, at most; without those of which nobody knows the number.",
    "source",
)  # fmt: skip
REACHABLE: Final = _gauge(
    "tidemill_broker_reachable", "1 if the broker of a source answers, 0 if it is away.", "source"
)

FRONTIER: Final = _gauge(
    "tidemill_view_frontier_timestamp_seconds",
    "All events of the view before this instant are applied, in its slowest shard.", "view",
    combine="min",
)  # fmt: skip
FRONTIER_LAG: Final = _gauge(
    "tidemill_view_frontier_lag_seconds", "How far the frontier is behind the clock.", "view"
)
EVENTS: Final = _counter("tidemill_view_events_total", "Events that operators took.", "view")
REQUESTS: Final = _counter("tidemill_view_requests_total", "Requests that operators took.", "view")
LATE: Final = _counter(
    "tidemill_view_late_events_total", "Events that came behind the frontier.", "view"
)
LATE_REQUESTS: Final = _counter(
    "tidemill_view_late_requests_total", "Requests that came behind the frontier.", "view"
)
DUPLICATES: Final = _counter(
    "tidemill_view_duplicate_events_total", "Events that were delivered again.", "view"
)
REPEATS: Final = _counter(
    "tidemill_view_repeated_batches_total", "Batches that the engine delivered again.", "view"
)
EARLY: Final = _counter(
    "tidemill_view_early_batches_total", "Batches that waited for an earlier poll.", "view"
)
TILES: Final = _gauge("tidemill_view_tiles", "Tiles in the state of a view.", "view", combine="sum")
ENTITIES: Final = _gauge(
    "tidemill_view_entities", "Entities in the state of a view.", "view", combine="sum"
)
STATE_BYTES: Final = _gauge(
    "tidemill_view_state_bytes", "Bytes of the state of a view, in memory.", "view", combine="sum"
)
WAITING_ROWS: Final = _gauge(
    "tidemill_view_waiting_rows",
    "Rows that wait for the frontier of a view.",
    "view",
    combine="sum",
)
WAITING_REQUESTS: Final = _gauge(
    "tidemill_requests_waiting", "Requests that wait for the answers of views.", combine="sum"
)

PREDICTIONS: Final = _counter("tidemill_predictions_total", "Predictions that were made.")
PUBLICATIONS: Final = _counter(
    "tidemill_publications_total", "Rows that were published to the online store.", "view"
)
TO_STORE: Final = _histogram(
    "tidemill_freshness_event_to_store_seconds",
    "From the instant at which a value holds until it is in the online store.", SECONDS, "view",
)  # fmt: skip
TO_PREDICTION: Final = _histogram(
    "tidemill_freshness_event_to_prediction_seconds",
    "From the time of a request until its prediction.", SECONDS,
)  # fmt: skip
ANSWER: Final = _histogram(
    "tidemill_answer_seconds", "From the poll that read a request until its prediction.", SECONDS
)
SCORING: Final = _histogram(
    "tidemill_scoring_seconds", "Time to score a batch of requests with the model.", SECONDS
)
STORE_WRITE: Final = _histogram(
    "tidemill_store_write_seconds", "Time to write a bundle to the online store.", SECONDS
)
BATCH: Final = _histogram(
    "tidemill_batch_rows", "Rows of the batch that a stage works on at once.", ROWS, "stage"
)
SENT: Final = _counter(
    "tidemill_topic_records_total",
    "Records that were given to a topic: predictions, or rejected.", "section",
)  # fmt: skip

SAVEPOINTS: Final = _counter("tidemill_savepoints_total", "Savepoints that were kept.")
SAVEPOINT: Final = _gauge(
    "tidemill_savepoint_timestamp_seconds", "When the last savepoint was kept."
)
MISMATCHES: Final = _gauge(
    "tidemill_proof_mismatches", "Mismatches that the last `tidemill verify` found."
)
PROVEN: Final = _gauge("tidemill_proof_values", "Values that the last `tidemill verify` compared.")
LOST_REQUESTS: Final = _gauge(
    "tidemill_proof_lost_requests",
    "Requests that were due and had no answer when the last `tidemill verify` looked.",
)
PROOF_UP_TO: Final = _gauge(
    "tidemill_proof_up_to_timestamp_seconds",
    "What was served from rows received before it is proven by `tidemill verify --follow`.",
)
PROOF_ROUND: Final = _gauge(
    "tidemill_proof_round_timestamp_seconds",
    "When the last round of `tidemill verify --follow` ended.",
)
PROOF_CHECKED: Final = _gauge(
    "tidemill_proof_checked_values", "Values that `tidemill verify --follow` has recomputed."
)
PROOF_SHARE: Final = _gauge(
    "tidemill_proof_share", "The share of the entities that `tidemill verify --follow` chooses."
)
PROOF_DIFFERENCES: Final = _gauge(
    "tidemill_proof_differences",
    "Values that `tidemill verify --follow` has found to differ, by cause.", "cause",
)  # fmt: skip

PROOF_LOST_REQUESTS: Final = _gauge(
    "tidemill_proof_held_back_requests",
    "Requests of which `tidemill verify --follow` has found that the stream held them back.",
)

METRICS: Final = tuple(_all)
"""All metrics, in the order of the page."""
