"""The pages that `make docs` makes are those of the code, and what they show works."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from docs.generate import configuration as configuration_page
from docs.generate import expressions as expressions_page
from docs.generate.configuration import EXAMPLE, SECTIONS, TRANSFORM, Described, field_of, row
from docs.generate.expressions import ENTRIES, ROWS, SCHEMA, dtypes, evaluated
from tests.support.judged import read_stream
from tests.support.markdown import DOCS
from tidemill.features.definitions import expressions
from tidemill.features.definitions.expressions import Expression
from tidemill.features.definitions.schema import ARROW_TYPES
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import Configuration, Training, load

PAGES = {"configuration": configuration_page, "expressions": expressions_page}

PROJECT = """\
from tidemill import Entity, EventStream, FeatureView, Label, Project, Request, col, count

orders = EventStream(
    "orders",
    schema={
        "order": "string", "ordered_at": "timestamp", "customer": "string", "amount": "float64",
    },
    event_time="ordered_at",
    event_id="order",
)
checkouts = Request(
    "checkouts",
    schema={
        "checkout": "string", "asked_at": "timestamp", "received_at": "timestamp",
        "customer": "string", "amount_bin": "int64",
    },
    request_time="asked_at",
    request_id="checkout",
    inputs={"amount_bin": col("amount_bin")},
)
view = FeatureView(
    "by_customer", entity=Entity("customer"), stream=orders, hop="1h",
    features={"orders_1d": count(over="1d")},
)
project = Project("shop", request=checkouts, views=[view])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that the page's file is of."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("project", "ingest"):
        sys.modules.pop(name, None)
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "ingest.py").write_text(TRANSFORM)
    return tmp_path


def loaded(folder: Path, text: str) -> Configuration:
    (folder / "tidemill.yaml").write_text(text)
    return load(folder / "tidemill.yaml")


def changed(section: str) -> str:
    """Return the file of the page with another section in place of its own."""
    content = yaml.safe_load(EXAMPLE) | yaml.safe_load(section)
    if any("kafka" in source for source in content["sources"].values()):
        del content["stream"]["speed"]  # topics are not replayed
    text = yaml.safe_dump(content)
    return text.replace("00:00:00+00:00", "00:00:00Z")


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_make_docs_writes(name: str) -> None:
    written = (DOCS / f"{name}.md").read_text()
    assert written == PAGES[name].render(), "run `make docs`"


# The configuration.


def objects(config: Configuration, section: Described) -> list[Any]:
    """Return the objects that a section has filled."""
    places = [
        config, *config.sources.values(), config.splits, config.training, config.stream,
        config.stream.inference,
        config.online_store, config.offline_store, config.registry,
        getattr(config.online_store, "tls", None), *config.sinks.values(), config.archive,
        config.metrics, config.logging, config.tracing,
    ]  # fmt: skip
    topics = [source.kafka for source in config.sources.values() if source.kafka is not None]
    places += [*topics, *(topic.registry for topic in topics)]
    return [one for one in places if isinstance(one, section.documented)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_every_key_of_the_examples_fills_its_field(section: Described, folder: Path) -> None:
    texts = [section.example or EXAMPLE, *([section.other] if section.other else [])]
    found = [loaded(folder, text if text == EXAMPLE else changed(text)) for text in texts]
    for key in section.keys:
        if key == "type":
            continue
        documented, name = field_of(section, key)
        holders = [
            one
            for config in found
            for one in ([config] if documented is Configuration else objects(config, section))
        ]
        assert holders, key
        default = next(f for f in documented.__dataclass_fields__.values() if f.name == name)
        assert any(getattr(one, name) != default.default for one in holders), key


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_every_key_has_a_type_a_default_an_example_and_a_meaning(section: Described) -> None:
    for key in section.keys:
        _, kind, default, example, meaning = row(section, key)
        assert kind
        assert default
        assert example or kind == "section"
        assert meaning.endswith(".")
        assert "microseconds" not in meaning
        assert "pipelines." not in meaning


@pytest.mark.parametrize("section", SECTIONS[1:], ids=lambda section: section.title)
def test_a_section_takes_no_other_key(section: Described, folder: Path) -> None:
    """The keys on the page are those that the reader knows."""
    content = yaml.safe_load(changed(section.example or "{}") if section.example else EXAMPLE)
    place: Any = content
    source = "checkouts" if "kafka" in section.title else "orders"
    for name in section.title.replace("NAME", source).split(", "):
        if name == "sample":
            continue
        first, _, second = name.partition(": ")
        place = place[first]
        place = place[second] if first in ("sources", "predictions") else place
    place["unknown"] = 1
    text = yaml.safe_dump(content).replace("00:00:00+00:00", "00:00:00Z")
    with pytest.raises(ConfigurationError, match="unknown key 'unknown'"):
        loaded(folder, text)


def test_defaults_of_the_page_are_those_of_a_file_without_the_keys(folder: Path) -> None:
    content = yaml.safe_load(EXAMPLE)
    for name in ("shards", "sample", "training", "online_store", "offline_store", "registry",
                 "stream"):  # fmt: skip
        del content[name]
    config = loaded(folder, yaml.safe_dump(content).replace("00:00:00+00:00", "00:00:00Z"))
    assert config.training == Training()
    top = {key: row(SECTIONS[0], key)[2] for key in SECTIONS[0].keys}
    assert top["shards"] == str(config.shards)
    assert str(config.root / "online.db") == str(config.online_store.path)  # type: ignore[union-attr]


def test_the_transform_of_the_page_works(folder: Path) -> None:
    config = loaded(folder, EXAMPLE)
    (folder / "orders.csv").write_text(
        "order,ordered_at,customer,cents,currency\n"
        "o1,2026-01-05T10:00:00Z,ann,1250,EUR\n"
        "o2,2026-01-05T11:00:00Z,bob,300,\n"
        "o3,2026-01-05T12:00:00Z,test,1,EUR\n"
    )
    source = replace(config.sources["orders"], files=(str(folder / "orders.csv"),))
    (batch,) = read_stream(
        config.project.streams[0], source.find_files(), transform=source.transform
    )
    assert batch.batch["amount"].to_pylist() == [12.5]
    assert batch.rejected["detail"].to_pylist() == ["it has no currency"]
    assert (batch.counts.read, batch.counts.dropped) == (3, 1)


# Expressions.


def test_every_operator_and_method_is_on_the_page() -> None:
    own = {
        name
        for name, value in vars(Expression).items()
        if callable(value) and value.__qualname__ == f"Expression.{name}"
    }
    of_nodes = {"dtype", "evaluate", "columns", "spec", "__bool__"}
    assert {method for entry in ENTRIES for method in entry.methods} - {"col", "literal"} == (
        own - of_nodes
    )
    nodes = {
        one
        for one in vars(expressions).values()
        if isinstance(one, type) and issubclass(one, Expression) and one.__name__[0] != "_"
    }
    assert {entry.node for entry in ENTRIES} == nodes - {Expression}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.written)
def test_the_dtypes_of_the_page_are_those_that_are_evaluated(
    entry: expressions_page.Entry,
) -> None:
    """And a null operand gives what the page says, for every dtype."""
    constant = entry.node in (expressions.FillNull, expressions.IsIn)
    pairs = dtypes(entry)
    assert pairs or not entry.operands
    for given, result in pairs:
        types = [ARROW_TYPES[dtype] for dtype in given]
        columns = {f"c{place}": pa.nulls(2, kind) for place, kind in enumerate(types)}
        operands: list[Any] = [expressions.col(name) for name in columns]
        if constant:
            operands[1] = expressions.Literal(expressions_page.CONSTANTS[given[1]])
        found = entry.make(*operands).evaluate(pa.RecordBatch.from_pydict(columns))
        assert found.type == ARROW_TYPES[result]
        never_null = "never null" in (entry.node.evaluate.__doc__ or "")
        assert found.null_count == (0 if never_null else 2), given


def test_the_examples_are_valid_with_the_rows_of_the_page() -> None:
    assert ROWS.schema.names == list(SCHEMA)
    for entry in ENTRIES:
        for example in entry.examples:
            assert len(evaluated(example)) == 1 + ROWS.num_rows
