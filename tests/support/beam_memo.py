"""What Beam finds by inspection is found once: it takes half of the time of a small pipeline.

For each step Beam asks for the signatures of all its methods, some five times, and for each view of
the options it makes a parser and parses all flags. Neither depends on anything but the function or
the class, and the flags. `tests/support/beam_memo_test.py` compares all with what Beam finds.
"""

from __future__ import annotations

import argparse
import copy
import types
from typing import Any, Final
from weakref import WeakKeyDictionary

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate

Arguments = tuple[list[str], list[Any]]
Specs = tuple[set[Any], set[Any]]

arguments_of: Final[Any] = core.get_function_args_defaults
specs_of: Final[Any] = userstate.get_dofn_specs
view_as: Final[Any] = PipelineOptions.view_as

_arguments: Final[WeakKeyDictionary[Any, Arguments]] = WeakKeyDictionary()
_specs: Final[WeakKeyDictionary[type, Specs]] = WeakKeyDictionary()
_options: Final[dict[tuple[type, tuple[str, ...]], dict[str, Any]]] = {}


def remember() -> None:
    """Let Beam find each of them once in this process."""
    for place, name, function in (
        (core, "get_function_args_defaults", remembered_arguments),
        (userstate, "get_dofn_specs", remembered_specs),
        (PipelineOptions, "view_as", remembered_view),
    ):
        setattr(place, name, function)


def remembered_arguments(function: Any) -> Arguments:
    """Return the names of a function's arguments, and their defaults."""
    if not isinstance(function, types.MethodType):
        found: Arguments = arguments_of(function)
        return found
    if (known := _arguments.get(function.__func__)) is None:
        known = _arguments[function.__func__] = arguments_of(function)
    names, defaults = known
    return list(names), list(defaults)


def remembered_specs(step: Any) -> Specs:
    """Return the states and the timers of a step: those that its methods have as arguments.

    A step that is made of a function has those of the function, mostly none. One that is made of
    another step, or says by itself what its methods are, is asked every time.
    """
    kind: Any = type(step)
    if kind is core.CallableWrapperDoFn:
        _, defaults = step._inspect_process()
        if not any(isinstance(one, core._DoFnParam) for one in defaults):
            return set(), set()
    if (
        kind.__getattribute__ is not object.__getattribute__
        or any(name == "__getattr__" or name.startswith("_inspect_") for name in dir(kind))
        or any(isinstance(one, types.MethodType) for one in vars(step).values())
    ):
        return _copied(specs_of(step))
    if kind not in _specs:
        _specs[kind] = specs_of(step)
    return _copied(_specs[kind])


def remembered_view(self: PipelineOptions, cls: type[Any]) -> Any:
    """Return the options of a class; see `PipelineOptions.view_as`."""
    flags = self._flags
    if not isinstance(flags, list):  # None means the flags of the process, which may change
        return view_as(self, cls)
    key = cls, tuple(flags)
    if key not in _options:
        _options[key] = vars(cls(list(flags))._visible_options)
    visible = {
        name: copy.copy(value) if isinstance(value, (dict, list)) else value
        for name, value in _options[key].items()
    }
    for name, value in visible.items():
        self._all_options.setdefault(name, value)
    view = object.__new__(cls)
    view._flags = flags
    view._visible_options = argparse.Namespace(**visible)
    view._all_options = self._all_options
    return view


def _copied(specs: Specs) -> Specs:
    states, timers = specs
    return set(states), set(timers)
