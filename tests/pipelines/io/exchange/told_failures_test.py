"""Failures of bundles that a worker tells its program, where nobody else would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tidemill.features.errors import WorkerCodeDiffers, WorkerLacksModule
from tidemill.features.kernel.code_cache import digest
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.io.exchange.program_end import ProgramEnd
from tidemill.pipelines.io.exchange.told_failures import is_of_a_step
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace, WorkerEnd
from tidemill.pipelines.stream.savepoint_files import join_pieces


@contextmanager
def program(folder: Path, code: ProgramCode) -> Iterator[ProgramEnd]:
    place = ExchangePlace(f"file://{folder}", str(folder))
    end = ProgramEnd(place, [], lambda *_: None, join_pieces)
    end.let_workers_check(code)
    end.take()
    try:
        yield end
    finally:
        end.close()


def heard(end: ProgramEnd) -> str:
    deadline_s = time.monotonic() + 60
    while not end.problem():
        end.check()
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return end.problem()


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (ProgramCode("no_such_project:p", "h", digest()), WorkerLacksModule, "No module named"),
        (
            ProgramCode("tests.support.streaming_project:UNLABELLED", "h", digest()),
            WorkerCodeDiffers,
            "of h",
        ),
    ],
)
def test_a_worker_with_other_code_tells_so_and_does_nothing(
    code: ProgramCode, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with program(tmp_path, code) as end:
        assert not end.has_heard
        worker = WorkerEnd(end.place)
        for _ in range(2):  # the engine tries again
            with pytest.raises(error):
                worker.check(code)
        assert f"tidemill.features.errors.{error.__name__}: a worker " in heard(end)
        assert said in heard(end)
        assert end.has_heard
        worker.close()


def caught(error: Exception, name: str) -> Exception:
    """Return an error as it comes out of a function of a module."""
    space = {"__name__": name, "error": error}
    exec("def fail():\n    raise error", space)
    try:
        space["fail"]()  # type: ignore[operator]
    except Exception as found:  # noqa: BLE001 - it is what was asked for
        found.__traceback__ = found.__traceback__.tb_next if found.__traceback__ else None
        return found
    raise AssertionError


def test_what_a_step_raises_is_told_and_what_the_engine_loses_is_not() -> None:
    assert is_of_a_step(caught(ValueError("no"), "shop.views"))
    assert is_of_a_step(caught(ModuleNotFoundError("shop"), "importlib"))
    assert not is_of_a_step(caught(RuntimeError("Channel closed"), "apache_beam.runners.worker.x"))
    assert not is_of_a_step(caught(grpc.RpcError(), "tidemill.pipelines.stream.featurize"))
    lost = RuntimeError("no state")
    lost.__cause__ = grpc.RpcError()
    assert not is_of_a_step(caught(lost, "tidemill.pipelines.stream.featurize"))
