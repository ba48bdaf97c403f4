"""The requests of some segments with their answers; those that got none, and whose fault it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import Project
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.pipelines.io.log import PARTITION, POSITION, forgotten_rows, one_batch
from tidemill.pipelines.stream.rejected_by_stream import are_of_log
from tidemill.pipelines.verify.diagnosis import Kind
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.follow.differences import request_place
from tidemill.pipelines.verify.follow.release_chain import Place, Reached
from tidemill.pipelines.verify.follow.segment_outputs import SegmentOutputs
from tidemill.pipelines.verify.follow.waiting_requests import due_together
from tidemill.pipelines.verify.outputs.extent import Answerable
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.served import Served, serve_beside_requests

_PLACE = ("partition", "position")


class RequestsServed:
    """Finds the answers of requests.

    Args:
        project: The project.
        shards: How many shards each view has.
        stream: The folder of the stream.
        is_exact: Whether requests wait for frontiers; else every one is answered at once.
    """

    def __init__(self, project: Project, shards: int, stream: Path, *, is_exact: bool) -> None:
        self._project, self._shards = project, shards
        self._outputs, self._is_exact = SegmentOutputs(stream, project), is_exact

    def serve(
        self,
        asked: pa.Table,
        segments: Sequence[int],
        reached: Mapping[Place, Reached],
        findings: Findings,
    ) -> tuple[Served, BoolArray]:
        """Find the request of each answer of some segments; note requests that got none.

        Args:
            asked: The requests that waited, and those that came since, ``(rows,)``.
            segments: The segments.
            reached: How far each operator has come after them.
            findings: Takes missing, extra and doubled answers, and requests that were given up.

        Returns:
            The answers with their requests; and bool, ``(rows,)``: the requests that still wait.
        """
        places = places_of(asked, PARTITION, POSITION)
        due = due_together(asked, self._is_passed(asked, reached))
        refused = self._refused(segments, asked, places[due], findings)
        predictions = self._outputs.predictions(segments)
        if predictions is None:
            nothing = {name: pa.array([], pa.int64()) for name in _PLACE}
            predictions = pa.table({"request_id": pa.array([], pa.string()), **nothing})
        # Those that were forgotten get no answer; whoever asked with them waits for them still.
        refused = np.union1d(refused, places[forgotten_rows(self._project.request, asked)])
        answerable = Answerable(answered=places[due], possible=places, refused=refused)
        served = serve_beside_requests(asked, predictions, answerable, self._project, findings)
        answered = np.isin(places, places_of(predictions, *_PLACE))
        waits: BoolArray = ~due & ~answered & ~np.isin(places, refused)
        return served, waits

    def _is_passed(self, asked: pa.Table, reached: Mapping[Place, Reached]) -> BoolArray:
        """Tell which requests all frontiers have passed: bool, ``(rows,)``."""
        passed = np.ones(len(asked), np.bool_)
        if not self._is_exact:
            return passed
        request = self._project.request
        times = hashing.bits(one_batch(asked.select([request.request_time])).column(0))
        for view in self._project.views:
            keys = one_batch(asked.select([request.key_column(view.entity)])).column(0)
            shards = hashing.shard_of(hashing.key_bytes(keys), self._shards)
            frontiers = [reached[view.name, n].frontier_us for n in range(self._shards)]
            passed &= times < np.array(frontiers, np.int64)[shards]
        return passed

    def _refused(
        self, segments: Sequence[int], asked: pa.Table, due: Int64Array, findings: Findings
    ) -> Int64Array:
        """Return the places of the requests that are rejected instead of answered.

        A request is given up only after a view has passed it without an answer: the answer is lost.

        Args:
            segments: The segments whose records are read.
            asked: The requests.
            due: The places of those that every view has passed.
            findings: Takes requests that were given up.
        """
        records = self._outputs.rejected(segments)
        mine = np.array(are_of_log(records), np.bool_)
        of_stream = records.column("stream").to_pylist()
        mine &= np.array([one == self._project.request.name for one in of_stream], np.bool_)
        records = records.filter(pa.array(mine))
        places = places_of(records.select(list(_PLACE)), *_PLACE)
        given_up = np.array(
            [one == rejected.Reason.NO_ANSWER for one in records.column("reason").to_pylist()],
            np.bool_,
        )
        answerable = given_up & np.isin(places, due)
        for row in np.flatnonzero(given_up).tolist():
            origin, detail = (str(records.column(n)[row]) for n in ("origin", "detail"))
            cause = f"a view has passed the request, and has not answered it: {detail}"
            if answerable[row]:
                cause = "the releases answer this request: it was not rejected"
            findings.add(
                Mismatch(
                    "rejected", origin, seen="a rejected record", expected="an answer",
                    cause=cause, kind=Kind.LOST,
                    events=self._named(asked, int(places[row])),
                )
            )  # fmt: skip
        found: Int64Array = places[~answerable]
        return found

    def _named(self, asked: pa.Table, place: int) -> tuple[str, ...]:
        """Return the request at a place, as the proof names events; nothing if it is not there."""
        rows = np.flatnonzero(places_of(asked, PARTITION, POSITION) == place)
        request = self._project.request
        names = (request.request_id, PARTITION, POSITION)
        return tuple(
            request_place(str(id), request.name, partition, position)
            for id, partition, position in zip(
                *(asked.select(names).take(pa.array(rows)).column(n).to_pylist() for n in names),
                strict=True,
            )
        )
