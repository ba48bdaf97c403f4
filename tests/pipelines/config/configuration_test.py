"""The YAML file: strict, with errors that name file, line, key and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tidemill.features.bigquery_dataset import BigQueryDataset
from tidemill.features.contract import DAY, MINUTE, SECOND
from tidemill.features.errors import ConfigurationError, EngineError
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.engines.options import pipeline_options, stream_engine
from tidemill.serving.stores.offline_places import ParquetPlace
from tidemill.serving.stores.redis_place import RedisPlace, RedisTls

PROJECT = """
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count

orders = EventStream(
    "orders",
    event_time="at",
    event_id="id",
    transport=["received_at"],
    schema={
        "id": "string", "at": "timestamp", "customer": "string", "received_at": "timestamp"
    },
)
checkouts = Request(
    "checkouts",
    request_time="at",
    request_id="id",
    schema={"id": "string", "at": "timestamp", "customer": "string"},
    inputs={"customer": col("customer")},
)
view = FeatureView(
    "recent", entity=Entity("customer"), stream=orders, hop="1h",
    features={"orders_1d": count(over="1d")},
)
project = Project(name="little_shop", request=checkouts, views=[view])



def tidy(batch):
    return batch
"""

YAML = """\
project: shop_project:project
root: ./run
sources:
  orders:
    files: [events/orders-*.csv, package://some_package/orders.csv]
  checkouts:
    files: [/data/checkouts.parquet]
    format: parquet
    nulls: ["", NA]
    zone: Europe/Berlin
    transform: shop_project:tidy
    partitions: 3
splits:
  train_until: 2026-02-01T00:00:00Z
  evaluate_until: 2026-02-15T01:00:00+01:00
  stream_until: "2026-03-01 00:00:00.000001Z"
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def same_path() -> Iterator[None]:
    """Restore path and modules: loading a project changes both."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a project and its YAML file, with parts of the YAML text replaced."""

    def write(*replacements: tuple[str, str], project: str = PROJECT, more: str = "") -> Path:
        text = YAML
        for old, new in replacements:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (tmp_path / "shop_project.py").write_text(project)
        path = tmp_path / "tidemill.yaml"
        path.write_text(text + more)
        return path

    return write


def failure(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return str(caught.value)


def test_a_whole_file_is_loaded(write: Write, tmp_path: Path) -> None:
    found = load(
        write(
            more="shards: 7\n"
            "training: {epochs: 9, batch_size: 64, learning_rate: 1e-3, seeds: 3, seed: 10,"
            " rate_groups: [customer]}\n"
            "online_store: {type: sqlite, path: live/online.db, give_up_after: 90s}\n"
            "stream: {engine: prism, mode: eager, poll_rows: 10, speed: 60, answer_within: 1m30s,"
            " gap_batches: 5}\n"
        )
    )
    assert found.project.name == "little_shop"
    assert found.project_name == "shop_project:project"
    assert found.path == tmp_path / "tidemill.yaml"
    assert found.root == tmp_path / "run"
    assert found.shards == 7
    assert list(found.sources) == ["orders", "checkouts"]
    checkouts = found.sources["checkouts"]
    assert checkouts.files == ("/data/checkouts.parquet",)
    assert (checkouts.format, checkouts.nulls, checkouts.zone, checkouts.partitions) == (
        "parquet",
        ("", "NA"),
        "Europe/Berlin",
        3,
    )
    assert checkouts.transform is not None
    assert checkouts.transform.__name__ == "tidy"
    splits = found.splits
    assert splits.evaluate_until_us - splits.train_until_us == 14 * DAY
    assert splits.stream_until_us - splits.evaluate_until_us == 14 * DAY + 1
    assert found.training.learning_rate == 0.001  # which YAML 1.1 takes for a text
    assert found.training.seed_values == (10, 11, 12)
    assert found.online_store.path == tmp_path / "run" / "live" / "online.db"
    assert found.give_up_after_us == 90 * SECOND
    stream = found.stream
    assert (stream.engine, stream.mode, stream.poll_rows) == ("prism", "eager", 10)
    assert (stream.speed, stream.gap_batches) == (60.0, 5)
    assert stream.answer_within_us == 90 * MINUTE // 60


def test_a_redis_is_named_with_how_it_is_spoken_to(write: Write, tmp_path: Path) -> None:
    found = load(write(more="online_store: {type: redis}\n"))
    assert (found.online_store, found.give_up_after_us) == (RedisPlace(), 10 * MINUTE)
    assert load(write()).give_up_after_us == 10 * MINUTE
    for rest in ("type: redis", "type: feast, options: {type: postgres}"):
        text = f"online_store: {{{rest}, give_up_after: 2h}}\n"
        assert load(write(more=text)).give_up_after_us == 120 * MINUTE
    text = """
online_store:
  type: redis
  host: redis.example
  port: 6380
  db: 2
  username: tidemill
  password_env: REDIS_PASSWORD
  tls: {ca: ca.crt, cert: own.crt, key: /keys/own.key}
  timeout: 250ms
"""
    expected = RedisPlace(
        host="redis.example",
        port=6380,
        db=2,
        username="tidemill",
        password_env="REDIS_PASSWORD",
        tls=RedisTls(tmp_path / "ca.crt", tmp_path / "own.crt", Path("/keys/own.key")),
        timeout_us=250_000,
    )
    assert load(write(more=text)).online_store == expected
    in_a_file = text.replace("password_env: REDIS_PASSWORD", "password_file: secret")
    found = load(write(more=in_a_file)).online_store
    assert found == replace(expected, password_env=None, password_file=tmp_path / "secret")
    trusting = load(write(more="online_store: {type: redis, tls: {}}\n")).online_store
    assert trusting == RedisPlace(tls=RedisTls())


def test_features_of_the_past_are_read_from_the_log_or_from_bigquery(
    write: Write, tmp_path: Path
) -> None:
    assert load(write()).offline_store == ParquetPlace()
    for text in ("{}", "{type: parquet}", "{spill: null, threads: null}"):
        assert load(write(more=f"offline_store: {text}\n")).offline_store == ParquetPlace()
    text = "offline_store: {memory_limit: 1.5 GiB, threads: 4, spill: /scratch}\n"
    expected = ParquetPlace("1.5 GiB", 4, Path("/scratch"))
    assert load(write(more=text)).offline_store == expected
    found = load(write(more="offline_store: {spill: scratch}\n")).offline_store
    assert found == ParquetPlace(spill=tmp_path / "run" / "scratch")
    text = "offline_store: {type: bigquery, project: some-project, dataset: features}\n"
    assert load(write(more=text)).offline_store == BigQueryDataset("some-project", "features")


def test_a_source_may_be_a_log_that_says_when_it_received_what(write: Write) -> None:
    files = "files: [events/orders-*.csv, package://some_package/orders.csv]"
    log = (files, f"{files}\n    received: received_at")
    assert load(write(log)).sources["orders"].received == "received_at"
    message = failure(write((files, f"{files}\n    received: recieved_at")))
    assert "no timestamp column 'recieved_at'; did you mean 'received_at'?" in message
    message = failure(write((files, f"{files}\n    received: customer")))
    assert "no timestamp column 'customer'" in message
    message = failure(write(log, ("received: received_at", "received: at\n    partitions: 2")))
    assert "whose files are its partitions; remove one" in message


def test_the_time_of_receipt_of_events_is_a_transport_column(write: Write) -> None:
    files = "files: [events/orders-*.csv, package://some_package/orders.csv]"
    log = (files, f"{files}\n    received: received_at")
    bare = PROJECT.replace('    transport=["received_at"],\n', "")
    message = failure(write(log, project=bare))
    assert "declare EventStream('orders', transport=['received_at'], ...)" in message
    assert "no transport column of stream 'orders'" in message


@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("1e-3", 0.001)])
def test_a_source_may_choose_how_many_rows_may_be_rejected(
    write: Write, text: str, share: float
) -> None:
    found = load(write(("  orders:\n", f"  orders:\n    max_rejected: {text}\n")))
    assert found.sources["orders"].max_rejected == share
    assert found.sources["checkouts"].max_rejected == 0.1


@pytest.mark.parametrize("rule", ["first", "last", "infer"])
def test_a_source_may_choose_an_instant_of_repeated_local_times(write: Write, rule: str) -> None:
    lines = f"  orders:\n    ambiguous: {rule}\n    zone: UTC\n    received: received_at\n"
    found = load(write(("  orders:\n", lines)))
    assert found.sources["orders"].ambiguous == rule
    assert found.sources["checkouts"].ambiguous is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("    max_rejected: 10\n", "found 10, expected a share from 0 to 1, such as 0.1 for 10 %"),
        ("    max_rejected: 10%\n", "found a text ('10%'), expected a share from 0 to 1"),
        ("    max_rejected: null\n", "found null, expected a share from 0 to 1"),
        ("    ambiguous: latest\n    zone: UTC\n", "found 'latest', expected one of first, last"),
        ("    ambiguous: first\n", "without 'zone' no local time is read at all"),
        ("    ambiguous: first\n    zone: null\n", "without 'zone' no local time is read at all"),
        ("    ambiguous: infer\n    zone: UTC\n", "the source has no 'received'; name that column"),
    ],
)
def test_a_setting_of_a_source_that_cannot_work_is_refused(
    write: Write, lines: str, says: str
) -> None:
    message = failure(write(("  orders:\n", f"  orders:\n{lines}")))
    assert f"tidemill.yaml:5: sources.orders.{lines.split(':')[0].strip()}: " in message
    assert says in message


def test_a_sample_has_splits_of_its_own(write: Write) -> None:
    assert load(write()).sample is None
    times = [f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3)]
    text = "sample: {{train_until: {}, evaluate_until: {}, stream_until: {}}}"
    sample = load(write(more=text.format(*times))).sample
    assert sample is not None
    assert sample.stream_until_us - sample.train_until_us == 2 * DAY
    message = failure(write(more=text.format(*reversed(times))))
    assert "sample.evaluate_until: must be after train_until" in message


def test_what_may_be_left_out_has_a_default(write: Write, tmp_path: Path) -> None:
    found = load(write())
    orders = found.sources["orders"]
    assert (orders.format, orders.nulls, orders.zone, orders.transform) == (None,) * 4
    assert orders.partitions == 1
    assert found.shards == 2
    assert found.training.seed_values == (1, 2, 3, 4, 5)
    assert found.online_store.path == tmp_path / "run" / "online.db"
    assert found.stream.engine is None
    assert found.stream.speed is None
    assert found.stream.answer_within_us == 5 * MINUTE


def test_relative_paths_start_at_the_file_and_package_paths_stay(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    monkeypatch.chdir(tmp_path.parent)
    found = load(Path(tmp_path.name) / path.name)
    assert found.sources["orders"].files == (
        str(tmp_path / "events/orders-*.csv"),
        "package://some_package/orders.csv",
    )
    assert found.root == tmp_path / "run"
    assert Path.cwd() == tmp_path.parent


def test_root_can_be_overridden_from_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    monkeypatch.chdir(tmp_path.parent)
    found = load(path, root="elsewhere")
    assert found.root == tmp_path.parent / "elsewhere"
    assert found.online_store.path == found.root / "online.db"


def test_source_files_are_found(write: Write, tmp_path: Path) -> None:
    found = load(write((", package://some_package/orders.csv", "")))
    with pytest.raises(ConfigurationError, match=r"orders-\*\.csv"):
        found.sources["orders"].find_files()
    (tmp_path / "events").mkdir()
    for name in ("orders-2.csv", "orders-1.csv"):
        (tmp_path / "events" / name).touch()
    names = [path.name for path in found.sources["orders"].find_files()]
    assert names == ["orders-1.csv", "orders-2.csv"]


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("root:", "rooot:", 2, "unknown key 'rooot'; did you mean 'root'?"),
        ("    zone:", "    zones:", 10, "sources.checkouts: unknown key 'zones'; did you mean"),
        (
            "root: ./run",
            "root: ./run\nroot: b",
            3,
            "key 'root' is a duplicate of the one in line 2",
        ),
        ("root: ./run", "root: 12", 2, "root: found a number ('12'), expected a text; put it into"),
        ("root: ./run", "root: null", 2, "root: found null, expected a text"),
        ("root: ./run", "root: [a]", 2, "root: found a list, expected a text"),
        ("root: ./run", "root: !here x", 2, "root: found a value tagged !here ('x')"),
        ("root: ./run", "root: ${HOME}/run", 2, "environment variables are not substituted"),
        ("root: ./run", "", 1, "key 'root' is missing"),
        ("root: ./run", "root: ./run\n? [a]\n: b", 3, "found a list as a key, expected a name"),
        ("partitions: 3", "partitions: 0", 12, "found 0, expected a whole number, at least 1"),
        ("partitions: 3", "partitions: 2.5", 12, "found a number ('2.5'), expected a whole"),
        ("partitions: 3", 'partitions: "3"', 12, "found a text ('3'), expected a whole number"),
        ("partitions: 3", "partitions: 1:30", 12, "found a number ('1:30'), expected a whole"),
        ("partitions: 3", "partitions: yes", 12, "found a boolean ('yes'), expected a whole"),
        ("format: parquet", "format: parquett", 8, "expected one of csv, jsonl, parquet; did you"),
        ('["", NA]', '["", NO]', 9, "sources.checkouts.nulls[1]: found a boolean ('NO')"),
        ("[/data/checkouts.parquet]", "[]", 7, "expected at least one file"),
        ("[/data/checkouts.parquet]", "/data/c.csv", 7, "expected a list of texts such as [a, b]"),
        ("Europe/Berlin", "Europe/Berlino", 10, "time zone 'Europe/Berlino' is not in the tzdata"),
        ("2026-02-01T00:00:00Z", "2026-02-01T00:00:00", 14, "a date and time with its offset"),
        ("2026-02-01T00:00:00Z", "2026-02-30T00:00:00Z", 14, "a date and time with its offset"),
        ("2026-02-01T00:00:00Z", "2026-02-01", 14, "a date and time with its offset"),
        ("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z", 15, "must be after train_until"),
        ("  orders:", "  odrers:", 5, "has neither a stream nor a request 'odrers'; did you mean"),
        ("  checkouts:", "  orders:", 6, "key 'orders' is a duplicate of the one in line 5"),
        ("shop_project:project", "shop_project", 1, "expected module:attribute such as"),
        ("shop_project:project", "shop_project:projects", 1, "no 'projects'; did you mean"),
        ("shop_project:project", "shop_projects:project", 1, "module 'shop_projects' cannot be"),
        ("shop_project:project", "shop_project:view", 1, "is a FeatureView, expected a features."),
        ("shop_project:tidy", "shop_project:orders", 11, "is a EventStream, expected a function"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_place_and_the_mend(
    write: Write, old: str, new: str, line: int, expected: str
) -> None:
    path = write((old, new))
    message = failure(path)
    assert message.startswith(f"{path}:{line}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("stream: {poll_row: 5}", "stream: unknown key 'poll_row'; did you mean 'poll_rows'?"),
        ("stream: {engine: spark}", "found 'spark', expected one of fnapi, prism, flink"),
        ("stream: {engine: bundle}", "found 'bundle', expected one of fnapi, prism"),
        ("stream: {mode: null}", "stream.mode: found null, expected a text"),
        ("stream: {speed: 0}", "stream.speed: found 0, expected a number above zero"),
        ("stream: {speed: .inf}", "expected a number above zero"),
        ("stream: {speed: 1e999}", "expected a number above zero"),
        ("stream: {answer_within: 5}", "duration '5' is not a duration; write digits and a unit"),
        ("stream: {answer_within: 0s}", "expected a duration above zero"),
        ("stream: {answer_within: [5m]}", "found a list, expected a duration"),
        ("training: {seed: -1}", "found -1, expected a whole number, at least 0"),
        ("training: {rate_groups: [custmer]}", "'custmer' is no model input; did you mean"),
        ("training: fast", "training: found a text ('fast'), expected a mapping"),
        ("online_store: {type: mysql}", "found 'mysql', expected one of sqlite, redis, feast"),
        ("online_store: {type: redis, path: a}", "unknown key 'path'; "),
        ("online_store: {type: redis, hots: a}", "unknown key 'hots'; did you mean 'host'?"),
        ("online_store: {type: redis, password: x}", "name that under password_env or password_"),
        ("online_store: {type: redis, username: ann}", "online_store: user 'ann' has no password"),
        ("online_store: {type: redis, port: 65536}", "online_store: found port 65536, expected 1"),
        ("online_store: {type: redis, port: 0}", "online_store.port: found 0, expected a whole"),
        ("online_store: {type: redis, timeout: 5}", "write digits and a unit"),
        ("online_store: {type: redis, tls: {ca: a, cert: b}}", "a certificate goes with its key"),
        ("online_store: {type: redis, tls: yes}", "expected a mapping"),
        ("online_store: {give_up_after: 5}", "online_store.give_up_after: duration '5' is not"),
        (
            "online_store: {type: redis, password_env: A, password_file: b}",
            "online_store: found password_env and password_file, expected one of the two",
        ),
        ("offline_store: {type: parket}", "found 'parket', expected one of parquet, bigquery"),
        ("offline_store: {dataset: d}", "offline_store: unknown key 'dataset'; "),
        ("offline_store: {threads: 0}", "offline_store.threads: found 0, expected a whole number"),
        ("offline_store: {memory_limit: 2}", "memory_limit: found a number ('2'), expected a text"),
        ("offline_store: {memory_limit: 2 TG}", "found the memory limit '2 TG', expected a number"),
        ("offline_store: {type: bigquery, project: some-project}", "key 'dataset' is missing"),
        ("offline_store: {type: bigquery, dataset: d}", "offline_store: key 'project' is missing"),
        ("offline_store: {type: bigquery, projct: p}", "key 'projct'; did you mean 'project'?"),
        ("offline_store: {type: bigquery, threads: 4}", "offline_store: unknown key 'threads'; "),
        (
            "offline_store: {type: bigquery, project: Some Project, dataset: d}",
            "offline_store: BigQuery project 'Some Project': expected a name of the form",
        ),
        (
            "offline_store: {type: bigquery, project: some-project, dataset: p.d}",
            "offline_store: BigQuery dataset 'p.d': expected a name of the form",
        ),
        ("shards: 1_0_0_0_0_0_0_0_0_0_0", "expected a whole number, at least 1"),
    ],
)
def test_a_mistake_in_an_optional_section_is_an_error_too(
    write: Write, more: str, expected: str
) -> None:
    path = write(more=more)
    message = failure(path)
    assert message.startswith(f"{path}:17: ")
    assert expected in message


def test_a_source_that_is_missing_is_named(write: Write) -> None:
    path = write(project=PROJECT.replace('"orders"', '"purchases"', 1), more="")
    text = (
        path.read_text().replace("  orders:", "  purchases:").replace("  checkouts:", "  orders:")
    )
    path.write_text(text)
    assert "neither a stream nor a request 'orders'" in failure(path)

    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5] + lines[12:]))
    message = failure(path)
    assert message.startswith(f"{path}:4: sources: no source for 'checkouts'")
    assert "purchases, checkouts" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"a: [1\nb: 2\n", ":2: is no YAML"),
        (b"a: 1\n---\nb: 2\n", "is no YAML"),
        (b"a: 1\nb: \xff\n", ":2: found the byte 0xff, expected UTF-8"),
        (b"- a\n", ":1: found a list, expected a mapping"),
        (b"a: \x01", "is no YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    message = failure(path)
    assert message.startswith(str(path))
    assert expected in message


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    assert "tidemill init NAME" in failure(tmp_path / "tidemill.yaml")
    assert "cannot be read: Is a directory" in failure(tmp_path)


def test_a_wrong_definition_is_named_by_its_line_from_any_working_directory(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(project="import tidemill\n\ntidemill.Entity('a b')\n")
    for folder in (file.parent, file.parent.parent):
        monkeypatch.chdir(folder)
        assert "cannot be imported (shop_project.py, line 3): DefinitionError" in failure(file)


@pytest.mark.parametrize(
    ("project", "expected"),
    [
        ("import no_such_package\n", "(shop_project.py, line 1): ModuleNotFoundError"),
        ("x = 1\nproject = = 2\n", "(shop_project.py, line 2): SyntaxError"),
        (PROJECT.replace('over="1d"', 'over="1 day"'), "DefinitionError"),
        ("import json\njson.loads('{')\n", "(shop_project.py, line 2): JSONDecodeError"),
    ],
)
def test_a_project_that_cannot_be_imported_names_the_module_and_the_reason(
    write: Write, project: str, expected: str
) -> None:
    message = failure(write(project=project))
    assert "project: module 'shop_project' cannot be imported" in message
    assert expected in message


def test_two_projects_with_modules_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    found: list[Configuration] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "naming.py").write_text(f"NAME = 'shop_{name}'\n")
        (folder / "shop_project.py").write_text(
            "from naming import NAME\n" + PROJECT.replace('"little_shop"', "NAME")
        )
        (folder / "tidemill.yaml").write_text(YAML)
        found.append(load(folder / "tidemill.yaml"))
    assert [configuration.project.name for configuration in found] == ["shop_one", "shop_two"]


def test_a_module_that_is_hidden_by_another_is_an_error(write: Write, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(PROJECT)
    message = failure(write(("shop_project:project", "json:project")))
    assert "module 'json' beside the YAML file is hidden by another of that name" in message
    import json

    assert json.loads("[1]") == [1]
    assert sys.modules["json"] is json


def test_the_stream_engine_is_the_one_configured_unless_the_command_line_says_so(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = load(write(more="stream: {engine: fnapi}"))
    assert stream_engine(found.stream.engine).name == "fnapi"
    monkeypatch.setenv("TIDEMILL_PRISM", str(tmp_path / "no-such-prism"))
    with pytest.raises(EngineError, match="not an executable file"):
        stream_engine(found.stream.engine, "prism")


def test_beam_never_reads_the_command_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tidemill", "--runner=DataflowRunner", "--job_name=mine"])
    found = load(write(more="stream: {engine: fnapi}"))
    choice = stream_engine(found.stream.engine)
    options = pipeline_options(found.project.name, choice, "stream").get_all_options()
    assert options["streaming"] is True
    assert options["job_name"] == "tidemill-little-shop-stream"
    assert options["runner"] != "DataflowRunner"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{accelerator: nvidia-l4}", "expected one such as 'type:nvidia-l4;count:1;install-"),
        ("{min_ram: lots}", "found 'lots', expected one such as '8GB'"),
        ("{min_rams: 8GB}", "unknown key 'min_rams'"),
    ],
)
def test_what_inference_needs_is_checked(write: Write, section: str, expected: str) -> None:
    assert expected in failure(write(more=f"stream: {{inference: {section}}}"))


def test_inference_needs_nothing_unless_it_says_so(write: Write) -> None:
    assert load(write()).stream.inference.hints == {}
    asked = load(write(more="stream: {inference: {min_ram: 7.5GiB}}"))
    assert asked.stream.inference.hints == {"min_ram": "7.5GiB"}
