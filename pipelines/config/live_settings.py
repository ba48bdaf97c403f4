"""Which keys of the YAML file a stream that runs takes over, and what differs between two files.

A key is *live* if only the program that runs the stream reads it, and no value, cut or position
depends on it. Every other key waits for a restart: workers of an engine are other processes, and
what changes values belongs to an upgrade.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tidemill.features.contract import format_duration
from tidemill.pipelines.config.archive_section import Archive
from tidemill.pipelines.config.configuration import Configuration

LIVE_KEYS: Final[Mapping[str, str]] = {
    "stream.savepoint_every": "from the next savepoint on",
    "archive.every": "at once",
    "archive.keep": "the next time that rows are archived",
    "sources.NAME.max_rejected": "for the next rows that are read of the topic",
    "logging.level": "at once",
}
"""Key to when a stream that runs takes it over."""

_NAMES: Final = {"project_name": "project", "give_up_after": "online_store.give_up_after"}
_UNSHOWN: Final = frozenset({"path", "project", "pinned", "read_until"})
"""What is no key of the file."""
_MOST_SHOWN: Final = 60


@dataclass(frozen=True)
class Change:
    """A key with another value.

    Attributes:
        key: The key, such as ``stream.savepoint_every``.
        before: Its value before, as a text.
        now: Its value now.
        is_live: Whether a stream that runs takes it over.
    """

    key: str
    before: str
    now: str
    is_live: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def changes(before: Configuration, now: Configuration) -> list[Change]:
    """Return the keys whose values differ, in the order of the file.

    Args:
        before: A configuration.
        now: Another one of the same root. Which definitions its project has is not compared: a
            process imports a project once.
    """
    return list(_changes("", before, now))


def _changes(key: str, before: Any, now: Any, *, is_us: bool = False) -> Iterator[Change]:
    if type(before) is type(now) and dataclasses.is_dataclass(before):
        for field in dataclasses.fields(before):
            name = field.name.removesuffix("_us")
            if key or name not in _UNSHOWN:
                inner = f"{key}.{name}" if key else _NAMES.get(name, name)
                pair = getattr(before, field.name), getattr(now, field.name)
                yield from _changes(inner, *pair, is_us=field.name.endswith("_us"))
    elif isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _changes(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield Change(key, _shown(before, is_us), _shown(now, is_us), _is_live(key))


def _is_live(key: str) -> bool:
    if key.startswith("sources."):
        return f"sources.NAME.{key.rpartition('.')[2]}" in LIVE_KEYS
    return key in LIVE_KEYS


def _shown(value: Any, is_us: bool) -> str:
    if is_us and isinstance(value, int):
        return format_duration(value)
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    text = "null" if value is None else str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def with_live_values(before: Configuration, now: Configuration) -> Configuration:
    """Return a configuration with the live values of another one, and all else as it is.

    Args:
        before: The configuration.
        now: Has the live values.
    """
    archive = before.archive
    if isinstance(archive, Archive) and isinstance(now.archive, Archive):
        archive = replace(archive, every_us=now.archive.every_us, keep_us=now.archive.keep_us)
    sources = {
        name: replace(source, max_rejected=now.sources[name].max_rejected)
        if name in now.sources
        else source
        for name, source in before.sources.items()
    }
    every_us = now.stream.savepoint_every_us
    return replace(
        before,
        stream=replace(before.stream, savepoint_every_us=every_us),
        archive=archive,
        sources=sources,
        logging=replace(before.logging, level=now.logging.level),
    )
