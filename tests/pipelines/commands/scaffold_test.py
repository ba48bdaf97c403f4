"""`tidemill init`: a project that loads, whose rows are valid and whose labels come later."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.judged import read_stream
from tidemill.features.errors import ConfigurationError
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.places import StorePlaces


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project("tiny_shop", tmp_path_factory.mktemp("init"))


@pytest.fixture(scope="module")
def configuration(written: Path) -> Configuration:
    return load(written / "tidemill.yaml")


def read(configuration: Configuration, name: str) -> tuple[pa.Table, pa.Table, Counts]:
    """Return a source's valid rows, its rejected rows and the counts."""
    project, source = configuration.project, configuration.sources[name]
    definition = project.definition(name)
    parts = list(read_stream(definition, source.find_files()))
    counts = Counts()
    for part in parts:
        counts += part.counts
    rejected = pa.Table.from_batches([part.rejected for part in parts])
    return pa.Table.from_batches([part.batch for part in parts]), rejected, counts


def test_the_project_loads_and_carries_its_name(configuration: Configuration) -> None:
    project = configuration.project
    assert project.name == "tiny_shop"
    assert [view.name for view in project.views] == [
        "customer_orders",
        "customer_refunds",
        "product_refunds",
    ]
    kinds = {i.name: i.kind for i in model_inputs(project, only_request=True)}
    assert kinds["product"] == kinds["channel"] == "text"
    assert set(configuration.training.rate_groups) <= set(kinds)


def test_features_of_the_service_have_different_names(
    configuration: Configuration, tmp_path: Path
) -> None:
    project = configuration.project
    store = open_store(project, StorePlaces.below(tmp_path), clock="replay")
    service = store.get_feature_service(project.name)
    keys = [{"customer_id": "c-001", "product": "p"}]
    # Feast refuses two features of one name, unless the reader asks for full names.
    read = store.get_online_features(service, keys).to_dict()
    assert len(read) == 2 + len(project.columns)


def test_no_placeholder_is_left(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(written)) for path in files if path.suffix != ".pyc")
    assert names == [
        ".gitignore",
        "README.md",
        "events/checkouts.csv",
        "events/orders.csv",
        "events/settlements.csv",
        "model.py",
        "project.py",
        "project_test.py",
        "tidemill.yaml",
    ]
    for name in names:
        text = (written / name).read_text()
        assert "PROJECT_NAME" not in text
        assert "ROW_COUNT" not in text
        assert "_ONLY" not in text
    assert "# tiny_shop:" in (written / "README.md").read_text()


def test_one_order_is_rejected_and_everything_else_is_valid(configuration: Configuration) -> None:
    rows = 0
    for name in ("orders", "settlements", "checkouts"):
        _, rejected, counts = read(configuration, name)
        rows += counts.read
        assert counts.dropped == 0
        if name == "orders":
            assert rejected["reason"].to_pylist() == ["wrong_type"]
            assert b'"12,50"' in rejected["payload"][0].as_py()
        else:
            assert counts.rejected == 0
    readme = (configuration.path.parent / "README.md").read_text()
    assert f"{rows:,} rows over 60 days" in readme


def test_every_split_has_requests_with_and_without_refunds(configuration: Configuration) -> None:
    checkouts, _, _ = read(configuration, "checkouts")
    settlements, _, _ = read(configuration, "settlements")
    label, splits = configuration.project.label, configuration.splits
    assert label is not None
    joined = checkouts.join(
        settlements.select(["checkout_id", "settled_at", "refunded"]),
        "checkout_id",
        join_type="left outer",
    )
    requested = joined["checked_out_at"].cast(pa.int64())
    settled = joined["settled_at"].cast(pa.int64())
    delays = pc.subtract(settled, requested)
    # The label comes after its request and within the horizon; one in ten never comes.
    assert pc.min(delays).as_py() > 0
    assert pc.max(delays).as_py() <= label.horizon_us
    assert 0.05 < delays.null_count / len(delays) < 0.15
    found: Counter[tuple[str, bool]] = Counter()
    for at, outcome in zip(requested.to_pylist(), joined["refunded"].to_pylist(), strict=True):
        known = at + label.horizon_us
        if outcome is None:
            continue
        if known <= splits.train_until_us:
            found["train", outcome] += 1
        elif splits.train_until_us <= at and known <= splits.evaluate_until_us:
            found["evaluate", outcome] += 1
        elif splits.evaluate_until_us <= at < splits.stream_until_us:
            found["stream", outcome] += 1
    assert found["train", False] > 300
    assert min(found[split, True] for split in ("train", "evaluate", "stream")) >= 10
    # All labels of the stream are known when it ends.
    assert pc.max(settled).as_py() < splits.stream_until_us


def test_the_readme_explains_a_prediction_of_the_stream(configuration: Configuration) -> None:
    readme = (configuration.path.parent / "README.md").read_text()
    (named,) = re.findall(r"tidemill explain (\S+)", readme)
    checkouts, _, _ = read(configuration, "checkouts")
    (at,) = checkouts.filter(pc.equal(checkouts["checkout_id"], named))["checked_out_at"].cast(
        pa.int64()
    )
    splits = configuration.splits
    assert splits.evaluate_until_us <= at.as_py() < splits.stream_until_us


def test_requests_have_null_keys_and_null_inputs(configuration: Configuration) -> None:
    checkouts, _, _ = read(configuration, "checkouts")
    orders, _, _ = read(configuration, "orders")
    assert 50 < checkouts["customer_id"].null_count < 150
    assert checkouts["delivery_days"].null_count > 50
    assert orders["discount"].null_count > 50
    assert orders["customer_id"].null_count == 0


def test_the_windows_tell_more_than_the_request(configuration: Configuration) -> None:
    # The template must show this: past refunds of a customer predict the next.
    settlements, _, _ = read(configuration, "settlements")
    sent_back: Counter[str] = Counter()
    orders: Counter[str] = Counter()
    after = {True: [0, 0], False: [0, 0]}
    for customer, refunded in zip(
        settlements["customer_id"].to_pylist(), settlements["refunded"].to_pylist(), strict=True
    ):
        if orders[customer] >= 5:
            often = sent_back[customer] / orders[customer] > 0.3
            after[often][0] += refunded
            after[often][1] += 1
        orders[customer] += 1
        sent_back[customer] += refunded
    assert after[True][0] / after[True][1] > 2 * after[False][0] / after[False][1]


def test_the_events_are_always_the_same(written: Path) -> None:
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in (written / "events").iterdir()
    }
    assert digests == {
        "checkouts.csv": "72c1ec9897975e2a",
        "orders.csv": "51b78102ed70fd5c",
        "settlements.csv": "1bc06d32af08735c",
    }


def test_nothing_is_overwritten(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    with pytest.raises(ConfigurationError, match="exists already; nothing was written"):
        write_project("tiny_shop", written.parent)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_an_empty_directory_of_that_name_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        write_project("shop", tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "shop"]


@pytest.mark.parametrize("name", ["Shop", "my-shop", "1shop", "my__shop", "../shop", "", "a/b"])
def test_a_name_that_no_project_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a project cannot be called"):
        write_project(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_tests_of_the_project_pass(written: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(written)]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, "project_test.py"],
        cwd=written,
        check=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def with_topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project("tiny_topics", tmp_path_factory.mktemp("init"), "broker.example:29092")


def test_a_project_with_topics_loads_and_names_one_broker(with_topics: Path) -> None:
    configuration = load(with_topics / "tidemill.yaml")
    topics = [source.kafka for source in configuration.sources.values()]
    assert {topic.topic for topic in topics if topic is not None} == {
        "tiny_topics-orders",
        "tiny_topics-settlements",
        "tiny_topics-checkouts",
    }
    sinks = configuration.sinks
    assert {name: sink.topic for name, sink in sinks.items()} == {
        "predictions": "tiny_topics-predictions",
        "rejected": "tiny_topics-rejected",
    }
    brokers = {one.bootstrap for one in (*topics, *sinks.values()) if one is not None}
    assert brokers == {("broker.example:29092",)}
    assert (with_topics / "tidemill.yaml").read_text().count("broker.example") == 1


def test_a_project_with_topics_has_all_rows_as_history_or_live_ones(
    written: Path, with_topics: Path
) -> None:
    for name in ("orders", "settlements", "checkouts"):
        whole = set((written / "events" / f"{name}.csv").read_text().splitlines()[1:])
        history = (with_topics / "events" / f"{name}.csv").read_text().splitlines()
        live = (with_topics / "live" / f"{name}.csv").read_text().splitlines()
        assert history[0] == f"{live[0]},sent_at"
        before = {line.rpartition(",")[0] for line in history[1:]}
        assert len(before) + len(live) - 1 == len(whole)
        assert before | set(live[1:]) == whole
    texts = [
        path.read_text()
        for path in with_topics.rglob("*")
        if path.suffix in (".py", ".md", ".yaml")
    ]
    placeholders = ("PROJECT_NAME", "ROW_COUNT", "BOOTSTRAP", "_ONLY")
    assert not [word for word in placeholders if any(word in text for text in texts)]


@pytest.mark.parametrize("address", ["broker", "broker:", "broker:port", 'b":1', "a:1,b:2", ""])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected HOST:PORT"):
        write_project("shop", tmp_path, address)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_formatted_and_lints(written: Path, with_topics: Path) -> None:
    for arguments in (("format", "--check"), ("check", "--select=E,F,I,B,D,UP")):
        subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length=100"]
            + (["--config=lint.pydocstyle.convention='google'"] if arguments[0] == "check" else [])
            + [str(written), str(with_topics)],
            cwd=written,
            check=True,
            timeout=240,
        )
