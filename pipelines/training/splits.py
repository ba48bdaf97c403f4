"""Splitting a training table in time.

Promises: a row is in the training split only if its label's horizon had passed at the split
(``request_time + horizon <= train_until``), so no later label leaks in; the evaluation split begins
where the training split ends; and every row that is in neither split is counted, by reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tidemill.features.definitions import Project
from tidemill.features.errors import DefinitionError, InputError, nearest
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.training.table_digest import in_canonical_order, table_digest
from tidemill.serving.files.read_files import reading


@dataclass(frozen=True)
class SplitCounts:
    """How many rows of a training table are in which split; they add up to ``rows``.

    Attributes:
        rows: Rows in the table.
        train: In the training split, labelled.
        train_unlabelled: Dropped from it, since they have no label.
        straddling: Dropped, since they come before the split and their horizon ends after it.
        evaluate: In the evaluation split, labelled.
        evaluate_unlabelled: Dropped from it, since they have no label.
        after: Dropped, since their horizon ends after the evaluation split.
    """

    rows: int
    train: int
    train_unlabelled: int
    straddling: int
    evaluate: int
    evaluate_unlabelled: int
    after: int


@dataclass(frozen=True)
class Split:
    """Labelled rows, in order of request time and id.

    Attributes:
        columns: The model inputs by name.
        labels: float32, ``(rows,)``: 0 and 1.
    """

    columns: pa.Table
    labels: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SplitTable:
    """The two splits of a table.

    Attributes:
        train: The training split.
        evaluate: The evaluation split.
        counts: How many of all rows are where.
        digest: `table_digest` of the columns that training reads, over all rows.
    """

    train: Split
    evaluate: Split
    counts: SplitCounts
    digest: str


def split_table(
    project: Project, table: Path, train_until_us: int, evaluate_until_us: int
) -> SplitTable:
    """Read a training table and split it in time.

    Args:
        project: The project, with model inputs and label.
        table: A directory of Parquet files.
        train_until_us: Where the training split ends and the evaluation split begins (UTC,
            microseconds).
        evaluate_until_us: Where the evaluation split ends.

    Raises:
        DefinitionError: The project has no label.
        DamagedFile: A file of the table is damaged.
        InputError: There is no table, a column is missing, a label is neither 0 nor 1, or a split
            is empty or ends before it begins.
    """
    if project.label is None:
        raise DefinitionError(f"project {project.name!r} has no label; training needs one")
    if evaluate_until_us <= train_until_us:
        raise InputError("evaluate_until must be after train_until: evaluation follows training")
    names = [i.name for i in model_inputs(project)]
    wanted = ["request_id", "request_time", "label", *names]
    files = sorted(table.glob("*.parquet"))
    if not files:
        raise InputError(f"there is no training table in {table}; run `tidemill backfill` first")
    parts = []
    for file in files:
        with reading(file, "run `tidemill backfill` again"):
            names_there = pq.read_schema(file).names
            for name in wanted:
                if name not in names_there:
                    raise InputError(
                        f"training table {table}: no column {name!r} in {file.name}; "
                        f"{nearest(name, names_there)}; backfill it again"
                    )
            parts.append(pq.read_table(file, columns=wanted))
    with reading(table, "run `tidemill backfill` again"):
        rows = pa.concat_tables(parts)
    # The order of files and shards must not change the model.
    rows = in_canonical_order(rows)
    times = rows["request_time"].cast(pa.int64()).to_numpy()
    known = times + project.label.horizon_us
    labelled = pc.is_valid(rows["label"]).to_numpy()
    in_train = known <= train_until_us
    in_evaluate = (times >= train_until_us) & (known <= evaluate_until_us)
    counts = SplitCounts(
        rows=rows.num_rows,
        train=int((in_train & labelled).sum()),
        train_unlabelled=int((in_train & ~labelled).sum()),
        straddling=int((~in_train & (times < train_until_us)).sum()),
        evaluate=int((in_evaluate & labelled).sum()),
        evaluate_unlabelled=int((in_evaluate & ~labelled).sum()),
        after=int(((times >= train_until_us) & ~in_evaluate).sum()),
    )
    for what, found in (("training", counts.train), ("evaluation", counts.evaluate)):
        if not found:
            raise InputError(
                f"training table {table}: the {what} split is empty ({counts}); move "
                "train_until or evaluate_until, or backfill more history"
            )
    return SplitTable(
        train=_take(rows, in_train & labelled, names, table),
        evaluate=_take(rows, in_evaluate & labelled, names, table),
        counts=counts,
        digest=table_digest(rows),
    )


def _take(rows: pa.Table, mask: npt.NDArray[np.bool_], names: list[str], table: Path) -> Split:
    part = rows.filter(pa.array(mask))
    labels = part["label"].cast(pa.float64()).to_numpy()
    odd = labels[~np.isin(labels, (0.0, 1.0))]
    if len(odd):
        raise InputError(
            f"training table {table}: column 'label' must be 0 or 1, found {odd[0]:g}; define the "
            "label by a condition, such as col('delay') > 15"
        )
    return Split(part.select(names), labels.astype(np.float32))
