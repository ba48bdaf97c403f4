"""The subject: the entity that is to be forgotten, and where definitions and bytes name it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import INT64, Entity, EventStream, Project, Request
from tidemill.features.errors import InputError, nearest

_WORD: Final = rb"[0-9A-Za-z_]"
_LEAST, _MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Subject:
    """An entity by its key.

    Attributes:
        entity: The kind of thing.
        key: Its key, of the entity's type.
    """

    entity: Entity
    key: str | int

    @staticmethod
    def parse(project: Project, entity: str, key: str) -> Subject:
        """Find the entity of a project, and read its key.

        Args:
            project: The project.
            entity: The entity's name.
            key: The key, as a text.

        Raises:
            InputError: There is no such entity, or the key is not of its type.
        """
        entities = {view.entity.name: view.entity for view in project.views}
        if entity not in entities:
            known = ", ".join(sorted(entities))
            raise InputError(
                f"there is no entity {entity!r}; the project has {known}; "
                f"{nearest(entity, entities)}"
            )
        found = entities[entity]
        if found.dtype != INT64:
            return Subject(found, key)
        if not re.fullmatch(r"-?[0-9]+", key) or not _LEAST <= int(key) <= _MOST:
            raise InputError(
                f"entity {entity!r} has int64 keys: found {key!r}, expected a whole number from "
                "-2**63 to 2**63 - 1 in decimal digits, such as 42"
            )
        return Subject(found, int(key))

    @property
    def text(self) -> str:
        """The key as a text; an int64 key in decimal digits."""
        return str(self.key)

    def digest(self, salt: bytes) -> str:
        """Digest entity and key with a salt, 64 hexadecimal digits."""
        content = json.dumps([self.entity.name, self.key]).encode()
        return hmac.new(salt, content, hashlib.sha256).hexdigest()

    def columns(self, project: Project, definition: EventStream | Request) -> tuple[str, ...]:
        """Return the columns of a source that hold keys of the entity.

        They are those that views, the request or the label take as its key, and a column of the
        join key's name and type.
        """
        entity, request, found = self.entity, project.request, set[str]()
        asked = request.key_column(entity)
        if isinstance(definition, Request):
            found.add(asked)
        else:
            found |= {
                view.key
                for view in project.views
                if view.stream.name == definition.name and view.entity.name == entity.name
            }
            label = project.label
            if label is not None and label.stream.name == definition.name and asked in label.on:
                found.add(label.on[asked])
        if definition.schema.get(entity.join_key) == entity.dtype:
            found.add(entity.join_key)
        return tuple(name for name in definition.schema if name in found)

    def named_by(self, rows: pa.RecordBatch, columns: tuple[str, ...]) -> BoolArray:
        """Tell which rows have the key in one of some columns, bool ``(rows,)``."""
        named = np.zeros(rows.num_rows, np.bool_)
        for name in columns:
            same = pc.fill_null(pc.equal(rows.column(name), pa.scalar(self.key)), False)
            named |= same.to_numpy(zero_copy_only=False)
        return named

    def within(self, texts: pa.Array) -> BoolArray:
        """Tell which texts contain the key as a word of its own, bool ``(texts,)``.

        An int64 key must be the whole text.
        """
        if not self.text:
            return np.zeros(len(texts), np.bool_)
        if self.entity.dtype == INT64:
            same = pc.equal(texts, self.text)
        else:
            bound = "[^0-9A-Za-z_]"
            pattern = f"(?s)(^|{bound}){re.escape(self.text)}($|{bound})"
            same = pc.match_substring_regex(texts, pattern)
        found: BoolArray = pc.fill_null(same, False).to_numpy(zero_copy_only=False)
        return found

    def in_bytes(self, data: bytes | None) -> bool:
        """Tell whether bytes contain the key: as UTF-8, or as a text of JSON.

        In bytes that are UTF-8 it must be a word of its own, so that key 7 is not found in 17. In
        other bytes, such as Avro, a length may stand before it, so any place counts; an int64 key
        is not looked for in these.
        """
        if not data or not self.text:
            return False
        forms = {self.text.encode(), json.dumps(self.text)[1:-1].encode()}
        if not any(form in data for form in forms):
            return False
        if not is_text(data):
            return self.entity.dtype != INT64
        return any(
            re.search(rb"(?<!%b)%b(?!%b)" % (_WORD, re.escape(form), _WORD), data) for form in forms
        )


def is_text(data: bytes) -> bool:
    """Tell whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
