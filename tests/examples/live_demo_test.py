"""The pieces of `make demo-live`: what is prepared, what is sent, and the folder that it clears."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.judged import read_stream
from tidemill.examples.flights import live, live_producer
from tidemill.examples.flights import project as flights
from tidemill.examples.flights.live_data import LIVE_FROM, live_rows, prepare
from tidemill.examples.flights.live_project import SENT_AT, project
from tidemill.features.errors import ConfigurationError
from tidemill.pipelines.config.configuration import load


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "data"
    counts = prepare(folder)
    assert {name: counts[name] > 20_000 for name in counts} == {
        "departures": True, "arrivals": True, "weather": False, "requests": True,
    }  # fmt: skip
    return folder


def test_the_live_project_has_the_definitions_of_the_example() -> None:
    assert [view.name for view in project.views] == [view.name for view in flights.project.views]
    names = [column.name for column in flights.project.columns]
    assert [column.name for column in project.columns] == names
    assert set(project.request.inputs) == set(flights.project.request.inputs)


def test_history_is_valid_and_ends_where_the_topics_begin(data: Path) -> None:
    begin = pa.scalar(LIVE_FROM).cast(pa.timestamp("us", "UTC"))
    for definition in (*project.streams, project.request):
        judged = list(
            read_stream(definition, [data / f"{definition.name}.parquet"], received=SENT_AT)
        )
        assert sum(part.counts.rejected for part in judged) == 0
        assert sum(part.counts.kept for part in judged) > 1_000
        live_part = pq.read_table(data / f"{definition.name}-live.parquet")
        times = live_part[definition.time_column]
        assert pc.min(times).as_py() >= begin.as_py()
        history = pq.read_table(data / f"{definition.name}.parquet")
        assert pc.max(history[definition.time_column]).as_py() < begin.as_py()


def test_messages_come_in_the_order_in_which_they_happened(data: Path) -> None:
    sent = list(islice(live_producer.messages(data), 2_000))
    assert [one[0] for one in sent] == sorted(one[0] for one in sent)
    assert {name for _, name, _ in sent} == {"departures", "arrivals", "weather", "requests"}
    for _, _, row in sent[:50]:
        assert SENT_AT not in row  # it is the message's own timestamp
        assert json.loads(json.dumps(row, default=str)).keys() == row.keys()
    first = next(live_rows(data, "requests"))
    assert first["flight_id"] in {row.get("flight_id") for _, _, row in sent}


def test_the_configuration_is_one_of_topics(tmp_path: Path) -> None:
    path = tmp_path / "tidemill.yaml"
    path.write_text(live.configuration("127.0.0.1:29092", 5_000))
    config = load(path)
    assert config.is_live
    topics = {name: source.kafka for name, source in config.sources.items()}
    assert all(topic is not None and topic.clock == "messages" for topic in topics.values())
    # Half a second of this machine's clock is that long by the clock of the messages.
    assert {topic.quiet_us for topic in topics.values() if topic} == {2_500 * 1_000_000}
    assert config.sinks.keys() == {"predictions", "rejected"}


def test_only_a_folder_of_its_own_is_cleared_and_the_model_stays(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "run").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="no live demo has written"):
        live._clear(mine)
    assert (mine / "run").exists()
    live._clear(tmp_path / "demo")
    (tmp_path / "demo" / "run" / "bundles" / "v1").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "generations").mkdir()
    (tmp_path / "demo" / "run" / "CURRENT").touch()
    live._clear(tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo" / "run").iterdir()] == ["bundles"]
