"""Archiving beside a stream, which it never stops and never holds up."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.features.contract import SECOND
from tidemill.features.errors import TidemillError
from tidemill.pipelines.archive.archive import archive_live_rows
from tidemill.pipelines.config.configuration import Configuration
from tidemill.serving.generations.current import Current

_LOOK_S: Final = 0.5
"""How often it is looked whether rows are to be archived."""


@contextmanager
def archiving(
    config: Configuration,
    current: Current,
    say: Callable[[str], None],
    now: Callable[[], Configuration] | None = None,
) -> Iterator[None]:
    """Bring the archive of a project up while the block runs, and once more at its end.

    What cannot be archived now stays in the live log, and is tried again.

    Args:
        config: The configuration; without an archive nothing happens.
        current: The folders of the generation whose stream runs.
        say: Tells a person what happens.
        now: Returns the configuration as it is now, with other settings of the same archive; None
            if it does not change.
    """
    if config.archive is None:
        yield
        return
    ended = threading.Event()

    def archive() -> None:
        try:
            archive_live_rows(config if now is None else now(), current)
        except TidemillError as error:
            say(f"the archive is behind the stream, which goes on: {error}")

    def every_s() -> float:
        settings = (config if now is None else now()).archive
        return math.inf if settings is None else settings.every_us / SECOND

    def work() -> None:
        last_s = time.monotonic()
        while not ended.wait(min(every_s(), _LOOK_S)):
            if time.monotonic() - last_s >= every_s():
                archive()
                last_s = time.monotonic()

    worker = threading.Thread(target=work, name="archive", daemon=True)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()
        archive()
