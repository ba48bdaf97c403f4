"""Every command with every fault that a user can cause: one paragraph, no traceback.

The commands run in this process on copies of one small root, which the commands have made, without
a model. Only signals and a broken pipe need a process of their own.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import hostile_places, trained_bundle
from tests.support.command_runs import Run, arguments, without_a_model
from tests.support.folders import build_of, made_root, stream_of
from tests.support.markdown import ROOT
from tidemill.pipelines.commands.cli import COMMANDS
from tidemill.pipelines.history.build_manifest import BuildManifest, table_digests
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream_run import stream as stream_module
from tidemill.serving.bundles.current import current_bundle
from tidemill.serving.files.file_errors import file_error

PARCELS_YAML = """\
project: tests.support.trained_bundle:PROJECT
root: run
sources:
  scans: {files: [scans.csv]}
  pickups: {files: [pickups.csv]}
splits:
  train_until: 2020-09-26T00:00:00Z
  evaluate_until: 2020-09-29T00:00:00Z
  stream_until: 2020-09-30T00:00:00Z
training: {epochs: 1, seeds: 1}
"""


# Full disks, read-only folders

FREE_INODES = 7
"""The place of ``f_favail`` in what `os.statvfs` returns."""

WRITING = {
    # Remove what a command would remove first, so that it frees no space on the full disk.
    "validate": ["rejected", "scratch"],
    "backfill": ["generations", "CURRENT", "rejected", "scratch", "online.db"],
    "stream": ["generations/*/stream-", "generations/*/telemetry", "online.db"],
    "republish": ["online.db"],
    "verify": [],
    "apply": ["feature_store.yaml", "registry.db"],
    "replay-rejected": [],
    "merge-log": [],
    "forget": [],
}
READING = ("features", "explain", "lineage", "clean-store", "status")


@pytest.mark.parametrize("fault", ["full disk", "read-only folder"])
@pytest.mark.parametrize("command", [*WRITING, *READING])
def test_a_place_that_cannot_be_written_is_named(
    command: str,
    fault: str,
    project: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command == "stream":
        without_a_model(monkeypatch)
    if command == "replay-rejected":
        reject_one(project, run)
    for name in WRITING.get(command, []):
        for path in (project / "run").glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    hostile = hostile_places.full_disk if fault == "full disk" else hostile_places.read_only
    with hostile(project / "run", tmp_path / "place") as place:
        ended = run(*arguments(command, project, place))
    if command in READING and ended.status == 0:
        assert ended.err == ""
        return
    ended.is_explained(str(place))


def with_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stream ask for a bundle, as that of a project with a model does."""
    monkeypatch.setattr(stream_module, "live_bundle", lambda _, root: current_bundle(root))


def reject_one(project: Path, run: Run) -> None:
    """Make the project reject a record, so that there is one to export."""
    rides = project / "rides.csv"
    lines = rides.read_text().splitlines(keepends=True)
    lines[5] = lines[5].replace(",d", ",d", 1).replace(lines[5].split(",")[4], "nowhere", 1)
    rides.write_text("".join(lines))
    assert run(*arguments("validate", project)).status == 0
    assert list((project / "run" / "rejected").glob("*.parquet"))


def test_a_limit_on_the_size_of_files_is_named(project: Path, tmp_path: Path, run: Run) -> None:
    with hostile_places.limited_files(None, tmp_path / "place") as place:
        run(*arguments("backfill", project, place)).is_explained(str(place), "ulimit -f")


@pytest.mark.parametrize("fault", ["full disk", "read-only folder"])
def test_a_project_cannot_be_written_there(fault: str, tmp_path: Path, run: Run) -> None:
    hostile = hostile_places.full_disk if fault == "full disk" else hostile_places.read_only
    with hostile(None, tmp_path / "place") as place:
        run("init", "shop", "--path", str(place)).is_explained(str(place))
        assert [path.name for path in place.iterdir() if path.name != "filler"] == []


def test_what_a_proof_has_found_is_shown_where_it_cannot_be_written(
    project: Path, run: Run
) -> None:
    summary = project / "run" / "summary.json"
    summary.unlink()
    (summary / "in the way").mkdir(parents=True)
    ended = run(*arguments("verify", project))
    ended.is_explained("summary.json")
    assert re.search(r"^mismatches +\d", ended.out, re.MULTILINE)


def test_a_disk_without_an_inode_is_not_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "new" / "file"))
    free = os.statvfs(tmp_path)
    named = [*free]
    named[FREE_INODES] = 0
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(named))
    assert "no inode left for another file" in str(file_error(refused))
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    assert "the disk is full" in str(file_error(refused))


def test_a_root_below_a_file_is_named(project: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("no folder")
    for command in ("validate", "backfill"):
        ended = run(*arguments(command, project, tmp_path / "file" / "run"))
        ended.is_explained(str(tmp_path / "file"))


# Damaged files

DEEP = b"[" * 20_000
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped byte": lambda content: content[:-2] + bytes([content[-2] ^ 0x55]) + content[-1:],
    "random bytes": lambda content: random.Random(1).randbytes(300),
    "other JSON": lambda content: b'["something", "else"]\n',
    "nested 20,000 deep": lambda content: DEEP + b"]" * 20_000,
}
RESUMED = "stream --resume"
ON_EXISTING_RUN = ("verify", "features", "explain", "republish", "stream", "replay-rejected")
BUILD = "generations/*/build-*"
OFFLINE = "generations/*/offline-*"
STREAM = "generations/*/stream-*"
READ = {
    "run.json": ON_EXISTING_RUN,
    "summary.json": ("verify", "report", "status"),
    f"{STREAM}/cuts.log": (RESUMED,),
    "bundles/current": ("stream",),
    "CURRENT": ("backfill", "verify", "explain", "republish", "stream", "merge-log", "status"),
    f"{BUILD}/build.json": ("verify", "lineage"),
    f"{BUILD}/log/rides/*.arrow": ("explain", "stream"),
    f"{BUILD}/log/quotes/*.arrow": ("explain",),
    f"{BUILD}/states/handoff.json": ("stream", "lineage"),
    f"{BUILD}/states/*.state": ("stream",),
    f"{STREAM}/stream.json": (
        RESUMED, "verify", "republish", "lineage", "backfill", "apply", "status",
    ),
    f"{STREAM}/releases/*.parquet": ("verify", "explain", "republish"),
    f"{STREAM}/predictions/*.parquet": ("verify", "explain"),
    f"{STREAM}/savepoint.json": (RESUMED, "republish", "status"),
    f"{STREAM}/stops/*/handoff.json": (RESUMED, "republish"),
    f"{STREAM}/stops/*/answers.state": (RESUMED,),
    f"{STREAM}/stops/*/by_*.state": (RESUMED,),
    f"{STREAM}/rejected_by_stream/*.parquet": ("verify",),
    "rejected/*.parquet": ("replay-rejected",),
    "root-id.json": ("stream", RESUMED),
    "registry.db": ("apply", "clean-store"),
    "online.db": ("features", "verify"),
    f"{OFFLINE}/*/*/*/*.parquet": ("merge-log",),
    f"{OFFLINE}/*/*/_reached/*-of-*": ("merge-log",),
}  # fmt: skip
"""Every file below a root that a command reads, and the commands that read it."""
NOT_READ = {
    "feature_store.yaml": "`apply` compares it with the right content and writes it again",
    "tidemill_objects.py": "as feature_store.yaml",
    f"{BUILD}/features/*.parquet": "`train` reads them: the test below",
    "mended/*": "it has a test of its own",
    "mended_live/*": "a stream of topics reads it: `tests/pipelines/ingest/mended_live_test.py`",
    f"{STREAM}/promote*.json": "`promote` writes and reads them (tests/pipelines/stream_run)",
    "serving/**/*": "TensorFlow Serving reads it",
    f"{STREAM}/begins.json": "a killed start leaves it: `tests/pipelines/recovery`",
    f"{STREAM}/publications/*/*.parquet": "other programs read them",
    "report.html": "people read it",
    "forgotten/**/*": "it has tests of its own (tests/pipelines/forget)",
    "proof/*": "`verify --follow` reads it: `tests/pipelines/verify/follow/follow_test.py`",
    "generations/*/telemetry/**/*": "`status` does without it (tests/pipelines/status)",
    "jobs/**/*": "a job in batch on Flink has it while it runs (tests/pipelines/engines)",
    "scratch/**/*": "only the run of a stage that wrote it reads it",
    "**/*.lock": "it is locked; what it holds is only shown (`tests/serving/files/locks_test.py`)",
    "**/.lock": "it is locked, not read",
}
"""Every other file below a root."""

SOUND = {
    ("registry.db", "apply", "empty"),  # an empty registry
    ("registry.db", "clean-store", "a flipped byte"),  # the byte is in the time of the last update
    ("registry.db", "apply", "a flipped byte"),
    ("online.db", "features", "a flipped byte"),  # the byte is in the unused end of a page
    ("online.db", "verify", "a flipped byte"),
    (f"{STREAM}/cuts.log", RESUMED, "cut off"),  # the machine stopped while the line was written
    (f"{STREAM}/cuts.log", RESUMED, "empty"),
    ("online.db", "verify", "empty"),  # an empty database: `verify` counts its missing rows
}
"""Damages after which the file is still valid."""


def test_no_file_below_a_root_is_forgotten(project: Path) -> None:
    root = project / "run"
    known = {path for pattern in [*READ, *NOT_READ] for path in root.glob(pattern)}
    assert [path for path in root.glob("**/*") if path.is_file() and path not in known] == []
    names = {
        name: value
        for name, value in vars(paths).items()
        if name.isupper() and isinstance(value, str)
    }
    assert [
        name
        for name, value in names.items()
        if not any(value in pattern.split("/") for pattern in [*READ, *NOT_READ])
    ] == [
        "EXPORT",  # below REJECTED, for a person to edit
        "UPGRADE",  # of a stream that was upgraded (tests/pipelines/upgrade)
        "CARRIED",  # likewise
        "DELIVERED",  # of a stream that writes to topics (tests/pipelines/delivery)
    ]


@pytest.mark.parametrize(
    ("pattern", "command"), [(pattern, command) for pattern in READ for command in READ[pattern]]
)
def test_a_damaged_file_is_named(
    pattern: str,
    command: str,
    project: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if pattern.startswith("bundles"):
        with_a_model(monkeypatch)
    elif "stream" in command:
        without_a_model(monkeypatch)
    if pattern.startswith("rejected"):
        reject_one(project, run)
    path = min((project / "run").glob(pattern))
    whole = path.read_bytes()
    named = "bundles" if path.name == "current" else path.name.partition(".")[0]
    named = named.partition("-of-")[0]  # a path that is longer than two lines is cut in its end
    for damage, change in DAMAGES.items():
        if (pattern, command, damage) in SOUND or (b"\0" in whole and "JSON" in damage):
            continue
        for beside in path.parent.glob(f"{path.name}-*"):
            beside.unlink()  # SQLite would repair the database from its log
        path.write_bytes(change(whole))
        assert path.read_bytes() != whole
        run(*arguments(command, project)).is_explained(named)
    path.unlink()
    path.mkdir()
    run(*arguments(command, project)).is_explained(named)
    ended = run("--debug", *arguments(command, project))
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert ended.status == 1


@pytest.mark.parametrize("command", ["explain", "stream"])
def test_one_flipped_bit_of_a_value_in_the_log_is_named(
    command: str, project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is still a sound Arrow file; only its digest tells that the value was another."""
    if command == "stream":
        without_a_model(monkeypatch)
    path = build_of(project / "run") / "log" / "rides" / "00000.arrow"
    fare = pa.ipc.open_file(path).read_all()["fare"].drop_null()[0].as_py()
    content, value = path.read_bytes(), struct.pack("<d", fare)
    place = content.index(value)
    path.write_bytes(content[:place] + bytes([value[0] ^ 1]) + content[place + 1 :])
    changed = pa.ipc.open_file(path).read_all()["fare"].drop_null()[0].as_py()
    assert changed != fare
    ended = run(*arguments(command, project))
    ended.is_explained("00000.arrow", "do not have their digest", "tidemill backfill")


DELETED = {
    "bundles/current": ("stream", "tidemill train"),
    "CURRENT": ("stream", "tidemill backfill"),
    f"{BUILD}/build.json": ("verify", "tidemill backfill"),
    f"{STREAM}/releases": ("verify", "tidemill stream"),
    f"{STREAM}/predictions": ("explain", "tidemill stream"),
    f"{BUILD}/log": ("explain", "tidemill backfill"),
    f"{BUILD}/log/rides/00000.arrow": ("explain", "tidemill backfill"),
    "online.db": ("features", "register"),
    f"{BUILD}/states": ("stream", "tidemill backfill"),
}


@pytest.mark.parametrize("what", DELETED)
def test_what_is_not_there_is_named_with_what_makes_it(
    what: str, project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, mend = DELETED[what]
    if what == "bundles/current":
        with_a_model(monkeypatch)
    elif command == "stream":
        without_a_model(monkeypatch)
    path = min((project / "run").glob(what))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(*arguments(command, project)).is_explained(mend)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with only a training table below its root."""
    folder = tmp_path_factory.mktemp("parcels")
    (folder / "tidemill.yaml").write_text(PARCELS_YAML)
    build = made_root(folder / "run").build_folder
    (build / "features").mkdir(parents=True)
    whole = trained_bundle.rows()
    pq.write_table(whole.slice(2_500), build / "features" / "a.parquet")
    pq.write_table(whole.slice(0, 2_500), build / "features" / "b.parquet")
    project = trained_bundle.PROJECT
    BuildManifest(
        generation="0123456789abcdef", parent=None, because=[], sources={}, project=project.hash,
        views={view.name: view.hash for view in project.views}, shards=2, as_of_us=0,
        training_table=table_digests(build), handoff="0123456789abcdef",
    ).write(build)  # fmt: skip
    return folder


def test_a_training_table_that_is_missing_or_damaged_is_named(
    table: Path, tmp_path: Path, run: Run
) -> None:
    project = shutil.copytree(table, tmp_path / "parcels")
    file = build_of(project / "run") / "features" / "b.parquet"
    whole = file.read_bytes()
    for change in DAMAGES.values():
        file.write_bytes(change(whole))
        run(*arguments("train", project)).is_explained("b.parquet", "tidemill backfill")
    record = file.parent.parent / "build.json"
    written = record.read_bytes()
    for change in DAMAGES.values():
        record.write_bytes(change(written))
        run(*arguments("train", project)).is_explained("build.json", "tidemill backfill")
    shutil.rmtree(project / "run")
    run(*arguments("train", project)).is_explained("CURRENT", "tidemill backfill")


@pytest.mark.parametrize("fault", ["full disk", "read-only folder"])
def test_training_names_a_place_that_cannot_be_written(
    fault: str, table: Path, tmp_path: Path, run: Run
) -> None:
    hostile = hostile_places.full_disk if fault == "full disk" else hostile_places.read_only
    with hostile(table / "run", tmp_path / "place") as place:
        run(*arguments("train", table, place)).is_explained(str(place))


# The configuration


def test_yaml_nested_twenty_thousand_deep_is_refused(tmp_path: Path, run: Run) -> None:
    yaml = tmp_path / "tidemill.yaml"
    for text in ("a: " + "[" * 20_000, "a: " + "{b: " * 20_000):
        yaml.write_text("root: run\n" + text)
        run("validate", "--config", str(yaml)).is_explained("tidemill.yaml:2", "50 deep")


def test_a_source_that_this_user_may_not_read_is_named(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "rides.csv"
    opened = Path.open

    def refuse(self: Path, *given: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", refuse)
    run(*arguments("validate", project)).is_explained("rides.csv", "no right")


# Without --quiet, with --debug


def test_nothing_of_beam_stands_before_an_explained_error(
    project: Path, tmp_path: Path, run: Run
) -> None:
    with hostile_places.full_disk(None, tmp_path / "place") as place:
        ended = run("backfill", "--config", str(project / "tidemill.yaml"), "--root", str(place))
    assert ended.status == 1
    assert "Traceback" not in ended.err
    lines = ended.err.splitlines()
    assert lines[-1].startswith("error: ")
    assert all(": started" in line or ": failed after" in line for line in lines[:-1]), ended.err


FAILING = """
import os, sys
import pytest
from tests.support.proof_run import score_without_models
from tidemill.pipelines.commands.cli import main
score_without_models(pytest.MonkeyPatch())
for quiet in ([], ["--quiet"]):
    try:
        main([*sys.argv[1:], *quiet])
    except SystemExit as left:
        os.write(2, b"status %d\\n" % left.code)
"""
"""The stream, loud and then quiet: what the threads of the first run say late is seen too."""


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_an_engine_writes_nothing_beside_the_error_of_a_step(
    engine: str, project: Path, tmp_path: Path
) -> None:
    """Neither Beam's worker threads nor Prism nor gRPC write to file descriptor 2."""
    in_the_way = stream_of(project / "run") / "releases"
    shutil.rmtree(in_the_way)
    in_the_way.touch()
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, *arguments(RESUMED, project)[:-1], "--engine", engine],
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        cwd=ROOT,
        text=True,
        check=True,
        timeout=500,
    )
    assert ended.stdout == ""
    *shown, loud, status_1, quiet, status_2 = ended.stderr.splitlines()
    assert (status_1, status_2) == ("status 1", "status 1"), ended.stderr
    assert loud == quiet
    assert loud.startswith(f"error: {in_the_way}: it exists already")
    assert {line.partition(":")[0] for line in shown} == {"stream"}
    assert shown[-1].startswith("stream: failed after"), ended.stderr


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback_of_an_explained_error(
    before: bool, project: Path, run: Run
) -> None:
    (project / "run" / "run.json").write_text("{")
    command = arguments("verify", project)
    ended = run(*(["--debug", *command] if before else [*command, "--debug"]))
    assert ended.status == 1
    assert "Traceback (most recent call last)" in ended.err
    assert "JSONDecodeError" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")


def test_every_command_takes_debug(run: Run) -> None:
    for command in COMMANDS:
        assert "--debug" in run(command, "--help").out


def test_memory_that_has_run_out_is_explained(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 9.31 GiB")

    monkeypatch.setattr("tidemill.pipelines.verify.verify.verify", fail)
    run(*arguments("verify", project)).is_explained("no memory", "9.31 GiB")


# Signals and pipes

ALONE = """
import sys, time, types
scaffold = types.ModuleType("tidemill.pipelines.commands.scaffold")
def write_project(name, parent, *given, **named):
    print("it runs", flush=True)
    time.sleep({seconds})
    return parent / name
scaffold.write_project = write_project
sys.modules[scaffold.__name__] = scaffold
from tidemill.pipelines.commands.cli import main
main(["init", "shop"])
"""
"""`tidemill init` with a stand-in for what it calls: the command that starts the quickest."""


def started(seconds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ALONE.format(seconds=seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "interrupted; what was finished is kept"),
        (signal.SIGTERM, 143, "stopped by SIGTERM; what was finished is kept"),
    ],
)
def test_a_signal_ends_the_command_with_one_line(
    number: signal.Signals, status: int, line: str
) -> None:
    process = started(seconds=600)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "it runs\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert (out, err.splitlines()) == ("", [line])


def test_a_reader_that_has_gone_ends_the_command_quietly() -> None:
    process = started(seconds=1)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "it runs\n"
    process.stdout.close()
    err = process.stderr.read()
    process.wait(60)
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize(
    "way",
    [
        "click.echo('it runs')",
        "rich.print('it runs')",
        "print_tables([Table('runs', ['it'], [['runs']])], sys.stdout)",
    ],
)
def test_an_output_that_is_full_is_not_taken_for_the_disk_of_the_root(way: str) -> None:
    script = (
        "import sys, click, rich\n"
        "from tidemill.pipelines.run.tables import Table, print_tables\n"
        "from tidemill.pipelines.commands.cli import commands, main\n"
        "@commands.command('runs')\n"
        "def runs():\n"
        f"    {way}\n"
        "commands.get_command = lambda context, name: runs\n"
        "main(['runs'])\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, check=False,
        )  # fmt: skip
    said = "error: what is printed cannot be written (No space left on device); send it elsewhere"
    assert (done.returncode, done.stderr.splitlines()) == (1, [said])


def test_a_signal_that_an_engine_has_wrapped_still_counts(
    project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam turns an exception inside a step into a RuntimeError."""

    def step(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            raise RuntimeError("KeyboardInterrupt [while running 'Infer']") from None

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("tidemill.pipelines.verify.verify.verify", step)
    try:
        ended = run(*arguments("verify", project))
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert ended.status == 143
    assert ended.err == "stopped by SIGTERM; what was finished is kept\n"


def test_what_an_engine_logs_after_the_end_is_not_shown() -> None:
    """Beam's worker threads may lose their connection only then."""
    code = """
import logging
from tidemill.pipelines.commands.session import Session
with Session().listening():
    pass
logging.getLogger("apache_beam.runners.worker.data_plane").error("Failed to read inputs")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")
