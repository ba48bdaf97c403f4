"""A recorded run of a few requests, without Beam: its log, releases and predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.folders import made_root
from tidemill import Project
from tidemill.features.kernel import hashing
from tidemill.pipelines.io.log import Log
from tidemill.testing import features_at
from tidemill.testing.rows import check_rows


def record(root: Path, project: Project, events: Mapping[str, Any], requests: Any) -> Path:
    """Write a run that answered each request after all events had come, in one shard."""
    current = made_root(root)
    stream = current.stream_folder
    positions: dict[str, int] = {}
    for definition in (*project.streams, project.request):
        given = requests if definition is project.request else events.get(definition.name, [])
        rows = check_rows(definition, given).rows
        times = hashing.bits(rows.column(definition.time_column))
        received_us = np.maximum.accumulate(times)
        Log(current.build_folder).write(definition, 0, pa.Table.from_batches([rows]), received_us)
        positions[definition.name] = rows.num_rows
    (stream / "releases").mkdir(parents=True)
    asked = positions[project.request.name]
    entries = [
        {
            "view": view.name,
            "shard": 0,
            "number": 1,
            "frontier_us": 0,
            "positions": [positions[view.stream.name], asked],
        }
        for view in project.views
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (stream / "releases" / "all.jsonl").write_text(lines)
    values = features_at(project, events, requests=requests)
    columns: dict[str, Any] = {
        "request_id": values["request_id"],
        "request_time": values["request_time"],
        "partition": np.zeros(asked, np.int64),
        "position": np.arange(asked),
    }
    for stamp in ("as_of", "release", "shard"):
        for view in project.views:
            number = {"release": 1, "shard": 0}.get(stamp)
            as_of = values["request_time"].cast(pa.int64())
            columns[f"{stamp}__{view.name}"] = as_of if number is None else np.full(asked, number)
    names = [*project.request.inputs, *(column.name for column in project.columns)]
    columns |= {name: values[name] for name in names}
    columns |= {"score": np.zeros(asked, np.float32), "bundle_version": ["b1"] * asked}
    (stream / "predictions").mkdir()
    pq.write_table(pa.table(columns), stream / "predictions" / "all.parquet")
    return root
