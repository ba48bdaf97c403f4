"""``tidemill apply`` and ``tidemill clean-store`` as a user types them."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from feast.protos.feast.types.Value_pb2 import Value

from tests.support import parcels
from tests.support.fills import begun
from tests.support.parcels import BY_COURIER, BY_DEPOT, courier_rows, depot_rows
from tests.support.postgresql_server import PostgresqlServer
from tests.support.stock_client_process import StockClient
from tidemill.features.contract import DAY, HOUR
from tidemill.pipelines.commands import apply_plan
from tidemill.pipelines.commands.cli import commands
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.run.tables import print_tables
from tidemill.pipelines.verify.compare_store import read_through_feast
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace
from tidemill.serving.registry.registration import apply_project, open_store, plan_project
from tidemill.serving.stores.online_places import default_place
from tidemill.serving.stores.places import StorePlaces
from tidemill.serving.stores.registry_places import FileRegistry, SqlRegistry

NOW = 1_750_000_000_000_000

PLAN = """\
project parcels
   what                     version  definition        what becomes of it
=  view by_courier                1  COURIERCOURIER01  promoted
~  view by_depot                  2  DEPOTNEWDEPOTNEW  pending as by_depot__v2; promoted is DEPOTOLDDEPOTOLD
~  feature service parcels                             features added: 1; other definitions of by_depot: on promotion

changes
   view      feature   difference
~  by_depot            hop 1h -> 30m
~  by_depot  scans_1d  window 1d -> 2d, where none -> (grams > 3)
+  by_depot  heaviest  max, window 1d, expression grams

online store
key space                              referred to as  shards  as of                          state
parcels__by_courier__COURIERCOURIER01  promoted        2 of 2  2025-06-13T15:06:40Z (2d ago)  filled
parcels__by_depot__DEPOTOLDDEPOTOLD    promoted        2 of 2  2025-06-15T12:06:40Z (3h ago)  filled
parcels__by_depot__DEPOTNEWDEPOTNEW    pending                                                will be made, empty: fill it with `tidemill backfill --publish`
`tidemill apply` would:
  write feature view by_depot__v2
  write feature service parcels__next
  make key space parcels__by_depot__DEPOTNEWDEPOTNEW
`tidemill apply --promote` would switch by_depot, feature service parcels:
  write feature view by_depot
  write feature service parcels
and is refused for now: fill with `tidemill backfill --publish`:
  view 'by_depot', key space parcels__by_depot__DEPOTNEWDEPOTNEW: nothing was published to it
"""  # noqa: E501 - as it is printed

# The project before and after changes of its views.
MODULES = {
    "parcels_first": "from tests.support.parcels import PARCELS as project",
    "parcels_second": """
        from tidemill import Entity, FeatureView, col, count, max
        from tests.support.parcels import BY_COURIER, DEPOT, SCANS
        from tests.support.parcels import project as made
        BY_DEPOT = FeatureView(
            "by_depot", DEPOT, SCANS, hop="30m",
            features={"scans_1d": count(over="2d", where=col("grams") > 3),
                      "heaviest": max(col("grams"), over="1d")},
        )
        project = made(BY_COURIER, BY_DEPOT)
    """,
    "parcels_fewer": """
        from tests.support.parcels import BY_DEPOT
        from tests.support.parcels import project as made
        project = made(BY_DEPOT)
    """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    return tmp_path


def written(folder: Path, module: str, *lines: str) -> Path:
    """Write a configuration whose project is in a module, with lines added."""
    path = folder / f"{module}.yaml"
    path.write_text(
        "\n".join(
            (
                f"project: {module}:project",
                "root: ./run",
                "sources: {scans: {files: [s.csv]}, quotes: {files: [q.csv]}}",
                "splits:",
                "  train_until: 2026-02-01T00:00:00Z",
                "  evaluate_until: 2026-02-15T00:00:00Z",
                "  stream_until: 2026-03-01T00:00:00Z",
                *lines,
            )
        )
    )
    return path


def tidemill(*arguments: Any, fails: int = 0) -> str:
    result: Result = CliRunner().invoke(commands, [str(argument) for argument in arguments])
    if fails:
        assert result.exit_code == fails, result.output
        return str(result.exception or result.output)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def publish(config: Configuration, view: Any, rows: Any, *, frontier_us: int) -> None:
    for shard in range(2):
        mine = rows.slice(0, 0) if shard else rows
        database = open_database(config.online_store)
        parcels.publish(database, view, mine, shard=shard, shards=2, frontier_us=frontier_us)


def plan_text(config: Configuration, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what ``tidemill apply --plan`` prints at `NOW`."""
    preview = plan_project(config.project, config.places)
    capsys.readouterr()
    print_tables(apply_plan.plan_tables(preview, now_us=NOW), sys.stdout)
    print("\n".join(apply_plan.plan_verdict(preview)))
    return capsys.readouterr().out


def test_plan_of_a_changed_view(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load(written(folder, "parcels_first"))
    second = load(written(folder, "parcels_second"))
    apply_project(first.project, StorePlaces.below(first.root))
    publish(first, BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=NOW - 3 * HOUR)
    publish(first, BY_COURIER, courier_rows(), frontier_us=NOW - 2 * DAY)
    text = plan_text(second, capsys)
    named = {
        BY_COURIER.hash: "COURIERCOURIER01",
        BY_DEPOT.hash: "DEPOTOLDDEPOTOLD",
        second.project.view("by_depot").hash: "DEPOTNEWDEPOTNEW",
    }
    for definition, name in named.items():
        text = text.replace(definition, name)
    assert text == PLAN


def test_whole_way_of_a_change(folder: Path) -> None:
    first, second = written(folder, "parcels_first"), written(folder, "parcels_second")
    assert "write feature view by_depot" in tidemill("apply", "--plan", "--config", first)
    assert not (folder / "run").exists()
    said = tidemill("apply", "--config", first)
    assert said.endswith(
        "done:\n  write entity courier\n  write entity depot\n  write feature view by_courier\n"
        "  write feature view by_depot\n  write feature service parcels\n"
        f"  make key space {KeySpace.of('parcels', BY_COURIER).name}\n"
        f"  make key space {KeySpace.of('parcels', BY_DEPOT).name}\n"
        "  write feature_store.yaml: clock replay\n"
        "  write tidemill_objects.py\n"
    )
    config = load(second)
    publish(config, BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)

    said = tidemill("apply", "--config", second)
    assert "next: by_depot has version 2 pending as by_depot__v2: fill it with" in said
    assert "nothing to do" in tidemill("apply", "--config", second)
    refused = tidemill("apply", "--promote", "--config", second, fails=1)
    assert "nothing was published to it" in refused

    new = config.project.view("by_depot")
    heaviest = pa.array([900], pa.int64())
    rows = depot_rows((7, 10, 1, 8)).append_column("by_depot__heaviest", heaviest)
    publish(config, new, rows, frontier_us=20)
    said = tidemill("apply", "--promote", "--config", second)
    assert "done:\n  write feature view by_depot\n  write feature service parcels\n" in said
    assert "next:" not in said

    old = KeySpace.of("parcels", BY_DEPOT).name
    shown = tidemill("clean-store", "--config", second)
    assert old in shown
    assert "--yes drops them" in shown
    assert old in open_database(config.online_store).spaces()
    assert tidemill("clean-store", "--yes", "--config", second).endswith(f"dropped {old}\n")
    assert old not in open_database(config.online_store).spaces()
    assert "every key space is referred to" in tidemill("clean-store", "--config", second)


def read(client: StockClient, root: Path, **environment: str) -> list[Any]:
    """Return the clock and a depot's status and value as a program with plain Feast reads them."""
    answer = client.ask(root, ["by_depot:scans_1d"], [{"depot": 7}], environment=environment)
    found = answer["features"]["scans_1d"]
    value = Value.FromString(bytes.fromhex(found["values"][0]))
    assert value.WhichOneof("val") in (None, "int64_val")
    shown = value.int64_val if value.WhichOneof("val") else None
    return [answer["clock"], found["statuses"][0], shown]


def test_applied_root_is_read_by_feast_in_another_process(
    folder: Path, stock_client: StockClient
) -> None:
    first, root = written(folder, "parcels_first"), folder / "run"
    tidemill("apply", "--plan", "--config", first)
    assert not (root / "feature_store.yaml").exists()
    tidemill("apply", "--config", first)
    publish(load(first), BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)
    assert read(stock_client, root) == ["replay", "PRESENT", 5]
    # By the wall clock, rows of 1970 are too old.
    said = tidemill("apply", "--clock", "wall", "--config", first)
    assert said.endswith("done:\n  write feature_store.yaml: clock wall\n")
    assert read(stock_client, root) == ["wall", "OUTSIDE_MAX_AGE", None]
    assert "nothing to do" in tidemill("apply", "--clock", "wall", "--config", first)


def test_former_class_paths_are_rewritten_and_named(folder: Path) -> None:
    first, target = written(folder, "parcels_first"), folder / "run" / "feature_store.yaml"
    tidemill("apply", "--config", first)
    present = target.read_text()
    target.write_text(present.replace("tidemill.serving.feast_plugins.", "serving."))
    lines = tidemill("apply", "--config", first).partition("done:\n")[2].splitlines()
    assert lines[0] == "  write feature_store.yaml: clock replay"
    assert [line.split(", ")[1].split(" becomes ")[0] for line in lines[1:]] == [
        "serving.online_store.OrderedSqliteOnlineStore",
        "serving.offline_store.ChangePointOfflineStore",
        "serving.materialization.ChangePointComputeEngine",
        "serving.registry_file.AtomicFileRegistryStore",
    ]
    assert all("becomes tidemill.serving.feast_plugins." in line for line in lines[1:])
    assert target.read_text() == present


def test_applied_root_names_the_places_of_the_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stock_client: StockClient
) -> None:
    url = f"sqlite:///{folder / 'hunter2.db'}"
    monkeypatch.setenv("PARCELS_REGISTRY", url)
    first = written(
        folder,
        "parcels_first",
        "registry: {type: sql, path_env: PARCELS_REGISTRY}",
        "online_store: {type: sqlite, path: other.db}",
    )
    tidemill("apply", "--config", first)
    text = (folder / "run" / "feature_store.yaml").read_text()
    assert "hunter2" not in text
    assert "path: other.db\n" in text
    publish(load(first), BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)
    found = read(stock_client, folder / "run", PARCELS_REGISTRY=url)
    assert found == ["replay", "PRESENT", 5]


def test_project_is_registered_changed_and_promoted_in_postgresql(
    folder: Path,
    postgresql: PostgresqlServer,
    monkeypatch: pytest.MonkeyPatch,
    stock_client: StockClient,
) -> None:
    line = "registry: {type: sql, path_env: PARCELS_REGISTRY}"
    first, second = written(folder, "parcels_first", line), written(folder, "parcels_second", line)
    with postgresql.database() as url:
        monkeypatch.setenv("PARCELS_REGISTRY", url)

        def seen() -> list[Any]:
            return read(stock_client, folder / "run", PARCELS_REGISTRY=url)

        tidemill("apply", "--config", first)
        publish(load(first), BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)
        assert seen() == ["replay", "PRESENT", 5]
        assert "pending as by_depot__v2" in tidemill("apply", "--plan", "--config", second)
        tidemill("apply", "--config", second)
        assert seen() == ["replay", "PRESENT", 5]
        refused = tidemill("apply", "--promote", "--config", second, fails=1)
        assert "nothing was published to it" in refused
        tidemill("apply", "--promote", "--serve-unfilled", "--config", second)
        assert "would do nothing" in tidemill("apply", "--plan", "--config", second)
        assert seen() == ["replay", "NOT_FOUND", None]
    assert not list((folder / "run").glob("registry*"))


def test_unfilled_is_promoted_only_where_it_is_asked_for(folder: Path) -> None:
    tidemill("apply", "--config", written(folder, "parcels_first"))
    second = written(folder, "parcels_second")
    said = tidemill("apply", "--promote", "--serve-unfilled", "--config", second)
    assert "write feature view by_depot\n" in said
    assert "would do nothing" in tidemill("apply", "--plan", "--config", second)


def test_removed_view_says_that_it_stays(folder: Path) -> None:
    tidemill("apply", "--config", written(folder, "parcels_first"))
    said = tidemill("apply", "--plan", "--config", written(folder, "parcels_fewer"))
    assert re.search(r"-  view by_courier .*not in the code: stays until promotion", said)
    assert re.search(r"-  entity courier .*not in the code: stays until promotion", said)
    assert "remove feature view by_courier" in said.partition("--promote")[2]


@pytest.mark.parametrize("flags", [["--plan", "--promote"], ["--serve-unfilled"]])
def test_flags_that_make_no_sense_together_are_refused(folder: Path, flags: list[str]) -> None:
    tidemill("apply", *flags, "--config", written(folder, "parcels_first"), fails=2)


def test_clean_store_without_a_registry_is_refused(folder: Path) -> None:
    first = written(folder, "parcels_first")
    tidemill("apply", "--config", first)
    (folder / "run" / "registry.db").unlink()
    refused = tidemill("clean-store", "--yes", "--config", first, fails=1)
    assert "holds no view of project 'parcels'" in refused
    assert len(open_database(default_place(folder / "run")).spaces()) == 2


def test_clean_store_drops_the_fills_that_readers_were_switched_away_from(folder: Path) -> None:
    first = written(folder, "parcels_first")
    tidemill("apply", "--config", first)
    space = KeySpace.of("parcels", BY_DEPOT)
    database = open_database(default_place(folder / "run"))
    (new,) = begun(database, [space])
    database.publish([new.parcel(frontier_us=10)])
    database.switch([new.fill], new.writer)
    (filling,) = begun(database, [space])
    now, past = (fill for fill in database.fills([space]) if fill.id != filling.fill.id)
    listed = tidemill("clean-store", "--config", first)
    assert listed.splitlines() == [
        "every key space is referred to by a version in the registry",
        f"no longer read: {past.name}",
        "--yes drops them, with their rows and frontiers",
    ]
    assert past in database.fills([space])
    dropped = tidemill("clean-store", "--yes", "--config", first)
    assert dropped.splitlines()[-1] == f"dropped {past.name}"
    # What is read, and what a stream may be filling, stays.
    assert {fill.id for fill in database.fills([space])} == {now.id, filling.fill.id}
    assert "no longer read" not in tidemill("clean-store", "--yes", "--config", first)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("", FileRegistry(Path("run/registry.db"))),
        ("registry: {path: other.db}", FileRegistry(Path("run/other.db"))),
        ("registry: {type: sql, path_env: NAME}", SqlRegistry(url_env="NAME")),
        (
            "registry: {type: sql, path: 'postgresql://feast@db/feast'}",
            SqlRegistry(url="postgresql://feast@db/feast"),
        ),
        ("registry: {type: sql, path: 'sqlite:///r.db'}", SqlRegistry(url="sqlite:///run/r.db")),
    ],
)
def test_registry_section(folder: Path, line: str, place: FileRegistry | SqlRegistry) -> None:
    found = load(written(folder, "parcels_first", line)).registry
    if isinstance(place, FileRegistry):
        assert found == FileRegistry(folder / place.path)
    elif place.url is not None and place.url.startswith("sqlite"):
        assert found == SqlRegistry(url=f"sqlite:///{folder / 'run' / 'r.db'}")
    else:
        assert found == place


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{type: fil}", "found 'fil', expected one of file, sql; did you mean 'file'"),
        ("{type: sql}", "has either path, an SQLAlchemy URL, or path_env"),
        ("{type: sql, path: 'sqlite:///a', path_env: A}", "has either path"),
        ("{path_env: A}", "a registry in a file has no URL to keep secret"),
        ("{type: sql, path: 'sqlite://'}", "expected the path of a file after sqlite:///"),
        ("{type: sql, path: 'mysql://feast@db/f'}", "expected an SQLAlchemy URL of sqlite or"),
        ("{type: sql, path: 'postgresql://feast:hunter2@db/f'}", "the URL holds a password"),
        ("{type: sql, path: 'postgresql://db/f?password=hunter2'}", "the URL holds a password"),
    ],
)
def test_registry_section_that_is_wrong_is_named(folder: Path, section: str, said: str) -> None:
    config = written(folder, "parcels_first", f"registry: {section}")
    message = tidemill("apply", "--config", config, fails=1)
    assert said in message
    assert re.search(r"parcels_first\.yaml:\d+: registry", message)
    assert "hunter2" not in message


def test_url_with_a_password_is_never_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARCELS_REGISTRY", "postgresql://feast:hunter2@127.0.0.1:1/feast")
    config = written(folder, "parcels_first", "registry: {type: sql, path_env: PARCELS_REGISTRY}")
    for flags in ([], ["--plan"]):
        message = tidemill("apply", *flags, "--config", config, fails=1)
        assert "registry $PARCELS_REGISTRY" in message
        assert "hunter2" not in message


def test_proof_reads_the_definition_of_the_code_while_another_is_promoted(folder: Path) -> None:
    apply_project(load(written(folder, "parcels_first")).project, StorePlaces.below(folder / "run"))
    config = load(written(folder, "parcels_second"))
    store = open_store(config.project, StorePlaces.below(config.root), clock="replay")
    new = config.project.view("by_depot")
    heaviest = pa.array([900], pa.int64())
    rows = depot_rows((7, 10, 1, 8)).append_column("by_depot__heaviest", heaviest)
    publish(config, BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)
    publish(config, new, rows, frontier_us=20)
    for view, values in ((new, [[8], [900]]), (BY_DEPOT, [[5]])):
        reading = read_through_feast(store, view, pa.array([7]))
        assert [column.to_pylist() for column in reading.columns] == values
