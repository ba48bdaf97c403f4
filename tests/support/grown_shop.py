"""A shop whose payments, or checks, get columns and wider ones, and producers of both versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.support.memory_topics import CHECKS, PAYMENTS, PROJECT, TopicProject
from tidemill import EventStream, FeatureView, Project, col, count, last, mean, sum
from tidemill.features.definitions import Entity
from tidemill.pipelines.config.configuration import Configuration

GROWN: Final = replace(
    PAYMENTS,
    schema={**PAYMENTS.schema, "shop": "float64", "tip": "float64", "till": "string"},
    optional=["tip", "till"],
    widened={"shop": "int64"},
)


def by_shop(payments: EventStream) -> FeatureView:
    """Return a view that reads the column which becomes wider."""
    features = {"shops_1h": mean(col("shop"), over="1h"), "last_shop": last(col("shop"), over="1h")}
    return FeatureView("by_shop", Entity("card"), payments, "1m", features)


def shop_of(payments: EventStream, *, with_tips: bool = False) -> Project:
    """Return a version of the project, whose first view reads no column that changes."""
    (by_card,) = PROJECT.views
    views = [replace(by_card, stream=payments), by_shop(payments)]
    if with_tips:
        features = {
            "tips_1h": sum(col("tip"), over="1h"),
            "tipped_1h": count(over="1h", where=col("tip") > 1.0),
        }
        views.append(FeatureView("by_tip", Entity("card"), payments, "1m", features))
    return replace(PROJECT, views=views)


BEFORE: Final = shop_of(PAYMENTS)
AFTER: Final = shop_of(GROWN, with_tips=True)


@dataclass
class GrownShop(TopicProject):
    """A shop of two versions of its project.

    Attributes:
        project: The version of the project that commands run with.
        senders: Which versions of producers send.
    """

    project: Project = BEFORE
    senders: Sequence[int] = (1,)

    def config(self, **changes: Any) -> Configuration:
        """Return the configuration of the version."""
        return super().config(**{"project": self.project, **changes})

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        return [
            (name, self._of_version(row) if name == "payments" else row)
            for name, row in super()._some(at_us)
        ]

    def _of_version(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(row)
        if self.random.choice(self.senders) == 2:
            found["shop"] = None if row["shop"] is None else row["shop"] + 0.5
            found["tip"] = self.random.choice([None, 0.5, 2.0])
            if self.random.random() < 0.5:
                found["till"] = f"till {self.random.randrange(3)}"
        return found


ASKED_BEFORE: Final = replace(
    CHECKS,
    schema={**CHECKS.schema, "items": "int64"},
    inputs={"wanted": col("wanted"), "items": col("items")},
)
ASKED: Final = replace(BEFORE, request=ASKED_BEFORE)
ASKED_AFTER: Final = replace(
    ASKED_BEFORE,
    schema={**ASKED_BEFORE.schema, "items": "float64", "coupon": "float64", "shop": "int64"},
    optional=["coupon", "shop"],
    widened={"items": "int64"},
)
DISCOUNT: Final = {"discount": col("coupon").fill_null(0.0) * col("wanted")}
"""An input that reads a column which the request has got later."""


@dataclass
class AskedShop(GrownShop):
    """A shop whose checks grow."""

    project: Project = ASKED

    def file_columns(self, name: str) -> list[str]:
        """Return the columns that the files of a source have."""
        of_checks = ["items"] if name == "checks" else []
        return [*super().file_columns(name), *of_checks]

    def _some(self, at_us: int) -> list[tuple[str, dict[str, Any]]]:
        return [
            (name, self._asked(row) if name == "checks" else row)
            for name, row in TopicProject._some(self, at_us)
        ]

    def _asked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found = {**row, "items": self.random.randrange(9)}
        if self.random.choice(self.senders) == 2:
            found["items"] += self.random.choice([0, 0.5])
            found["coupon"] = self.random.choice([None, 0.25])
            if self.random.random() < 0.5:
                found["shop"] = self.random.randrange(4)
        return found
