"""Who is heard, and when: journals are asked by number, lists find who is new and what is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tidemill.features.errors import DamagedState
from tidemill.pipelines.io.exchange import hearing
from tidemill.pipelines.io.exchange.hearing import Hearing
from tidemill.pipelines.io.exchange.journal import JournalWriter, name_of
from tidemill.pipelines.io.exchange.journal_reader import JournalReader, Looks
from tidemill.pipelines.io.exchange.names import UP, Told
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.io.exchange.sealed import Entry, sealed, told


class Counted(Objects):
    """Objects in a folder, which count what they are asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"file://{folder}")
        self.folder, self.lists, self.gets = folder, 0, list[str]()

    def names(self, folder: str = "") -> list[str]:
        self.lists += 1
        return super().names(folder)

    def get(self, name: str) -> object:  # type: ignore[override]
        self.gets.append(name)
        return super().get(name)

    def write(self, worker: str, *numbers: int, entry: Entry | None = None) -> None:
        for number in numbers:
            name = f"{UP}/{worker}/{name_of(number)}"
            found = told(Told.ELEMENTS, {"n": number}) if entry is None else entry
            self.put(name, *sealed(self.place(name), [found, beat()]))

    def remove(self, worker: str, number: int) -> None:
        (self.folder / UP / worker / name_of(number)).unlink()


def beat() -> Entry:
    return told(Told.BEAT, {"taken": 0, "read": None})


@pytest.fixture
def objects(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "exchange")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as found:
        yield found


@pytest.fixture
def heard(objects: Counted, pool: ThreadPoolExecutor) -> Hearing:
    return Hearing(objects, pool, lambda: False)


def numbers(heard: Hearing) -> list[tuple[str, int]]:
    """Hear once, when something is due."""
    wait_until(lambda: time.monotonic() >= heard.due_s)
    return [(name, one.number) for name, one in heard.hear()]


def listed(heard: Hearing) -> list[tuple[str, int]]:
    """Hear once, with a list."""
    heard.hear_all()
    return [(name, one.number) for name, one in heard.hear()]


def test_what_a_worker_tells_is_asked_for_by_its_number_and_nothing_is_listed(
    objects: Counted, heard: Hearing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "_FIRST_LISTS_S", 600.0)
    monkeypatch.setattr(hearing, "_LISTS_S", 600.0)
    objects.write("one", 0)
    assert listed(heard) == [("one", 0)]
    before, found = objects.lists, []
    for number in range(1, 10):
        objects.write("one", number)
        while not (now := numbers(heard)):
            pass
        found += now
    assert found == [("one", number) for number in range(1, 10)]
    assert objects.lists == before


def test_a_worker_that_begins_late_is_heard_after_the_next_list(
    objects: Counted, heard: Hearing
) -> None:
    objects.write("one", 0)
    assert listed(heard) == [("one", 0)]
    assert heard.has_heard
    began_s = time.monotonic()
    wait_until(lambda: numbers(heard) == [] and time.monotonic() > began_s + 3)
    objects.write("late", 0, 1)
    before, found = objects.lists, list[tuple[str, int]]()
    while len(found) < 2:
        found += numbers(heard)
    assert found == [("late", 0), ("late", 1)]
    assert objects.lists - before <= 2
    assert hearing._LISTS_S <= 1.0


def test_lists_become_rare_when_nobody_is_new(objects: Counted, heard: Hearing) -> None:
    objects.write("one", 0)
    began_s = time.monotonic()
    wait_until(lambda: numbers(heard) is None or time.monotonic() > began_s + 4)
    assert objects.lists <= 6 + time.monotonic() - began_s


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_an_object_that_was_removed_is_found_by_the_next_list(
    objects: Counted, heard: Hearing, gone: int
) -> None:
    objects.write("one", *range(7))
    objects.remove("one", gone)
    found = list[int]()

    def hear_more() -> None:
        heard.hear_all()
        for _, one in heard.hear():
            found.append(one.number)

    with pytest.raises(DamagedState, match=rf"{name_of(gone)}: was removed"):
        wait_until(hear_more)
    assert found == list(range(gone))


def test_the_first_object_of_a_worker_that_was_removed_is_missed(
    objects: Counted, heard: Hearing
) -> None:
    objects.write("one", 0, 1)
    objects.remove("one", 0)
    with pytest.raises(DamagedState, match="was removed"):
        listed(heard)


def test_what_is_written_between_a_list_and_a_question_is_no_gap(
    objects: Counted, heard: Hearing
) -> None:
    objects.write("one", 0)
    found = listed(heard)
    for number in range(1, 50):
        objects.write("one", number)
        found += listed(heard)
    while len(found) < 50:
        found += listed(heard)
    assert found == [("one", number) for number in range(50)]


def test_whoever_lags_behind_reads_several_objects_at_once(
    objects: Counted, heard: Hearing
) -> None:
    objects.write("one", *range(200))
    found, rounds = listed(heard), 1
    while len(found) < 200:
        found, rounds = found + numbers(heard), rounds + 1
    assert found == [("one", number) for number in range(200)]
    assert rounds < 40
    assert len(objects.gets) < 220


def test_files_of_a_mounted_disk_beside_the_objects_are_passed_over(
    objects: Counted, heard: Hearing
) -> None:
    objects.write("one", 0)
    (objects.folder / UP / "one" / ".nfs0001").write_bytes(b"")
    assert listed(heard) == [("one", 0)]


def test_an_object_that_was_asked_for_too_early_is_asked_for_again(objects: Counted) -> None:
    reader = JournalReader(objects, f"{UP}/one")
    objects.write("one", 0, 1, 2)
    late = objects.get(f"{UP}/one/{name_of(1)}")
    assert [one.number for one in reader.take([None, late])] == [0, 1]  # type: ignore[list-item]
    objects.remove("one", 2)
    with pytest.raises(DamagedState, match="was removed"):
        list(reader.take([None, late]))  # type: ignore[list-item]


def test_looks_become_rare_in_proportion_to_the_silence_and_never_too_rare() -> None:
    looks, now_s, waits = Looks(100.0), 100.0, []
    while now_s < 110.0:
        looks.note(now_s, has_come=False, is_behind=False)
        waits.append(looks.due_s - now_s)
        assert waits[-1] <= max((now_s - 100.0) / 3, 0.01) + 1e-9
        now_s = looks.due_s
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(0.1)
    looks.note(now_s, has_come=True, is_behind=False)
    assert looks.due_s == pytest.approx(now_s + 0.01)
    looks.note(now_s, has_come=True, is_behind=True)
    assert looks.due_s == now_s


def test_words_that_a_worker_lives_let_nobody_look_more_often(
    objects: Counted, heard: Hearing
) -> None:
    objects.write("one", 0, entry=beat())
    ((_, only),) = list(heard.hear())
    assert only.is_beat
    objects.write("one", 1)
    found = [one for _, one in heard.hear()]
    while not found:
        wait_until(lambda: time.monotonic() >= heard.due_s)
        found = [one for _, one in heard.hear()]
    assert not found[0].is_beat


def test_what_nobody_waits_for_takes_no_object_for_itself(objects: Counted) -> None:
    writer = JournalWriter(objects, f"{UP}/one", beat)
    try:
        for _ in range(5):
            writer.tell(told(Told.ELEMENTS, {}), within_s=600.0)
        writer.tell(told(Told.ELEMENTS, {}))
        writer.flush()
        assert objects.names() == [f"{UP}/one/{name_of(0)}"]
        writer.tell(told(Told.ELEMENTS, {}), within_s=600.0)
        writer.flush()
        assert objects.names()[-1] == f"{UP}/one/{name_of(1)}"
        writer.tell(told(Told.ELEMENTS, {}), within_s=0.05)
        wait_until(lambda: len(objects.names()) == 3)
    finally:
        writer.close()
