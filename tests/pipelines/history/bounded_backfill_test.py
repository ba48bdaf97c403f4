"""A backfill in small pieces makes what simple code makes that holds everything in memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.fraud import write_configuration, write_payments
from tests.support.judged import read_stream
from tests.support.markdown import ROOT
from tests.support.random_backfills import PROJECTS, START, Case, Row, draw, write_case
from tidemill.features.contract import HOUR, SECOND
from tidemill.features.definitions import ARROW_TYPES, Request
from tidemill.features.errors import InputError, NoSpace
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.history import backfill as backfill_module
from tidemill.pipelines.history import history_plan
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import BuildManifest, source_records
from tidemill.pipelines.history.history_plan import HistoryPlan
from tidemill.pipelines.history.labels import leaks
from tidemill.pipelines.ingest import accepted_rows
from tidemill.pipelines.io import merging
from tidemill.pipelines.io.files.judged_rows import request_ids
from tidemill.pipelines.io.log import Log, log_schema, one_batch
from tidemill.pipelines.io.log_digests import BLOCK_ROWS, block_digest
from tidemill.pipelines.publish import offline_history
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.pipelines.recovery.beginning import find_beginning
from tidemill.pipelines.recovery.handoff import read_record
from tidemill.pipelines.run import processes
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.state_files import handed_over, state_path
from tidemill.pipelines.verify.compare_training import training_table
from tidemill.pipelines.verify.raw_history import logged_history

SEEDS = (0, 1, 3, 4, 5, 7, 8, 10, 15, 16, 18, 21, 28, 37)
"""Cases of all four projects: tables and logs, empty sources, single requests, shared files."""


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every piece so small that few rows have many."""
    monkeypatch.setattr(history_plan, "PART_ROWS", 23)
    monkeypatch.setattr(history_plan, "SPAN_ROWS", 37)
    monkeypatch.setattr(history_plan, "BLOCK_REQUESTS", 16)
    monkeypatch.setattr(accepted_rows, "RUN_ROWS", 64)
    monkeypatch.setattr(merging, "MERGE_ROWS", 16)
    monkeypatch.setattr(offline_history, "RUN_EVENTS", 32)
    monkeypatch.setattr(offline_history, "SLICE_EVENTS", 50)


def configured(case: Case, folder: Path) -> Configuration:
    return load(write_case(case, folder))


def expected_log(config: Configuration, name: str) -> list[bytes]:
    """Return the files of a source's log, from all of its rows in memory, sorted by Arrow."""
    definition, source = config.project.definition(name), config.sources[name]
    files_read = source.find_files()
    batches = list(
        read_stream(
            definition,
            files_read,
            ids=request_ids(definition, files_read) if isinstance(definition, Request) else None,
            format=source.format,
            nulls=source.nulls,
            transform=source.transform,
            received=source.received,
        )
    )
    schema = pa.schema([(column, ARROW_TYPES[d]) for column, d in definition.schema.items()])
    files = []
    if source.received is not None:
        for partition in range(max((batch.partition for batch in batches), default=0) + 1):
            mine = [b.batch for b in batches if b.partition == partition]
            rows = pa.Table.from_batches(mine, schema=schema)
            received = rows[source.received].cast(pa.int64()).to_numpy()
            files.append((rows, np.maximum.accumulate(received) if len(rows) else received))
    else:
        table = pa.Table.from_batches([batch.batch for batch in batches], schema=schema)
        keys = [(definition.time_column, "ascending"), (definition.id_column, "ascending")]
        table = table.take(pc.sort_indices(table, sort_keys=keys))
        ids = hashing.key_bytes(one_batch(table.select([definition.id_column])).column(0))
        dealt = hashing.shard_of(ids, source.partitions)
        for partition in range(source.partitions):
            rows = table.filter(pa.array(dealt == partition))
            files.append((rows, rows[definition.time_column].cast(pa.int64()).to_numpy()))
    return [arrow_file(definition, *file) for file in files]


def arrow_file(definition: Any, rows: pa.Table, received: Any) -> bytes:
    """Return a partition of a log, written at once."""
    columns = [*rows.columns, pa.array(np.arange(len(rows))), pa.array(received, pa.int64())]
    whole = pa.table(columns, schema=log_schema(definition)).combine_chunks()
    blocks = [
        block_digest(
            definition.schema,
            one_batch(whole.slice(start, BLOCK_ROWS)),
            ("_position", "_received"),
        ).hex()
        for start in range(0, len(whole), BLOCK_ROWS)
    ]
    stated = {
        "format": "tidemill-log", "version": 1, "columns": dict(definition.schema),
        "rows": len(whole), "blocks": blocks,
    }  # fmt: skip
    whole = whole.replace_schema_metadata({b"tidemill": json.dumps(stated).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=BLOCK_ROWS)
    return bytes(sink.getvalue())


def check_build(config: Configuration, tmp_path: Path) -> None:
    """Compare everything that a backfill has made with what simple code makes."""
    build, project = config.current.build_folder, config.project
    log = Log(build)
    for name in config.sources:
        files = [log.path(name, n).read_bytes() for n in range(log.partitions(name))]
        assert files == expected_log(config, name), name

    begin = find_beginning(config, build, config.splits.evaluate_until_us)
    states = 0
    for operator in begin.operators:
        found = state_path(build / "states", operator.key).read_bytes()
        assert found == handed_over(operator), operator.key
        states += 1
    assert states == len(project.views) * config.shards
    assert read_record(build / "states").positions == begin.positions

    tables = [pq.read_table(path) for path in sorted((build / "features").glob("*.parquet"))]
    expected = training_table(logged_history(build, project))
    assert sum(map(len, tables)) == len(expected)
    if tables:
        table = pa.concat_tables(tables)
        assert table.select(expected.column_names).equals(expected)

    handoff = read_record(build / "states")
    until_us = {view: min(frontiers) for view, frontiers in handoff.frontiers.items()}
    again = tmp_path / "offline"
    log_history(
        project.views, log, again, shards=config.shards, until_us=until_us,
        positions=handoff.positions,
    )  # fmt: skip
    assert contents(config.current.offline_root) == contents(again)

    manifest = BuildManifest.read(build)
    files_of = {name: record["files"] for name, record in manifest.sources.items()}
    assert manifest.sources == source_records(log, files_of)
    assert manifest.handoff == handoff.id
    assert not (config.root / "generations" / "unfinished").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("small_pieces")
def test_small_pieces_make_what_one_large_piece_makes(seed: int, tmp_path: Path) -> None:
    config = configured(draw(seed), tmp_path / "case")
    summary = backfill(config, QuietProgress(), publish=True)
    requests = sum(Log(config.current.build_folder).lengths("asks"))
    assert summary["training"]["requests"] == summary["training"]["rows"] == requests
    check_build(config, tmp_path)


def large_case(*, has_receipts: bool) -> Case:
    """A case whose states are so large that old rows are forgotten, with ids that recur."""
    payments: list[Row] = [
        {
            "payment": f"p{number % 5_500}",
            "at": START + (number * 7_919 % 21_600) * SECOND,
            "received": START + (number * 7_919 % 21_600 + number % 120) * SECOND,
            "card": f"c{number % 97}",
            "shop": number % 11,
            "amount": float(number % 13),
            "good": number % 3 == 0,
        }
        for number in range(6_000)
    ]
    payments += payments[:50]
    payments.sort(key=lambda row: row["received"])
    asks: list[Row] = [
        {**row, "ask": f"a{number}", "card": None if number % 4 == 0 else row["card"]}
        for number, row in enumerate(payments[::3])
    ]
    files = {"payments": [payments[::2], payments[1::2]], "asks": [asks]}
    return Case("ONE_VIEW", 1, has_receipts, files, False, 2, START + 5 * HOUR)


@pytest.mark.parametrize("has_receipts", [False, True])
@pytest.mark.usefixtures("small_pieces")
def test_a_large_state_forgets_old_rows_and_counts_ids_that_recur(
    has_receipts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_plan, "PART_ROWS", 900)
    monkeypatch.setattr(accepted_rows, "RUN_ROWS", 1_000)
    config = configured(large_case(has_receipts=has_receipts), tmp_path / "case")
    summary = backfill(config, QuietProgress(), publish=True)
    assert summary["handoff"]["events"] > 4_096
    check_build(config, tmp_path)


def test_requests_without_a_key_are_dealt_evenly(tmp_path: Path) -> None:
    asks: list[Row] = [
        {"ask": f"a{n}", "at": START + n * SECOND, "received": START, "card": None, "shop": None,
         "amount": 1.0}
        for n in range(400)
    ]  # fmt: skip
    case = replace(draw(0), project="PLAIN", files={"payments": [[]], "asks": [asks]}, shards=1)
    config = configured(replace(case, shared=False), tmp_path)
    backfill(config, QuietProgress())
    work = tmp_path / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_plan, "PART_ROWS", 50)
        folder = config.current.build_folder
        with backfill_module.sharded(config, QuietProgress(), folder, work) as stages:
            stages.answer()
            sizes = [
                stages.plan.answers_path("by_shop", piece).stat().st_size for piece in range(8)
            ]
    assert max(sizes) - min(sizes) < 100


def test_a_disk_that_is_too_small_is_said_before_anything_is_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(draw(0), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000})())
    with pytest.raises(NoSpace, match=r"this backfill needs up to .* GB .* 0\.00 GB free.*--root"):
        backfill(config, QuietProgress())
    assert not (config.root / "generations" / "unfinished" / "work" / "spill").exists()


def test_the_spill_of_a_request_has_at_most_500_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(large_case(has_receipts=False), tmp_path)
    seen: list[int] = []
    remove = shutil.rmtree

    def measured(path: Path, **options: Any) -> None:
        if Path(path).name in ("split", "spill"):
            root = Path(path) if Path(path).name == "spill" else Path(path).parent
            seen.append(sum(file.stat().st_size for file in root.rglob("*") if file.is_file()))
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", measured)
    backfill(config, QuietProgress())
    plan_rows = sum(Log(config.current.build_folder).lengths("payments"))
    assert max(seen) < 500 * plan_rows


def test_leaks_of_all_parts_are_counted_together(small_pieces: None, tmp_path: Path) -> None:
    case = draw(13)
    config = configured(case, tmp_path)
    with pytest.raises(InputError, match=r"label 'good': (\d+) of its events do not") as error:
        backfill(config, QuietProgress())
    label = PROJECTS[case.project].label
    assert label is not None
    read = {}
    for name in ("payments", "asks"):
        definition, source = config.project.definition(name), config.sources[name]
        batches = read_stream(
            definition, source.find_files(), transform=source.transform, received=source.received,
        )  # fmt: skip
        read[name] = pa.Table.from_batches([batch.batch for batch in batches])
    expected = leaks(label, config.project.request, read["asks"], read["payments"])
    assert str(error.value).startswith(f"label 'good': {expected} of its events")


MEASURED = """
import sys
from pathlib import Path
from tidemill.pipelines.config.configuration import load
from tidemill.pipelines.history import history_plan
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.ingest import accepted_rows
from tidemill.pipelines.io import merging
from tidemill.pipelines.publish import offline_history
from tidemill.pipelines.run import processes
from tidemill.pipelines.run.progress import QuietProgress

processes.MOST = int(sys.argv[2])
history_plan.PART_ROWS, history_plan.SPAN_ROWS = 20_000, 65_536
history_plan.BLOCK_REQUESTS, accepted_rows.RUN_ROWS = 16_384, 65_536
merging.MERGE_ROWS, offline_history.RUN_EVENTS = 4_096, 32_768
backfill(load(Path(sys.argv[1])), QuietProgress())
# Of this program: `ru_maxrss` begins with the size of the process that has started it.
status = Path("/proc/self/status").read_text().split()
print(status[status.index("VmHWM:") + 1])
"""


def peak_of(rows: int, folder: Path, *, most: int) -> float:
    """Return the most memory of a process that makes a backfill, in MB."""
    folder.mkdir()
    write_payments(folder / "payments.parquet", rows)
    path = write_configuration(folder, folder / "payments.parquet", folder / "run")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(most)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1]) / 1000


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """300,000 more requests, events and outcomes would take 120 MB if they were held once."""
    few = peak_of(100_000, tmp_path / "few", most=1)
    many = peak_of(400_000, tmp_path / "many", most=1)
    assert many - few < 60, (few, many)


def test_processes_share_the_work_of_a_command(tmp_path: Path) -> None:
    """The states and the table are those of one process, and no process is left."""
    write_payments(tmp_path / "payments.parquet", 20_000)
    made = []
    for most in (1, 2):
        path = write_configuration(tmp_path, tmp_path / "payments.parquet", tmp_path / f"run{most}")
        subprocess.run(
            [sys.executable, "-c", MEASURED, str(path), str(most)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        build = load(path).current.build_folder
        made.append(
            {
                name: data
                for name, data in contents(build).items()
                if name.endswith((".state", ".arrow", ".parquet"))
            }
        )
    assert made[0] == made[1]
    assert len(made[0]) > 6


def test_the_plan_survives_as_json(tmp_path: Path) -> None:
    config = configured(draw(0), tmp_path)
    backfill(config, QuietProgress())
    plan = HistoryPlan.of(
        config.project, config.current.build_folder, tmp_path, shards=3, as_of_us=START + HOUR
    )
    assert HistoryPlan.decode(plan.encode()) == plan


def test_work_is_shared_only_before_a_thread_has_started() -> None:
    """A fork of a process with threads could wait for a lock for ever."""
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    try:
        with processes.sharing(str.upper):
            assert processes.running() is None
    finally:
        wait.set()
        thread.join()
