"""What is remembered of Beam's inspection is what Beam finds."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer

from tests.support import beam_memo
from tidemill.pipelines.ingest import ingest  # noqa: F401
from tidemill.pipelines.stream import featurize, infer  # noqa: F401

STATE, OTHER = (ReadModifyWriteStateSpec(name, VarIntCoder()) for name in ("state", "other"))
TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)


class Counting(beam.DoFn):
    """A step with states and a timer."""

    def process(
        self,
        element: Any,
        state: Any = beam.DoFn.StateParam(STATE),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> Iterator[Any]:
        yield element

    @on_timer(TIMER)
    def expired(self, other: Any = beam.DoFn.StateParam(OTHER)) -> None:
        """Nothing."""


class Plain(beam.DoFn):
    """A step without any."""

    def process(self, element: Any, more: int = 1) -> Iterator[Any]:
        yield element


class Twice(beam.DoFn):
    """A step that asks for one state twice."""

    def process(
        self,
        element: Any,
        state: Any = beam.DoFn.StateParam(STATE),
        again: Any = beam.DoFn.StateParam(STATE),
    ) -> Iterator[Any]:
        yield element


def counted(element: Any, state: Any = beam.DoFn.StateParam(STATE)) -> Any:
    return element


def all_steps() -> set[type]:
    """Return every class of steps that is known here: Beam's, Tidemill's and those above."""
    found, left = set(), [beam.DoFn]
    while left:
        for kind in left.pop().__subclasses__():
            found.add(kind)
            left.append(kind)
    return found


def test_it_is_remembered_in_the_processes_of_tests() -> None:
    assert core.get_function_args_defaults is beam_memo.remembered_arguments
    assert userstate.get_dofn_specs is beam_memo.remembered_specs
    assert PipelineOptions.view_as is beam_memo.remembered_view


def test_the_arguments_of_every_method_of_every_step_are_those_that_beam_finds() -> None:
    step, methods = object(), 0
    for kind in all_steps():
        for function in vars(kind).values():
            if isinstance(function, types.FunctionType):
                method = types.MethodType(function, step)
                expected = beam_memo.arguments_of(method)
                # Asked for twice, and changed by who asked.
                for _ in range(2):
                    names, defaults = beam_memo.remembered_arguments(method)
                    assert (names, defaults) == expected
                    names.clear()
                    defaults.clear()
                methods += 1
    assert methods > 150
    assert beam_memo.remembered_arguments(counted) == beam_memo.arguments_of(counted)


@pytest.mark.parametrize(
    "step",
    [Counting(), Plain(), core.CallableWrapperDoFn(counted), core.CallableWrapperDoFn(str)],
    ids=["states", "none", "function with a state", "function"],
)
def test_the_states_and_timers_of_a_step_are_those_that_beam_finds(step: beam.DoFn) -> None:
    expected = beam_memo.specs_of(step)
    for _ in range(2):
        found = beam_memo.remembered_specs(step)
        assert found == expected
        found[0].clear()
        found[1].clear()
    sizes = {Counting: (2, 1), Plain: (0, 0)}
    if type(step) in sizes:
        assert tuple(map(len, expected)) == sizes[type(step)]


def test_a_method_of_the_step_itself_counts() -> None:
    step: Any = Plain()
    beam_memo.remembered_specs(step)
    step.process = Counting().process
    assert beam_memo.remembered_specs(step) == beam_memo.specs_of(step) != (set(), set())


class Other(beam.DoFn):
    """A step that is another one."""

    def __init__(self, step: beam.DoFn) -> None:
        self._step = step

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_step"), name)


def test_a_step_that_is_another_one_has_what_that_has() -> None:
    for step in (Plain(), Counting()):
        assert beam_memo.remembered_specs(Other(step)) == beam_memo.specs_of(step)


def test_a_step_that_beam_refuses_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="duplicate process method parameters"):
            beam_memo.remembered_specs(Twice())


@pytest.mark.parametrize(
    "flags", [[], ["--streaming", "--job_name=one", "--experiments=a", "--experiments=b"]]
)
def test_the_options_of_every_class_are_those_that_beam_finds(flags: list[str]) -> None:
    classes = PipelineOptions.__subclasses__()
    assert len(classes) > 20
    for cls in classes:
        options, others = PipelineOptions(flags), PipelineOptions(flags)
        expected = beam_memo.view_as(others, cls)
        for _ in range(2):
            view = beam_memo.remembered_view(options, cls)
            assert vars(view._visible_options) == vars(expected._visible_options)
            assert view._all_options is options._all_options
            assert view._all_options == expected._all_options
            assert view._flags == expected._flags


def test_a_view_changes_the_options_that_it_is_of_and_no_others() -> None:
    flags = ["--experiments=a"]
    options = PipelineOptions(flags)
    view = options.view_as(beam.options.pipeline_options.DebugOptions)
    view.experiments.append("b")
    view.number_of_worker_harness_threads = 7
    again = options.view_as(beam.options.pipeline_options.DebugOptions)
    assert (again.experiments, again.number_of_worker_harness_threads) == (["a", "b"], 7)
    other = PipelineOptions(flags).view_as(beam.options.pipeline_options.DebugOptions)
    assert (other.experiments, other.number_of_worker_harness_threads) == (["a"], None)
