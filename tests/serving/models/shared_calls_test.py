from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.called_models import dense_model, throwing_model
from tidemill.features.errors import InputError
from tidemill.serving.models.saved_model import Outcome, SavedModel
from tidemill.serving.models.shared_calls import SharedCalls, divided


@pytest.fixture(scope="module")
def throwing(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    return SavedModel(throwing_model(tmp_path_factory.mktemp("throwing")))


def _batch(*values: float) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"x": pa.array(values, pa.float64())})


class Held:
    """A model whose calls wait until they are let go; the batches that they had are kept."""

    def __init__(self, model: SavedModel) -> None:
        self._model = model
        self.batches: list[pa.RecordBatch] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def call(self, batch: pa.RecordBatch) -> Outcome:
        self.batches.append(batch)
        self.begun.set()
        assert self.go.wait(60)
        return self._model.call(batch)


def _wait_for(shared: SharedCalls, callers: int) -> None:
    for _ in range(6_000):
        if len(shared._waiting) == callers:
            return
        time.sleep(0.01)
    raise AssertionError(f"{len(shared._waiting)} callers wait")


def _together(
    model: Any, batches: list[pa.RecordBatch], rows: int = 4_096
) -> tuple[Any, list[Any]]:
    """Call with the first batch, and with all others while that call is made."""
    held = Held(model)
    shared = SharedCalls(held, 0.0, rows)  # type: ignore[arg-type]
    with ThreadPoolExecutor(len(batches)) as threads:
        found = [threads.submit(shared.call, batches[0])]
        assert held.begun.wait(60)
        for number, batch in enumerate(batches[1:], start=1):
            found.append(threads.submit(shared.call, batch))
            _wait_for(shared, number)
        held.go.set()
        return held, found


def test_what_comes_during_a_call_goes_together(throwing: SavedModel) -> None:
    batches = [_batch(1.0), _batch(4.0, 9.0), _batch(16.0), _batch(25.0)]
    held, found = _together(throwing, batches)
    assert [one.num_rows for one in held.batches] == [1, 4]
    for batch, future in zip(batches, found, strict=True):
        outcome = future.result()
        roots = outcome.outputs.column("root").to_numpy()
        np.testing.assert_allclose(roots, np.sqrt(batch.column("x").to_numpy()) * 1.1)
        assert outcome.rejected == ()


def test_the_bad_rows_of_one_caller_are_rejected_for_it_alone(throwing: SavedModel) -> None:
    batches = [_batch(1.0), _batch(4.0, 9.0), _batch(1.0, -1.0, 4.0, -2.0), _batch(16.0)]
    held, found = _together(throwing, batches)
    assert [one.num_rows for one in held.batches] == [1, 7]
    rejected = [[one.row for one in future.result().rejected] for future in found]
    assert rejected == [[], [], [1, 3], []]
    assert found[2].result().outputs.column("root").is_null().to_pylist() == [
        False, True, False, True,
    ]  # fmt: skip


def test_an_error_of_one_batch_fails_its_caller_alone(tmp_path: Path) -> None:
    model = SavedModel(dense_model(tmp_path))

    def lists(*rows: list[float]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"x": pa.array(rows, pa.list_(pa.float32()))})

    right, wrong = lists([1.0] * 5, [2.0] * 5), lists([1.0] * 5, [1.0] * 4)
    held, found = _together(model, [right, right, wrong, right])
    assert [one.num_rows for one in held.batches] == [2, 6, 2, 2, 2]
    alone = model.call(right).outputs
    for number in (0, 1, 3):
        np.testing.assert_allclose(
            found[number].result().outputs.column("score").to_numpy(),
            alone.column("score").to_numpy(),
            rtol=1e-5,
        )
    with pytest.raises(InputError, match="lists of 4 to 5 elements"):
        found[2].result()


def test_batches_of_other_schemas_have_calls_of_their_own(throwing: SavedModel) -> None:
    other = pa.RecordBatch.from_pydict({"id": ["a"], "x": [4.0]})
    held, found = _together(throwing, [_batch(1.0), _batch(4.0), other, other, _batch(9.0)])
    assert [one.num_rows for one in held.batches] == [1, 1, 2, 1]
    assert all(future.result().outputs.num_rows == 1 for future in found)


def test_a_call_has_no_more_rows_than_it_may(throwing: SavedModel) -> None:
    batches = [_batch(1.0), _batch(*[4.0] * 9), _batch(*[9.0] * 3), _batch(*[1.0] * 20)]
    held, found = _together(throwing, batches, rows=10)
    assert [one.num_rows for one in held.batches] == [1, 9, 3, 20]
    assert [future.result().outputs.num_rows for future in found] == [1, 9, 3, 20]


def test_a_call_waits_for_others_as_long_as_it_may(throwing: SavedModel) -> None:
    held = Held(throwing)
    held.go.set()
    shared = SharedCalls(held, 30.0, rows=3)  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(shared.call, _batch(float(n))) for n in range(3)]
        assert all(future.result(timeout=20).outputs.num_rows == 1 for future in found)
    assert [one.num_rows for one in held.batches] == [3]
    alone = SharedCalls(throwing, 0.2)
    began = time.monotonic()
    assert alone.call(_batch(4.0)).outputs.num_rows == 1
    assert time.monotonic() - began >= 0.2


def test_many_threads_get_their_own_rows(throwing: SavedModel) -> None:
    shared = SharedCalls(throwing, 0.001)
    chance = np.random.default_rng(3)
    batches = [_batch(*chance.integers(-2, 50, chance.integers(1, 40))) for _ in range(300)]

    def check(batch: pa.RecordBatch) -> None:
        outcome = shared.call(batch)
        values = batch.column("x").to_numpy()
        assert [one.row for one in outcome.rejected] == np.flatnonzero(values < 0).tolist()
        good = values >= 0
        roots = outcome.outputs.column("root").to_numpy(zero_copy_only=False)
        np.testing.assert_allclose(roots[good], np.sqrt(values[good]) * 1.1)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(check, batches))
    assert (shared._rows, len(shared._waiting), shared._is_led) == (0, 0, False)


def test_who_is_interrupted_leaves_the_others_alone(throwing: SavedModel) -> None:
    class Interrupted(Held):
        def call(self, batch: pa.RecordBatch) -> Outcome:
            outcome = super().call(batch)
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return outcome

    held = Interrupted(throwing)
    shared = SharedCalls(held, 0.0)  # type: ignore[arg-type]
    raised: list[BaseException] = []

    def first() -> None:
        try:
            shared.call(_batch(1.0))
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    leader = threading.Thread(target=first)
    leader.start()
    assert held.begun.wait(60)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(shared.call, _batch(4.0))
        _wait_for(shared, 1)
        held.go.set()
        assert other.result(timeout=60).outputs.num_rows == 1
    leader.join()
    assert [type(one) for one in raised] == [KeyboardInterrupt]


def test_an_outcome_is_divided(throwing: SavedModel) -> None:
    whole = throwing.call(_batch(1.0, -1.0, 4.0, -4.0, 9.0))
    parts = divided(whole, [2, 0, 3])
    assert [part.outputs.num_rows for part in parts] == [2, 0, 3]
    assert [[one.row for one in part.rejected] for part in parts] == [[1], [], [1]]
    assert [part.call_rows.tolist() for part in parts] == [[0, 1], [], [2, 3, 4]]
