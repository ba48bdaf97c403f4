"""The steps of a job, as its translation for an engine has them: what may be compared, and read.

What a step *is* stands in `JobStep`: its name, what it takes and gives, and its states, with their
coders. An engine that replaces a running job by another one lets a step take over the states of
that with the same name, if these are alike. What a step *does* stands in its payload, of which a
digest is taken: a payload is a pickle of a `beam.DoFn`, whose bytes depend on what happened to be
the same object when it was written; its digest does not.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import itertools
import pickletools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apache_beam.portability.api import beam_runner_api_pb2

from tidemill.pipelines.engines.dataflow import PAR_DO

_DIGITS: Final = 16
_BETWEEN: Final = "\0"
_PATHS: Final = "pathlib"
_PATHS_313: Final = "pathlib._local"
"""The module of paths in Python 3.13; the same class."""
_SHORT: Final = "beam:"
_PICKLED: Final = "pickled"
_MEMO: Final = frozenset({"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})
_RECALL: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_FORM: Final = frozenset({"PROTO", "FRAME"})


@dataclass(frozen=True)
class JobStep:
    """A step of a job.

    Attributes:
        name: Its full name, such as ``Featurize/Operate/Operate``.
        kind: What Beam calls it, such as ``transform:pardo:v1``.
        does: The class of its `beam.DoFn`, ``module.Class``; empty if it has none.
        takes: The names of its inputs: the step, and which of its outputs.
        gives: Output to the coder of its elements.
        states: State or timer to its kind and its coder.
        restriction: The coder of its restriction; empty if it is no source.
        hints: Beam's resource hints: the end of each one's URN, and its value.
        payload: The digest of what it does.
    """

    name: str
    kind: str
    does: str
    takes: tuple[str, ...]
    gives: Mapping[str, str]
    states: Mapping[str, str]
    restriction: str
    hints: Mapping[str, str]
    payload: str


def job_steps(
    graph: beam_runner_api_pb2.Pipeline, places: Mapping[str, str] | None = None
) -> list[JobStep]:
    """Return the steps that an engine executes, by name.

    Args:
        graph: The pipeline, as Beam gives it to a runner.
        places: Texts and paths that differ from one root to another, and what stands for them in
            digests.
    """
    return sorted(_Graph(graph, places or {}).steps(), key=lambda step: step.name)


class _Graph:
    """Reads a pipeline."""

    def __init__(self, graph: beam_runner_api_pb2.Pipeline, places: Mapping[str, str]) -> None:
        self._parts = graph.components
        self._places = places
        self._producers: dict[str, str] = {}
        for transform in self._parts.transforms.values():
            if not transform.subtransforms:
                for tag, collection in transform.outputs.items():
                    self._producers[collection] = f"{transform.unique_name}: {_tag(tag)}"

    def steps(self) -> Iterator[JobStep]:
        for transform in self._parts.transforms.values():
            if transform.subtransforms or not transform.spec.urn:
                continue
            step = self._step(transform)
            if step is not None:
                yield step

    def _step(self, transform: Any) -> JobStep | None:
        if not transform.outputs and not transform.inputs:
            return None
        states, restriction, does = {}, "", ""
        pickled = constants(transform.spec.payload)
        if transform.spec.urn == PAR_DO:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            pickled = constants(payload.do_fn.payload)
            states = dict(self._states(payload))
            does = _class_of(pickled)
            if payload.restriction_coder_id:
                restriction = self._coder(payload.restriction_coder_id)
        collections = self._parts.pcollections
        return JobStep(
            name=transform.unique_name,
            kind=transform.spec.urn.removeprefix(_SHORT),
            does=does,
            takes=tuple(sorted(self._producers[one] for one in transform.inputs.values())),
            gives={
                _tag(tag): self._coder(collections[one].coder_id)
                for tag, one in sorted(transform.outputs.items())
            },
            states=states,
            restriction=restriction,
            hints=self._hints(transform.environment_id),
            payload=digest(pickled, self._places),
        )

    def _states(self, payload: Any) -> Iterator[tuple[str, str]]:
        for name, state in sorted(payload.state_specs.items()):
            kind = state.WhichOneof("spec")
            found = getattr(state, kind)
            coder = getattr(found, "coder_id", "") or getattr(found, "element_coder_id", "")
            yield name, f"{kind.removesuffix('_spec')} of {self._coder(coder)}"
        for name, timer in sorted(payload.timer_family_specs.items()):
            yield name, f"timer of {self._coder(timer.timer_family_coder_id)}"

    def _coder(self, coder_id: str) -> str:
        coder = self._parts.coders[coder_id]
        name: str = coder.spec.urn.removeprefix("beam:coder:").removesuffix(":v1")
        if coder.spec.payload and name.startswith(_PICKLED):
            found = constants(coder.spec.payload)
            name = ".".join(found[:2]) if len(found) > 1 else digest(found, {})
        if not coder.component_coder_ids:
            return name
        return f"{name}<{', '.join(map(self._coder, coder.component_coder_ids))}>"

    def _hints(self, environment_id: str) -> dict[str, str]:
        if not environment_id:
            return {}
        hints = self._parts.environments[environment_id].resource_hints
        return {
            urn.removeprefix("beam:resources:").removesuffix(":v1"): value.decode()
            for urn, value in sorted(hints.items())
        }


def _tag(tag: str) -> str:
    return "main" if tag == "None" else tag


def _class_of(pickled: list[str]) -> str:
    """Return the first class that a pickle names, and that is none of Beam's."""
    for module, name in itertools.pairwise(pickled):
        if module.startswith("apache_beam.") and name.isidentifier():
            continue
        parts = module.split(".")
        if len(parts) > 1 and all(part.isidentifier() for part in parts):
            return f"{module}.{name}"
    return ""


def constants(payload: bytes) -> list[str]:
    """Return the constants of a payload of Beam, in their order: what a pickle is made of.

    Nothing is unpickled. A constant that a pickle recalls stands there again, so that it does not
    matter whether two equal ones were the same object.

    Args:
        payload: The payload: a pickle, compressed and in base 64, of a coder with its class before
            it; any other is a constant itself.
    """
    try:
        raw = base64.b64decode(payload.rpartition(b"$")[2], validate=True)
        packed = bz2.decompress(raw) if raw.startswith(b"BZh") else zlib.decompress(raw)
    except (ValueError, OSError, zlib.error):
        return [repr(bytes(payload))] if payload else []
    found: list[str] = []
    memo: dict[int, str | None] = {}
    last: str | None = None
    for code, argument, _ in pickletools.genops(packed):
        if code.name in _FORM:
            continue
        if code.name in _MEMO:
            memo[len(memo) if argument is None else int(str(argument))] = last
            continue
        if code.name in _RECALL:
            last = memo.get(int(str(argument)))
        else:
            last = None if argument is None else str(argument)
        if last is not None:
            found.append(last)
    return found


def digest(found: list[str], places: Mapping[str, str]) -> str:
    """Return a digest of constants, in which some texts stand for those of a place."""
    text = _BETWEEN.join(found).replace(_PATHS_313, _PATHS)
    for place, stands_for in places.items():
        # A pickle has the parts of a path.
        parts = _BETWEEN.join(Path(place).parts)
        text = text.replace(parts, stands_for).replace(place, stands_for)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
