"""The fills that a run publishes to: they travel to the workers with the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tidemill.serving.online.fills import Fill, Writer


@dataclass(frozen=True)
class RunFills:
    """The fills of a run.

    Attributes:
        fills: View to its fill; the fill's writer is that of the run.
    """

    fills: Mapping[str, Fill]

    @property
    def unread(self) -> list[Fill]:
        """The fills that readers do not see yet, as far as the run knows."""
        return [fill for fill in self.fills.values() if not fill.is_current]

    def writer(self, view: str) -> Writer:
        """Return the writer of a view's fill."""
        writer = self.fills[view].writer
        assert writer is not None, "the fills of a run have a writer"
        return writer

    def written_by(self, writer: Writer) -> RunFills:
        """Return the same fills with another writer."""
        fills = {view: replace(fill, writer=writer) for view, fill in self.fills.items()}
        return replace(self, fills=fills)

    def updated(self, present: Iterable[Fill]) -> RunFills:
        """Return the same fills with the state that their records have now, under this writer."""
        state = {fill.id: fill.state for fill in present}
        fills = {
            view: replace(fill, state=state.get(fill.id, fill.state))
            for view, fill in self.fills.items()
        }
        return replace(self, fills=fills)
