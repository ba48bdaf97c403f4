"""Labels: what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.definitions import (
    Mistake,
    check_refused,
    each_mistake,
    label,
)
from tidemill import (
    col,
)
from tidemill.features.errors import DefinitionError, UnknownColumn, WrongType

MISTAKES: list[Mistake] = [
    (lambda: label(name=""), DefinitionError, "label name ''"),
    (
        lambda: label(value=col("dely") > 15),
        UnknownColumn,
        "label 'late' on stream 'arrivals': value: column 'dely'",
    ),
    (lambda: label(on={}), DefinitionError, "label 'late': 'on' must join at least one column"),
    (lambda: label(on={"id": "idd"}), UnknownColumn, "label 'late': join column 'idd'"),
    (lambda: label(on={"id": "delay"}), WrongType, "join column 'delay' must be string or int64"),
    (lambda: label(horizon="0s"), DefinitionError, "label 'late': the horizon must be longer"),
    (
        lambda: label(value="cancelled"),
        WrongType,
        r"label 'late': value must be an expression such as col\('delay'\) > 15, found 'cancelled'",
    ),
    (
        lambda: label(value=col("origin")),
        WrongType,
        r"label 'late' on stream 'arrivals': value must be bool, found string; write .*> 15",
    ),
    (lambda: label(value=col("number")), WrongType, "value must be bool, found int64"),
    (lambda: label(value=col("delay")), WrongType, "value must be bool, found float64"),
    (lambda: label(value=col("at")), WrongType, "value must be bool, found timestamp"),
    (lambda: label(on="id"), WrongType, "label 'late': on must be a dict"),
    (lambda: label(value="b"), WrongType, "label 'late': value must be an expression"),
    (lambda: label(on={3: "id"}), WrongType, "label 'late': on: the request's column must be"),
    (lambda: label(stream="arrivals"), WrongType, "label 'late': stream must be an EventStream"),
    (lambda: label(recurring=1), WrongType, "label 'late': recurring must be True or False, found"),
    (lambda: label(horizon="400000000d"), DefinitionError, "horizon '400000000d' is too long"),
]


@each_mistake(MISTAKES)
def test_a_mistake_is_refused_by_name_with_its_mend(
    define: Callable[[], Any], error: type[DefinitionError], says: str
) -> None:
    check_refused(define, error, says)


def test_a_recurring_label_is_another_definition() -> None:
    assert label(recurring=True).spec() == {**label().spec(), "recurring": True}
