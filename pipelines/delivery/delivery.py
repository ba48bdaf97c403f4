"""The topics that a run of a stream writes to.

A run fences the writers before it first of all (`Delivery.fence`), so that nothing is written any
more of what it is about to repeat. When the stream's folder is ready it reads back what the stream
has written since the savepoint (`Delivery.open`), and only then writes.

Where each later savepoint begins in the topics is noted before anything that comes behind its mark
is read (`Delivery.note`), and recorded before the savepoint counts (`Delivery.keep`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tidemill.features.errors import ConfigurationError, SequenceError
from tidemill.pipelines.config.sink_section import SINKS, KafkaSink
from tidemill.pipelines.delivery.compare import compare
from tidemill.pipelines.delivery.deliver import Deliver, forget, share
from tidemill.pipelines.delivery.left_outputs import LeftOutputs
from tidemill.pipelines.delivery.outbox import Outbox
from tidemill.pipelines.delivery.record import Delivered, DeliveryRecord
from tidemill.pipelines.delivery.topic_sink import TopicSink
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.kafka.child_process.library import InChildProcess
from tidemill.pipelines.io.write_outputs import WriteOutputs
from tidemill.pipelines.run.holder import root_id
from tidemill.serving.generations.current import Current


def stream_id(current: Current) -> str:
    """Return what names a stream in the headers of messages: root, generation and number."""
    return f"{root_id(current.root)}/{current.generation}/{current.stream}"


@dataclass
class Delivery:
    """The topics that a run writes to; none if the configuration names none.

    Attributes:
        run: The run's name.
        stream: The id of the stream.
        folder: The folder of the stream.
        segment: The number of the run's first segment.
        sinks: Section of the configuration to its sink.
        writer: A random text, which tells this process from one that replaces it.
        opened: Closes the sinks, and ends the process in which their producers run.
        figures: Counts by section, once the run has ended; none without topics.
    """

    run: str
    stream: str
    folder: Path
    segment: int
    sinks: Mapping[str, TopicSink]
    writer: str
    opened: ExitStack
    figures: Mapping[str, Any] = field(default_factory=dict)
    _noted: dict[int, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    _outboxes: dict[str, Outbox] = field(default_factory=dict)
    _takers: dict[str, LeftOutputs] = field(default_factory=dict)

    @staticmethod
    def fence(
        configured: Mapping[str, KafkaSink], current: Current, segment: int, run: str
    ) -> Delivery:
        """Connect to the topics; the writers of the processes before this one are fenced.

        Args:
            configured: Section of the configuration to its topic.
            current: The root's folders, with that of the stream.
            segment: The number of the run's first segment.
            run: The run's name.

        Raises:
            BrokerError: A topic cannot be written to.
        """
        writer, folder = secrets.token_hex(8), current.stream_folder

        def is_owner() -> bool:
            record = DeliveryRecord.read(folder)
            return record is not None and record.writer == writer

        with ExitStack() as opened:
            sinks = {}
            if configured:
                client = opened.enter_context(InChildProcess())
            for name, sink in configured.items():
                id_ = f"tidemill-{root_id(current.root)}-{SINKS.index(name)}"
                sinks[name] = TopicSink(name, sink, id_, is_owner, client)
                opened.callback(sinks[name].close)
            return Delivery(
                run, stream_id(current), folder, segment, sinks, writer, opened.pop_all()
            )

    def check_not_read(self, topic_ids: Mapping[str, str]) -> None:
        """Check that the stream does not write to a topic that it reads, whatever its address.

        Args:
            topic_ids: Source to the id of its topic.

        Raises:
            ConfigurationError: It does: it would read what it writes, without an end.
        """
        sources = {topic_id: source for source, topic_id in topic_ids.items()}
        for name, sink in self.sinks.items():
            if (source := sources.get(sink.topic_id)) is not None:
                raise ConfigurationError(
                    f"{name}.kafka: {sink.sink.topic!r} is the topic of the source {source!r}, by "
                    "another address of its cluster, so the stream would read what it writes, "
                    "without an end; name another topic"
                )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Read back what the stream has written, and let the pipeline write while the block runs.

        Raises:
            BrokerError: A topic cannot be read, or is not the one that was written to.
            StateError: The record of what was written is damaged, or of another savepoint.
        """
        if not self.sinks:
            yield
            return
        try:
            before = DeliveryRecord.read(self.folder)
            known = {} if before is None else before.sinks
            begun = {
                name: sink.patiently(
                    partial(sink.begin, self.stream, self.segment, known.get(name))
                )
                for name, sink in self.sinks.items()
            }
            # A topic that is not named now may be named again when this segment is repeated.
            DeliveryRecord(self.writer, self.stream, {**known, **begun}).write(self.folder)
            for name, sink in self.sinks.items():
                self._outboxes[name] = Outbox(sink, self.stream)
                share(self.run, name, self._outboxes[name])
            yield
        finally:
            forget(self.run)
            for outbox in self._outboxes.values():
                outbox.close()
            self.opened.close()

    def step(
        self, name: str, write: WriteOutputs, attempt: Attempt | None = None
    ) -> WriteOutputs | Deliver:
        """Return the step that writes outputs, to their topic first if the configuration names one.

        Args:
            name: The section of the configuration.
            write: The step that writes them to their folder.
            attempt: The job's attempt, if its workers are other processes: these leave the outputs
                there, and a thread of this process takes them (`delivery.left_outputs`).
        """
        if name not in self.sinks:
            return write
        if attempt is None:
            return Deliver(self.run, name, write)
        left = attempt.outputs(name)
        # Several steps may write to one topic: what they leave is taken once.
        if name not in self._takers:
            self._takers[name] = LeftOutputs(left, write.folder, self._outboxes[name])
        return replace(write, folder=left)

    def check(self) -> None:
        """Raise why outputs could not be written, if they could not.

        Raises:
            BrokerError, FileError: The reason.
        """
        for taker in list(self._takers.values()):  # another thread may be making steps
            taker.check()
        for outbox in self._outboxes.values():
            outbox.check()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Take what workers leave while the block runs, in which the steps are made."""
        try:
            yield
        finally:
            for taker in self._takers.values():
                taker.close()

    def take_left(self) -> None:
        """Take the outputs that workers have left, none of which runs any more.

        Raises:
            BrokerError, FileError: What was handed over before could not be written.
        """
        for taker in self._takers.values():
            taker.finish()

    def flush(self) -> None:
        """Wait until all outputs that were handed over are written; errors as for `check`."""
        for outbox in self._outboxes.values():
            outbox.flush()

    def note(self, segment: int) -> None:
        """Note where the topics end before the mark at a segment's end is made.

        Raises:
            BrokerError: A broker cannot be asked now.
        """
        self._noted[segment] = {name: sink.ends() for name, sink in self.sinks.items()}

    def keep(self, segment: int) -> None:
        """Record where the topics go on behind a segment whose outputs are all written.

        A segment for which nothing was noted is one that a run before this one had marked: then the
        record keeps the offsets of the segment before, which come before them.
        """
        noted = self._noted.pop(segment, {})

        def kept(name: str, sink: Delivered) -> Delivered:
            return sink.ended(segment, noted.get(name, sink.savepoints[segment - 1])).goes_on()

        self._change(kept)
        for taker in self._takers.values():
            taker.forget(segment)

    def _change(self, change: Callable[[str, Delivered], Delivered]) -> DeliveryRecord | None:
        if not self.sinks:
            return None
        record = DeliveryRecord.read(self.folder)
        assert record is not None
        changed = {name: change(name, record.sinks[name]) for name in self.sinks}
        record = replace(record, sinks={**record.sinks, **changed})
        record.write(self.folder)
        return record

    def finish(self, segment: int) -> None:
        """Record where the topics end, and compare what the last segment has written with files.

        Args:
            segment: The number of the run's last segment.

        Raises:
            SequenceError: A message was lost.
            BrokerError: A topic cannot be read.
        """
        ends = {name: sink.patiently(sink.ends) for name, sink in self.sinks.items()}
        record = self._change(lambda name, sink: sink.ended(segment, ends[name]))
        if record is None:
            return
        figures: dict[str, Any] = {}
        for name, sink in self.sinks.items():
            found = sink.patiently(
                partial(
                    compare,
                    name,
                    sink.sink,
                    record.sinks[name],
                    self.folder,
                    self.stream,
                    since=segment,
                )
            )
            if found.lost:
                raise SequenceError(
                    f"{found.lost:,} records of {name} are in the files of segment "
                    f"{segment} and not in the topic {sink.sink.topic!r}, such as "
                    f"{found.differences[0].shown}; `tidemill stream --resume` writes them"
                )
            figures[name] = {
                "written": sink.written,
                "already_there": sink.already_there,
                **found.figures(),
            }
        self.figures = {"delivered": figures}
