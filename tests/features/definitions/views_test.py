"""Entities and feature views: what is refused, keys, and the columns of a view."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tests.support.definitions import (
    Mistake,
    check_refused,
    each_mistake,
    request,
    view,
)
from tidemill import (
    Entity,
    col,
    count,
    last,
    last_k,
    mean,
    time_since_last,
)
from tidemill.features.contract import HOUR
from tidemill.features.errors import DefinitionError, DuplicateName, UnknownColumn, WrongType

MISTAKES: list[Mistake] = [
    (lambda: Entity("tail number"), DefinitionError, "entity name 'tail number'"),
    (
        lambda: Entity("tail", dtype="float64"),
        WrongType,
        "entity 'tail': a key is string or int64, found 'float64'",
    ),
    (
        lambda: Entity("tail", join_key=("a", "b")),
        WrongType,
        r"entity 'tail': join_key must be the name of one column, a text; found \('a', 'b'\)",
    ),
    (
        lambda: Entity("tail", join_key="event_timestamp"),
        DefinitionError,
        "entity 'tail': join_key 'event_timestamp' is the name of a column that every publication",
    ),
    (lambda: Entity("tail", dtype=str), WrongType, "entity 'tail': dtype must be a text"),
    (lambda: view(name="9"), DefinitionError, "view name '9'"),
    (
        lambda: view(key="orgin"),
        UnknownColumn,
        "view 'airport': key of entity 'origin' 'orgin' is not .* did you mean 'origin'",
    ),
    (lambda: view(key="number"), WrongType, "'number' must be string, found int64"),
    (lambda: view(hop="0s"), DefinitionError, "view 'airport': the hop must be longer than zero"),
    (lambda: view(hop="often"), DefinitionError, "view 'airport': hop 'often' is not a duration"),
    (lambda: view(max_staleness="old"), DefinitionError, "view 'airport': max_staleness 'old'"),
    (lambda: view(features={}), DefinitionError, "view 'airport' has no features"),
    (lambda: view(features={"A": count(over="1h")}), DefinitionError, "feature name 'A'"),
    (
        lambda: view(features={"n": col("delay")}),
        WrongType,
        r"feature airport\.n must be an aggregation such as count\(over='1d'\), found Column",
    ),
    (
        lambda: view(features={"n": mean(col("dely"), over="1h")}),
        UnknownColumn,
        r"feature airport\.n on stream 'arrivals': column 'dely' .* did you mean 'delay'",
    ),
    (
        lambda: view(features={"n": mean(col("id"), over="1h")}),
        WrongType,
        r"feature airport\.n on stream 'arrivals': mean takes int64 or float64, found string",
    ),
    (
        lambda: view(features={"n": count(over="1h", where=col("delay"))}),
        WrongType,
        "'where' must be bool, found float64",
    ),
    (
        lambda: view(features={"n": count(over="7m")}),
        DefinitionError,
        r"feature airport\.n: the window 7m is not a multiple of the hop 5m; choose a hop",
    ),
    (
        lambda: view(
            features={
                "d": last_k(col("delay"), k=2, over="1h"),
                "d_0": last(col("delay"), over="1h"),
            }
        ),
        DuplicateName,
        "'airport__d_0' would be the name of two feature columns; rename",
    ),
    (lambda: view(entity=None), WrongType, "view 'airport': entity must be an Entity, found None"),
    (
        lambda: view(entity="origin"),
        WrongType,
        r"view 'airport': entity must be an Entity, found 'origin' \(str\)",
    ),
    (
        lambda: view(stream=None),
        WrongType,
        "view 'airport': stream must be an EventStream, found N",
    ),
    (lambda: view(key=3), WrongType, "view 'airport': key of entity 'origin' must be the name"),
    (
        lambda: view(features=[count(over="1h")]),
        WrongType,
        r"view 'airport': features must be a dict such as \{'orders_1d': count\(over='1d'\)\}",
    ),
    (
        lambda: view(features={"origin": count(over="1h")}),
        DefinitionError,
        r"feature airport\.origin: 'origin' is the name of a column that every publication",
    ),
    (lambda: view(hop=5), DefinitionError, r"view 'airport': hop must be a text such as '5m'"),
]


@each_mistake(MISTAKES)
def test_a_mistake_is_refused_by_name_with_its_mend(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    check_refused(define, error, says)


def test_an_entitys_key_is_its_name_unless_it_is_said() -> None:
    assert Entity("origin").join_key == "origin"
    assert view(entity=Entity("airport", join_key="origin")).key == "origin"
    assert view(entity=Entity("airport"), key="origin").key == "origin"
    asked = request(keys={"airport": "origin"})
    assert asked.key_column(Entity("airport")) == "origin"
    assert asked.key_column(Entity("tail", join_key="id")) == "id"


def test_columns_are_named_by_view_feature_and_index() -> None:
    made = view(
        features={
            "n": count(over="1h"),
            "d": last_k(col("delay"), k=2, over="1h"),
            "since": time_since_last(over="1h"),
        }
    )
    assert [column.name for column in made.columns] == [
        "airport__n",
        "airport__d_0",
        "airport__d_1",
        "airport__since",
    ]
    assert dataclasses.asdict(made.columns[0]) == {
        "name": "airport__n",
        "view": "airport",
        "feature": "n",
        "index": 0,
        "dtype": "int64",
        "empty": 0,
        "anchored": False,
    }
    assert made.columns[2].index == 1
    assert made.columns[2].empty is None
    assert made.columns[3].anchored
    assert made.longest_window_us == HOUR
