"""What stays of a row that names a forgotten entity, and where a key is found in bytes."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from tests.support.strategies import to_batch
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    last,
    sum,
)
from tidemill.features.contract import HOUR, MINUTE
from tidemill.features.errors import InputError
from tidemill.pipelines.forget.blank_rows import Blanking
from tidemill.pipelines.forget.subject import Subject

CARD, SHOP = Entity("card"), Entity("shop", dtype="int64")
PAYMENTS = EventStream(
    "payments",
    {"id": "string", "at": "timestamp", "card": "string", "payer": "string", "shop": "int64",
     "amount": "float64", "note": "string", "check": "string", "fraud": "bool"},
    "at", "id",
)  # fmt: skip
BY_CARD = FeatureView("by_card", CARD, PAYMENTS, "1m", {"n_1h": count(over="1h")})
BY_PAYER = FeatureView("by_payer", CARD, PAYMENTS, "1m", {"n_1h": count(over="1h")}, "payer")
BY_SHOP = FeatureView(
    "by_shop", SHOP, PAYMENTS, "1m",
    {
        "sum_1h": sum(col("amount"), over="1h"),
        "sum_noted_2h": sum(col("amount"), over="2h", where=col("note") == "gift"),
        "last_1h": last(col("amount"), over="1h"),
        "own_1h": count(over="1h", where=col("card") == "c-7"),
    },
)  # fmt: skip
CHECKS = Request(
    "checks",
    {"check": "string", "at": "timestamp", "card": "string", "shop": "int64", "wanted": "float64"},
    "at", "check",
)  # fmt: skip
LABEL = Label("fraud", PAYMENTS, col("fraud"), on={"check": "check"}, horizon="1h")
PROJECT = Project("shop", CHECKS, [BY_CARD, BY_PAYER, BY_SHOP], label=LABEL)
ROW = {
    "id": "p-1", "at": 5, "card": "c-7", "payer": None, "shop": 3, "amount": 2.5, "note": "gift",
    "check": "q-1", "fraud": True,
}  # fmt: skip


def blanked(
    row: dict[str, object], linked: set[tuple[object, ...]] | None = None, key: str = "c-7"
) -> tuple[dict[str, object] | None, dict[str, int]]:
    """Blank a payment; None if it is not the subject's. And which features of others lose it."""
    rows = to_batch(PAYMENTS.schema, [row])
    blanking = Blanking(PROJECT, PAYMENTS, Subject(CARD, key), b"salt", linked or ())
    named = blanking.named(rows)
    found = blanking.blank(rows, named).to_pylist()[0]
    found["at"] = found["at"].microsecond
    return (found if named.any() else None), blanking.others(rows, named)


def test_what_a_shop_and_the_label_need_stays_and_the_rest_goes() -> None:
    found, others = blanked(ROW)
    assert found == {**ROW, "card": None}
    assert others == {"by_shop__own_1h": 5 + HOUR + MINUTE}
    found, _ = blanked({**ROW, "shop": None, "check": None})
    assert found == dict.fromkeys(ROW) | {"at": 5}


def test_every_column_of_the_entity_counts() -> None:
    found, _ = blanked({**ROW, "card": "c-8", "payer": "c-7", "note": None})
    assert found == {**ROW, "card": None, "payer": None, "note": None}
    assert blanked({**ROW, "card": "c-77"})[0] is None


def test_texts_and_ids_that_tell_the_key_do_not_stay() -> None:
    found, others = blanked({**ROW, "id": "c-7/1", "note": "from c-7"})
    assert found is not None
    assert "c-7" not in str(found["id"])
    assert found == {**ROW, "card": None, "note": None, "id": found["id"]}
    assert others == {
        "by_shop__own_1h": 5 + HOUR + MINUTE,
        "by_shop__sum_noted_2h": 5 + 2 * HOUR + MINUTE,
        "by_shop__last_1h": 5 + HOUR + MINUTE,  # of events at one time, the id decides
    }
    again, _ = blanked({**ROW, "id": "c-7/1", "note": "from c-7"})
    assert again == found  # each copy of a row gets the same id


def test_events_of_the_label_of_a_forgotten_request_are_the_subjects() -> None:
    row = {**ROW, "card": None}
    assert blanked(row)[0] is None
    found, _ = blanked(row, {("q-1",)})
    assert found == {**ROW, "card": None, "check": None, "fraud": None}


def test_of_a_request_nothing_stays() -> None:
    blanking = Blanking(PROJECT, CHECKS, Subject(CARD, "c-7"), b"salt")
    asked = {"check": "q-1", "at": 5, "card": "c-7", "shop": 3, "wanted": 1.0}
    rows = to_batch(CHECKS.schema, [asked, {**asked, "card": None, "check": "q-2"}])
    named = blanking.named(rows)
    assert named.tolist() == [True, False]
    assert list(blanking.links(rows, named)) == [("q-1",)]
    blank, other = blanking.blank(rows, named).drop_columns(["at"]).to_pylist()
    assert set(blank.values()) == {None}
    assert other["shop"] == 3
    # No byte of what became null is left in the memory of a column, which a file would get.
    column = blanking.blank(rows, named).column("check")
    assert b"q-1" not in b"".join(bytes(one) for one in column.buffers() if one is not None)


@pytest.mark.parametrize(
    ("key", "data", "is_found"),
    [
        ("c-7", b'{"card": "c-7"}', True),
        ("c-7", b'{"card": "c-77"}', False),
        ("c-7", b'{"card": "xc-7"}', False),
        ("c-7", b"c-7", True),
        ("z\xfc", '{"card": "z\xfc"}'.encode(), True),
        ("z\xfc", json.dumps({"card": "z\xfc"}).encode(), True),
        ("a b", b"\xff\x06a b\x02", True),  # an Avro text behind its length
        ("a", b"\xff\x02abc", True),  # of bytes that are no text, any place counts
        ("", b"anything", False),
    ],
)
def test_where_a_text_key_is_found(key: str, data: bytes, is_found: bool) -> None:
    assert Subject(CARD, key).in_bytes(data) is is_found


def test_where_a_number_is_found() -> None:
    shop = Subject(SHOP, 17)
    assert shop.in_bytes(b'{"shop": 17}')
    assert not shop.in_bytes(b'{"shop": 170, "x": 1.175}')
    assert not shop.in_bytes(b"\xff17")
    assert Subject(SHOP, -17).in_bytes(b"[-17]")
    with pytest.raises(InputError, match="whole number from"):
        Subject.parse(PROJECT, "shop", "1e3")
    assert Subject.parse(PROJECT, "shop", "-17").key == -17
    assert pa.scalar(Subject.parse(PROJECT, "card", "17").key).type == pa.string()
