"""Feast views of other people, of every kind, over two small Parquet files."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import feast
import pandas as pd
from feast.data_source import PushSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.stream_feature_view import StreamFeatureView
from feast.types import Float64, Int64, String

AT = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
TTL = datetime.timedelta(days=3)

PEOPLE = pd.DataFrame(
    {
        "person": ["ann", "bob", "ann", "bob", "ann"],
        "event_timestamp": [AT, AT, AT + HOUR, AT + 2 * HOUR, AT + HOUR],
        "created": [AT, AT, AT + HOUR, AT + 2 * HOUR, AT + 3 * HOUR],
        "x": [1, 2, 3, 4, 5],
        "y": [0.1, None, 0.3, 0.4, 0.5],
        "ok": [True, False, True, None, True],
    }
)
RATES = pd.DataFrame({"event_timestamp": [AT, AT + HOUR], "rate": [1.5, 2.5]})


def write_files(root: Path) -> None:
    """Write the files that the sources of `views` name."""
    PEOPLE.to_parquet(root / "people.parquet")
    RATES.to_parquet(root / "rates.parquet")


def views(root: Path) -> list[Any]:
    """A view with a created timestamp, one without entity, a stream view, on-demand views, ..."""

    def people(name: str, **options: Any) -> feast.FileSource:
        path = str(root / "people.parquet")
        return feast.FileSource(name=name, path=path, timestamp_field="event_timestamp", **options)

    def numbers(*names: str) -> list[feast.Field]:
        kinds = {"y": Float64, "rate": Float64, "person": String}
        return [feast.Field(name=name, dtype=kinds.get(name, Int64)) for name in names]

    person = feast.Entity(name="person", join_keys=["person"], value_type=feast.ValueType.STRING)
    created = feast.FeatureView(
        name="created",
        entities=[person],
        ttl=TTL,
        schema=numbers("x", "y"),
        source=people("created_source", created_timestamp_column="created"),
    )
    rates = feast.FeatureView(
        name="rates",
        entities=[],
        ttl=TTL,
        schema=numbers("rate"),
        source=feast.FileSource(
            name="rates_source",
            path=str(root / "rates.parquet"),
            timestamp_field="event_timestamp",
        ),
    )
    inferred = feast.FeatureView(
        name="inferred", entities=[person], ttl=TTL, source=people("inferred_source")
    )
    mapped = feast.FeatureView(
        name="mapped",
        entities=[person],
        ttl=TTL,
        schema=numbers("renamed"),
        source=people("mapped_source", field_mapping={"x": "renamed"}),
    )
    pushed = PushSource(name="pushed", batch_source=people("pushed_source"))
    streamed = StreamFeatureView(
        name="streamed",
        entities=[person],
        ttl=TTL,
        schema=numbers("person", "y", "x"),  # the registry gives it back without the key
        source=pushed,
        timestamp_field="event_timestamp",
        online=True,
    )

    @on_demand_feature_view(
        entities=[person],
        sources=[created],
        schema=[feast.Field(name="z", dtype=Float64), feast.Field(name="a", dtype=Int64)],
        mode="pandas",
        write_to_online_store=True,
    )
    def written(inputs: pd.DataFrame) -> pd.DataFrame:
        import pandas

        return pandas.DataFrame({"z": inputs["x"] * 2.0, "a": inputs["x"] + 1})

    @on_demand_feature_view(
        sources=[created], schema=[feast.Field(name="w", dtype=Float64)], mode="pandas"
    )
    def computed(inputs: pd.DataFrame) -> pd.DataFrame:
        import pandas

        return pandas.DataFrame({"w": inputs["x"] * 3.0})

    return [person, created, rates, inferred, mapped, pushed, streamed, written, computed]
