"""The offline history of the parcels project after a single scan, at depot 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.support.parcels import PARCELS, SCANS
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.publish.offline_history import log_history
from tidemill.serving.stores.places import OFFLINE


def write_scan_history(root: Path, *, at_us: int, until_us: int) -> None:
    """Write the log of a scan at an instant, and the views' offline logs up to another one."""
    log, at = Log(root / "build"), np.array([at_us])
    scan = {"scan": ["s"], "at": pa.array(at, pa.timestamp("us", tz="UTC")), "courier": ["ann"]}
    more = {"depot": [7], "grams": [1], "metres": [1.0], "signed": [True], "due": scan["at"]}
    log.write(SCANS, 0, pa.table({**scan, **more}), at)
    until = {view.name: until_us for view in PARCELS.views}
    log_history(PARCELS.views, log, root / OFFLINE, shards=1, until_us=until)
