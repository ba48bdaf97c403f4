"""Outputs: appended to parts, joined when they count, and read once whatever happens between."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.features.errors import DamagedFile, DamagedState, OutputConflict
from tidemill.pipelines.io.output_parts import JOINING, PART, Output, PartWriter, read_part
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.serving.files import segment_names
from tidemill.serving.files.segment_names import TOGETHER


def output(number: int, rows: int = 2, stamp: int = 0) -> Output:
    values = [float(number)] * (rows - 1)
    columns = {
        "number": pa.array([number] * rows, pa.int64()),
        "value": pa.array([float("nan"), *values], pa.float64()),
        "stamp": pa.array([stamp] * rows, pa.int64()),
    }
    return Output(f"{number:06d}", pa.RecordBatch.from_pydict(columns))


def numbers(folder: OutputFolder, since: int = 0, until: int | None = None) -> list[int]:
    table = folder.read(["number"], since, until)
    return [] if table is None else [int(n) for n in table.column(0).to_pylist()]


def twice(values: range | list[int]) -> list[int]:
    return [value for value in values for _ in range(2)]


def test_outputs_are_read_by_name_whatever_wrote_them(tmp_path: Path) -> None:
    folder, writers = OutputFolder(tmp_path / "out"), [PartWriter(tmp_path / "out") for _ in "ab"]
    assert numbers(folder) == []
    assert not folder.has_any()
    for number in [5, 2, 9, 1, 7]:
        writers[number % 2].append(1, [output(number), output(number + 20)])
    for writer in writers:
        writer.append(1, [])
    assert numbers(folder) == twice([1, 2, 5, 7, 9, 21, 22, 25, 27, 29])
    assert folder.count() == 20
    folder.join(0)
    assert {file.path.suffix for file in folder.files()} == {PART}
    folder.join(1)
    assert [file.path.name for file in folder.files()] == ["00001-all.parquet"]
    assert numbers(folder) == twice([1, 2, 5, 7, 9, 21, 22, 25, 27, 29])
    assert folder.count() == 20


def joined(tmp_path: Path) -> tuple[OutputFolder, Path]:
    folder, writer = OutputFolder(tmp_path / "out"), PartWriter(tmp_path / "out")
    for segment in range(1, TOGETHER + 1):
        writer.append(segment, [output(segment)])
        folder.join(segment)
    (file,) = folder.files()
    return folder, file.path


def test_rows_of_joined_files_are_of_the_segments_of_their_names(tmp_path: Path) -> None:
    folder, path = joined(tmp_path)
    folder.check_places()
    path.rename(path.with_name(f"{TOGETHER + 1:05d}-all.parquet"))
    with pytest.raises(DamagedFile, match="not in the order of their segments; run `tidemill"):
        folder.check_places()


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([*range(1, TOGETHER), TOGETHER + 1], "the last of the file is"),
        ([2, 1, *range(3, TOGETHER + 1)], "not in the order"),
        ([None, *range(2, TOGETHER + 1)], "names no output, or no segment"),
    ],
)
def test_a_changed_segment_of_a_joined_file_is_named(
    tmp_path: Path, segments: list[int | None], said: str
) -> None:
    folder, path = joined(tmp_path)
    table = pq.read_table(path)
    at = table.schema.get_field_index("_segment")
    changed = pa.array([one for one in segments for _ in range(2)], table.schema.field(at).type)
    pq.write_table(table.set_column(at, "_segment", changed), path)
    with pytest.raises(DamagedFile, match=said):
        folder.check_places()


def test_a_repeat_counts_once_and_must_be_the_same(tmp_path: Path) -> None:
    folder, one, other = OutputFolder(tmp_path, ("stamp",)), *map(PartWriter, [tmp_path] * 2)
    one.append(1, [output(1), output(2)])
    other.append(1, [output(2, stamp=8)])
    one.append(1, [output(2, stamp=9), output(3)])
    assert numbers(folder) == twice([1, 2, 3])
    assert folder.count() == 6
    other.append(1, [output(2, rows=3)])
    for use in (folder.read, folder.count, lambda: folder.join(1)):
        with pytest.raises(OutputConflict, match="output 000002 was written before with other"):
            use()
    assert folder.files() != []
    with pytest.raises(OutputConflict):
        OutputFolder(tmp_path).read()


def test_an_append_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path)
    writer.append(1, [output(1)])
    (path,) = tmp_path.iterdir()
    first = path.stat().st_size
    writer.append(1, [output(2), output(3)])
    whole = path.read_bytes()
    for size in (first, first + 1, first + 31, first + 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert numbers(OutputFolder(tmp_path)) == twice([1])
        assert [appended.stop for appended in read_part(path)] == [first]
    path.write_bytes(whole)
    assert [appended.names for appended in read_part(path, first)] == [["000002", "000003"]]
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(DamagedState):
            # Where its length was changed, the end seems to be missing.
            assert numbers(OutputFolder(tmp_path)) in (twice([1]), [])


def test_nothing_is_appended_behind_what_was_cut_short(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path)
    writer.append(1, [output(1)])
    with pytest.raises(pa.ArrowInvalid):
        writer.append(1, [output(2), Output("other", pa.RecordBatch.from_pydict({"x": [1]}))])
    writer.append(1, [output(3)])
    assert numbers(OutputFolder(tmp_path)) == twice([1, 3])


def test_a_writer_appends_again_what_comes_while_its_part_is_joined(tmp_path: Path) -> None:
    folder, writer = OutputFolder(tmp_path), PartWriter(tmp_path)
    writer.append(1, [output(1)])
    (path,) = tmp_path.iterdir()
    # As a join begins: what the writer now appends to the file may come too late.
    path.rename(path.with_suffix(JOINING))
    writer.append(1, [output(2)])
    assert numbers(folder) == twice([1, 2])
    assert sorted(file.path.suffix for file in folder.files()) == [JOINING, PART]
    folder.join(1)
    assert [file.path.name for file in folder.files()] == ["00001-all.parquet"]
    assert numbers(folder) == twice([1, 2])
    # It comes late, and again.
    writer.append(1, [output(2), output(0)])
    assert numbers(folder) == twice([1, 2, 0])
    assert folder.count() == 6
    folder.join(1)
    assert len(list(tmp_path.iterdir())) == 1
    assert numbers(folder) == twice([1, 2, 0])


def test_many_segments_become_few_files(tmp_path: Path) -> None:
    folder, writer = OutputFolder(tmp_path), PartWriter(tmp_path)
    segments = 3 * TOGETHER + 5
    for segment in range(1, segments + 1):
        writer.append(segment, [output(segment)])
        folder.join(segment)
    expected = list(range(1, segments + 1))
    assert numbers(folder) == twice(expected)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 + 5
    assert names[0] == f"{TOGETHER:05d}-since-00001.parquet"
    assert numbers(folder, since=10, until=40) == twice(expected[9:40])
    assert numbers(folder, since=segments) == twice([segments])
    # An output of a segment that was joined with others stays a part.
    writer.append(7, [output(7), output(0)])
    folder.join(segments)
    assert numbers(folder) == twice([*expected[:TOGETHER], 0, *expected[TOGETHER:]])
    assert folder.count() == 2 * segments + 2


def test_a_kill_at_any_step_of_a_join_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    chance, folder = random.Random(5), OutputFolder(tmp_path)
    monkeypatch.setattr(segment_names, "TOGETHER", 4)
    left = [0]

    def dying(method: str) -> None:
        real = getattr(Path, method)

        def step(self: Path, *args: object, **options: object) -> object:
            if tmp_path in self.parents:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
            return real(self, *args, **options)

        monkeypatch.setattr(Path, method, step)

    for method in ("rename", "unlink", "replace"):
        dying(method)
    expected: list[int] = []
    kills = 0
    for segment in range(1, 60):
        writer = PartWriter(tmp_path)
        for number in range(10 * segment, 10 * segment + chance.randrange(1, 4)):
            writer.append(segment, [output(number)])
            expected.append(number)
            if chance.random() < 0.3:
                writer.close()
        while True:
            left[0] = chance.randrange(1, 12)
            try:
                folder.join(segment)
            except Killed:
                kills += 1
                left[0] = 0
                assert numbers(folder) == twice(expected)
                assert folder.count() == 2 * len(expected)
            else:
                break
    assert kills > 20
    left[0] = 0
    assert numbers(folder) == twice(expected)
    assert len(list(tmp_path.iterdir())) < 12


def test_files_of_versions_without_parts_are_read_beside_the_others(tmp_path: Path) -> None:
    for number in (3, 1):
        pq.write_table(
            pa.Table.from_batches([output(number).rows]), tmp_path / f"00001-0-{number}.parquet"
        )
    writer, folder = PartWriter(tmp_path), OutputFolder(tmp_path)
    writer.append(2, [output(7)])
    assert numbers(folder) == twice([1, 3, 7])
    folder.join(2)
    assert numbers(folder) == twice([1, 3, 7])
    assert len(list(tmp_path.iterdir())) == 3


def test_readers_see_every_output_once_while_it_is_written_and_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_names, "TOGETHER", 3)
    folder, written = OutputFolder(tmp_path), [0]
    ended = threading.Event()

    def write() -> None:
        try:
            for segment in range(1, 60):
                writer = PartWriter(tmp_path)
                for _ in range(3):
                    writer.append(segment, [output(written[0])])
                    written[0] += 1
                if segment > 1:
                    folder.join(segment - 1)
        finally:
            ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    reads = 0
    while not ended.is_set():
        least = written[0]
        found = numbers(folder)
        assert found == twice(range(len(found) // 2))
        assert len(found) // 2 >= least
        assert folder.count() >= len(found)
        assert folder.has_any() or not least
        reads += 1
    thread.join()
    assert reads > 5
    assert numbers(folder) == twice(range(written[0]))
