"""The events of the project that `tidemill init` writes: a small shop, made up, always the same.

The same rows on every machine: all randomness is `random.Random.random`, whose sequence for a
seed Python guarantees across versions; what is made of it needs no function that a machine's
library may round in its own way.
"""

from __future__ import annotations

import csv
import datetime
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

SEED: Final = 20260105
START: Final = datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC)
DAYS: Final = 60
CHECKOUTS_PER_DAY: Final = 20
CUSTOMERS: Final = 70
RETURN_DAYS: Final = 7

_PRODUCTS: Final = {
    "boots": (89.0, 0.30),
    "coat": (149.0, 0.22),
    "dress": (59.0, 0.34),
    "jeans": (69.0, 0.26),
    "jumper": (49.0, 0.16),
    "mug": (12.0, 0.03),
    "scarf": (19.0, 0.05),
    "teapot": (34.0, 0.06),
}
"""Price, and how often it is sent back by a customer like any other."""
_CHANNELS: Final = ("app", "phone", "web")
_BROKEN_ORDER: Final = 300
"""The order whose amount is written ``12,50``."""

Row = Sequence[str]


@dataclass(frozen=True)
class _Checkout:
    number: int
    at: datetime.datetime
    customer: int
    product: str
    quantity: int
    amount: float
    delivery_days: int | None

    @property
    def customer_id(self) -> str:
        return f"c-{self.customer:03d}"


def shop_events() -> dict[str, str]:
    """Make the events.

    Returns:
        The text of each csv file by its name; times are UTC and ascend.
    """
    chance = random.Random(SEED)
    # How a customer differs from others: most send little back, some nearly everything.
    habits = [0.2 + 5.0 * _low(chance) * chance.random() for _ in range(CUSTOMERS)]
    checkouts: list[Row] = []
    orders: list[tuple[datetime.datetime, Row]] = []
    settlements: list[tuple[datetime.datetime, Row]] = []
    for checkout in _checkouts(chance):
        signed_in = chance.random() >= 1 / 12
        checkouts.append(_checkout_row(checkout, signed_in, chance))
        if chance.random() < 0.1:
            continue  # never paid: no order, and nothing to settle
        placed = checkout.at + datetime.timedelta(seconds=20 + int(400 * chance.random()))
        orders.append((placed, _order_row(checkout, placed, len(orders), chance)))
        settled, refunded = _outcome(checkout, habits[checkout.customer], chance)
        settlements.append((settled, _settlement_row(checkout, settled, refunded)))
    return {
        "checkouts.csv": _text(
            "checkout_id,checked_out_at,customer_id,product,channel,quantity,amount,delivery_days",
            checkouts,
        ),
        "orders.csv": _text(
            "order_id,placed_at,customer_id,product,quantity,amount,discount", _in_order(orders)
        ),
        "settlements.csv": _text(
            "settlement_id,settled_at,checkout_id,customer_id,product,amount,refunded",
            _in_order(settlements),
        ),
    }


def _checkouts(chance: random.Random) -> Iterable[_Checkout]:
    total = DAYS * CHECKOUTS_PER_DAY
    minutes = sorted(_minute_of_shopping(place, chance) for place in range(total))
    for number, minute in enumerate(minutes):
        second = int(60 * chance.random())
        product = sorted(_PRODUCTS)[int(len(_PRODUCTS) * chance.random())]
        quantity = 1 + int(3 * _low(chance))
        fetched = chance.random() < 0.15
        days = 1 + int(6 * chance.random())
        yield _Checkout(
            number=number,
            at=START + datetime.timedelta(minutes=minute, seconds=second),
            customer=int(CUSTOMERS * _low(chance)),  # a few customers check out most often
            product=product,
            quantity=quantity,
            amount=round(_PRODUCTS[product][0] * quantity, 2),
            delivery_days=None if fetched else days,
        )


def _minute_of_shopping(place: int, chance: random.Random) -> int:
    """Return a minute since the start: any day in turn, at 6 to 22 o'clock."""
    return place // CHECKOUTS_PER_DAY * 1440 + 360 + int(960 * chance.random())


def _low(chance: random.Random) -> float:
    """Return a number from 0 to 1, more often a low one."""
    return chance.random() * chance.random()


def _outcome(
    checkout: _Checkout, habit: float, chance: random.Random
) -> tuple[datetime.datetime, bool]:
    """Decide when an order is settled, and whether by a refund."""
    slow = 1.0 + 0.08 * (checkout.delivery_days or 0)
    refunded = chance.random() < min(0.95, _PRODUCTS[checkout.product][1] * habit * slow)
    # A refund takes some days: the goods must arrive and come back.
    minutes = int((1.5 + 5.0 * chance.random()) * 1440) if refunded else RETURN_DAYS * 1440
    # The shop's books are closed once an hour.
    closed = checkout.at.replace(minute=0, second=0) + datetime.timedelta(hours=1)
    return closed + datetime.timedelta(hours=minutes // 60), refunded


def _checkout_row(checkout: _Checkout, signed_in: bool, chance: random.Random) -> Row:
    return (
        f"k-{checkout.number:04d}",
        _time(checkout.at),
        checkout.customer_id if signed_in else "",
        checkout.product,
        _CHANNELS[int(len(_CHANNELS) * (1 - _low(chance)))],
        str(checkout.quantity),
        f"{checkout.amount:.2f}",
        "" if checkout.delivery_days is None else str(checkout.delivery_days),
    )


def _order_row(
    checkout: _Checkout, placed: datetime.datetime, place: int, chance: random.Random
) -> Row:
    discount = round(checkout.amount * 0.05 * (1 + int(4 * chance.random())), 2)
    discounted = chance.random() < 0.3
    return (
        f"o-{checkout.number:04d}",
        _time(placed),
        checkout.customer_id,
        checkout.product,
        str(checkout.quantity),
        "12,50" if place == _BROKEN_ORDER else f"{checkout.amount:.2f}",
        f"{discount:.2f}" if discounted else "",
    )


def _settlement_row(checkout: _Checkout, settled: datetime.datetime, refunded: bool) -> Row:
    return (
        f"s-{checkout.number:04d}",
        _time(settled),
        f"k-{checkout.number:04d}",
        checkout.customer_id,
        checkout.product,
        f"{checkout.amount:.2f}",
        "true" if refunded else "false",
    )


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _in_order(rows: list[tuple[datetime.datetime, Row]]) -> Iterable[Row]:
    return (row for _, row in sorted(rows))


def _text(heading: str, rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading.split(","))
    writer.writerows(rows)
    return text.getvalue()
