"""The error of a step is the same on every engine: its class, its message, the step's name."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tidemill.features.errors import (
    BatchConflict,
    FileError,
    NoAccess,
    NoSpace,
    StoreUnavailable,
    TidemillError,
    UnknownColumn,
)
from tidemill.pipelines.engines.choosing import choose_engine, engine_options, make_runner, run

FAULTS: dict[str, Callable[[], BaseException]] = {
    "one line": lambda: BatchConflict("two batches claim positions 3 to 5"),
    "several lines": lambda: StoreUnavailable(
        "the store is away:\n  host db\n  port 6379; start it\n\nthen run again"
    ),
    "a mapping's error": lambda: UnknownColumn("no column 'fare'; did you mean 'fares'?"),
    "after another": lambda: BatchConflict("the later of two errors"),
    "a full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a b/x.parquet"),
    "no right": lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/log"),
    "a full disk without a path": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "a user's own": lambda: ZeroDivisionError("division by zero"),
}
MEANT: dict[str, tuple[type[TidemillError], str]] = {
    "one line": (BatchConflict, "two batches claim positions 3 to 5"),
    "several lines": (
        StoreUnavailable,
        "the store is away:\n  host db\n  port 6379; start it\n\nthen run again",
    ),
    "after another": (BatchConflict, "the later of two errors"),
    "a mapping's error": (UnknownColumn, "no column 'fare'; did you mean 'fares'?"),
    "a full disk": (NoSpace, "/data/a b/x.parquet: the disk is full"),
    "no right": (NoAccess, "/data/log: this user has no right to it"),
    "a full disk without a path": (NoSpace, "the disk is full"),
}


def fail(fault: str) -> None:
    try:
        if fault == "after another":
            raise StoreUnavailable("the earlier of two errors")
    except StoreUnavailable as earlier:
        raise FAULTS[fault]() from earlier
    raise FAULTS[fault]()


@pytest.fixture(autouse=True)
def logs_go_with_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # Prism's log file stays there


def failed(engine: str, fault: str) -> Exception:
    """Run a pipeline with a step that fails; return what `run` raises."""
    choice = choose_engine(engine, streaming=False)
    options = PipelineOptions(engine_options(choice))
    pipeline = beam.Pipeline(runner=make_runner(choice), options=options)
    _ = pipeline | beam.Create([fault]) | "Write the rows" >> beam.Map(fail)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(pipeline, choice)
    return caught.value


@pytest.mark.parametrize("fault", MEANT)
@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_an_error_of_a_step_comes_out_as_it_was_raised(engine: str, fault: str) -> None:
    kind, message = MEANT[fault]
    error = failed(engine, fault)
    assert type(error) is kind
    assert str(error).startswith(message) if issubclass(kind, FileError) else str(error) == message
    assert "while running Write the rows" in error.__notes__


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
def test_an_error_of_the_users_own_code_keeps_the_engines_form(engine: str) -> None:
    error = failed(engine, "a user's own")
    assert not isinstance(error, TidemillError)
    assert "division by zero" in str(error)
    assert "Write the rows" in str(error)
