"""The command line: light, strict, results apart from progress, and errors in one paragraph.

Stand-ins that record their arguments replace the functions behind the commands, which have tests of
their own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill.features.errors import InputError
from tidemill.pipelines.commands.cli import COMMANDS, main
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.config.installed_projects import PROJECTS, installed_project
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.run.tables import Table

Invoke = Callable[..., int]

TIME = pa.timestamp("us", tz="UTC")
STAGES = {
    "validate": ("ingest.ingest", "validate_sources"),
    "backfill": ("history.backfill", "backfill"),
    "train": ("training.train", "train"),
    "stream": ("stream_run.stream", "stream"),
    "republish": ("recovery.republish", "republish"),
    "verify": ("verify.verify", "verify"),
    "demo": ("commands.whole_loop", "demo"),
    "replay-rejected": ("ingest.replay_rejected", "replay"),
    "dead letters": ("delivery.export_dead_letters", "export_dead_letters"),
    "features": ("verify.read_features", "read_features"),
    "explain": ("verify.explain", "explain"),
    "archive": ("archive.archive", "archive"),
    "export-archive": ("export.export_archive", "export_archive"),
    "forget": ("forget.forget", "forget"),
    "finish": ("forget.forget", "finish"),
}


@dataclass
class Called:
    """A stand-in for a stage: it records its arguments, and returns or raises ``result``."""

    result: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.arguments, self.options = arguments, options
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_project("shop", tmp_path)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Called]:
    """Replace the function behind a command with a stand-in."""

    def stage(command: str, result: Any) -> Called:
        module_name, function = STAGES[command]
        called = Called(result)
        module = types.ModuleType(f"tidemill.pipelines.{module_name}")
        setattr(module, function, called)
        module.overview = lambda _: Table("summary", ("step",), [("demo",)])  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        room, _, name = module.__name__.rpartition(".")
        monkeypatch.setattr(importlib.import_module(room), name, module, raising=False)
        return called

    return stage


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    code = left.value.code
    assert isinstance(code, int)
    return code


def test_help_lists_the_commands_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    listed = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == [
        "demo",
        "init",
        "validate",
        "backfill",
        "train",
        "stream",
        "promote",
        "rollback",
        "upgrade",
        "reload",
        "status",
        "republish",
        "verify",
        "report",
        "features",
        "explain",
        "lineage",
        "apply",
        "clean-store",
        "merge-log",
        "archive",
        "export-archive",
        "replay-rejected",
        "forget",
        "up",
        "down",
    ]
    assert not any(line.endswith("...") for line in listed)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"Usage: tidemill {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from tidemill.pipelines.commands.cli import main\n"
        "try:\n"
        "    main(['stream', '--help'])\n"
        "finally:\n"
        "    print(' '.join({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "click" in imported
    heavy = {"features", "serving", "pyarrow", "numpy", "numba", "apache_beam", "tensorflow"}
    assert not imported & (heavy | {"feast", "rich", "yaml", "pandas"})


@pytest.mark.parametrize("command", ["validate", "backfill", "train", "replay-rejected"])
def test_a_stage_gets_the_configuration_and_its_figures_are_printed(
    command: str,
    project: Path,
    stage: Callable[[str, Any], Called],
    capsys: pytest.CaptureFixture[str],
) -> None:
    called = stage(command, {"rows": 1234, "orders": {"rejected": 1}})
    assert run(command) == 0
    configuration = called.arguments[0]
    assert isinstance(configuration, Configuration)
    assert configuration.project.name == "shop"
    assert configuration.root == project / "run"
    assert not isinstance(called.arguments[1], QuietProgress)
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert lines[:4] == [
        [command],
        ["figure", "value"],
        ["rows", "1,234"],
        ["orders", "/", "rejected", "1"],
    ]
    assert lines[4][0] == "seconds"
    written = read_summary(project / "run")[command]
    assert written.pop("seconds") >= 0
    assert written == {"rows": 1234, "orders": {"rejected": 1}}
    assert printed.err == ""


def test_config_root_and_quiet_are_passed_on(
    project: Path,
    stage: Callable[[str, Any], Called],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    called = stage("backfill", {})
    monkeypatch.chdir(tmp_path)
    config = str(project / "tidemill.yaml")
    assert run("backfill", "--config", config, "--root", "elsewhere", "--quiet") == 0
    assert called.arguments[0].root == tmp_path / "elsewhere"
    assert isinstance(called.arguments[1], QuietProgress)


def test_stream_options_are_passed_on(project: Path, stage: Callable[[str, Any], Called]) -> None:
    called = stage("stream", {})
    assert run("stream") == 0
    nothing = {
        "speed": None, "engine": None, "mode": None, "until_us": None, "resume": False,
        "wait": False, "take_over": False, "accept_lost": (), "beam_flags": (),
    }  # fmt: skip
    assert called.options == nothing
    assert run("stream", "--speed", "60", "--engine", "prism", "--mode", "eager") == 0
    assert called.options == {**nothing, "speed": 60.0, "engine": "prism", "mode": "eager"}
    assert run("stream", "--resume", "--until", "2026-03-05T01:00:00+01:00") == 0
    assert called.options == {**nothing, "until_us": 1_772_668_800_000_000, "resume": True}
    assert run("stream", "--wait") == 0
    assert called.options == {**nothing, "wait": True}
    assert run("stream", "--take-over") == 0
    assert called.options == {**nothing, "take_over": True}
    lost = ("trips/0@5-9", "trips@topic-id", "all-0123456789ab")
    assert run("stream", *(word for one in lost for word in ("--accept-lost", one))) == 0
    assert called.options == {**nothing, "accept_lost": lost}
    assert run("stream", "--accept-lost", "everything") == 2
    flags = ("--parallelism=2", "--object_reuse")
    assert run("stream", "--engine", "flink", "--", *flags) == 0
    assert called.options == {**nothing, "engine": "flink", "beam_flags": flags}


def test_publish_and_wait_are_passed_on(project: Path, stage: Callable[[str, Any], Called]) -> None:
    called = stage("backfill", {})
    assert run("backfill") == 0
    assert called.arguments[2:] == (False, False)
    assert run("backfill", "--publish") == 0
    assert called.arguments[2:] == (True, False)
    assert run("backfill", "--wait") == 0
    assert called.arguments[2:] == (False, True)


@pytest.mark.parametrize("command", ["backfill", "train"])
def test_the_engine_of_what_is_in_batch_is_passed_on(
    command: str, project: Path, stage: Callable[[str, Any], Called]
) -> None:
    called = stage(command, {})
    assert run(command) == 0
    assert called.options == {"engine": None, "beam_flags": ()}
    assert run(command, "--engine", "prism") == 0
    assert called.options == {"engine": "prism", "beam_flags": ()}
    assert run(command, "--engine", "flink", "--", "--parallelism=2") == 0
    assert called.options == {"engine": "flink", "beam_flags": ("--parallelism=2",)}


def test_mended_records_are_passed_on(project: Path, stage: Callable[[str, Any], Called]) -> None:
    called = stage("replay-rejected", {})
    assert run("replay-rejected") == 0
    assert called.options == {"mended": None}
    (project / "mended.parquet").touch()
    assert run("replay-rejected", "--mended", "mended.parquet") == 0
    assert called.options == {"mended": Path("mended.parquet")}
    assert run("replay-rejected", "--mended", "missing.parquet") == 2


def test_rejected_records_are_exported_from_their_topic(
    project: Path, stage: Callable[[str, Any], Called], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("replay-rejected", "--from-topic") == 1
    assert "add rejected: {kafka: {bootstrap: ..., topic: ...}}" in capsys.readouterr().err
    called = stage("dead letters", {})
    assert run("replay-rejected", "--from-topic", "--root-id", "0123") == 0
    assert called.options is not None
    assert called.options["root"] == "0123"
    assert not called.options["forgotten"]("generation", Place(("rejected", "read", "a", 0, 0), 1))
    (project / "mended.parquet").touch()
    assert run("replay-rejected", "--from-topic", "--mended", "mended.parquet") == 2
    assert run("replay-rejected", "--root-id", "0123") == 2


@pytest.mark.parametrize(("mismatches", "status"), [(0, 0), (3, 1)])
def test_verify_ends_with_the_verdict_and_fails_on_a_mismatch(
    mismatches: int,
    status: int,
    project: Path,
    stage: Callable[[str, Any], Called],
    capsys: pytest.CaptureFixture[str],
) -> None:
    called = stage("verify", {"mismatches": mismatches, "values": 1_234_567, "first": []})
    assert run("verify", "--sample", "5", "--deadline", "2.5") == status
    assert called.options == {"sample": 5, "deadline_s": 2.5}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{mismatches} mismatches in 1,234,567 values"


def test_what_was_archived_is_printed(
    project: Path, stage: Callable[[str, Any], Called], capsys: pytest.CaptureFixture[str]
) -> None:
    called = stage("archive", {"rows": {"orders": 7}, "files": 2, "compacted": 1, "removed": {}})
    assert run("archive") == 0
    assert called.arguments[0].project.name == "shop"
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rows", "/", "orders", "7"] in printed


def test_what_was_exported_is_printed(
    project: Path, stage: Callable[[str, Any], Called], capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"table": "orders", "version": 3, "rows": 1234, "deleted": 2}
    called = stage("export-archive", {"tables": [table]})
    assert run("export-archive", "--to", "lake", "--wait") == 0
    assert called.arguments[1] == Path("lake")
    assert called.options == {"wait": True}
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["orders", "3", "1,234", "2"] in printed


def test_what_was_forgotten_and_what_remains_are_printed(
    project: Path, stage: Callable[[str, Any], Called], capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"record": 3, "removed": {"rows of logs": 0, "states": 2}, "remains": ["backups"]}
    called = stage("forget", result)
    assert run("forget", "customer", "c-1") == 0
    assert called.arguments[1:3] == ("customer", "c-1")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["removed", "/", "states", "2"] in printed
    assert printed[-1] == ["remains:", "backups"]
    stage("forget", {"record": 4, "removed": {"states": 0}, "remains": []})
    assert run("forget", "customer", "--", "-1") == 0
    assert "nothing of it was found" in capsys.readouterr().out
    for wrong in (["customer"], [], ["customer", "c-1", "--finish"]):
        assert run("forget", *wrong) == 2
    stage("finish", {})
    assert run("forget", "--finish") == 0
    assert "no deletion is half done" in capsys.readouterr().out


def test_features_are_printed_one_below_the_other(
    project: Path,
    stage: Callable[[str, Any], Called],
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = pa.table(
        {
            "customer_id": ["c-001", "c-002"],
            "status": ["PRESENT", "NOT_FOUND"],
            "x": [0.1, None],
            "paid": [True, False],
            "paid_at": pa.array([253_402_300_799_999_999, -62_135_596_800_000_000], TIME),
            "damaged": pa.array([253_402_300_800_000_000, None], TIME),
            "n_us": [7, 8],
            "tidemill_frontier": [0, 1],
        }
    )
    called = stage("features", table)
    assert run("features", "customer_refunds", "c-001", "c-002") == 0
    assert called.arguments[0].name == "shop"
    assert called.arguments[2:] == ("customer_refunds", ("c-001", "c-002"))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["customer_id", "c-001", "c-002"],
        ["status", "PRESENT", "NOT_FOUND"],
        ["x", "0.1", "-"],
        ["paid", "true", "false"],
        ["paid_at", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"],
        ["damaged", "10000-01-01T00:00:00Z", "-"],
        ["n_us", "7", "8"],
        ["tidemill_frontier", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000001Z"],
    ]
    assert run("features", "customer_refunds") == 2


def test_a_key_that_the_locale_cannot_decode_is_read_as_utf8(
    project: Path,
    stage: Callable[[str, Any], Called],
    capsys: pytest.CaptureFixture[str],
) -> None:
    # So Python gives the bytes of an argument that are no text of the locale.
    key, no_text = (raw.decode("ascii", "surrogateescape") for raw in ("ü:日".encode(), b"\xff"))
    called = stage("features", pa.table({"customer_id": ["ü:日"]}))
    assert run("features", "customer_refunds", key) == 0
    assert called.arguments[2:] == ("customer_refunds", ("ü:日",))
    capsys.readouterr()
    assert run("features", "customer_refunds", no_text) == 2
    assert "argument 3 is neither text of the locale nor UTF-8" in capsys.readouterr().err


def test_what_standard_output_cannot_encode_is_escaped(
    project: Path, stage: Callable[[str, Any], Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage("features", pa.table({"customer_id": ["ü"]}))
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", write_through=True))
    assert run("features", "customer_refunds", "ü") == 0
    assert b"customer_id" in printed.getvalue()
    assert b"\\xfc" in printed.getvalue()


def test_an_explanation_is_printed_as_tables(
    project: Path,
    stage: Callable[[str, Any], Called],
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Explanation:
        def tables(self) -> list[Table]:
            return [Table("k-0900", ("feature", "value"), [("orders_1d", "2")])]

    called = stage("explain", Explanation())
    assert run("explain", "k-0900") == 0
    assert called.arguments[1] == "k-0900"
    assert "orders_1d  2" in capsys.readouterr().out


def test_the_demo_runs_an_installed_project_in_the_working_directory(
    project: Path, stage: Callable[[str, Any], Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "__init__.py").touch()
    install(monkeypatch, shop="shop")
    monkeypatch.syspath_prepend(project.parent)
    called = stage("demo", {"verify": {"mismatches": 0, "values": 9}, "report": "report.html"})
    assert run("demo", "--sample", "--seeds", "2", "--speed", "9.5", "--engine", "fnapi") == 0
    assert called.options == {"sample": True, "speed": 9.5, "engine": "fnapi"}
    assert called.arguments[0].training.seeds == 2
    assert called.arguments[0].path == project / "tidemill.yaml"
    assert called.arguments[0].root == project / "demo"
    assert run("demo", "shop", "--root", "other", "--quiet") == 0
    assert called.options == {"sample": False, "speed": None, "engine": None}
    assert called.arguments[0].training.seeds == load(project / "tidemill.yaml").training.seeds
    assert called.arguments[0].root == project / "other"
    assert isinstance(called.arguments[1], QuietProgress)


def test_the_demo_fails_on_a_mismatch(
    project: Path,
    stage: Callable[[str, Any], Called],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(monkeypatch, flights="tidemill.examples.flights")
    stage("demo", {"verify": {"mismatches": 2, "values": 9}, "report": "report.html"})
    assert run("demo") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 mismatches in 9 values"


def install(monkeypatch: pytest.MonkeyPatch, **projects: str) -> None:
    """Make packages the only installed projects."""
    entries = [
        importlib.metadata.EntryPoint(name=name, value=value, group=PROJECTS)
        for name, value in projects.items()
    ]

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == PROJECTS
        return entries

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


@pytest.mark.parametrize(
    ("projects", "name", "expected"),
    [
        ({}, None, "no installed package brings a project"),
        ({"a": "x", "b": "y"}, None, "there are 2 installed projects, a, b; name one"),
        ({"shop": "x"}, "shp", "no installed project is called 'shp'; did you mean 'shop'?"),
        ({"shop": "no_such_package"}, None, "package 'no_such_package' cannot be imported"),
        ({"shop": "importlib"}, "shop", "there is no tidemill.yaml beside"),
    ],
)
def test_a_demo_without_its_project_says_why(
    projects: dict[str, str],
    name: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(monkeypatch, **projects)
    assert run("demo", *([name] if name else [])) == 1
    assert expected in capsys.readouterr().err


def test_the_example_is_an_installed_project() -> None:
    path = installed_project()
    assert path.name == "tidemill.yaml"
    assert path.is_file()


def test_an_explained_error_is_one_paragraph_and_exits_with_1(
    project: Path,
    stage: Callable[[str, Any], Called],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage("train", InputError("no rows to analyse:\n  the split is empty"))
    assert run("train") == 1
    printed = capsys.readouterr()
    assert printed.err == "error: no rows to analyse: the split is empty\n"
    assert printed.out == ""


def test_another_error_shows_its_traceback(
    project: Path, stage: Callable[[str, Any], Called]
) -> None:
    stage("train", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["train"])


def test_a_configuration_error_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("validate") == 1
    assert capsys.readouterr().err.startswith("error: there is no file tidemill.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("stream", "--speed", "0"),
        ("stream", "--engine", "spark"),
        ("backfill", "--engine", "spark"),
        ("stream", "--until", "2026-03-05"),
        ("verify", "--sample", "-1"),
        ("verify", "--deadline", "-1"),
        ("verify", "--share", "0.1"),
        ("verify", "--json"),
        ("verify", "--follow", "--share", "0"),
        ("verify", "--follow", "--until", "tomorrow"),
        ("explain",),
        ("init",),
        ("demo", "--seeds", "0"),
    ],
)
def test_a_command_line_that_cannot_be_understood_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2
