"""The topics that one segment of a stream writes to.

A segment fences the writers before it first of all (`Delivery.fence`), so that nothing is written
any more of what it is about to repeat. When the stream's folder is ready it reads back what the
stream has written since the savepoint (`Delivery.open`), and only then writes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tidemill.features.errors import SequenceError
from tidemill.pipelines.config.sink_section import SINKS, KafkaSink
from tidemill.pipelines.delivery.compare import compare
from tidemill.pipelines.delivery.deliver import Deliver, forget, share
from tidemill.pipelines.delivery.record import DeliveryRecord
from tidemill.pipelines.delivery.topic_sink import TopicSink
from tidemill.pipelines.run.holder import root_id
from tidemill.serving.generations.current import Current


def stream_id(current: Current) -> str:
    """Return what names a stream in the headers of messages: root, generation and number."""
    return f"{root_id(current.root)}/{current.generation}/{current.stream}"


@dataclass
class Delivery:
    """The topics that a segment writes to; none if the configuration names none.

    Attributes:
        run: The run's name.
        stream: The id of the stream.
        folder: The folder of the stream.
        segment: The number of the segment.
        sinks: Section of the configuration to its sink.
        writer: A random text, which tells this process from one that replaces it.
        figures: Counts by section, once the segment has ended; none without topics.
    """

    run: str
    stream: str
    folder: Path
    segment: int
    sinks: Mapping[str, TopicSink]
    writer: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def fence(
        configured: Mapping[str, KafkaSink],
        current: Current,
        segment: int,
        run: str,
        *,
        is_patient: bool = False,
    ) -> Delivery:
        """Connect to the topics; the writers of the processes before this one are fenced.

        Args:
            configured: Section of the configuration to its topic.
            current: The root's folders, with that of the stream.
            segment: The number of the segment.
            run: The run's name.
            is_patient: Whether to wait for a broker that is away, as a stream that runs does.

        Raises:
            BrokerError: A topic cannot be written to.
        """
        writer, folder = secrets.token_hex(8), current.stream_folder

        def is_owner() -> bool:
            record = DeliveryRecord.read(folder)
            return record is not None and record.writer == writer

        sinks = {
            name: TopicSink(
                name,
                sink,
                f"tidemill-{root_id(current.root)}-{SINKS.index(name)}",
                is_owner,
                is_patient=is_patient,
            )
            for name, sink in configured.items()
        }
        return Delivery(run, stream_id(current), folder, segment, sinks, writer)

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
            for sink in self.sinks.values():
                share(self.run, sink)
            yield
        finally:
            forget(self.run)
            for sink in self.sinks.values():
                sink.close()

    def step(self, name: str) -> Deliver | None:
        """Return the step that writes to a topic; None if the configuration names none."""
        return Deliver(self.run, name, self.stream) if name in self.sinks else None

    def finish(self) -> None:
        """Record where the topics end, and compare what this segment has written with its files.

        Raises:
            SequenceError: A message was lost.
            BrokerError: A topic cannot be read.
        """
        if not self.sinks:
            return
        record = DeliveryRecord.read(self.folder)
        assert record is not None
        ended = {
            name: record.sinks[name].ended(self.segment, sink.patiently(sink.ends))
            for name, sink in self.sinks.items()
        }
        figures: dict[str, Any] = {}
        for name, sink in self.sinks.items():
            found = sink.patiently(
                partial(
                    compare,
                    name,
                    sink.sink,
                    ended[name],
                    self.folder,
                    self.stream,
                    since=self.segment,
                )
            )
            if found.lost:
                raise SequenceError(
                    f"{found.lost:,} records of {name} are in the files of segment "
                    f"{self.segment} and not in the topic {sink.sink.topic!r}, such as "
                    f"{found.differences[0].shown}; `tidemill stream --resume` writes them"
                )
            figures[name] = {
                "written": sink.written,
                "already_there": sink.already_there,
                **found.figures(),
            }
        sinks = {**record.sinks, **ended}
        DeliveryRecord(record.writer, record.stream, sinks).write(self.folder)
        self.figures = {"delivered": figures}
