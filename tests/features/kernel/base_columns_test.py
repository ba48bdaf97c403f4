"""Rows keep their digests when their source gets columns, or wider dtypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import EventStream
from tidemill.features.kernel.prepare import identity_digests
from tidemill.pipelines.io.log_digests import block_digest
from tidemill.pipelines.io.log_rows import conformed

BEFORE = EventStream(
    "orders",
    {"order": "string", "at": "timestamp", "sent_at": "timestamp", "count": "int64"},
    event_time="at",
    event_id="order",
    transport=["sent_at"],
)
AFTER = replace(
    BEFORE,
    schema={**BEFORE.schema, "count": "float64", "tip": "int64", "note": "string"},
    optional=["tip", "note"],
    widened={"count": "int64"},
)
WIDER = replace(
    AFTER,
    schema={**AFTER.schema, "tip": "float64"},
    widened={"count": "int64", "tip": "int64"},
)
WHOLE = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(lambda found: found + 0.0)


def rows(definition: EventStream, values: list[dict[str, object]]) -> pa.RecordBatch:
    fixed = [{"order": str(n), "at": 0, "sent_at": n} for n in range(len(values))]
    given = [one | more for one, more in zip(fixed, values, strict=True)]
    schema = conformed(pa.RecordBatch.from_pylist([], pa.schema([])), definition.schema).schema
    return pa.RecordBatch.from_pylist(given, schema)


def digest_of_block(definition: EventStream, batch: pa.RecordBatch) -> bytes:
    return block_digest(definition.schema, batch, (), definition.origin)


@given(st.lists(st.one_of(WHOLE, st.none()), min_size=1, max_size=5))
def test_rows_of_before_have_the_digests_of_before(counts: list[int | None]) -> None:
    before = rows(BEFORE, [{"count": count} for count in counts])
    for later in (AFTER, WIDER):
        after = conformed(before, later.schema)
        assert digest_of_block(later, after) == digest_of_block(BEFORE, before)
        assert (identity_digests(later, after) == identity_digests(BEFORE, before)).all()


VALUES = st.fixed_dictionaries(
    {
        "count": st.one_of(WHOLE.map(float), FLOATS, st.none()),
        "tip": st.one_of(WHOLE, st.none()),
        "note": st.one_of(st.text("ab", max_size=2), st.none()),
    }
)


@given(VALUES, VALUES)
def test_rows_that_differ_in_a_value_have_other_digests(
    one: dict[str, object], two: dict[str, object]
) -> None:
    first, second = rows(AFTER, [one]), rows(AFTER, [two])
    same = first.equals(second)
    assert (identity_digests(AFTER, first) == identity_digests(AFTER, second)).all() == same
    assert (digest_of_block(AFTER, first) == digest_of_block(AFTER, second)) == same


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_column_may_become_wider_after_it_was_added(values: list[dict[str, object]]) -> None:
    before = rows(AFTER, values)
    after = conformed(before, WIDER.schema)
    assert digest_of_block(WIDER, after) == digest_of_block(AFTER, before)
    assert (identity_digests(WIDER, after) == identity_digests(AFTER, before)).all()


def test_values_of_two_columns_are_told_apart() -> None:
    both = replace(
        BEFORE,
        schema={**BEFORE.schema, "a": "int64", "b": "int64"},
        optional=["a", "b"],
    )
    found = [rows(both, [{"count": 1, name: 7}]) for name in ("a", "b")]
    assert (identity_digests(both, found[0]) != identity_digests(both, found[1])).all()
    assert digest_of_block(both, found[0]) != digest_of_block(both, found[1])


@pytest.mark.parametrize("value", [5e-324, 0.5, 2.0**53 + 2, 1e300, -0.5])
def test_a_float_that_is_no_former_integer_is_not_taken_for_one(value: float) -> None:
    bits = int(np.float64(value).view(np.int64))
    found = [rows(AFTER, [{"count": one}]) for one in (value, float(bits), 0.0)]
    digests = [identity_digests(AFTER, one)[0, 0] for one in found]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("name", ["count\0float64 beyond int64", "beyond int64 count"])
def test_no_name_of_a_column_makes_its_values_those_of_another_one(name: str) -> None:
    named = replace(AFTER, schema={**AFTER.schema, name: "float64"}, optional=["tip", "note", name])
    found = [rows(named, [{"count": 1.5}]), rows(named, [{"count": 0.0, name: 1.5}])]
    assert (identity_digests(named, found[0]) != identity_digests(named, found[1])).all()
    assert digest_of_block(named, found[0]) != digest_of_block(named, found[1])
