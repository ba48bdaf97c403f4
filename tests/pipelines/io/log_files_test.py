"""A partition in several files: the same rows, positions and digests as in one file."""

from __future__ import annotations

import itertools
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipelines.io.log_test import many_readings
from tests.support.streaming_project import RAIN, START
from tidemill.features.errors import DamagedFile, StateVersionError
from tidemill.pipelines.io import log as log_module
from tidemill.pipelines.io import log_digests, log_files
from tidemill.pipelines.io.log import Log, one_batch
from tidemill.pipelines.io.log_files import LogFile, write_log_file

BLOCK = 8
ROWS = 45


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (log_module, log_files, log_digests):
        monkeypatch.setattr(module, "BLOCK_ROWS", BLOCK)


def arrived(rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return START + np.arange(rows) // 3


def write_rows(path: Path, table: pa.Table, first: int, stop: int) -> None:
    """Write the rows ``[first, stop)`` of a table as a file of a partition."""
    with write_log_file(path, RAIN, stop - first, first=first) as writer:
        writer.write(one_batch(table.slice(first, stop - first)), arrived(len(table))[first:stop])


def in_files(folder: Path, table: pa.Table, cuts: Sequence[int]) -> Log:
    """Write a log as a build and as seals do: each goes on from the last whole block."""
    log = Log(folder / "build", folder / "live")
    write_rows(log.path("rain", 0), table, 0, cuts[0])
    for before, stop in itertools.pairwise(cuts):
        first = before // BLOCK * BLOCK
        write_rows(
            folder / "live" / "rows" / "rain" / f"00000-{first:012d}.arrow", table, first, stop
        )
    return log


def in_one(folder: Path, table: pa.Table) -> Log:
    log = Log(folder / "one")
    log.write(RAIN, 0, table, arrived(len(table)))
    return log


def live_files(log: Log) -> list[Path]:
    assert log.live is not None
    return sorted((log.live / "rows" / "rain").iterdir())


@given(
    cuts=st.lists(
        st.one_of(st.integers(0, ROWS), st.integers(0, ROWS // BLOCK).map(BLOCK.__mul__)),
        min_size=1,
        max_size=6,
    ).map(sorted),
    data=st.data(),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_files_read_as_one_file(
    cuts: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows, folder = cuts[-1], tmp_path_factory.mktemp("log")
    table = many_readings(rows)
    log, one = in_files(folder, table, cuts), in_one(folder, table)
    assert log.read("rain", 0) == one.read("rain", 0)
    assert log.read("rain") == one.read("rain")
    assert log.read("rain", 0, ["mm"]) == one.read("rain", 0, ["mm"])
    assert list(log.batches("rain", 0)) == list(one.batches("rain", 0))
    assert log.digests("rain", 0) == one.digests("rain", 0)
    assert log.lengths("rain") == [rows]
    for position in range(rows + 2):
        assert log.prefix_digest("rain", [position]) == one.prefix_digest("rain", [position])
    for offset in range(-1, rows // 3 + 2):
        found = log.position_at("rain", 0, START + offset)
        assert found == one.position_at("rain", 0, START + offset) == min(max(3 * offset, 0), rows)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    span = log.read_span("rain", 0, start, stop)
    assert span == one.read_span("rain", 0, start, stop)
    assert span == one_batch(one.read("rain", 0).slice(start, stop - start))


def test_every_span_of_files_is_that_of_one_file(tmp_path: Path) -> None:
    table = many_readings(3 * BLOCK + 2)
    log = in_files(tmp_path, table, [5, BLOCK, 2 * BLOCK + 3, len(table)])
    one = in_one(tmp_path, table)
    for start, stop in itertools.combinations_with_replacement(range(len(table) + 1), 2):
        assert log.read_span("rain", 0, start, stop) == one.read_span("rain", 0, start, stop)
    assert log.read_span("rain", 0, 20, len(table) + 50).num_rows == len(table) - 20


def test_rows_of_the_build_alone_are_read_without_the_live_files(tmp_path: Path) -> None:
    log = in_files(tmp_path, many_readings(20), [5, 20])
    assert Log(log.root).lengths("rain") == [5]
    assert log.lengths("rain") == [20]


def test_the_partitions_of_a_source_have_files_of_their_own(tmp_path: Path) -> None:
    log = in_files(tmp_path, many_readings(20), [5, 20])
    write_rows(log.path("rain", 1), many_readings(3), 0, 3)
    assert log.live is not None
    write_rows(log.live / "rows" / "rain" / "00001-000000000000.arrow", many_readings(9), 0, 9)
    assert log.lengths("rain") == [20, 9]


def test_a_tail_is_replaced_by_the_later_file(tmp_path: Path) -> None:
    """An unfinished block is read from the file that has more of its rows."""
    table = many_readings(20)
    log = in_files(tmp_path, table, [12, 20])
    other = table.set_column(1, "reading", pa.array(range(100, 120)))
    write_rows(live_files(log)[0], other, BLOCK, 20)
    found = log.read("rain", 0).column("reading").to_pylist()
    assert found == [*range(8), *range(108, 120)]


def before_each(
    monkeypatch: pytest.MonkeyPatch, method: str, happens: Callable[[Path], object]
) -> None:
    """Let something happen to a file after it was opened, and before it is read."""
    real = getattr(LogFile, method)

    def late(self: LogFile, *arguments: Any) -> Any:
        if "live" in self.path.parts:
            happens(self.path)
        return real(self, *arguments)

    monkeypatch.setattr(LogFile, method, late)


def test_a_file_that_a_seal_replaces_is_read_as_it_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replacement has other digests: those of more rows of the same block."""
    table = many_readings(2 * BLOCK)
    log = in_files(tmp_path, table, [0, BLOCK + 1])
    right = in_one(tmp_path, table).read_span("rain", 0, 3, BLOCK + 1)
    stops = iter(range(BLOCK + 2, 2 * BLOCK))
    before_each(monkeypatch, "read", lambda path: write_rows(path, table, 0, next(stops)))
    for _ in range(3):
        assert log.read_span("rain", 0, 3, BLOCK + 1) == right
    assert next(stops) == BLOCK + 5


def test_rows_that_a_replacement_has_lost_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = many_readings(20)
    log = in_files(tmp_path, table, [0, 20])
    before_each(monkeypatch, "read", lambda path: write_rows(path, table, 0, 12))
    with pytest.raises(DamagedFile, match=r"had 20 rows and has 12 now: rows were lost"):
        log.read_span("rain", 0, 0, 9)


def test_a_replacement_is_not_taken_for_the_file_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = many_readings(20)
    log = in_files(tmp_path, table, [BLOCK, 20])
    (path,) = live_files(log)

    def replaced(path: Path) -> None:
        write_rows(path, table, BLOCK, 20)
        changed(path)

    with monkeypatch.context() as patch:
        before_each(patch, "checked", replaced)
        assert len(log.read("rain", 0)) == 20
    with pytest.raises(DamagedFile, match=f"{path.name} was changed"):
        log.read("rain", 0)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def changed(path: Path) -> None:
    """Change a row of the first block."""
    first = int(path.stem.partition("-")[2])
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<qq", first, first + 1))] ^= 1
    path.write_bytes(data)


def without_digests(path: Path) -> None:
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all().replace_schema_metadata(None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


READS: list[Callable[[Log], object]] = [
    lambda log: log.read("rain", 0),
    lambda log: log.read("rain"),
    lambda log: list(log.batches("rain", 0)),
    lambda log: log.read_span("rain", 0, 0, ROWS),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("damage", [cut_short, emptied, changed, without_digests])
@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_later_file_is_an_error_that_names_it(
    tmp_path: Path,
    damage: Callable[[Path], None],
    read: Callable[[Log], object],
    place: int,
) -> None:
    log = in_files(tmp_path, many_readings(ROWS), [5, 19, ROWS])
    path = live_files(log)[place]
    damage(path)
    error = StateVersionError if damage is without_digests else DamagedFile
    with pytest.raises(error, match=f"{path.name}.*a new generation"):
        read(log)


def test_changed_rows_are_named_by_their_positions(tmp_path: Path) -> None:
    log = in_files(tmp_path, many_readings(ROWS), [5, 19, ROWS])
    path = live_files(log)[1]
    assert path.name == "00000-000000000016.arrow"
    changed(path)
    with pytest.raises(DamagedFile, match=r"rows 16 to 23 do not have their digest; restore"):
        log.read("rain", 0)
    assert log.read_span("rain", 0, 24, ROWS).num_rows == ROWS - 24


@pytest.mark.parametrize("read", [*READS, lambda log: log.lengths("rain")])
def test_a_file_that_is_missing_between_others_is_found(
    tmp_path: Path, read: Callable[[Log], object]
) -> None:
    log = in_files(tmp_path, many_readings(ROWS), [5, 19, 30, ROWS])
    live_files(log)[1].unlink()
    with pytest.raises(DamagedFile, match=r"rows below 19 .* begins at 24: rows are missing"):
        read(log)


@pytest.mark.parametrize("read", [*READS, lambda log: log.lengths("rain")])
def test_a_later_file_with_fewer_rows_than_the_one_before_is_found(
    tmp_path: Path, read: Callable[[Log], object]
) -> None:
    table = many_readings(ROWS)
    log = in_files(tmp_path, table, [19, ROWS])
    write_rows(live_files(log)[0], table, 16, 18)
    with pytest.raises(DamagedFile, match=r"ends at position 18 .* before it at 19: rows are miss"):
        read(log)


@pytest.mark.parametrize("read", READS)
def test_a_file_under_another_name_is_found(tmp_path: Path, read: Callable[[Log], object]) -> None:
    log = in_files(tmp_path, many_readings(ROWS), [5, 19, ROWS])
    first, second = live_files(log)
    shutil.copyfile(second, first)
    with pytest.raises(DamagedFile, match="has the row of position 16 where 0 belongs; restore"):
        read(log)
    first.rename(first.with_name("00000-000000000003.arrow"))
    with pytest.raises(DamagedFile, match="begins with a whole block"):
        read(log)
