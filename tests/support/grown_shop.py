"""A shop whose payments get a column and a wider one, and producers of both versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.support.memory_topics import PAYMENTS, PROJECT, TopicProject
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
