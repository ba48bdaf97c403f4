"""What is left of a forgotten entity elsewhere, which a person has to see to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.ingest.read_source import read_log
from tidemill.pipelines.io.log import one_batch
from tidemill.serving.bundles.current import BUNDLES
from tidemill.serving.generations.current import GENERATIONS
from tidemill.serving.stores.offline_places import ParquetPlace
from tidemill.serving.stores.online_places import FeastPlace
from tidemill.serving.stores.redis_place import RedisPlace


def what_remains(config: Configuration, subject: Subject, unread: int) -> list[str]:
    """Say what of a subject is out of reach, a sentence each.

    Args:
        config: The configuration.
        subject: The subject.
        unread: How many rejected records could not be searched whole.
    """
    found = [*_source_files(config, subject), *_topics(config), *_stores(config)]
    if unread:
        found.append(
            f"{unread:,} rejected records have bytes that are no text: they were searched for the "
            "key as a text only; look at them (`tidemill replay-rejected` exports them)"
        )
    if any((config.root / BUNDLES).glob("*/")):
        found.append(
            "bundles were trained with the entity's rows: `tidemill train` makes one without them"
        )
    if config.archive is not None:
        found.append(
            "exports of the archive as Delta tables: the next `tidemill export-archive` takes the "
            "rows out of a table, and deletes the files that had them"
        )
    found.append("backups and copies of this root, of the archive and of the stores, and logs")
    return found


def _source_files(config: Configuration, subject: Subject) -> list[str]:
    """Count the rows of source files that still name the subject."""
    found: list[str] = []
    if not (config.root / GENERATIONS).exists():
        return found
    for name, source in config.sources.items():
        if not source.files:
            continue
        definition = config.project.definition(name)
        columns = subject.columns(config.project, definition)
        count = 0
        for part in read_log(config, name).parts:
            rows = one_batch(part.rows)
            count += int(np.count_nonzero(subject.named_by(rows, columns)))
        if count:
            listed = ", ".join(str(Path(path)) for path in source.files)
            found.append(
                f"{count:,} rows of the files of {name!r} ({listed}): remove them there; the next "
                "`tidemill backfill` would bring them back"
            )
    return found


def _topics(config: Configuration) -> list[str]:
    read = [source.kafka.topic for source in config.sources.values() if source.kafka is not None]
    written = [sink.topic for sink in config.sinks.values()]
    found = []
    if read or written:
        topics = ", ".join([*read, *written])
        found.append(
            f"messages of the topics {topics}: the topics' retention removes them, or tombstones "
            "where a topic is compacted"
        )
    return found


def _stores(config: Configuration) -> list[str]:
    found = []
    online, offline = config.online_store, config.offline_store
    if isinstance(online, FeastPlace):
        found.append(
            f"rows of Feast's own online store of type {online.type!r}, which has no deletion by "
            "key: remove them there"
        )
    if isinstance(online, RedisPlace):
        found.append(
            "journals and dumps of the Redis server: BGREWRITEAOF and BGSAVE write them anew"
        )
    if not isinstance(offline, ParquetPlace):
        found.append("tables of the offline store that are not below the root: remove rows there")
    return found
