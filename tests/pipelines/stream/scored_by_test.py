from __future__ import annotations

import numpy as np
import pytest

from tidemill.pipelines.stream.scored_by import decision_of, with_decision


def test_a_request_is_scored_by_the_last_bundle_that_begins_before_it() -> None:
    since = [(5, 5), (10, 20), (10, 30), (40, 30)]
    places = [(0, 0), (0, 9), (0, 10), (0, 39), (0, 40), (1, 19), (1, 20), (1, 29), (1, 30)]
    partitions, positions = np.array(places).T
    assert decision_of(since, partitions, positions).tolist() == [0, 0, 2, 2, 3, 0, 1, 1, 3]


def test_partitions_that_came_later_begin_with_the_newest() -> None:
    assert decision_of([(0,), (7,)], np.array([0, 1]), np.array([6, 0])).tolist() == [0, 1]
    assert decision_of([(0,)], np.array([], np.int64), np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("models", "has_scored", "expected"),
    [
        (None, False, [("b1", [3, 4])]),
        ([], False, [("b1", [3, 4])]),
        (None, True, [(None, [0, 0]), ("b1", [3, 4])]),
        ([("b1", [0, 0])], True, [("b1", [0, 0])]),
        ([("b2", [0, 0])], True, [("b2", [0, 0]), ("b1", [3, 4])]),
        ([("b1", [0, 0]), ("b2", [1, 1])], True, [("b1", [0, 0]), ("b2", [1, 1]), ("b1", [3, 4])]),
    ],
)
def test_a_run_adds_a_decision_where_its_bundle_is_another_one(
    models: list[tuple[str | None, list[int]]] | None,
    has_scored: bool,
    expected: list[tuple[str | None, list[int]]],
) -> None:
    def record(made: list[tuple[str | None, list[int]]]) -> list[dict[str, object]]:
        return [{"bundle": bundle, "positions": positions} for bundle, positions in made]

    before = None if models is None else record(models)
    found = with_decision(before, "b1", (3, 4), has_scored=has_scored)
    assert found == record(expected)
