"""The flights as a live project: the same definitions, for events that come as messages.

Each stream has one column more, ``sent_at``: the timestamp of the message that brought the event.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tidemill import EventStream, Project, Request
from tidemill.examples.flights import project as flights

SENT_AT: Final = "sent_at"


def _stream(stream: EventStream) -> EventStream:
    schema = {**stream.schema, SENT_AT: "timestamp"}
    return replace(stream, schema=schema, transport=[SENT_AT])


def _request(request: Request) -> Request:
    return replace(request, schema={**request.schema, SENT_AT: "timestamp"})


streams = {stream.name: _stream(stream) for stream in flights.project.streams}
label = flights.project.label
assert label is not None

project: Final = Project(
    name="flights_live",
    request=_request(flights.requests),
    views=[replace(view, stream=streams[view.stream.name]) for view in flights.project.views],
    label=replace(label, stream=streams[label.stream.name]),
    preprocessing_fn=flights.project.preprocessing_fn,
    model=flights.project.model,
)
