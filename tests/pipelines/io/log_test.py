"""The log on disk: accepted rows by partition, with positions and times of arrival."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.strategies import to_batch
from tests.support.streaming_project import RAIN, REQUEST, START, TRIPS
from tidemill.features.errors import DamagedFile, InputError
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, Log, log_schema, one_batch
from tidemill.pipelines.io.log_digests import BLOCK_ROWS


def readings(*numbers: int) -> pa.Table:
    rows = [{"at": START + n, "reading": n, "zone": 1, "mm": n / 2} for n in numbers]
    return pa.Table.from_batches([to_batch(RAIN.schema, rows)])


def received(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array([START + n for n in numbers], np.int64)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path)
    log.write(RAIN, 0, readings(5, 3), received(6, 6))
    log.write(RAIN, 1, readings(4), received(9))
    return log


def test_rows_get_their_places_in_order_of_arrival(log: Log) -> None:
    table = log.read("rain", 0)
    assert table.schema.equals(log_schema(RAIN))
    assert table.column("reading").to_pylist() == [5, 3]
    assert table.column(POSITION).to_pylist() == [0, 1]
    assert table.column(RECEIVED).to_pylist() == [START + 6, START + 6]


def test_all_partitions_stand_one_after_the_other(log: Log) -> None:
    assert log.partitions("rain") == 2
    table = log.read("rain")
    assert table.column("reading").to_pylist() == [5, 3, 4]
    assert table.column(PARTITION).to_pylist() == [0, 0, 1]
    assert table.column(POSITION).to_pylist() == [0, 1, 0]


def test_columns_can_be_chosen(log: Log) -> None:
    assert log.read("rain", 1, ["mm"]).to_pydict() == {"mm": [2.0]}
    assert log.read("rain", columns=["mm"]).column_names == ["mm", PARTITION]


def test_a_partition_is_replaced_atomically(log: Log) -> None:
    before = log.read("rain", 0)
    log.write(RAIN, 0, readings(8), received(8))
    assert log.read("rain", 0).column("reading").to_pylist() == [8]
    # A reader that has the old file open still reads it.
    assert before.column("reading").to_pylist() == [5, 3]
    assert list((log.root / "log" / "rain").glob("*.unfinished")) == []


def test_a_partition_may_be_empty(log: Log) -> None:
    log.write(TRIPS, 0, to_table(TRIPS.schema), received())
    table = log.read("trips", 0)
    assert (len(table), table.schema.names) == (0, log_schema(TRIPS).names)


def to_table(schema: Mapping[str, str]) -> pa.Table:
    return pa.Table.from_batches([to_batch(schema, [])])


def test_a_source_without_a_log_is_an_error_that_names_it(log: Log) -> None:
    with pytest.raises(InputError, match=r"no log of 'hails'.*run `tidemill backfill`"):
        log.partitions("hails")
    with pytest.raises(InputError, match="no partition 7 of 'rain'"):
        log.read("rain", 7)


def test_requests_have_a_log_like_events(log: Log) -> None:
    log.write(REQUEST, 0, to_table(REQUEST.schema), received())
    assert log.partitions("hails") == 1


def test_a_table_is_one_batch_also_when_it_is_empty_or_in_pieces() -> None:
    assert one_batch(readings()).num_rows == 0
    assert one_batch(readings()).schema.equals(readings().schema)
    pieces = pa.concat_tables([readings(1), readings(2, 3)])
    assert one_batch(pieces).column("reading").to_pylist() == [1, 2, 3]


def many_readings(rows: int) -> pa.Table:
    chance = np.random.default_rng(1)
    mm = pa.array(chance.random(rows), mask=chance.random(rows) < 0.2)
    at = pa.array(START + np.arange(rows)).cast(pa.timestamp("us", tz="UTC"))
    return pa.table([at, np.arange(rows), chance.integers(0, 3, rows), mm], names=list(RAIN.schema))


@pytest.mark.parametrize("rows", [0, 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 777])
def test_a_log_written_piece_by_piece_has_the_bytes_of_one_written_at_once(
    rows: int, tmp_path: Path
) -> None:
    table, arrived = many_readings(rows), START + np.arange(rows)
    at_once, pieces = Log(tmp_path / "once"), Log(tmp_path / "pieces")
    at_once.write(RAIN, 0, table, arrived)
    with pieces.writing(RAIN, 0, rows) as writer:
        start = 0
        for size in (10, 60_000, 3, 100_000, rows):
            piece = one_batch(table.slice(start, size))
            writer.write(piece, arrived[start : start + size])
            start += piece.num_rows
    assert pieces.path("rain", 0).read_bytes() == at_once.path("rain", 0).read_bytes()
    assert pieces.digests("rain", 0).rows == rows
    assert len(pieces.read("rain", 0)) == rows


def test_a_log_with_other_rows_than_announced_is_not_written(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with pytest.raises(ValueError, match="3 rows were written, announced were 4"):  # noqa: SIM117
        with log.writing(RAIN, 0, 4) as writer:
            writer.write(one_batch(readings(1, 2, 3)), received(1, 2, 3))
    assert list(log.path("rain", 0).parent.iterdir()) == []


def test_a_span_is_read_and_checked_alone(tmp_path: Path) -> None:
    rows = 2 * BLOCK_ROWS + 50
    log = Log(tmp_path)
    log.write(RAIN, 0, many_readings(rows), START + np.arange(rows))
    for start, stop in ((0, 0), (5, 9), (BLOCK_ROWS - 2, BLOCK_ROWS + 2), (0, rows)):
        found = log.read_span("rain", 0, start, stop)
        assert found.column(POSITION).to_pylist() == list(range(start, stop))
    path = log.path("rain", 0)
    data = bytearray(path.read_bytes())
    word = (START + BLOCK_ROWS + 7).to_bytes(8, "little")
    data[data.rindex(word)] ^= 1
    path.write_bytes(data)
    assert log.read_span("rain", 0, 0, 10).num_rows == 10
    first, last = BLOCK_ROWS, 2 * BLOCK_ROWS - 1
    with pytest.raises(DamagedFile, match=f"rows {first} to {last} do not have their digest"):
        log.read_span("rain", 0, BLOCK_ROWS + 100, BLOCK_ROWS + 101)


def test_a_position_is_found_by_the_time_of_receipt(tmp_path: Path) -> None:
    rows = BLOCK_ROWS + 10
    log = Log(tmp_path)
    log.write(RAIN, 0, many_readings(rows), START + np.arange(rows) // 2)
    log.write(RAIN, 1, many_readings(0), received())
    for offset in (-1, 0, 1, BLOCK_ROWS // 2, (rows - 1) // 2, rows):
        expected = min(max(2 * offset, 0), rows)
        assert log.position_at("rain", 0, START + offset) == expected
    assert log.position_at("rain", 1, START) == 0
