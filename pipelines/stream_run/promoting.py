"""Another bundle for a stream that runs: prepared beside it, decided between two of its polls.

A request (`pipelines.recovery.promotion_record`) is taken up by a thread, which loads the bundle
and calls it in every shape. Then the thread that reads the topics decides, before its next poll: it
records from which positions on the bundle scores (`pipelines.stream.scored_by`), and only after
that writes the poll down. What cannot be loaded is refused with its reason, and changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

from tidemill.features.definitions import Project
from tidemill.features.errors import TidemillError
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.promotion_record import PromotionRecord, mailbox
from tidemill.pipelines.recovery.resume import Start
from tidemill.pipelines.stream import infer
from tidemill.pipelines.stream.scored_by import with_decision
from tidemill.pipelines.telemetry.events import log_event
from tidemill.serving.bundles.bundle import Bundle
from tidemill.serving.bundles.current import BUNDLES, make_current

_log: Final = logging.getLogger(__name__)


class _Candidate(NamedTuple):
    """A bundle that is ready.

    Attributes:
        number: The number of the request.
        bundle: Its version.
    """

    number: int
    bundle: str


class Promotions:
    """Takes up requests for another bundle.

    Args:
        project: The project.
        start: The start of the run.
        is_possible: Whether the workers see the stream's folder.
    """

    def __init__(self, project: Project, start: Start, *, is_possible: bool) -> None:
        self._project, self._is_possible = project, is_possible
        self._root, self._stream = start.current.root, start.current.stream_folder
        self._ready: _Candidate | None = None

    @contextmanager
    def taken_up(self, say: Callable[[str], None]) -> Iterator[None]:
        """Prepare what is asked for while the block runs.

        Args:
            say: Tells a person what cannot be answered.
        """
        with mailbox(self._stream).taken_up(
            "promoting", lambda wanted: self._prepare(_Candidate(**wanted)), say
        ):
            yield

    def _prepare(self, wanted: _Candidate) -> None:
        """Load a bundle, and call it in every shape; or say why it cannot be."""
        if not self._is_possible:
            self._refuse(
                wanted,
                "the workers of this stream share no disk with its program: stop it with SIGTERM, "
                "promote the bundle, and resume it",
            )
            return
        try:
            folder = self._root / BUNDLES / wanted.bundle
            Bundle.load(folder, self._project)
            infer.scorer_of(folder, self._project)
        except TidemillError as error:
            self._refuse(wanted, f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - it is logged, and told whoever has asked
            _log.exception("the stream goes on with the bundle that it has")
            self._refuse(wanted, f"{type(error).__name__}: {error}")
        else:
            self._ready = wanted

    def _refuse(self, wanted: _Candidate, why: str) -> None:
        now_us = time.time_ns() // 1_000
        PromotionRecord(wanted.number, wanted.bundle, now_us, error=why).write(self._stream)
        log_event(
            _log, "promotion", f"bundle {wanted.bundle} does not score: {why}",
            level=logging.WARNING, bundle=wanted.bundle, error=why,
        )  # fmt: skip

    def decide(self, since: Callable[[], Sequence[int]]) -> None:
        """Decide for a bundle that is ready; called between two polls by the thread that reads.

        Args:
            since: Gives the position of each partition of the request from which on nothing is
                written down.

        Raises:
            StateError, FileError: The record of the stream cannot be read or written.
        """
        ready = self._ready
        if ready is None:
            return
        self._ready = None
        run = StreamRun.read(self._stream)
        assert run is not None
        positions = list(since())
        models = with_decision(run.models, ready.bundle, positions, has_scored=True)
        before = str((run.models or [{"bundle": ""}])[-1]["bundle"])
        # First: if this process is killed here, whoever resumes the stream decides for it.
        make_current(self._root, ready.bundle)
        if models != run.models:
            replace(run, models=models).write(self._stream, durable=True)
        now_us = time.time_ns() // 1_000
        PromotionRecord(ready.number, ready.bundle, now_us, before, positions).write(self._stream)
        log_event(
            _log, "promotion", f"bundle {ready.bundle} scores from now on, {before} did until now",
            level=logging.WARNING, bundle=ready.bundle, before=before, positions=positions,
        )  # fmt: skip
