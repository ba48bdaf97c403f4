"""Failures of bundles, told to the program where the engine keeps them to itself.

Some engines process a bundle of a stream that has failed again and again, for ever, and the program
that has submitted the job never hears of it. So a worker tells it, before the engine does so.

What fails because the engine itself is lost, such as a connection to it, is not told: it may be
there again, and if not, the worker falls silent.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

_OF_BEAM: Final = ("apache_beam.", "threading", "queue", "concurrent.", __name__)
_tells: Final[list[Callable[[str], None]]] = []
_lock: Final = threading.Lock()


def tell_failures(tell: Callable[[str], None]) -> None:
    """Let each failure of a bundle in this process be told, from the next bundle on.

    Beam has no hook for it, so the class of its worker gets one.

    Args:
        tell: Takes the text of a traceback; raises nothing.
    """
    with _lock:
        if not _tells:
            _hook()
        _tells.append(tell)


def _hook() -> None:
    from apache_beam.runners.worker import sdk_worker  # whoever submits a job may do without

    kind: Any = sdk_worker.SdkWorker
    for one in (kind, *kind.__subclasses__()):
        if "process_bundle" in vars(one):
            one.process_bundle = _telling(one.process_bundle)


def _telling(process: Callable[..., Any]) -> Callable[..., Any]:
    def process_bundle(worker: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return process(worker, *arguments, **named)
        except Exception as error:
            if is_of_a_step(error):
                text = traceback.format_exc()
                for tell in list(_tells):
                    tell(text)
            raise

    return process_bundle


def is_of_a_step(error: BaseException) -> bool:
    """Tell whether a bundle has failed in a step, or in making one, and not in Beam's worker."""
    import grpc

    chain, found = [], error
    while found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__ or found
    if any(isinstance(one, grpc.RpcError) for one in chain):
        return False
    return any(
        not frame.f_globals.get("__name__", "").startswith(_OF_BEAM)
        for one in chain
        for frame, _ in traceback.walk_tb(one.__traceback__)
    )
