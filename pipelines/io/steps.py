"""Steps of pipelines whose names and payloads change only when somebody changes them.

An engine that lets a new version of a job go on with the states of the old one pairs their steps by
name. What Beam is not told it makes up: a name from a class, or from the line of a lambda in its
own source. `beam.Create` and `beam.Map` also pickle functions of Beam by value, whose bytes differ
from one version to the next. So a pipeline of ours has neither, and its steps are made here
(`tests/pipelines/engines/dataflow_test.py` compares all of them with a golden file).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam


def step(name: str, does: beam.DoFn) -> beam.ParDo:
    """Return a step with a name; also that inside of one with several outputs has it.

    Args:
        name: The name, which no other step of the same transform has.
        does: What it does with an element.
    """
    made = beam.ParDo(does)
    made.label = name
    return made


class _Emit(beam.DoFn):
    """Emits texts, or bytes, for the one element of an impulse."""

    def __init__(self, elements: Sequence[Any]) -> None:
        self._elements = tuple(elements)

    def process(self, element: bytes) -> Iterator[Any]:
        yield from self._elements


class Elements(beam.PTransform):
    """A collection of texts, or of bytes, that are known when the pipeline is made.

    Args:
        elements: The elements, all of one type; at least one.
    """

    def __init__(self, elements: Sequence[Any]) -> None:
        super().__init__()
        self._elements = tuple(elements)

    def expand(self, begin: Any) -> beam.PCollection:
        """Wire it."""
        (kind,) = {type(element) for element in self._elements}
        emit = step("Emit", _Emit(self._elements)).with_output_types(kind)
        return begin | "Impulse" >> beam.Impulse() | emit


@beam.typehints.with_input_types(tuple[str, bytes])
@beam.typehints.with_output_types(tuple[str, bytes])
class PassKeyed(beam.DoFn):
    """Passes pairs of a key and bytes on as they are."""

    def process(self, element: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Pass an element on."""
        yield element
