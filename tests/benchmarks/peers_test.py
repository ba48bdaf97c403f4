"""The job beside Tidemill's peers: rows, messages, and what counts as a right answer."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.peers.environments import HERE
from benchmarks.peers.rows import NAMES, Rows, differences, evenly, instants, messages
from benchmarks.peers.systems import PEERS
from benchmarks.peers.tidemill import PROJECT
from benchmarks.peers.watching import Read

DAY_MS = 86_400_000
NOW_MS = 20_000 * DAY_MS


def rows_of(payments: list[tuple[int, int]], asked_ms: int) -> Rows:
    """Return a request of card 7 and its payments: times and cents."""
    times = np.array([asked_ms, *(time for time, _ in payments)])
    cents = np.array([0, *(amount for _, amount in payments)])
    return Rows(0, times, times, np.full(len(times), 7), cents)


def expected(**some: float | None) -> dict[str, float | None]:
    """Return features: those of a card without payments, but for some."""
    empty = dict.fromkeys(NAMES) | {name: 0 for name in NAMES if name.startswith(("count", "sum"))}
    return empty | some


def test_a_window_begins_with_its_tail_and_ends_before_the_request() -> None:
    log = rows_of([(NOW_MS - 600_000, 100), (NOW_MS - 600_001, 300), (NOW_MS, 500)], NOW_MS)
    hour = {f"{k}_{w}": v for w in ("1h", "1d") for k, v in
            {"count": 2, "sum": 4.0, "mean": 2.0, "max": 3.0}.items()}  # fmt: skip
    right = expected(count_10m=1, sum_10m=1.0, mean_10m=1.0, max_10m=1.0, **hour)
    assert differences([log], {"r-0": right}, 1) == []
    assert len(differences([log], {"r-0": right | {"max_1d": 5.0}}, 1)) == 1


def test_a_grid_takes_what_is_before_the_window() -> None:
    log = rows_of([(NOW_MS + 20_000 - 600_000, 100)], NOW_MS + 40_000)
    one = {"sum": 1.0, "mean": 1.0, "max": 1.0, "count": 1}
    right = {f"{k}_{w}": v for w in ("10m", "1h", "1d") for k, v in one.items()}
    assert differences([log], {"r-0": expected() | right}, 60_000) == []
    assert differences([log], {"r-0": expected() | right}, 1)


def test_an_answer_that_nobody_asked_for_is_wrong() -> None:
    assert differences([rows_of([], NOW_MS)], {"r-4": expected()}, 1)


def _rows_in(form: str, made: Rows) -> list[dict[str, Any]]:
    found = []
    for one in messages(made, form, 7):
        if form == "rows":
            parts = [json.loads(one.value)]
        elif form == "json":
            parts = json.loads(one.value)
        else:
            parts = pa.ipc.open_stream(one.value).read_all().to_pylist()
        for row in parts:
            assert ("request" in row) == one.asks
            assert int(row["card"][2:]) % 2 == one.partition
            time = row.get("asked_at") or row["paid_at"]
            if form == "arrow":
                milliseconds = np.array([np.datetime64(time.replace(tzinfo=None), "ms")])
                time = instants(milliseconds.astype(np.int64))[0]
                row["asked_at" if one.asks else "paid_at"] = time
            found.append(row)
    return sorted(found, key=json.dumps)


def test_every_form_of_messages_has_the_same_rows() -> None:
    made = evenly(200, NOW_MS, NOW_MS + 60_000)
    single = _rows_in("rows", made)
    assert len(single) == 200
    assert _rows_in("json", made) == single
    assert _rows_in("arrow", made) == single


def test_a_payment_is_late_by_less_than_the_disorder() -> None:
    made = evenly(10_000, NOW_MS, NOW_MS + 60_000)
    late = made.sent - made.times
    assert late[made.asks].max() == 0
    assert 0 < late.max() < 1_000


def _plain() -> ModuleType:
    """Return the module that the programs in Python share; it is on no path here."""
    spec = importlib.util.spec_from_file_location("plain", HERE / "shared" / "point_in_time.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["plain"] = found
    spec.loader.exec_module(found)
    return found


def test_what_the_programs_share_gives_the_right_answers() -> None:
    plain = _plain()
    made = evenly(60_000, NOW_MS, NOW_MS + 2 * DAY_MS)
    cards: dict[int, tuple[list[int], list[float]]] = {}
    answers = {}
    order = np.argsort(made.times, kind="stable")
    for place in order.tolist():
        card, time = int(made.cards[place]), int(made.times[place])
        mine = cards.setdefault(card, ([], []))
        if made.asks[place]:
            answers[f"r-{place}"] = plain.features_at(*mine, time)
        else:
            plain.add_payment(*mine, time, made.cents[place] / 100, time)
    assert differences([made], answers, 1) == []


def test_a_corrected_answer_counts_from_when_it_came() -> None:
    first, last = expected(), expected(count_1d=1)
    read = Read([(1.0, [("r-0", first), ("r-4", first)]), (2.0, [("r-0", last), ("r-4", first)])])
    assert read.answers["r-0"] == last
    assert read.came == {"r-0": 2.0, "r-4": 1.0}
    assert (read.corrected, read.repeated) == (1, 1)


def test_tidemill_defines_the_same_features() -> None:
    space: dict[str, Any] = {}
    exec(PROJECT, space)
    (view,) = space["project"].views
    assert set(view.features) == set(NAMES)


@pytest.mark.parametrize(
    "lock", sorted(HERE.glob("*/requirements.lock")), ids=lambda p: p.parts[-2]
)
def test_a_peer_is_locked_with_hashes(lock: Path) -> None:
    wanted = (lock.parent / "requirements.in").read_text().split()
    pinned = [line for line in wanted if "==" in line]
    assert pinned
    text = lock.read_text()
    entries = re.findall(r"^([a-z0-9.-]+)(\[[a-z,]+\])?==", text, re.MULTILINE)
    assert len(entries) == len(
        re.findall(r"^[a-z][^\n]*\\\n    --hash=sha256:", text, re.MULTILINE)
    )
    assert all(line.partition("[")[0].partition("=")[0] in text for line in pinned)


def test_every_peer_has_a_program_and_a_lock() -> None:
    names = {"pyflink", "pyflink-sql", "spark", "bytewax", "quix", "pathway"}
    assert {one.name for one in PEERS} == names
    assert {path.parent.name for path in HERE.glob("*/requirements.lock")} == names - {
        "pyflink-sql"
    }
