"""Archiving beside a stream, which it never stops and never holds up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tidemill.features.contract import SECOND
from tidemill.features.errors import TidemillError
from tidemill.pipelines.archive.archive import archive_live_rows
from tidemill.pipelines.config.configuration import Configuration
from tidemill.serving.generations.current import Current


@contextmanager
def archiving(
    config: Configuration, current: Current, say: Callable[[str], None]
) -> Iterator[None]:
    """Bring the archive of a project up while the block runs, and once more at its end.

    What cannot be archived now stays in the live log, and is tried again.

    Args:
        config: The configuration; without an archive nothing happens.
        current: The folders of the generation whose stream runs.
        say: Tells a person what happens.
    """
    if config.archive is None:
        yield
        return
    ended = threading.Event()

    def archive() -> None:
        try:
            archive_live_rows(config, current)
        except TidemillError as error:
            say(f"the archive is behind the stream, which goes on: {error}")

    def work(every_s: float) -> None:
        while not ended.wait(every_s):
            archive()

    worker = threading.Thread(
        target=work, args=(config.archive.every_us / SECOND,), name="archive", daemon=True
    )
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()
        archive()
