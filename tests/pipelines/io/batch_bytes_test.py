"""Record batches become bytes and come back, whatever their columns are."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tidemill.pipelines.io.batch_bytes import batch_bytes, batch_of

PLAIN = pa.RecordBatch.from_pydict(
    {
        "text": ["a", None, "ccc"],
        "number": pa.array([1.5, None, -0.0]),
        "at": pa.array([1, 2, 3], pa.timestamp("us", tz="UTC")),
        "words": pa.array([b"0123456789abcdef"] * 3, pa.binary(16)),
        "true": [True, False, None],
        "nothing": pa.nulls(3),
    }
)
OTHERS = {
    "slice": PLAIN.slice(1, 1),
    "no rows": PLAIN.slice(0, 0),
    "metadata": PLAIN.replace_schema_metadata({"epoch": "3"}),
    "dictionary": pa.RecordBatch.from_pydict({"a": pa.array(["x", "y", "x"]).dictionary_encode()}),
    "nested dictionary": pa.RecordBatch.from_pydict(
        {"a": pa.StructArray.from_arrays([pa.array(["x", "y"]).dictionary_encode()], ["b"])}
    ),
    "lists": pa.RecordBatch.from_pydict({"a": [[1], None, [2, 3]]}),
    "no columns": PLAIN.select([]),
}


@pytest.mark.parametrize("name", ["plain", *OTHERS])
def test_what_comes_back_is_what_was_encoded(name: str) -> None:
    batch = OTHERS.get(name, PLAIN)
    for _ in range(2):  # the second time its schema is known
        for data in (batch_bytes(batch), bytes(batch_bytes(batch))):
            found = batch_of(data)
            assert found is not None
            assert found.equals(batch, check_metadata=True)
            found.validate(full=True)


def test_none_is_no_bytes() -> None:
    assert len(batch_bytes(None)) == 0
    assert batch_of(b"") is None


def test_rows_are_not_copied() -> None:
    data = batch_bytes(PLAIN)
    found = batch_of(data)
    assert found is not None
    address = found.column("words").buffers()[1].address
    assert data.address <= address < data.address + data.size


def test_schemas_of_equal_names_are_told_apart() -> None:
    for kind in (pa.int64(), pa.float64(), pa.int64()):
        found = batch_of(batch_bytes(pa.RecordBatch.from_pydict({"a": pa.array([1, 2], kind)})))
        assert found is not None
        assert found.schema.field("a").type == kind


@pytest.mark.parametrize("length", [3, 8, 40, -40])
def test_bytes_that_were_cut_short_are_an_error(length: int) -> None:
    data = bytes(batch_bytes(PLAIN))
    assert batch_of(data) is not None
    with pytest.raises((pa.ArrowInvalid, OSError)):
        batch_of(data[:length])
