"""The clock of a source: which instants the local times in its columns mean."""

from __future__ import annotations

import numpy as np

from tidemill.features.rows.local_times import INFER, RULES, Receipts, Repeated, resolve
from tidemill.features.rows.rejected import Reason
from tidemill.features.rows.text_values import Parsed


class SourceClock:
    """Chooses the instants of the local times of a batch, and remembers which rows had any.

    Args:
        rows: The number of rows.
        zone: The IANA zone of times without an offset; None where the source declares none.
        rule: The rule for times that occurred twice (`local_times.RULES`); None refuses them.
        receipts: The time-of-receipt column; its times are resolved before all others.

    Attributes:
        resolved: bool, ``(rows,)``: an instant of the row was chosen by the rule.
    """

    def __init__(
        self, rows: int, zone: str | None, rule: str | None, receipts: Receipts | None
    ) -> None:
        self.zone = zone
        self.rule = rule
        self.resolved = np.zeros(rows, np.bool_)
        self._receipts = receipts
        self._received_us = np.zeros(rows, np.int64)
        self._received = np.zeros(rows, np.bool_)

    def is_receipt(self, name: str) -> bool:
        """Tell whether a column is that of the times of receipt."""
        return self._receipts is not None and self._receipts.column == name

    def resolve(self, parsed: Parsed, name: str) -> None:
        """Choose the instant of each repeated time, or refuse its row."""
        repeated = parsed.repeated or Repeated(*np.zeros((3, 0), np.int64))
        if self._receipts is not None and self.is_receipt(name) and self.rule == INFER:
            times, certain = self._receipts.resolve(repeated, parsed.values, parsed.valid)
        else:
            times, certain = resolve(repeated, self.rule, self._received_us, self._received)
        parsed.values[repeated.rows] = times
        self.resolved[repeated.rows[certain]] = True
        unknown = repeated.rows[~certain]
        parsed.valid[unknown] = False
        parsed.refused.update(dict.fromkeys(unknown.tolist(), Reason.AMBIGUOUS_LOCAL_TIME))
        if self.is_receipt(name):
            self._received_us, self._received = parsed.values, parsed.valid

    def expected(self, name: str) -> str:
        """Say what was expected in place of a repeated time that was refused."""
        twice = f"a time that clocks in {self.zone} showed once; they showed it twice"
        if self.rule != INFER:
            return (
                f"{twice}: write its offset, or choose ambiguous: {', '.join(RULES)} for the source"
            )
        if self.is_receipt(name):
            return f"{twice}, and the order of arrival does not tell which: write its offset"
        return (
            f"{twice}, and the row has no certain time of receipt to infer from: write its offset"
        )
