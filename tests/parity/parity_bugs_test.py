"""Five ways in which training and serving have come to differ elsewhere, and do not here.

Each was found by users of OpenMLDB (github.com/4paradigm/OpenMLDB), a feature platform that runs
one SQL definition offline and online, as this project runs one Python definition. The numbers are
those of its issues.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidemill
from tests.support.driver import run_all
from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    Arrived,
    PlainStream,
    Row,
    Vector,
    arrivals,
    end_of,
    expected_vectors,
    poll_part,
    random_polls,
    random_rows,
    vectors_of,
)
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count, first, last
from tidemill.features.contract import DAY, HOUR, MINUTE, SECOND
from tidemill.features.errors import StateMismatch
from tidemill.features.kernel.encoding import decode, encode
from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.state_files import read_handoff, state_path, write_handoff

START = 1_600_000_000 * SECOND // DAY * DAY
PAYMENTS = EventStream(
    "payments",
    schema={"at": "timestamp", "payment": "string", "user": "string", "amount": "float64"},
    event_time="at",
    event_id="payment",
)
USER = FeatureView(
    "user",
    entity=Entity("user"),
    stream=PAYMENTS,
    hop="1h",
    features={
        "payments_1d": count(over="1d"),
        "spent_1d": tidemill.sum(col("amount"), over="1d"),
        "first_1d": first(col("amount"), over="1d"),
        "last_1d": last(col("amount"), over="1d"),
    },
)
ORDERS = Request(
    "orders",
    schema={"at": "timestamp", "order": "string", "user": "string"},
    request_time="at",
    request_id="order",
)
SHOP = Project("shop", request=ORDERS, views=[USER])
ONE_EACH = {"payments": 1, "orders": 1}


def payment(at: int, name: str, amount: float, user: str = "u") -> Row:
    return {"at": at, "payment": name, "user": user, "amount": amount}


def order(at: int, name: str = "order", user: str = "u") -> Row:
    return {"at": at, "order": name, "user": user}


def streamed(
    payments: list[Row], orders: list[Row], mode: Mode = Mode.EXACT, end_us: int = START + 90 * DAY
) -> dict[str, tuple[Any, ...]]:
    """Serve orders on the stream: payments in the order given, and everything in one poll."""
    arrived = [
        Arrived(source, 0, rows, [row["at"] for row in rows])
        for source, rows in (("payments", payments), ("orders", orders))
    ]
    parts = tuple(poll_part(SHOP, part, 0, len(part.rows), end_us) for part in arrived)
    stream = PlainStream(SHOP, 1, ONE_EACH, mode=mode)
    stream.run([Poll(1, 0, parts)])
    return {name: plain(words) for name, (words, _) in vectors_of(SHOP, stream.answered).items()}


def trained(payments: list[Row], orders: list[Row]) -> dict[str, tuple[Any, ...]]:
    """The same orders in batch."""
    vectors = expected_vectors(SHOP, {"payments": payments, "orders": orders})
    return {name: plain(words) for name, (words, _) in vectors.items()}


def plain(words: tuple[int | None, ...]) -> tuple[Any, ...]:
    """Return 64-bit patterns as values: a count, and three floats."""
    n, *floats = words
    return n, *(None if w is None else float(np.int64(w).view(np.float64)) for w in floats)


def test_1629_threads_do_not_change_a_value() -> None:
    """Offline jobs with more than one core gave other window values than with one core.

    Here work is split by shard, not by thread of a window, and a kernel's state is one owner's. So
    the same streams, run side by side in threads with other shard counts, give the same bytes.
    """

    def serve(worker: int) -> dict[Any, Vector]:
        chance = random.Random(worker)
        rows = random_rows(7)
        polls = random_polls(
            PROJECT, arrivals(PROJECT, rows, PARTITIONS, chance), end_of(rows), 8, chance
        )
        stream = PlainStream(PROJECT, 1 + worker % 4, PARTITIONS)
        stream.run(polls)
        return vectors_of(PROJECT, stream.answered)

    expected = expected_vectors(PROJECT, random_rows(7))
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(serve, range(24)):
            assert found == expected


def test_1780_equal_timestamps_have_one_order() -> None:
    """Rows of one key at one timestamp entered a window in an undefined order.

    It differed between offline and online, and with it every value that depends on order or on
    which rows are still in the window. Here the order at equal times is hop boundary, request,
    event; then the id's bytes.
    """
    at = START + 12 * HOUR
    ties = [payment(at, "10", 1.0), payment(at, "9", 2.0), payment(at, "é", 4.0)]
    orders = [order(at, "at the tie"), order(at + 1, "after")]
    expected = {"at the tie": (0, 0.0, None, None), "after": (3, 7.0, 1.0, 4.0)}
    for payments in permutations(ties):
        assert streamed(list(payments), orders) == expected
        assert trained(list(payments), orders) == expected


def test_1780_a_row_that_came_twice_counts_once() -> None:
    """The cause of the first issue turned out to be duplicated rows at one time, not threads."""
    twice = [payment(START + HOUR, "a", 1.0), payment(START + HOUR, "a", 1.0)]
    orders = [order(START + 2 * HOUR)]
    assert streamed(twice, orders) == trained(twice, orders) == {"order": (1, 1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    ("after", "seen"),
    [
        (1, True),
        (DAY, True),  # the tail stands on the hop grid: at least a day of history
        (DAY + HOUR - 1, True),
        (DAY + HOUR, False),
        (40 * DAY, False),
    ],
)
def test_2256_an_expired_row_is_seen_by_nobody(after: int, seen: bool) -> None:
    """Rows past their time to live were still in the window online, and not in batch.

    Online they were removed by an irregular clean-up. Here there is no time to live: a window ends
    by itself, at the same instant in both, with or without a clean-up.
    """
    paid = [payment(START, "old", 5.0), payment(START - 30 * DAY, "older", 7.0)]
    orders = [order(START + after)]
    expected = {"order": (1, 5.0, 5.0, 5.0) if seen else (0, 0.0, None, None)}
    assert streamed(paid, orders) == trained(paid, orders) == expected


def test_2256_an_entity_that_goes_quiet_is_published_down_to_its_empty_value() -> None:
    """So a reader of the online store no longer sees expired values."""
    stream = PlainStream(SHOP, 1, ONE_EACH)
    payments = Arrived("payments", 0, [payment(START, "only", 5.0)], [START])
    orders = Arrived("orders", 0, [], [])
    for number, end in enumerate((START + HOUR, START + 3 * DAY), 1):
        done = stream.operator(0, 0).expected[0]
        parts = (poll_part(SHOP, payments, done, 1, end), poll_part(SHOP, orders, 0, 0, end))
        stream.run([Poll(number, 0, parts)])
    first_one, last_one = (release.publications.to_pylist()[-1] for _, _, release in
                           stream.releases)  # fmt: skip
    assert first_one["valid_until"] == last_one["event_timestamp"] == START + DAY + HOUR
    assert last_one["values"] == bytes(8 * 4)
    assert list(last_one["nulls"]) == [0, 0, 1, 1]


@pytest.mark.parametrize("mode", Mode)
def test_3749_a_request_does_not_see_rows_after_its_time(mode: Mode) -> None:
    """Online, a window took rows that were newer than the request, if the table had them already.

    The example there: rows at 100 and 101, a request at 99, and a count of more than nothing. In
    eager mode too, an answer sees only what arrived before its request, whatever is in its poll.
    """
    paid = [payment(START + 100, "a", 1.0), payment(START + 101, "b", 2.0)]
    asked = [order(START + 99, "before"), order(START + 100, "at"), order(START + 101, "between")]
    exact = {
        "before": (0, 0.0, None, None),
        "at": (0, 0.0, None, None),
        "between": (1, 1.0, 1.0, 1.0),
    }
    assert trained(paid, asked) == exact
    assert streamed(paid, asked, mode) == exact


def longer(view: FeatureView) -> FeatureView:
    """The view with another window: a deploy of a changed definition."""
    return replace(view, features={**view.features, "payments_1d": count(over="2d")})


def test_3409_old_state_is_not_used_under_a_changed_definition(tmp_path: Path) -> None:
    """A deploy set a table's time to live to its window, and rows that were there were lost.

    Values were right before the deploy and wrong after it, without an error. Here a state belongs
    to the hash of its definition: with another window the state is refused by name, and rebuilt
    from the log.
    """
    options = FeaturizeOptions(run="old", shards=1, partitions=ONE_EACH)
    old = make_operator(SHOP, operator_key(SHOP, 0, 0, 1), options)
    write_handoff(tmp_path, old)
    changed = replace(SHOP, views=(longer(USER),))
    new = make_operator(changed, operator_key(changed, 0, 0, 1), options)
    assert new.key.hash != old.key.hash
    assert state_path(tmp_path, new.key) == state_path(tmp_path, old.key)
    with pytest.raises(StateMismatch, match="belongs to user shard 0 of 1"):
        read_handoff(tmp_path, new)


@pytest.mark.parametrize(
    "changed",
    [
        longer(USER),
        replace(USER, hop="30m"),
        replace(USER, stream=replace(PAYMENTS, allowed_lateness="1h")),
        replace(
            USER,
            features={
                **USER.features,
                "spent_1d": tidemill.sum(col("amount"), over="1d", where=col("amount") > 0),
            },
        ),
    ],
)
def test_3409_whatever_changes_a_value_changes_the_hash(changed: FeatureView) -> None:
    state, _, _ = run_all(USER, [payment(START, "a", 1.0)], [])
    assert changed.hash != USER.hash
    with pytest.raises(StateMismatch, match=f"made for definition {USER.hash}"):
        decode(encode(state), make_plan(changed))


def test_3409_a_longer_window_is_right_from_its_first_request() -> None:
    """Its state comes from the log, not from the state of the shorter window."""
    view = longer(USER)
    project = replace(SHOP, views=(view,))
    rows = {
        "payments": [payment(START, "a", 1.0), payment(START + 36 * HOUR, "b", 2.0)],
        "orders": [order(START + 37 * HOUR)],
    }
    ((words, _),) = expected_vectors(project, rows).values()
    assert plain(words) == (2, 2.0, 2.0, 2.0)
    assert view.hop_us > MINUTE
