"""``offline_store: {type: bigquery}`` as a user types it, without a cloud.

These tests do not query BigQuery; docs/offline-store.md has the checks with a real one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import feast
import pytest
import yaml

from tests.pipelines.commands.apply_test import MODULES, publish, read, tidemill, written
from tests.support.markdown import ROOT
from tests.support.parcels import BY_COURIER, BY_DEPOT, PARCELS, depot_rows
from tests.support.stock_client_process import StockClient
from tidemill.features.bigquery_dataset import BigQueryDataset, newest_name
from tidemill.features.feast_objects import offline_path
from tidemill.pipelines.config.configuration import load
from tidemill.serving.offline.bigquery_tables import log_ddl, newest_ddl
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import repo_config
from tidemill.serving.stores.offline_places import ParquetPlace
from tidemill.serving.stores.places import OFFLINE, StorePlaces

PLACE = BigQueryDataset("some-project", "features")
LINE = "offline_store: {type: bigquery, project: some-project, dataset: features}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    return tmp_path


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on any network access."""

    def refused(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"something was to be reached over the network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


def sources(root: Path) -> dict[str, str]:
    """Return the batch source of every registered view."""
    store = feast.FeatureStore(
        config=repo_config(PARCELS.name, StorePlaces.below(root), clock="replay")
    )
    found = {}
    for view in store.list_feature_views():
        source = view.batch_source
        is_table = isinstance(source, feast.BigQuerySource)
        found[view.name] = source.table if is_table else source.path
    return found


def test_apply_registers_the_tables_and_reaches_nobody(folder: Path, nobody_answers: None) -> None:
    config, root = written(folder, "parcels_first", LINE), folder / "run"
    said = tidemill("apply", "--config", config)
    assert said.endswith(
        "  write feature_store.yaml: clock replay\n"
        "  write tidemill_objects.py\n"
        "  write bigquery.sql: run it in BigQuery, which makes the tables\n"
    )
    expected = {view.name: newest_name(PLACE, view) for view in PARCELS.views}
    assert sources(root) == expected
    section = yaml.safe_load((root / "feature_store.yaml").read_text())["offline_store"]
    assert section == {"type": "bigquery", "project_id": "some-project", "dataset": "features"}
    statements = (root / "bigquery.sql").read_text().split(";\n")
    made = [make(PLACE, view) for view in (BY_COURIER, BY_DEPOT) for make in (log_ddl, newest_ddl)]
    assert [statement.strip() for statement in statements] == [*made, ""]
    assert tidemill("apply", "--config", config).endswith("done:\n  nothing to do\n")
    open_store(PARCELS, StorePlaces.below(root, offline=PLACE), clock="replay")
    assert sources(root) == expected


def test_online_reads_do_not_ask_where_the_past_is(folder: Path, stock_client: StockClient) -> None:
    first = written(folder, "parcels_first", LINE)
    tidemill("apply", "--config", first)
    publish(load(first), BY_DEPOT, depot_rows((7, 10, 1, 5)), frontier_us=20)
    # Feast's own client in another process, with the file and the registry only.
    assert read(stock_client, folder / "run") == ["replay", "PRESENT", 5]


def test_moving_the_offline_store_there_and_back_is_planned_and_done(folder: Path) -> None:
    root = folder / "run"
    files = {view.name: offline_path(OFFLINE, view) for view in PARCELS.views}
    tidemill("apply", "--config", written(folder, "parcels_first"))
    assert sources(root) == files
    there = written(folder, "parcels_first", LINE)
    plan = tidemill("apply", "--plan", "--config", there)
    assert plan.endswith(
        "`tidemill apply` would:\n  write feature view by_courier\n"
        "  write feature view by_depot\n  write feature service parcels\n"
    )
    assert sources(root) == files
    tidemill("apply", "--config", there)
    assert sources(root) == {view.name: newest_name(PLACE, view) for view in PARCELS.views}
    tidemill("apply", "--config", written(folder, "parcels_first"))
    assert sources(root) == files


def test_changed_definition_has_a_table_of_its_own(folder: Path) -> None:
    tidemill("apply", "--config", written(folder, "parcels_first", LINE))
    second = written(folder, "parcels_second", LINE)
    said = tidemill("apply", "--config", second)
    assert "write bigquery.sql" in said
    (root, new) = (folder / "run", load(second).project.view("by_depot"))
    assert sources(root) == {
        "by_courier": newest_name(PLACE, BY_COURIER),
        "by_depot": newest_name(PLACE, BY_DEPOT),
        "by_depot__v2": newest_name(PLACE, new),
    }
    assert log_ddl(PLACE, new) in (root / "bigquery.sql").read_text()
    tidemill("apply", "--promote", "--serve-unfilled", "--config", second)
    assert sources(root)["by_depot"] == newest_name(PLACE, new)


def test_missing_extra_is_named_before_anything_is_written(folder: Path) -> None:
    config = written(folder, "parcels_first", LINE)
    code = (
        "import sys\n"
        "sys.modules['google.cloud.bigquery'] = None  # as where it is not installed\n"
        "from tidemill.pipelines.commands.cli import main\n"
        "for flags in ([], ['--plan']):\n"
        "    try:\n"
        "        main(['apply', *flags, '--config', sys.argv[1]])\n"
        "    except SystemExit as left:\n"
        "        print(left.code, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(config)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    *said, last = done.stderr.split("\n1\n")
    assert (len(said), last) == (2, ""), done.stderr
    for error in said:
        assert "error: offline_store: BigQuery is read with Google's clients" in error
        assert "pip install 'tidemill[gcp]'" in error
    assert not (folder / "run").exists()


def test_options_of_the_log_reach_feast(folder: Path) -> None:
    line = "offline_store: {memory_limit: 1GB, threads: 2, spill: scratch}"
    config = load(written(folder, "parcels_first", line))
    place, spill = config.offline_store, config.root / "scratch"
    assert place == ParquetPlace("1GB", 2, spill)
    tidemill("apply", "--config", written(folder, "parcels_first", line))
    found = feast.FeatureStore(repo_path=str(config.root)).config.offline_store
    engine = found.engine(config.root)
    assert (engine.memory_limit, engine.threads, engine.spill) == ("1GB", 2, spill)
    assert not (config.root / "bigquery.sql").exists()
