"""Steps at the end of a pipeline whose work is done in the program, which has the disk for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder, registry

import tidemill.pipelines.io.coders  # noqa: F401 - Beam takes them from its registry
from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.io.framing import Bytes


def coder_of(step: beam.DoFn) -> Coder:
    """Return the coder of a step's input."""
    hints = step.get_type_hints().input_types
    assert hints is not None
    (kind,) = hints[0]
    return registry.get_coder(kind)


class HandOver(beam.DoFn):
    """Hands the elements of each bundle over to a step that runs in the program.

    Args:
        place: Where the job and its program meet.
        name: The step's name.
        coder: The coder of its elements.
        is_awaited: Whether somebody waits for what the step does.
    """

    def __init__(
        self, place: ExchangePlace, name: str, coder: Coder, *, is_awaited: bool = True
    ) -> None:
        self._place, self._name, self._coder, self._is_awaited = place, name, coder, is_awaited

    def setup(self) -> None:
        """Find this process's end."""
        self._end = self._place.here()

    def start_bundle(self) -> None:
        """Begin a bundle."""
        self._bundle: list[bytes] = []

    def process(self, element: Any) -> None:
        """Take an element."""
        self._bundle.append(self._coder.encode(element))

    def finish_bundle(self) -> None:
        """Hand the bundle over."""
        bundle, self._bundle = self._bundle, []
        if bundle:
            self._end.hand_over(self._name, bundle, is_awaited=self._is_awaited)


class HandedStep:
    """A step that runs here, on what workers hand over.

    Args:
        step: The step; it has no output.
    """

    def __init__(self, step: beam.DoFn) -> None:
        self._step, self._coder = step, coder_of(step)
        self._is_set_up = False

    def take(self, elements: Sequence[Bytes]) -> None:
        """Let the step process the elements of a bundle."""
        step = self._step
        if not self._is_set_up:
            self._is_set_up = True
            step.setup()
        step.start_bundle()
        for element in elements:
            for _ in step.process(self._coder.decode(bytes(element))) or ():
                raise AssertionError(f"{step} has an output")
        for _ in step.finish_bundle() or ():
            raise AssertionError(f"{step} has an output")

    def close(self) -> None:
        """Let the step close what it has open."""
        if self._is_set_up:
            self._step.teardown()
