"""The records of fills in Redis: their fields, and how they are decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tidemill.serving.online.damage import decoding
from tidemill.serving.online.fills import LAYOUT, Fill, FillState, NewFill, Writer
from tidemill.serving.online.refusals import other_layout
from tidemill.serving.online.rows import KeySpace


def fields(new: NewFill | Fill) -> dict[str, str | bytes | int]:
    """Return the fields of a record that never change, but for shards and state."""
    space = new.space
    return {
        "layout": LAYOUT,
        "space": space.name,
        "project": space.project,
        "view": space.view,
        "definition": space.definition,
        "columns": json.dumps(space.columns),
        "slices": new.slices,
        "generation": new.generation,
        "cuts": new.cuts,
        "mode": new.mode,
    }


def flat(record: Mapping[str, str | bytes | int]) -> list[str | bytes | int]:
    """Return names and values in turn."""
    return [part for pair in record.items() for part in pair]


def decode_fill(store: str, space: KeySpace, id_: str, reply: Sequence[bytes]) -> Fill | None:
    """Decode a record (names and values in turn); None if the fill is being removed, or absent.

    Raises:
        OtherLayout: Another version wrote it.
        StoreError: It was changed behind the store's back.
    """
    pairs = iter(reply)
    with decoding(store, f"the record of fill {id_} of key space {space.name}"):
        record = {name.decode(): value for name, value in zip(pairs, pairs, strict=True)}
        if "layout" not in record:
            return None
        if int(record["layout"]) != LAYOUT:
            raise other_layout(store, f"key space {space.name}", int(record["layout"]))
        return Fill(
            id=id_,
            space=space,
            shards=int(record["shards"]),
            slices=int(record["slices"]),
            generation=record["generation"].decode(),
            cuts=record["cuts"].decode(),
            mode=record["mode"].decode(),
            state=FillState(record["state"].decode()),
            writer=Writer.from_key(record["token"], record["holder"]),
        )
