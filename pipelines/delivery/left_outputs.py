"""Outputs that workers of other processes leave in files, for the stream's process to deliver.

One process writes to the topics, because a topic has one writer, which is fenced by its id. So a
worker appends its outputs to parts (`pipelines.io.output_parts`) in the folder of its attempt, and
a thread here hands them to the outbox, as a step of this process would. An output stands in the
stream's own folder only when its messages are committed, whoever made it.

What was left and not handed over goes with the attempt: it is from behind the last savepoint, and
is made again.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from tidemill.pipelines.delivery.outbox import Handed, Outbox
from tidemill.pipelines.io.output_parts import PART, read_part
from tidemill.serving.files.segment_names import segment_of

_LOOK_S: Final = 0.005


class LeftOutputs:
    """Hands the outputs of a folder to an outbox, in a thread.

    Args:
        left: The folder in which workers leave them; it need not exist.
        folder: The folder to which they belong.
        outbox: The outbox.
    """

    def __init__(self, left: Path, folder: Path, outbox: Outbox) -> None:
        self._left, self._folder, self._outbox = left, folder, outbox
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"take-{left.name}")
        self._thread.start()

    def check(self) -> None:
        """Raise why outputs cannot be taken any more, if they cannot."""
        if self._failed is not None:
            raise self._failed

    def finish(self) -> None:
        """Take what is left; no worker writes any more.

        Raises:
            BrokerError, FileError: What was handed over before could not be written.
        """
        self.close()
        self.check()
        self._take()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def forget(self, segment: int) -> None:
        """Remove parts of segments that count, all of which was taken.

        A worker that appends to one later begins another one (`PartWriter.append`).
        """
        with self._lock:
            self._forget(segment)

    def _forget(self, segment: int) -> None:
        for path, read in list(self._read.items()):
            found = segment_of(path.name)
            if found is not None and found <= segment and path.stat().st_size == read:
                path.unlink()
                del self._read[path]

    def _run(self) -> None:
        try:
            while not self._ended.wait(_LOOK_S):
                with self._lock:
                    self._take()
        except BaseException as error:  # noqa: BLE001 - raised by `check`
            self._failed = error

    def _take(self) -> None:
        for path in sorted(self._left.glob(f"*{PART}")):
            segment = segment_of(path.name)
            assert segment is not None  # a part's name begins with it
            for appended in read_part(path, self._read.get(path, 0)):
                self._outbox.put([Handed(self._folder, segment, list(appended.outputs()))])
                self._read[path] = appended.stop
