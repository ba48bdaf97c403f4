"""DataFrames that a stock client writes to the online store, without `VALID_UNTIL` and `REVISION`.

Feast 0.67 looks up every field of a view in the DataFrame before it asks a plug-in, and fails with
a ``KeyError`` where one is missing (``write_to_online_store``, ``push``, and its server's calls).
Feast offers no place to add the two, so the step that reads the DataFrame is wrapped: a frame for a
generated view gets the ones that it lacks, null, which is revision 0, valid for ever
(`serving.online.feast_rows.row_batch`). Other views and other columns are not touched.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import pandas as pd
from feast import FeatureStore

from tidemill.features.feast_objects import DEFINITION_TAG, REVISION, VALID_UNTIL

_STEP: Final = "_get_feature_view_and_df_for_online_write"


def accept_frames_without_technical_columns() -> None:
    """Wrap Feast's step in this process, once."""
    stock = getattr(FeatureStore, _STEP)
    if getattr(stock, "adds_technical_columns", False):
        return

    @functools.wraps(stock)
    def read(self: FeatureStore, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        view, frame = stock(self, *arguments, **named)
        return view, with_technical_columns(view, frame)

    read.adds_technical_columns = True  # type: ignore[attr-defined]
    setattr(FeatureStore, _STEP, read)


def with_technical_columns(view: Any, frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return a frame with the two columns if its view is a generated one.

    Args:
        view: A view of any kind.
        frame: The rows to write, ``(rows,)``; None if there are none.

    Returns:
        The frame itself if it lacks none of them, otherwise a copy, which has nulls in them.
    """
    if frame is None or DEFINITION_TAG not in view.tags:
        return frame
    lacking = [name for name in (VALID_UNTIL, REVISION) if name not in frame.columns]
    null = pd.array([None] * len(frame), dtype=pd.Int64Dtype())
    return frame.assign(**dict.fromkeys(lacking, null)) if lacking else frame
