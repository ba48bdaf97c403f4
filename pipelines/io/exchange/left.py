"""What jobs have left in an exchange whose programs were killed, and how it is removed.

A root has a folder there, by its id, and each of its streams' jobs, and each of its commands with
jobs in batch, one below that. A copy of a root has the same id, and a backfill runs beside a
stream, so a job of another name may be that of a program that runs: it tells something every two
seconds. Only what is silent is removed.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from tidemill.features.errors import ExchangeError
from tidemill.pipelines.io.exchange.journal import BEAT_S
from tidemill.pipelines.io.exchange.names import BATCH, DOWN
from tidemill.pipelines.io.exchange.objects import Objects

_SILENT_S: Final = 5 * BEAT_S

_log: Final = logging.getLogger(__name__)


def below(url: str, *names: str) -> str:
    """Return the URL of a folder below that of a URL, which may have options."""
    base, separator, options = url.partition("?")
    return "/".join([base.rstrip("/"), *names]) + separator + options


def remove_left(url: str, root_id: str) -> None:
    """Remove what the jobs of a root have left in an exchange; none of them runs.

    Args:
        url: The URL of the configuration.
        root_id: The root's id.

    Raises:
        ExchangeError: It cannot be removed.
    """
    Objects(below(url, root_id)).remove_folder("")


def remove_silent(url: str, root_id: str, job: str, ended: threading.Event) -> None:
    """Remove what other jobs of a root have left; it takes a while.

    Args:
        url: The URL of the configuration.
        root_id: The root's id.
        job: The job that is left alone.
        ended: Is set when there is no more time for it.
    """
    objects = Objects(below(url, root_id))
    try:
        before = _last_told(objects, job)
        if not before or ended.wait(_SILENT_S):
            return
        for other, last in _last_told(objects, job).items():
            if last != before.get(other):
                # A stream and a backfill of one root may run at the same time.
                is_usual = BATCH in (job[: len(BATCH)], other[: len(BATCH)])
                _log.log(
                    logging.INFO if is_usual else logging.WARNING,
                    "another program has the job %s in %s: its root is this one, or a copy of it "
                    "with the same id; it is left alone",
                    other,
                    objects.shown,
                )
            else:
                objects.remove_folder(other)
    except ExchangeError as error:
        _log.warning("what earlier jobs have left stays: %s", error)


def _last_told(objects: Objects, but: str) -> dict[str, str]:
    """Return the last object that the program of each job has told, by job."""
    found: dict[str, str] = {}
    for name in objects.names():  # ascending
        job, _, rest = name.partition("/")
        if job != but:
            found[job] = rest if rest.startswith(f"{DOWN}/") else found.get(job, "")
    return found
