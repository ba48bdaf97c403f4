"""Builds over live rows: what came through a topic counts like what came in files."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.exports import contents
from tests.support.folders import build_of
from tests.support.memory_topics import (
    BEGIN,
    NAMES,
    PROJECT,
    MemoryTopics,
    TopicProject,
)
from tests.support.through_exchange import install
from tidemill.features.contract import HOUR, MINUTE, SECOND
from tidemill.features.errors import DamagedFile, InputError, StateError, StateMismatch
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import table_digests
from tidemill.pipelines.history.builds import divergences
from tidemill.pipelines.history.inherited_rows import take_over
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog, inherited_from
from tidemill.pipelines.io.log import Log, one_batch
from tidemill.pipelines.io.log_files import write_log_file
from tidemill.pipelines.recovery.handoff import read_record
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.republish import shown_frontiers
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.lineage import lineage
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.generations.current import Current, write_current


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> TopicProject:
    """A project whose stream has read some minutes."""
    with pytest.MonkeyPatch.context() as patch:
        topics = MemoryTopics()
        topics.install(patch)
        project = TopicProject(tmp_path_factory.mktemp("template") / "shop", topics)
        lived(project, 6)
        return project


@pytest.fixture
def project(
    template: TopicProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TopicProject:
    """A copy of it."""
    project = copy.deepcopy(template)
    project.folder = tmp_path / "shop"
    shutil.copytree(template.folder, project.folder)
    project.topics.install(monkeypatch)
    return project


def last_read(project: TopicProject) -> int:
    """Return the instant of the last poll."""
    return int(project.live.cuts().received_us[-1])


def built(project: TopicProject, **changes: Any) -> dict[str, Any]:
    return backfill(project.config(**changes), QuietProgress())


def proven(project: TopicProject, **changes: Any) -> dict[str, Any]:
    found = verify(project.config(**changes), QuietProgress())
    assert found["mismatches"] == 0, found["first_mismatches"]
    return found


def lived(project: TopicProject, minutes: int) -> int:
    """Build, and let a stream read so many minutes; return the instant of its last poll."""
    built(project)
    last = 0
    for _ in range(minutes):
        project.send(project.now_us, steps=2)
        last = project.read(steps=3, seconds=20)
    return last


def files_only(project: TopicProject, folder: Path) -> TopicProject:
    """Return a project whose files hold what the other has read of files and topics."""
    other = TopicProject(folder, MemoryTopics(), until_us=project.until_us)
    for name in NAMES:
        (folder / f"{name}.csv").unlink()
        for number, rows in enumerate(project.rows[name]):
            other.write_file(folder / f"{name}-{number}.csv", name, rows)
    return other


def without_topics(other: TopicProject) -> dict[str, Source]:
    return {
        name: Source(name, (str(other.folder / f"{name}-*.csv"),), received="sent_at")
        for name in NAMES
    }


def test_a_build_whose_workers_are_elsewhere_is_that_of_any_other(
    project: TopicProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for exchange in (None, tmp_path / "exchange"):
        if exchange is not None:
            install(monkeypatch, exchange)
        built(project)
        found.append(contents(build_of(project.config().root)))
        # A build has an id of its own, which these name.
        for name in ("build.json", "states/handoff.json"):
            assert found[-1].pop(name)
    assert len(found[0]) > 4
    assert found[1] == found[0]
    assert (tmp_path / "exchange").exists()
    assert [path for path in (tmp_path / "exchange").rglob("*") if path.is_file()] == []
    proven(project)


@pytest.mark.parametrize("files", [True, False])
def test_training_on_rows_of_topics_equals_training_on_the_same_rows_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    topics = MemoryTopics()
    topics.install(monkeypatch)
    project = TopicProject(tmp_path / "shop", topics, files=files)
    last = lived(project, minutes=30)
    project.until_us = last - 5 * MINUTE
    summary = built(project)
    assert summary["sources"]["checks"]["live"] > 20
    assert summary["training"]["labelled"] > 20
    other = files_only(project, tmp_path / "files")
    built(other, sources=without_topics(other))
    digests = [table_digests(one.current.build_folder) for one in (project, other)]
    assert digests[0] == digests[1]
    assert len(digests[0]) >= 2
    proven(project)


def test_a_build_over_live_rows_extends_the_build_before(project: TopicProject) -> None:
    last = last_read(project)
    first = project.current
    project.until_us = last - 2 * MINUTE
    built(project)
    second = project.current
    assert second.generation == first.generation
    assert not divergences(Log(first.build_folder), Log(second.build_folder))
    states = read_record(second.build_folder / paths.STATES)
    log = Log(second.build_folder)
    for name in NAMES:
        received = [log.read(name, n).column("_received").to_pylist() for n in range(3)]
        assert [sum(at < project.until_us for at in one) for one in received] == list(
            states.positions[name]
        )
        assert log.lengths(name) == [len(rows) for rows in project.rows[name]]
    # And back before all live rows: they are in the log still, and not in the states.
    project.until_us = BEGIN + HOUR
    built(project)
    assert project.current.generation == first.generation
    chain = "\n".join(lineage(project.config().root, str(project.current.build_folder)).lines())
    assert re.search(r"topic checks: \d+ rows, polls 1 to \d+, read up to 2023-", chain)
    assert read_record(project.current.build_folder / paths.STATES).positions["checks"][1:] == [
        0,
        0,
    ]
    proven(project)


def test_rows_received_at_the_split_are_not_in_the_states(project: TopicProject) -> None:
    cuts = project.live.cuts()
    place = len(cuts.received_us) // 2
    project.until_us = int(cuts.received_us[place])
    built(project)
    states = read_record(project.current.build_folder / paths.STATES)
    assert states.positions["payments"][1:] == cuts.positions["payments"][place - 1].tolist()


def test_states_are_not_made_as_of_an_instant_that_nobody_has_read_up_to(
    project: TopicProject,
) -> None:
    last = last_read(project)
    before = project.current
    project.until_us = last + 1
    built(project)
    project.until_us = last + 2
    with pytest.raises(InputError, match=r"the topics are read up to 2023-.*resume.*read on"):
        built(project)
    assert project.current.build == before.build + 1
    project.now_us += 5 * SECOND
    project.read()
    built(project)


def test_another_topic_or_schema_is_refused_before_anything_is_built(project: TopicProject) -> None:
    config = project.config()
    topic = config.sources["payments"].kafka
    assert topic is not None
    project.topics.topics["others"] = [[], []]
    renamed = dataclasses.replace(
        config.sources["payments"], kafka=dataclasses.replace(topic, topic="others")
    )
    with pytest.raises(StateMismatch, match="have read topic 'payments' of 2 partitions"):
        built(project, sources={**config.sources, "payments": renamed})
    project.topics.topics["payments"].pop()
    with pytest.raises(StateMismatch, match="now there is topic 'payments' of 1 partitions"):
        built(project)


def test_a_live_log_that_is_lost_is_no_growth(project: TopicProject) -> None:
    last = last_read(project)
    project.until_us = last
    built(project)
    before = project.current
    shutil.rmtree(project.live.folder)
    found = verify(project.config(), QuietProgress())["first_mismatches"]
    assert ("log", str(project.live.folder)) in {(row["what"], row["id"]) for row in found}
    assert built(project)["generation"] != before.generation


def correct(project: TopicProject) -> None:
    """Leave out the second row of the payments' file."""
    history = project.folder / "payments.csv"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join([lines[0], *lines[2:]]))


def test_corrections_take_over_the_live_rows_of_the_generation_that_has_read_them(
    project: TopicProject,
) -> None:
    last = last_read(project)
    first = project.current
    rows = {name: len(project.rows[name][1]) for name in NAMES}
    correct(project)
    project.until_us = last - MINUTE
    built(project)
    second = project.current
    assert second.generation != first.generation
    assert Log(second.build_folder).lengths("payments")[1] == rows["payments"]
    proven(project)
    # The stream of the first one ran still, and has read more; history is corrected once more.
    former = LiveLog(first.folder / LIVE, PROJECT)
    assert inherited_from(second.folder / LIVE) == first.generation
    with as_current(project, first):
        project.send(project.now_us, steps=5)
        project.read()
    correct(project)
    built(project)
    third = project.current
    assert len({first.generation, second.generation, third.generation}) == 3
    assert first.folder.exists()
    log, topics = Log(third.build_folder), project.live.topics()
    assert log.lengths("payments")[1] == rows["payments"]
    proven(project)
    take_over(third, PROJECT, log, topics)
    assert project.live.sealed() == former.sealed()
    assert stream_log(third, PROJECT).lengths("payments")[1] == len(project.rows["payments"][1])
    project.send(project.now_us + 2 * MINUTE, steps=3)
    project.until_us = project.read()
    built(project)
    assert project.current.generation == third.generation
    assert Log(project.current.build_folder).lengths("payments")[1:] == [
        len(one) for one in project.rows["payments"][1:]
    ]
    proven(project)
    assert not first.folder.exists()  # its rows are gone on with


@contextmanager
def as_current(project: TopicProject, other: Current) -> Iterator[None]:
    """Let another generation be the current one: a stream runs in it still."""
    current = project.current
    write_current(other)
    try:
        yield
    finally:
        write_current(current)


def test_a_tampered_live_row_or_cut_is_found(project: TopicProject) -> None:
    last = last_read(project)
    project.until_us = last
    built(project)
    rows = sorted((project.live.folder / "rows" / "payments").glob("*.arrow"))[0]
    whole = rows.read_bytes()
    definition = PROJECT.definition("payments")
    table = Log(project.current.build_folder, project.live.folder).read("payments", 1)
    at = whole.index(b"c-", len(whole) // 4)
    rows.write_bytes(whole[:at] + b"d-" + whole[at + 2 :])
    with pytest.raises(DamagedFile, match="was changed after it was written"):
        verify(project.config(), QuietProgress())
    # An enemy who knows the format writes other rows with right digests.
    amounts = pc.add(table.column("amount"), 1.0)
    forged = table.set_column(table.schema.get_field_index("amount"), "amount", amounts)
    with write_log_file(rows, definition, len(forged)) as writer:
        declared = one_batch(forged.select(list(definition.schema)))
        writer.write(declared, forged.column("_received").to_numpy())
    found = verify(project.config(), QuietProgress())["first_mismatches"]
    assert "log" in {row["what"] for row in found}
    rows.write_bytes(whole)
    cuts = sorted((project.live.folder / "cuts").glob("*.arrow"))[-1]
    with pa.OSFile(str(cuts), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    name = "watermark/checks/0"
    earlier = pc.subtract(table.column(name), 60 * SECOND)
    table = table.set_column(table.schema.get_field_index(name), name, earlier)
    # The digest is as an enemy would write it.
    project.live.files("cuts").write(int(cuts.stem), table.replace_schema_metadata(None))
    found = verify(project.config(), QuietProgress())["first_mismatches"]
    assert {row["what"] for row in found} == {"state", "record"}


def test_a_partition_that_a_topic_got_later_is_read_from_its_beginning(
    project: TopicProject,
) -> None:
    last = last_read(project)
    before = project.current
    project.partitions = 3
    for name in NAMES:
        project.topics.topics[name].append([])
        project.rows[name].append([])
    project.send(project.now_us - 30 * SECOND, steps=12, every_us=SECOND)
    project.until_us = last
    built(project)
    assert project.current.generation != before.generation
    assert [len(topic.offsets) for topic in project.live.topics().values()] == [3, 3, 3]
    proven(project)
    project.now_us += MINUTE
    project.until_us = project.read()
    built(project)
    added = [Log(project.current.build_folder).lengths(name)[3] for name in NAMES]
    assert added == [len(project.rows[name][3]) for name in NAMES]
    assert sum(added) > 3
    proven(project)


def test_a_store_that_is_filled_amid_live_rows_has_what_they_say(project: TopicProject) -> None:
    last = last_read(project)
    project.until_us = last - MINUTE
    backfill(project.config(), QuietProgress(), publish=True)
    shown = shown_frontiers(project.config())
    # Back before what readers have seen: the rows after the states are applied, too.
    project.until_us = last - 3 * MINUTE
    backfill(project.config(), QuietProgress(), publish=True)
    assert shown_frontiers(project.config()) == shown
    assert proven(project)["store_rows"] > 0
    # And where what they have seen was another history.
    correct(project)
    backfill(project.config(), QuietProgress(), publish=True)
    assert min(shown_frontiers(project.config()).values()) >= min(shown.values())
    assert proven(project)["store_rows"] > 0


def test_damaged_records_of_a_live_log_are_named(project: TopicProject) -> None:
    for name in ("origin.json", "sealed.json", "topics.json"):
        path = project.live.folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StateError, match=name):
            built(project)
        path.write_bytes(whole)
