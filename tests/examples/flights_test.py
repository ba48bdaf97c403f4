"""The flights: every trap in the data, and that none of them reaches an event or a label."""

from __future__ import annotations

import datetime
import importlib
import zipfile
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest
import yaml

from tidemill import EventStream, Request
from tidemill.examples.flights import ingest, model
from tidemill.examples.flights.project import late, project, requests
from tidemill.examples.flights.zones import MISSING_AIRPORTS, airport_zones, data_folder
from tidemill.features.contract import HOUR, MINUTE
from tidemill.features.definitions import ARROW_TYPES
from tidemill.features.errors import InputError
from tidemill.features.models.preprocessing import ModelSpec


def read_texts(file: Any) -> pa.RecordBatch:
    """Read a csv file as one batch of texts, as the pipeline does (it reads several)."""
    names = file.readline().decode("ascii").rstrip().split(",")
    table = pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(column_names=names),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names}, strings_can_be_null=False
        ),
    )
    (batch,) = table.combine_chunks().to_batches()
    return batch


@pytest.fixture(scope="module")
def flights() -> pa.RecordBatch:
    with (
        zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive,
        archive.open("flights.csv") as file,
    ):
        return read_texts(file)


@pytest.fixture(scope="module")
def reports() -> pa.RecordBatch:
    with (data_folder() / "weather.csv").open("rb") as file:
        return read_texts(file)


@pytest.fixture(scope="module")
def departed(flights: pa.RecordBatch) -> pa.RecordBatch:
    return ingest.departures(flights)


@pytest.fixture(scope="module")
def arrived(flights: pa.RecordBatch) -> pa.RecordBatch:
    return ingest.arrivals(flights)


@pytest.fixture(scope="module")
def requested(flights: pa.RecordBatch) -> pa.RecordBatch:
    return ingest.requests(flights)


def whole(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Read a raw column of whole numbers without the code under test."""
    texts = batch[name]
    return pc.if_else(pc.equal(texts, "NA"), pa.scalar(None, pa.string()), texts).cast(pa.int64())


def microseconds(times: pa.Array) -> npt.NDArray[np.float64]:
    """Return times in us, NaN for null (float64 holds the microseconds of 2013 exactly)."""
    values: npt.NDArray[np.float64] = pc.fill_null(
        times.cast(pa.int64()).cast(pa.float64()), np.nan
    ).to_numpy()
    return values


def kept(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    fine: npt.NDArray[np.bool_] = pc.and_(
        pc.invert(batch["__drop__"]), pc.is_null(batch["__reject__"])
    ).to_numpy(zero_copy_only=False)
    return fine


def clocks(times: pa.Array, airports: pa.Array) -> list[int | None]:
    """Return what the airports' clocks show (hhmm, midnight as 2400), by zoneinfo, row by row."""
    zones = {code: zoneinfo.ZoneInfo(name) for code, name in airport_zones().items()}
    shown: list[int | None] = []
    for moment, airport in zip(times.to_pylist(), airports.to_pylist(), strict=True):
        if moment is None:
            shown.append(None)
        else:
            local = moment.astimezone(zones[airport])
            shown.append(local.hour * 100 + local.minute or 2400)
    return shown


def flight(**cells: str) -> pa.RecordBatch:
    """Return one row of flights.csv: UA 1545 of New Year's Day, but for the given cells."""
    row = {
        "year": "2013", "month": "1", "day": "1", "dep_time": "517", "sched_dep_time": "515",
        "dep_delay": "2", "arr_time": "830", "sched_arr_time": "819", "arr_delay": "11",
        "carrier": "UA", "flight": "1545", "tailnum": "N14228", "origin": "EWR", "dest": "IAH",
        "air_time": "227", "distance": "1400", "hour": "5", "minute": "15",
        "time_hour": "2013-01-01T10:00:00Z",
    }  # fmt: skip
    return pa.RecordBatch.from_pylist([row | cells])


def only(batch: pa.RecordBatch) -> dict[str, Any]:
    (row,) = batch.to_pylist()
    assert isinstance(row, dict)
    return row


# The data is what we say it is.


def test_the_data_has_the_traps_that_the_readme_names(flights: pa.RecordBatch) -> None:
    def rows(condition: pa.Array) -> int:
        count = pc.sum(pc.fill_null(condition, False)).as_py()
        assert isinstance(count, int)
        return count

    assert flights.num_rows == 336_776
    assert rows(pc.less(whole(flights, "arr_time"), whole(flights, "dep_time"))) == 10_633
    assert rows(pc.is_in(flights["dest"], value_set=pa.array(list(MISSING_AIRPORTS)))) == 7_602
    assert rows(pc.equal(flights["tailnum"], "NA")) == 2_512
    assert rows(pc.equal(flights["dep_time"], "NA")) == 8_255
    assert rows(pc.equal(flights["arr_delay"], "NA")) == 9_430
    assert rows(pc.less_equal(whole(flights, "dep_delay"), -15)) == 858


def test_every_airport_that_is_flown_to_has_a_zone(flights: pa.RecordBatch) -> None:
    flown = {*pc.unique(flights["dest"]).to_pylist(), *pc.unique(flights["origin"]).to_pylist()}
    assert len(flown) == 107
    assert flown <= set(airport_zones())
    with (data_folder() / "airports.csv").open("rb") as file:
        assert flown - set(read_texts(file)["faa"].to_pylist()) == set(MISSING_AIRPORTS)


# Times.


def test_scheduled_departures_agree_with_time_hour(
    flights: pa.RecordBatch, requested: pa.RecordBatch
) -> None:
    hour = pc.strptime(flights["time_hour"], "%Y-%m-%dT%H:%M:%SZ", "us").cast(pa.int64())
    planned = requested["scheduled_departure"].cast(pa.int64())
    assert pc.equal(pc.multiply(pc.divide(planned, HOUR), HOUR), hour).to_pylist().count(True) == (
        336_776
    )


def test_departures_agree_with_the_clocks_at_the_origin(
    flights: pa.RecordBatch, departed: pa.RecordBatch
) -> None:
    assert (
        clocks(departed["departed_at"], departed["origin"])
        == whole(flights, "dep_time").to_pylist()
    )


def test_arrivals_agree_with_the_clocks_at_the_destination_but_for_one(
    flights: pa.RecordBatch, arrived: pa.RecordBatch
) -> None:
    shown = clocks(arrived["arrived_at"], arrived["dest"])
    noted = whole(flights, "arr_time").to_pylist()
    expected = arrived["arr_delay"].to_pylist()
    differ = [
        (arrived["flight_id"][row].as_py(), a, b)
        for row, (a, b, delay) in enumerate(zip(shown, noted, expected, strict=True))
        if delay is not None and a != b
    ]
    # Palm Beach skipped 02:03 that night: somebody's clock was still on standard time.
    assert differ == [("B635-JFK-2013-03-09", 303, 203)]


def test_every_flight_takes_its_air_time_and_some_minutes_on_the_ground(
    departed: pa.RecordBatch, arrived: pa.RecordBatch
) -> None:
    gate_to_gate = microseconds(arrived["arrived_at"]) - microseconds(departed["departed_at"])
    air = pc.fill_null(arrived["air_time"].cast(pa.float64()), np.nan).to_numpy()
    landed = kept(arrived)
    ground = gate_to_gate[landed] / MINUTE - air[landed]
    assert landed.sum() == 327_346
    assert ground.min() == 5
    assert ground.max() == 235
    assert (ground > 180).sum() == 5  # four in the storms of July, one when LAX was closed
    medians = [
        np.median(ground[rows])
        for code in set(arrived["dest"].to_pylist())
        if (rows := np.array(pc.equal(arrived["dest"], code))[landed]).any()
    ]
    assert len(medians) == 104
    # An airport in a wrong zone would stand out by an hour.
    assert min(medians) >= 20
    assert max(medians) <= 37


def test_scheduled_times_of_flight_are_plausible(requested: pa.RecordBatch) -> None:
    minutes = requested["scheduled_minutes"]
    assert pc.min_max(minutes).as_py() == {"min": 50, "max": 700}
    assert pc.count(minutes).as_py() == 336_776


@pytest.mark.parametrize("night", ["3-9", "3-10", "11-2", "11-3"])
def test_schedules_over_the_change_of_clocks_agree_with_zoneinfo(
    flights: pa.RecordBatch, requested: pa.RecordBatch, night: str
) -> None:
    month, day = night.split("-")
    rows = pc.and_(pc.equal(flights["month"], month), pc.equal(flights["day"], day))
    plan, raw = requested.filter(rows), flights.filter(rows)
    assert plan.num_rows > 600
    departures = plan["scheduled_departure"]
    landings = pc.add(departures.cast(pa.int64()), pc.multiply(plan["scheduled_minutes"], MINUTE))
    landings = landings.cast(pa.timestamp("us", tz="UTC"))
    assert clocks(departures, plan["origin"]) == whole(raw, "sched_dep_time").to_pylist()
    assert clocks(landings, plan["dest"]) == whole(raw, "sched_arr_time").to_pylist()


@pytest.mark.parametrize(
    ("cells", "minutes"),
    [
        ({"dest": "IAH"}, 244),
        ({"dest": "PHX", "month": "1"}, 60 * 5 + 4),
        ({"dest": "PHX", "month": "7"}, 60 * 6 + 4),  # Arizona keeps standard time
        ({"dest": "SJU", "month": "1"}, 60 * 2 + 4),
        ({"dest": "STT", "month": "7"}, 60 * 3 + 4),  # so do the Virgin Islands
        ({"dest": "HNL", "month": "1"}, 60 * 8 + 4),
        # Into the night when clocks go forward: 23:45 to 03:19 is an hour shorter.
        ({"month": "3", "day": "9", "dest": "MIA", "sched_dep_time": "2345",
          "sched_arr_time": "319"}, 60 * 2 + 34),
        # Into the night when clocks go back: 01:30 is read twice, the first time is taken ...
        ({"month": "11", "day": "2", "dest": "MIA", "sched_dep_time": "2345",
          "sched_arr_time": "130"}, 60 + 45),
        # ... and 02:30 is read once, an hour later than it looks.
        ({"month": "11", "day": "2", "dest": "MIA", "sched_dep_time": "2345",
          "sched_arr_time": "230"}, 60 * 3 + 45),
        # Past midnight by the clocks of the destination alone, and not at all by them.
        ({"dest": "BQN", "sched_dep_time": "2025", "sched_arr_time": "126"}, 60 * 4 + 1),
        ({"dest": "LAX", "sched_dep_time": "2330", "sched_arr_time": "2359"}, 60 * 3 + 29),
        ({"dest": "BOS", "sched_dep_time": "2300", "sched_arr_time": "2400"}, 60),
    ],
)  # fmt: skip
def test_a_flight_lands_on_the_first_day_that_follows_its_departure(
    cells: dict[str, str], minutes: int
) -> None:
    row = only(ingest.requests(flight(**cells)))
    assert row["__reject__"] is None
    assert row["scheduled_minutes"] == minutes


def test_a_delay_counts_in_real_minutes_over_the_change_of_clocks() -> None:
    # Left at 23:50 of March 9 with two and a half hours of delay: 03:20 by the clock, not 02:20.
    row = only(
        ingest.departures(
            flight(month="3", day="9", sched_dep_time="2350", dep_delay="150", dep_time="320")
        )
    )
    assert row["departed_at"] == datetime.datetime(2013, 3, 10, 7, 20, tzinfo=datetime.UTC)


# What is dropped, and what is left.


def test_dropped_rows_are_counted_and_nothing_is_rejected(
    departed: pa.RecordBatch, arrived: pa.RecordBatch, requested: pa.RecordBatch
) -> None:
    batches = {"departures": departed, "arrivals": arrived, "requests": requested}
    dropped = {name: pc.sum(batch["__drop__"]).as_py() for name, batch in batches.items()}
    assert dropped == {"departures": 8_255, "arrivals": 9_430, "requests": 858}
    assert all(batch["__reject__"].null_count == 336_776 for batch in batches.values())


def test_every_event_that_is_left_has_what_its_stream_requires(
    departed: pa.RecordBatch, arrived: pa.RecordBatch, requested: pa.RecordBatch
) -> None:
    for stream, batch in [
        (project.stream("departures"), departed),
        (project.stream("arrivals"), arrived),
    ]:
        events = batch.filter(pa.array(kept(batch)))
        for name in (*stream.required, "tailnum"):
            assert events[name].null_count == 0, f"{stream.name}.{name}"
    asked = requested.filter(pa.array(kept(requested)))
    assert asked["tailnum"].null_count == 2_512
    assert all(asked[name].null_count == 0 for name in requests.required)


def test_every_cancelled_flight_is_still_asked_about(
    departed: pa.RecordBatch, requested: pa.RecordBatch
) -> None:
    cancelled = departed["__drop__"].to_numpy(zero_copy_only=False)
    assert kept(requested)[cancelled].sum() == 8_255
    assert kept(requested).sum() == 335_918


def test_flight_ids_are_unique(departed: pa.RecordBatch) -> None:
    ids = departed["flight_id"]
    assert ids.null_count == 0
    assert pc.count_distinct(ids).as_py() == 336_776
    without_origin = pc.replace_substring_regex(ids, "-(EWR|JFK|LGA)-", "-")
    assert 336_776 - pc.count_distinct(without_origin).as_py() == 24


def test_no_event_of_a_flight_precedes_its_request(
    departed: pa.RecordBatch, arrived: pa.RecordBatch, requested: pa.RecordBatch
) -> None:
    asked = kept(requested)
    request_us = microseconds(requested["requested_at"])
    left, landed = asked & kept(departed), asked & kept(arrived)
    assert left.sum() == 327_663
    assert (microseconds(departed["departed_at"])[left] > request_us[left]).all()
    assert landed.sum() == 326_488
    assert (microseconds(arrived["arrived_at"])[landed] > request_us[landed]).all()


def test_a_flight_that_leaves_as_it_is_asked_about_is_dropped_and_a_minute_later_is_not() -> None:
    assert only(ingest.requests(flight(dep_delay="-15")))["__drop__"]
    assert not only(ingest.requests(flight(dep_delay="-14")))["__drop__"]


def test_every_arrival_comes_within_the_horizon_of_its_label(
    arrived: pa.RecordBatch, requested: pa.RecordBatch
) -> None:
    wait = microseconds(arrived["arrived_at"]) - microseconds(requested["requested_at"])
    longest = np.nanmax(wait[kept(arrived)])
    assert longest == (33 * 60 - 3) * MINUTE
    assert longest <= late.horizon_us


@pytest.mark.parametrize(
    ("since", "until", "labelled", "percent"),
    [
        ("2013-01-01", "2014-01-02", 326_488, 23.8),
        ("2013-01-01", "2013-10-01", 244_068, 24.3),
        ("2013-10-01", "2013-12-01", 55_323, 17.1),
        ("2013-12-01", "2014-01-02", 27_097, 32.5),
    ],
)
def test_the_share_of_late_flights_shifts_with_the_season(
    arrived: pa.RecordBatch,
    requested: pa.RecordBatch,
    since: str,
    until: str,
    labelled: int,
    percent: float,
) -> None:
    low, high = (datetime.datetime.fromisoformat(day + "T00:00:00+00:00") for day in (since, until))
    request_us = microseconds(requested["requested_at"])
    rows = kept(requested) & kept(arrived)
    rows &= (request_us >= low.timestamp() * 1e6) & (request_us < high.timestamp() * 1e6)
    labels = late.value.evaluate(arrived.filter(pa.array(rows)))
    assert len(labels) == labelled
    assert round(100 * pc.mean(labels).as_py(), 1) == percent


def test_of_all_flights_that_arrived_23_7_percent_were_late(arrived: pa.RecordBatch) -> None:
    labels = late.value.evaluate(arrived.filter(pa.array(kept(arrived))))
    assert pc.sum(labels).as_py() == 77_630
    assert round(100 * pc.mean(labels).as_py(), 1) == 23.7


# Rows that cannot be used.


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ({"sched_dep_time": "5h15"}, "sched_dep_time: found '5h15', expected a whole number"),
        ({"sched_dep_time": "561"}, "sched_dep_time: found '561', expected a clock time hhmm"),
        ({"sched_arr_time": "NA"}, "sched_arr_time: found 'NA', expected a clock time hhmm"),
        ({"month": "2", "day": "30"}, "day: found '30', expected a day of its month"),
        ({"month": "13"}, "month: found '13', expected a month, 1 to 12"),
        ({"month": "3", "day": "10", "sched_dep_time": "230"},
         "sched_dep_time: found '230', expected a time that local clocks showed"),
        ({"month": "3", "day": "9", "dest": "MIA", "sched_dep_time": "2300",
          "sched_arr_time": "230"},
         "sched_arr_time: found '230', expected a time that local clocks showed"),
        ({"dest": "XYZ"}, "dest: found 'XYZ', expected an airport of airports.csv"),
        ({"sched_arr_time": "420"},
         "sched_arr_time: found '420', expected a time from 20 minutes to 16 hours after"),
        ({"dep_delay": "300"}, "arr_delay: found '11', expected an arrival after the departure"),
        ({"arr_delay": "1.5"}, "arr_delay: found '1.5', expected a whole number"),
    ],
)  # fmt: skip
def test_a_row_that_makes_no_sense_is_rejected_and_not_dropped(
    cells: dict[str, str], problem: str
) -> None:
    row = only(ingest.arrivals(flight(**cells)))
    assert row["__reject__"].startswith(problem)
    assert not row["__drop__"]


def test_a_bad_row_leaves_its_neighbours_alone() -> None:
    good = flight()
    bad = flight(year="20x3", dest="XYZ", sched_dep_time="", arr_delay="late")
    table = pa.Table.from_batches([good, bad, good]).combine_chunks()
    first, second, third = ingest.arrivals(table.to_batches()[0]).to_pylist()
    assert first == third == only(ingest.arrivals(good))
    assert second["__reject__"] == "year: found '20x3', expected a whole number"


def test_a_source_without_a_column_is_an_error_that_names_it() -> None:
    batch = flight().drop_columns(["sched_dep_time"])
    with pytest.raises(InputError, match="no column 'sched_dep_time'"):
        ingest.departures(batch)


@pytest.mark.parametrize("transform", [ingest.departures, ingest.arrivals, ingest.requests])
def test_a_row_is_read_the_same_in_any_batch(flights: pa.RecordBatch, transform: Any) -> None:
    some = flights.slice(144_000, 1_000)
    at_once = transform(some)
    pieces = [transform(some.slice(start, 7)) for start in range(0, 1_000, 7)]
    assert pa.Table.from_batches(pieces).combine_chunks().to_batches()[0].equals(at_once)
    assert transform(some.slice(0, 0)).schema == at_once.schema


# Weather.


def test_a_report_is_known_when_its_hour_is_over(reports: pa.RecordBatch) -> None:
    first = ingest.weather(reports.slice(0, 1)).to_pylist()[0]
    assert reports["time_hour"][0].as_py() == "2013-01-01T06:00:00Z"
    assert first["report_id"] == "EWR-2013-01-01T06:00:00Z"
    assert first["known_at"] == datetime.datetime(2013, 1, 1, 7, tzinfo=datetime.UTC)


def test_reports_are_unique_and_one_was_broken(reports: pa.RecordBatch) -> None:
    made = ingest.weather(reports)
    assert made.num_rows == 26_115
    assert pc.count_distinct(made["report_id"]).as_py() == 26_115
    assert pc.sum(made["__drop__"]).as_py() == 0
    problems = [problem for problem in made["__reject__"].to_pylist() if problem is not None]
    assert problems == ["wind_speed: found '1048.36058', expected at most 253 mph, the record"]
    assert made["wind_gust"].null_count == 20_778
    assert made["pressure"].null_count == 2_729


def test_a_pressure_of_a_thousand_is_written_oddly_and_read_rightly(
    reports: pa.RecordBatch,
) -> None:
    odd = reports.filter(pc.equal(reports["pressure"], "1e3"))
    assert odd.num_rows == 5
    assert ingest.weather(odd)["pressure"].to_pylist() == [1000.0] * 5


def test_both_hours_of_the_repeated_one_are_reported(reports: pa.RecordBatch) -> None:
    night = reports.filter(pc.and_(pc.equal(reports["month"], "11"), pc.equal(reports["day"], "3")))
    ones = night.filter(pc.and_(pc.equal(night["origin"], "JFK"), pc.equal(night["hour"], "1")))
    assert ones["time_hour"].to_pylist() == ["2013-11-03T05:00:00Z", "2013-11-03T06:00:00Z"]


# The project.


def test_transforms_make_the_columns_of_their_streams(
    departed: pa.RecordBatch,
    arrived: pa.RecordBatch,
    requested: pa.RecordBatch,
    reports: pa.RecordBatch,
) -> None:
    sources: list[tuple[EventStream | Request, pa.RecordBatch]] = [
        (project.stream("departures"), departed),
        (project.stream("arrivals"), arrived),
        (project.stream("weather"), ingest.weather(reports)),
        (project.request, requested),
    ]
    for source, batch in sources:
        declared = {name: ARROW_TYPES[dtype] for name, dtype in source.schema.items()}
        made = {field.name: field.type for field in batch.schema}
        assert made == declared | {"__reject__": pa.string(), "__drop__": pa.bool_()}


def test_the_configuration_names_every_stream_and_a_transform_that_exists() -> None:
    path = Path(ingest.__file__).with_name("tidemill.yaml")
    configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = {stream.name for stream in project.streams} | {project.request.name}
    assert set(configuration["sources"]) == names
    for source in configuration["sources"].values():
        module, _, attribute = source["transform"].partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
    module, _, attribute = configuration["project"].partition(":")
    assert getattr(importlib.import_module(module), attribute) is project


def test_the_project_spans_minutes_to_weeks_on_several_grids() -> None:
    assert 30 <= len(project.columns) <= 45
    assert len({view.hop_us for view in project.views}) >= 4
    windows = [a.window_us for view in project.views for a in view.features.values()]
    assert min(windows) == 30 * MINUTE
    assert max(windows) == 28 * 24 * HOUR


# The model.


def spec() -> ModelSpec:
    return ModelSpec(
        numeric={"numbers": 3, "missing": 3},
        vocabularies={"origin": 4, "dest": 106, "carrier": 17, "hour": 25, "weekday": 8},
        learning_rate=0.01,
        seed=1,
    )


def test_the_model_gives_one_probability_a_row_and_learns() -> None:
    import keras

    keras.utils.set_random_seed(1)
    built = model.build_model(spec())
    rng = np.random.default_rng(1)
    rows = 512
    inputs: dict[str, Any] = {
        "numbers": rng.normal(size=(rows, 3)).astype(np.float32),
        "missing": np.zeros((rows, 3), np.float32),
    } | {name: rng.integers(0, size, rows) for name, size in spec().vocabularies.items()}
    labels = ((inputs["numbers"][:, 0] > 0) ^ (inputs["origin"] == 2)).astype(np.float32)
    assert built.output_names == ["late"]
    before = built.evaluate(inputs, labels, verbose=0, return_dict=True)["loss"]
    built.fit(inputs, labels, epochs=30, batch_size=64, verbose=0)
    scores = built.predict(inputs, verbose=0)
    assert scores.shape == (rows, 1)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert built.evaluate(inputs, labels, verbose=0, return_dict=True)["loss"] < before / 2


def test_preprocessing_knows_null_from_zero_and_unseen_words(tmp_path: Path) -> None:
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

    names = {"origin": tf.string, "dest": tf.string, "carrier": tf.string} | dict.fromkeys(
        ["hour", "weekday", "delay", "empty"], tf.float32
    )
    features = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in names.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(features))
    nan = float("nan")
    rows = [
        {"origin": "EWR", "dest": "IAH", "carrier": "UA", "hour": 0.0, "weekday": 0.0,
         "delay": 0.0, "empty": nan},
        {"origin": "EWR", "dest": "MIA", "carrier": "AA", "hour": 6.0, "weekday": 1.0,
         "delay": 20.0, "empty": nan},
        {"origin": "JFK", "dest": "", "carrier": "UA", "hour": nan, "weekday": 2.0,
         "delay": nan, "empty": nan},
    ]  # fmt: skip
    with tft_beam.Context(temp_dir=str(tmp_path / "temp")):
        _, transform = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(model.preprocess)
    _ = transform | tft_beam.WriteTransformFn(str(tmp_path / "graph"))
    graph = tft.TFTransformOutput(str(tmp_path / "graph"))
    layer = graph.transform_features_layer()
    unseen = rows[0] | {"origin": "SFO", "delay": 1e9, "empty": 3.0}
    out = layer({name: tf.constant([row[name] for row in [*rows, unseen]]) for name in names})

    # Names in order: delay, empty.
    numbers = np.array([[-1, 0], [1, 0], [0, 0], [model.CLIP, 0]])
    np.testing.assert_allclose(out["numbers"], numbers, atol=1e-6)
    np.testing.assert_array_equal(out["missing"], [[0, 1], [0, 1], [1, 1], [0, 0]])
    assert out["hour"].numpy().tolist() == [0, 6, 24, 0]
    assert out["weekday"].numpy().tolist() == [0, 1, 2, 0]
    assert graph.vocabulary_size_by_name("origin") == 2
    assert out["origin"].numpy().tolist() == [0, 0, 1, 2]
    assert out["dest"].numpy()[2] == graph.vocabulary_size_by_name("dest")
    assert all(np.isfinite(value).all() for value in out.values() if value.dtype == tf.float32)
