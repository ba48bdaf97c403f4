"""A request to a stream that runs, and its answer: two records, each replaced as a whole.

Requests have numbers from 1; the answer to one has its number. A signal would end a stream that
does not know it, and reaches no program on another machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import FileError, StateError
from tidemill.serving.files.records import RecordFormat, read_record, write_record

_NUMBER: Final = "number"
_LOOK_S: Final = 0.2
_LOOK_FOR_ANSWER_S: Final = 0.05


@dataclass(frozen=True)
class Mailbox:
    """Where requests of one kind and their answers are.

    Attributes:
        request: The file of the newest request.
        asks: Its format; it has the field ``number``.
        answer: The file of the newest answer.
        answers: Its format, likewise.
    """

    request: Path
    asks: RecordFormat
    answer: Path
    answers: RecordFormat

    def asked(self) -> Mapping[str, Any] | None:
        """Return the newest request; None for none.

        Raises:
            StateError: It cannot be read.
        """
        return read_record(self.request, self.asks) if self.request.exists() else None

    def answered(self) -> Mapping[str, Any] | None:
        """Return the newest answer; None for none.

        Raises:
            StateError: It cannot be read.
        """
        return read_record(self.answer, self.answers) if self.answer.exists() else None

    def ask(self, **fields: Any) -> int:
        """Write a request; return its number.

        Raises:
            StateError: A record cannot be read.
            FileError: The request cannot be written.
        """
        number = max(_number(self.asked()), _number(self.answered())) + 1
        self.request.parent.mkdir(exist_ok=True)
        write_record(self.request, self.asks, {_NUMBER: number, **fields}, durable=True)
        return number

    def tell(self, content: Mapping[str, Any]) -> None:
        """Write an answer.

        Raises:
            FileError: It cannot be written.
        """
        write_record(self.answer, self.answers, content, durable=True)

    def wait(
        self, number: int, is_running: Callable[[], bool], within_s: float
    ) -> Mapping[str, Any] | None:
        """Wait for the answer to a request, or to a later one.

        Args:
            number: The number of the request.
            is_running: Tells whether somebody is there who may answer.
            within_s: So long.

        Returns:
            None if there is none in time, or nobody is there any more.

        Raises:
            StateError: An answer cannot be read.
        """
        deadline = time.monotonic() + within_s
        while (found := self.answered()) is None or _number(found) < number:
            if not is_running() or time.monotonic() > deadline:
                return None
            time.sleep(_LOOK_FOR_ANSWER_S)
        return found

    @contextmanager
    def taken_up(
        self, name: str, take: Callable[[Mapping[str, Any]], None], say: Callable[[str], None]
    ) -> Iterator[None]:
        """Take up requests in a thread while the block runs: also one that is not answered yet.

        Args:
            name: The name of the thread.
            take: Takes up a request.
            say: Tells a person what cannot be read or answered.
        """
        ended = threading.Event()
        try:
            begun = _number(self.answered())
        except StateError as error:
            say(str(error))
            begun = 0

        def watch() -> None:
            seen, said = begun, ""
            while not ended.wait(_LOOK_S):
                try:
                    wanted = self.asked()
                    if wanted is not None and _number(wanted) > seen:
                        seen = _number(wanted)
                        take(wanted)
                    said = ""
                except (StateError, FileError) as error:
                    if str(error) != said:
                        said = str(error)
                        say(said)

        thread = threading.Thread(target=watch, name=name, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _number(record: Mapping[str, Any] | None) -> int:
    return 0 if record is None else int(record[_NUMBER])
