"""The record of a proof that follows a stream, ``root/proof/proof.json``: what it has proven.

`tidemill verify --follow` replaces the record after each round, in one step, and waits for the
disk. So a proof that is killed goes on from its last whole round, and `tidemill status`, the
metrics of the stream and the page of the proof read what is true.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tidemill.pipelines.run.paths import PROOF as PROOF
from tidemill.serving.files.records import RecordFormat, read_record, write_record

_RECORD: Final = "proof.json"
PAGE: Final = "proof.html"
LOCK: Final = "proof.lock"

HELD_BACK_REMEDY: Final = (
    "stop the stream and run `tidemill stream --resume`: an answer that the engine holds back "
    "comes out as it stops, or is repeated from the last savepoint; then verify again"
)
"""What to do about requests whose answers a stream that runs holds back."""
ROUNDS_KEPT: Final = 480
"""So many rounds are kept; when there are more, the older half is joined, two rounds to one."""
DIFFERENCES_KEPT: Final = 80
"""So many of the last differences are kept, at most `_OF_A_CAUSE` of each cause and output."""
_OF_A_CAUSE: Final = 15


class Cause(enum.StrEnum):
    """Why a value differs from the one that is right."""

    LATE_EVENT = "late event"
    LATE_REQUEST = "late request"
    EXPIRED = "expired"
    VERSION = "version"
    LOST = "lost by the engine"
    UNEXPLAINED = "unexplained"

    @property
    def is_mismatch(self) -> bool:
        """Whether such a difference is a fault: nothing that is promised explains it."""
        return self in (Cause.LOST, Cause.UNEXPLAINED)


@dataclass(frozen=True)
class Difference:
    """A value that differs.

    Attributes:
        at: When it was found, ISO 8601, UTC.
        cause: A `Cause`.
        verdict: ``as seen`` if it differs from what the stream had when it answered, ``as
            complete`` if only rows that came later make it differ.
        what: What differs (`pipelines.verify.findings.Mismatch.what`).
        id: The id of the request, or the key of the entity.
        entity: The key of the entity; empty if the difference concerns no single one.
        view: The view; empty if it concerns all of the prediction.
        feature: The column.
        as_of: The instant of the value, ISO 8601, UTC; empty if it has none.
        served: The value that was served.
        recomputed: The value that is right.
        why: More about the cause.
        events: The events to blame: id, and source, partition and place.
    """

    at: str
    cause: str
    verdict: str
    what: str
    id: str
    entity: str = ""
    view: str = ""
    feature: str = ""
    as_of: str = ""
    served: str = ""
    recomputed: str = ""
    why: str = ""
    events: Sequence[str] = ()


@dataclass(frozen=True)
class Round:
    """A round of the proof, or several that were joined.

    Attributes:
        at_us: When it ended.
        up_to_us: All that was served from rows received before this instant is proven.
        seconds: How long it took.
        behind_s: How far the proof was behind the clock then; 0 if no live stream ran.
        served: How many values were served.
        values: How many of them were recomputed.
        share: The share of the entities that was chosen.
        causes: Cause to the number of differences.
        fresh_s: Half of the values were in the store so many seconds after they held; None if that
            is not known.
    """

    at_us: int
    up_to_us: int
    seconds: float
    behind_s: float
    served: int
    values: int
    share: float
    causes: Mapping[str, int] = field(default_factory=dict)
    fresh_s: float | None = None

    def joined(self, later: Round) -> Round:
        """Return this round and the one after it as one."""
        return Round(
            later.at_us,
            later.up_to_us,
            self.seconds + later.seconds,
            max(self.behind_s, later.behind_s),
            self.served + later.served,
            self.values + later.values,
            later.share,
            added(self.causes, later.causes),
            later.fresh_s,
        )


@dataclass(frozen=True)
class ProofRecord:
    """What a proof that follows a stream has proven.

    Attributes:
        generation: The generation of the stream.
        stream: The number of the stream.
        began: The record that the stream began with (`StreamRun.began`); a stream that starts over
            has another number.
        at_us: When the record was written.
        up_to_us: All that was served from rows received before this instant is proven.
        polls: The number of the last poll whose outputs are proven.
        segment: The first segment whose outputs are not all proven.
        reread: Where a proof that goes on begins to read again: the first segment of which it
            needs answers, and the positions before it; it does not count them twice.
        digests: Source to the prefix digest of the log at the proven positions.
        share: The share of the entities that was chosen.
        counts: What was compared, by name: ``predictions``, ``publications``, ``store_rows``...
        served: How many values were served.
        values: How many of them were recomputed.
        causes: Cause to the number of differences.
        differences: The last differences, the newest first.
        rounds: The last rounds, the oldest first.
        behind_s: How far the proof was behind the clock.
        notes: What is not proven, and why; the newest last.
        stops: Why the proof cannot go on from here; empty while it can.
        lost: What topics have lost before it was read, and a person has accepted
            (`pipelines.io.live.lost.AcceptedLoss.as_figures`).
        lost_requests: The ids of the requests that no savepoint holds and the stream has held back
            (`pipelines.verify.lost_requests`): their values are counted.
    """

    generation: str
    stream: int
    began: str
    at_us: int = 0
    up_to_us: int = 0
    polls: int = 0
    segment: int = 1
    reread: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0
    counts: Mapping[str, int] = field(default_factory=dict)
    served: int = 0
    values: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    differences: Sequence[Difference] = ()
    rounds: Sequence[Round] = ()
    behind_s: float = 0.0
    notes: Sequence[str] = ()
    stops: str = ""
    lost: Sequence[Mapping[str, Any]] = ()
    lost_requests: Sequence[str] = ()

    @property
    def mismatches(self) -> int:
        """The number of differences that are faults."""
        return sum(count for cause, count in self.causes.items() if Cause(cause).is_mismatch)

    def with_round(self, done: Round, differences: Sequence[Difference]) -> ProofRecord:
        """Return the record after a round."""
        rounds = [*self.rounds, done]
        if len(rounds) > ROUNDS_KEPT:
            half = ROUNDS_KEPT // 2
            old = rounds[:half]
            rounds = [a.joined(b) for a, b in zip(old[::2], old[1::2], strict=True)] + rounds[half:]
        return dataclasses.replace(
            self,
            at_us=done.at_us,
            up_to_us=done.up_to_us,
            share=done.share,
            served=self.served + done.served,
            values=self.values + done.values,
            causes=added(self.causes, done.causes),
            differences=_newest([*reversed(differences), *self.differences]),
            rounds=rounds,
            behind_s=done.behind_s,
        )

    def write(self, root: Path, name: str = _RECORD) -> None:
        """Write the record below a root, and wait for the disk.

        Args:
            root: The root.
            name: The name of the file.

        Raises:
            FileError: It cannot be written.
        """
        folder = root / PROOF
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / name, _FORM, dataclasses.asdict(self), durable=True)

    def put_away(self, root: Path) -> None:
        """Keep the record of a stream that another one follows, beside that of the next."""
        self.write(root, f"{self.generation}-stream-{self.stream:06d}.json")

    @staticmethod
    def read(root: Path) -> ProofRecord | None:
        """Read the record of a root; None if there is none.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = record_path(root)
        if not path.exists():
            return None
        found = read_record(path, _FORM)
        found["differences"] = [Difference(**one) for one in found["differences"]]
        found["rounds"] = [Round(**one) for one in found["rounds"]]
        return ProofRecord(**found)


def record_path(root: Path) -> Path:
    """Return the file of the record of a root."""
    return root / PROOF / _RECORD


def added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Add counts by name."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *other)}


def _newest(found: Sequence[Difference]) -> list[Difference]:
    kept: list[Difference] = []
    of_cause: Counter[tuple[str, str]] = Counter()
    for one in found:
        of_cause[one.cause, one.what] += 1
        if of_cause[one.cause, one.what] <= _OF_A_CAUSE:
            kept.append(one)
    return kept[:DIFFERENCES_KEPT]


_FORM: Final = RecordFormat(
    name="tidemill-proof",
    version=4,
    fields=frozenset(field.name for field in dataclasses.fields(ProofRecord)),
    remedy="remove it: `tidemill verify --follow` proves the stream again from its beginning",
    older={3: {"lost_requests": ()}, 2: {"lost": (), "lost_requests": ()}},
)
