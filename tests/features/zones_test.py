"""Columnar zones against `zoneinfo`, one time after the other."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.resources
import zoneinfo

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.features import zones
from tidemill.features.contract import DAY, EARLIEST_EVENT, HOUR, LATEST_EVENT, MINUTE, SECOND
from tidemill.features.errors import DefinitionError, WrongType

NAMES = sorted(
    importlib.resources.files("tzdata").joinpath("zones").read_text(encoding="utf-8").split()
)
NEW_YORK = "America/New_York"
US = datetime.timedelta(microseconds=1)
UTC_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
LOCAL_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - wall-clock times are the subject
SPRING_2013 = 1_362_898_800 * SECOND  # 07:00 UTC: 02:00 becomes 03:00 in New York
AUTUMN_2013 = 1_383_458_400 * SECOND  # 06:00 UTC: 02:00 becomes 01:00 again

# Where zones change and where the calendar ends; anything between.
times = (
    st.integers(EARLIEST_EVENT, LATEST_EVENT)
    | st.integers(-10 * 365 * DAY, 80 * 365 * DAY)
    | st.sampled_from((SPRING_2013, AUTUMN_2013)).flatmap(
        lambda t: st.integers(t - 3 * HOUR, t + 3 * HOUR)
    )
)


def inside(times_us: list[int]) -> list[int]:
    """Keep away from both ends of the calendar, where a datetime of the zone may not exist."""
    return [min(max(t, EARLIEST_EVENT + 2 * DAY), LATEST_EVENT - 2 * DAY) for t in times_us]


def local_us(moment: datetime.datetime) -> int:
    return (moment.replace(tzinfo=None) - LOCAL_EPOCH) // US


def instants_of(local: int, zone: zoneinfo.ZoneInfo) -> list[int]:
    """Return the UTC instants at which clocks showed a local time, by trying both folds."""
    found = []
    for fold in (0, 1):
        naive = LOCAL_EPOCH + local * US
        utc = naive.replace(tzinfo=zone, fold=fold).astimezone(datetime.UTC)
        if local_us(utc.astimezone(zone)) == local:
            found.append((utc - UTC_EPOCH) // US)
    return sorted(set(found))


@given(st.sampled_from(NAMES), st.lists(times, min_size=1, max_size=8).map(inside))
@example(NEW_YORK, [SPRING_2013 - 1, SPRING_2013, AUTUMN_2013 - 1, AUTUMN_2013])
@example(NEW_YORK, [SPRING_2013, LATEST_EVENT - 2 * DAY, EARLIEST_EVENT + 2 * DAY])
def test_offsets_are_those_of_zoneinfo(name: str, times_us: list[int]) -> None:
    zone = zones.zone(name)
    offsets = zones.utc_offsets(np.array(times_us, np.int64), name)
    for time_us, offset in zip(times_us, offsets.tolist(), strict=True):
        moment = UTC_EPOCH + time_us * US
        assert moment.astimezone(zone).utcoffset() == offset * US


@given(st.sampled_from(NAMES), st.lists(times, min_size=1, max_size=8).map(inside))
@example(NEW_YORK, [SPRING_2013 - 5 * HOUR, SPRING_2013 - 5 * HOUR - 1, SPRING_2013 - 4 * HOUR])
@example(NEW_YORK, [AUTUMN_2013 - 5 * HOUR, AUTUMN_2013 - 4 * HOUR, AUTUMN_2013 - 4 * HOUR - 1])
@example("Pacific/Apia", [1_325_203_200 * SECOND, 1_325_289_600 * SECOND])  # 30 December 2011
@example("Australia/Lord_Howe", [1_380_981_600 * SECOND + 15 * MINUTE])  # half an hour's gap
def test_local_times_are_those_of_zoneinfo_with_gaps_and_folds(
    name: str, locals_us: list[int]
) -> None:
    zone = zones.zone(name)
    found = zones.localize(np.array(locals_us, np.int64), name)
    for row, local in enumerate(locals_us):
        instants = instants_of(local, zone)
        assert found.exists[row] == bool(instants)
        assert found.repeated[row] == (len(instants) > 1)
        if instants:
            assert (found.first_us[row], found.last_us[row]) == (instants[0], instants[-1])


@given(st.sampled_from(NAMES), times.map(lambda t: inside([t])[0]))
def test_utc_to_local_and_back_is_the_same_or_an_hour_told_twice(name: str, time_us: int) -> None:
    offset = int(zones.utc_offsets(np.array([time_us], np.int64), name)[0])
    found = zones.localize(np.array([time_us + offset], np.int64), name)
    assert found.exists[0]
    assert time_us in (found.first_us[0], found.last_us[0])


def test_repeated_local_time_has_two_instants() -> None:
    local = local_us(datetime.datetime(2013, 11, 3, 1, 30))  # noqa: DTZ001
    found = zones.localize(np.array([local, local + HOUR], np.int64), NEW_YORK)
    assert found.exists.tolist() == [True, True]
    assert found.repeated.tolist() == [True, False]
    assert found.first_us.tolist() == [AUTUMN_2013 - 30 * MINUTE, AUTUMN_2013 + 90 * MINUTE]
    assert found.last_us.tolist() == [AUTUMN_2013 + 30 * MINUTE, AUTUMN_2013 + 90 * MINUTE]


def test_skipped_local_time_does_not_exist() -> None:
    gap = local_us(datetime.datetime(2013, 3, 10, 2, 0))  # noqa: DTZ001
    around = np.array([gap - 1, gap, gap + HOUR - 1, gap + HOUR], np.int64)
    found = zones.localize(around, NEW_YORK)
    assert found.exists.tolist() == [True, False, False, True]
    assert found.first_us[[0, 3]].tolist() == [SPRING_2013 - 1, SPRING_2013]


def test_both_ends_of_the_calendar_have_offsets() -> None:
    ends = np.array([EARLIEST_EVENT, LATEST_EVENT], np.int64)
    assert zones.utc_offsets(ends, NEW_YORK).tolist() == [-17_762 * SECOND, -5 * HOUR]
    assert zones.utc_offsets(ends, "UTC").tolist() == [0, 0]


def test_times_far_apart_cost_only_the_years_that_occur() -> None:
    zones._transitions.cache_clear()
    far = np.array([EARLIEST_EVENT + 3 * 366 * DAY, SPRING_2013, LATEST_EVENT], np.int64)
    zones.utc_offsets(far, NEW_YORK)
    assert zones._transitions.cache_info().currsize == 3
    zones.localize(far, NEW_YORK)
    assert zones._transitions.cache_info().currsize == 8  # and those beside them, up to 9999


def test_no_times_are_no_offsets() -> None:
    nothing = np.zeros(0, np.int64)
    assert len(zones.utc_offsets(nothing, NEW_YORK)) == 0
    found = zones.localize(nothing, NEW_YORK)
    assert len(found.first_us) == len(found.last_us) == len(found.exists) == 0


@pytest.mark.parametrize(
    "name",
    [
        "America/Gotham",
        "",
        "America",
        "../zones",
        "zone.tab",
        "/etc/localtime",
        "America//New_York",
        "America/New\0York",
        "\ud800",
        "x" * 90,
        "UTC\n",
    ],
)
def test_unknown_zone_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(DefinitionError, match="tzdata") as caught:
        zones.zone(name)
    assert repr(name) in str(caught.value)
    assert "America/New_York" in str(caught.value)


def test_version_is_that_of_the_pinned_package() -> None:
    assert zones.tzdata_version() == importlib.metadata.version("tzdata")


@pytest.mark.parametrize("name", [None, 5, b"UTC", ["UTC"], {"UTC"}])
def test_a_zone_that_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(WrongType, match="a time zone is a text such as 'America/New_York'; found"):
        zones.zone(name)  # type: ignore[arg-type]


def test_every_zone_of_the_package_loads() -> None:
    assert all(zones.zone(name).key == name for name in NAMES)
