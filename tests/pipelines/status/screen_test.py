"""One screen, whatever there is to say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tidemill.pipelines.status.screen import render
from tidemill.pipelines.status.standing import (
    Cause,
    Freshness,
    PartitionStanding,
    SourceStanding,
    Standing,
    State,
    StreamStanding,
    ViewStanding,
    Wait,
)

AT = "2026-11-29T06:18:31Z"
RUNNING = StreamStanding(
    State.RUNNING, "it runs", "run-1", 14_319, "vm", "fnapi", "exact", 3, AT, 22.4,
    "localhost:9464", 0.4, 2, "2026-11-29T06:18:11Z",
)  # fmt: skip
SOURCES = (
    SourceStanding(
        "checks",
        "asked",
        None,
        281,
        (
            PartitionStanding(0, 130, 137, 7, AT, 2.5, 1.3),
            PartitionStanding(1, 151, 151, 0, AT, 3.2, None, is_quiet=True),
        ),
    ),
)
VIEWS = (
    ViewStanding(
        "by_card",
        True,
        AT,
        2.4,
        Wait(Cause.QUIET, "checks/1: silent, so its time is 2s (quiet) behind the clock"),
        16,
    ),
)
STANDING = Standing(
    "payments", "/data/run", AT, RUNNING, SOURCES, VIEWS,
    {"payments read broken_json": 6, "payments accept too_late": 1},
    264, 16, 96, Freshness(2.4, 7.6, 96), Freshness(2.6, 30.0, 264), 0, 3_904,
)  # fmt: skip

EXPECTED = """\
tidemill · payments                                         2026-11-29T06:18:31Z
● running · fnapi exact · pid 14319 on vm · for 22 s
  savepoint 2 of 2026-11-29T06:18:11Z · http://localhost:9464/metrics

SOURCE        READ TO          END       LAG  TIME BEHIND  LAST MESSAGE
checks/0          130          137         7        2.5 s     1.3 s ago
checks/1          151          151         0        3.2 s             -

VIEW    CAUGHT UP     STALE FRONTIER
by_card yes           2.4 s 2026-11-29T06:18:31Z
  waits for checks/1: silent, so its time is 2s (quiet) behind the clock

OUT       264 predictions (11.8/s) · 16 requests wait · 96 rows published
FRESH     in the store p50 2.4 s, p99 7.6 s · predicted p50 2.6 s, p99 30 s
REJECTED  7: payments read broken_json 6, payments accept too_late 1
PROOF     0 mismatches in 3,904 values"""


def test_the_screen_of_a_stream_that_runs() -> None:
    assert render(STANDING).plain == EXPECTED


def test_a_stream_that_was_killed_says_how_it_goes_on() -> None:
    said = "not running: it was killed; last savepoint 2; resume with `tidemill stream --resume`"
    killed = replace(STANDING, stream=replace(RUNNING, state=State.KILLED, said=said, seconds=None))
    lines = render(killed).plain.splitlines()
    assert lines[1] == "● killed · fnapi exact"
    assert " ".join(line.strip() for line in lines[2:4]) == said
    assert not any("pid" in line or "http" in line for line in lines)


def test_before_the_first_stream_there_is_no_result() -> None:
    never = StreamStanding(State.NEVER, "no stream has run yet: start it with `tidemill stream`")
    found = render(Standing("payments", "/data/run", AT, never)).plain.splitlines()
    assert [line.strip() for line in found[1:]] == ["● never started", never.said]


def test_a_broker_that_does_not_answer_is_said_once() -> None:
    source = replace(SOURCES[0], broker="a:1: the host's name has no address")
    other = replace(source, source="payments")
    text = render(replace(STANDING, sources=(source, other))).plain
    assert text.count("broker: a:1: the host's name has no address") == 1


def many(partitions: int, views: int, name: str) -> Standing:
    chance = random.Random(partitions)
    parts = [
        PartitionStanding(n, n, n, 0, AT, chance.random(), chance.random())
        for n in range(partitions)
    ]
    parts[partitions // 2] = replace(parts[partitions // 2], lag=123_456_789, offset=10**12)
    source = SourceStanding(name, "topic", None, 5, tuple(parts))
    of_views = [
        ViewStanding(f"{name}_{n}", n != views // 2, AT, float(n), Wait(Cause.QUIET, name * 3))
        for n in range(views)
    ]
    rejected = {f"{name} read reason_{n}": n for n in range(1, 30)}
    return replace(STANDING, sources=(source,), views=tuple(of_views), rejected=rejected)


@pytest.mark.parametrize("name", ["paid", "a_source_with_a_name_that_is_longer_than_its_column"])
@pytest.mark.parametrize("partitions", [1, 9, 200])
@pytest.mark.parametrize("views", [1, 7, 40])
def test_it_fits_a_terminal_and_keeps_what_is_behind(
    partitions: int, views: int, name: str
) -> None:
    standing = many(partitions, views, name)
    lines = render(standing, 80, 23).plain.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    assert any("123,456,789" in line for line in lines)
    assert any(line.split()[1:2] == ["no"] for line in lines)
    everything = render(standing, 200).plain
    assert everything.count("/") >= partitions
    assert "more, which" not in everything


def test_what_is_left_out_is_counted() -> None:
    text = render(many(200, 1, "paid"), 80, 23).plain
    shown = sum(line.startswith("paid/") for line in text.splitlines())
    assert f"and {200 - shown} more, which are not further behind" in text


def test_the_content_is_json() -> None:
    import json

    found = json.loads(json.dumps(STANDING.content()))
    assert found["views"][0]["waits_for"]["cause"] == "quiet"
    assert found["stream"]["state"] == "running"
