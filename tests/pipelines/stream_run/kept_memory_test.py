"""Arrow takes memory from the heap of the process while a stream runs."""

from __future__ import annotations

import pyarrow as pa

from tidemill.pipelines.stream_run.kept_memory import kept_memory


def test_arrow_takes_memory_from_the_heap_in_the_block_and_not_after_it() -> None:
    before = pa.default_memory_pool().backend_name
    with kept_memory():
        assert pa.default_memory_pool().backend_name == "system"
        batch = pa.array(range(100_000))
    assert pa.default_memory_pool().backend_name == before
    assert batch[99_999].as_py() == 99_999
