"""Whatever is changed behind the back of Tidemill is found by `verify`, and named for what it is.

Each tamper changes one field of one file, or one column of the store, on a copy of a root that a
stream has filled; records get a new checksum, as an enemy would write it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of, stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    PROJECT,
    RIDES,
    FakeScorer,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.stream_outputs import outputs_of, put_outputs
from tidemill.features.errors import BundleError, TidemillError
from tidemill.features.feast_objects import REVISION, VALID_UNTIL, field_name
from tidemill.features.rows import rejected
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream import infer
from tidemill.pipelines.stream.release_line import LINE, RELEASE_VERSION
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify import findings
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.files.records import checksum_of
from tidemill.serving.generations.current import CURRENT, read_current
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.cells import decode_row
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.online.sqlite.scripts import rows_table

FEATURES = [column.name for column in PROJECT.columns]


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)

    def scorer_of(folder: Path, _: Any) -> FakeScorer:
        if folder.name != FakeScorer.stamps.bundle:
            raise BundleError(f"there is no bundle {folder}")
        return FakeScorer()

    monkeypatch.setattr(infer, "scorer_of", scorer_of)
    monkeypatch.setattr(findings, "LISTED", 10_000)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("tampers")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    config = replace(config, stream=replace(config.stream, poll_rows=50))
    backfill(config, QuietProgress(), publish=True)
    with pytest.MonkeyPatch.context() as patch:
        score_without_models(patch)
        stream(config, QuietProgress())
        assert verify(config, QuietProgress(), 10)["mismatches"] == 0
    return config


# What is changed.


def other(value: Any, kind: pa.DataType) -> Any:
    """Return another value of a type, as near as there is one."""
    if value is None:
        return pa.scalar(0, pa.int64()).cast(kind).as_py()
    if pa.types.is_boolean(kind):
        return not value
    if pa.types.is_floating(kind):
        bits = np.array([value], kind.to_pandas_dtype())
        bits.view(f"i{bits.itemsize}")[0] ^= 1
        return bits[0]
    if pa.types.is_timestamp(kind):
        return value + (value.resolution)
    if isinstance(value, bytes):
        return value + b"x"
    return value + ("x" if isinstance(value, str) else 1)


def with_cell(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """Return a table with another value in a cell."""
    place = table.schema.get_field_index(column)
    kind = table.schema.field(place).type
    values = table.column(column).to_pylist()
    values[row] = value(values[row], kind) if callable(value) else value
    return table.set_column(place, table.schema.field(place), pa.array(values, kind))


Change = Callable[[Configuration], None]


def cell(kind: str, column: str, value: Any = other, row: int = 0) -> Change:
    """Change a cell of the first Parquet file of a kind."""

    def change(config: Configuration) -> None:
        path = file_of(config, kind)
        pq.write_table(with_cell(pq.read_table(path), column, row, value), path)

    return change


def rows(kind: str, take: Callable[[pa.Table], pa.Table]) -> Change:
    """Change the rows of the first Parquet file of a kind."""

    def change(config: Configuration) -> None:
        path = file_of(config, kind)
        pq.write_table(take(pq.read_table(path)), path)

    return change


def removed(kind: str) -> Change:
    return lambda config: file_of(config, kind).unlink()


def file_of(config: Configuration, kind: str) -> Path:
    patterns = {
        "predictions": (stream_of(config.root), "predictions/*.parquet"),
        "publications": (stream_of(config.root), "publications/by_driver/*.parquet"),
        "training": (build_of(config.root), "features/*.parquet"),
        "history": (read_current(config.root).offline_root, "by_driver/*/date=*/history*"),
        "appended": (read_current(config.root).offline_root, "by_driver/*/date=*/00001-*"),
        "span": (read_current(config.root).offline_root, "by_driver/*/_reached/00000-of-*"),
        "state": (build_of(config.root), "states/by_driver*.state"),
    }
    folder, pattern = patterns[kind]
    return sorted(folder.glob(pattern))[0]


def every_prediction(change: Callable[[pa.Table], pa.Table]) -> Change:
    def apply(config: Configuration) -> None:
        for path in (stream_of(config.root) / "predictions").glob("*.parquet"):
            pq.write_table(change(pq.read_table(path)), path)

    return apply


def filled(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(column)
        place = table.schema.get_field_index(column)
        return table.set_column(place, field, pa.array([value] * len(table), field.type))

    return change


def both(*changes: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        for one in changes:
            table = one(table)
        return table

    return change


def replaced_release(change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Change:
    """Replace the first release of a shard by others."""

    def apply(config: Configuration) -> None:
        folder = stream_of(config.root) / "releases"
        outputs = outputs_of(folder, 1)
        name = min(name for name in outputs if name.startswith("by_driver-00001-"))
        (line,) = outputs[name].column(LINE).to_pylist()
        lines = [json.dumps(entry) for entry in change(json.loads(line))]
        outputs[name] = pa.RecordBatch.from_pydict({LINE: pa.array(lines, pa.string())})
        put_outputs(folder, 1, outputs)

    return apply


def release(field: str, value: Any) -> Change:
    """Change a field of a release."""

    def changed(entry: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**entry, field: value(entry[field]) if callable(value) else value}]

    return replaced_release(changed)


def record(name: str, field: str, value: Any) -> Change:
    """Change a field of a record, with a new checksum."""

    def change(config: Configuration) -> None:
        path = {
            "stream.json": stream_of(config.root) / "stream.json",
            "handoff.json": build_of(config.root) / "states" / "handoff.json",
            "build.json": build_of(config.root) / "build.json",
            CURRENT: config.root / CURRENT,
        }[name]
        stored = json.loads(path.read_text())
        header = {key: stored.pop(key) for key in ("format", "version", "checksum")}
        stored[field] = value(stored[field]) if callable(value) else value
        header["checksum"] = checksum_of(stored)
        path.write_text(json.dumps({**header, **stored}))

    return change


def sql(statement: str, *arguments: Any) -> Change:
    """Change the store; ``{rows}`` is the table of the drivers that readers see."""

    def change(config: Configuration) -> None:
        database = open_database(config.online_store)
        spaces = [KeySpace.of(PROJECT.name, BY_DRIVER)]
        (fill,) = (one for one in database.fills(spaces) if one.is_current)
        database.close()
        with sqlite3.connect(config.online_store.path) as connection:
            text = statement.format(rows=rows_table(fill.id), fill=f"'{fill.id}'")
            assert connection.execute(text, arguments).rowcount >= 1
        connection.close()

    return change


def flipped(kind: str) -> Change:
    def change(config: Configuration) -> None:
        path = file_of(config, kind)
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)

    return change


def copied(kind: str, name: str) -> Change:
    def change(config: Configuration) -> None:
        path = file_of(config, kind)
        shutil.copy(path, path.with_name(name))

    return change


def forged_rejections(config: Configuration) -> None:
    """Replace all but one prediction by records that nobody has answered."""
    for path in sorted((stream_of(config.root) / "predictions").glob("*.parquet")):
        table = pq.read_table(path).slice(1 if "q" in path.name else 0)
        path.unlink()
        record = rejected.batch(
            rejected.Stage.ANSWER,
            stream="quotes",
            partition=table["partition"][0].as_py(),
            positions=table["position"].to_numpy(),
            reasons=[rejected.Reason.NO_ANSWER] * len(table),
            details=["views by_driver, by_zone did not answer in time"] * len(table),
            origins=[f"quotes/0:{at}" for at in table["position"].to_pylist()],
            payloads=[b"{}"] * len(table),
        )
        folder = stream_of(config.root) / "rejected_by_stream"
        write_rows(folder, pa.Table.from_batches([record]), path.stem)
        kept = path
    write_rows(stream_of(config.root) / "predictions", table.slice(0, 1), kept.stem)


def doubled_release(config: Configuration) -> None:
    folder = stream_of(config.root) / "releases"
    outputs = outputs_of(folder, 1)
    name = min(outputs)
    entry = json.loads(outputs[name].column(LINE)[0].as_py())
    line = json.dumps({**entry, "events": entry["events"] + 1})
    put_outputs(folder, 9, {name: pa.RecordBatch.from_pydict({LINE: [line]})})


def changed_log(config: Configuration) -> None:
    log = Log(build_of(config.root))
    table = log.read("rides", 0)
    place = table.schema.get_field_index("fare")
    changed = table.set_column(place, "fare", pc.add(table["fare"], 1e-9))
    log.write(RIDES, 0, changed, table.column("_received").to_numpy())


def undated(config: Configuration) -> None:
    path = file_of(config, "history")
    shutil.copy(path, path.parent.parent / "mine.parquet")


def less(value: Any) -> Any:
    return value - 1


@dataclass(frozen=True)
class Tamper:
    """A change, and how `verify` names it: ``what`` and the field, or an error."""

    name: str
    change: Change
    what: str
    field: str = ""


def _predictions() -> list[Tamper]:
    out = [
        Tamper("the id of a request", cell("predictions", "request_id"), "extra"),
        Tamper("the partition", cell("predictions", "partition"), "extra"),
        Tamper(
            "the partition, by its low bits", cell("predictions", "partition", 2**20), "partition"
        ),
        Tamper("the position", cell("predictions", "position", 5_000), "extra"),
        Tamper("no position", cell("predictions", "position", -1), "extra"),
        Tamper("the time", cell("predictions", "request_time"), "request", "request_time"),
        Tamper("an input", cell("predictions", "km"), "request", "km"),
        Tamper("a score is NaN", cell("predictions", "score", float("nan")), "score", "score"),
        Tamper("sent after it was made", cell("predictions", "sent_us", 2**62), "created_us"),
        Tamper("made before it was sent", cell("predictions", "created_us", 0), "created_us"),
        Tamper("all scores", every_prediction(filled("score", 0.5)), "score", "score"),
        Tamper(
            "all name another bundle",
            every_prediction(filled("bundle_version", "b2")),
            "bundle_version",
            "bundle_version",
        ),
        Tamper(
            "a bundle that is elsewhere",
            every_prediction(filled("bundle_version", "../b1")),
            "bundle_version",
            "bundle_version",
        ),
        Tamper(
            "all scores, as if made elsewhere",
            every_prediction(both(filled("score", 0.5), filled("device", "GPU X"))),
            "score",
            "score",
        ),
        Tamper("a file", removed("predictions"), "lost"),
        Tamper("a prediction", rows("predictions", lambda table: table.slice(1)), "lost"),
        Tamper(
            "a row twice",
            rows("predictions", lambda table: pa.concat_tables([table, table.slice(0, 1)])),
            "doubled",
        ),
        Tamper("a file twice", copied("predictions", "00002-x.parquet"), "doubled"),
        Tamper("all but one are rejected", forged_rejections, "rejected"),
    ]
    stamps = ("as_of", "release", "shard")
    out += [
        Tamper(f"{stamp} of {view.name}", cell("predictions", f"{stamp}__{view.name}"), stamp)
        for stamp in stamps
        for view in PROJECT.views
    ]
    out += [
        Tamper(name, cell("predictions", name), name, name)
        for name in (
            "score", "bundle_version", "transform_hash", "spec_hash", "device", "tensorflow",
            "xla", "padded_rows", "call_row", "received_us",
        )
    ]  # fmt: skip
    # In the second row every feature has a value.
    out += [
        Tamper(f"feature {name}", cell("predictions", name), "value", name) for name in FEATURES
    ]
    return out


def _releases() -> list[Tamper]:
    changes: dict[str, Any] = {
        "version": RELEASE_VERSION + 1,
        "view": "by_zone",
        "shard": 0,
        "number": lambda number: number + 1,
        "mark_before": "0" * 32,
        "mark": "0" * 32,
        "frontier_us": less,
        "positions": lambda at: [at[0] + 1, *at[1:]],
        "events": less,
        "answers": less,
        "publications": less,
        "seen": lambda seen: {**seen, "late": seen["late"] + 1},
        "kernel": lambda seen: {**seen, "late": seen["late"] + 1},
    }
    out = [
        Tamper(
            f"{field} of a release",
            release(field, value),
            "StateVersionError" if field == "version" else "release",
            "" if field in ("view", "shard", "number", "version") else field,
        )
        for field, value in changes.items()
    ]
    return [
        *out,
        Tamper(
            "a further field",
            replaced_release(lambda entry: [{**entry, "more": 1}]),
            "release",
            "more",
        ),
        Tamper("a release is gone", replaced_release(lambda _: []), "release"),
        Tamper(
            "a release more",
            replaced_release(lambda entry: [entry, {**entry, "number": 5_000}]),
            "release",
        ),
        Tamper("a release twice", doubled_release, "release"),
    ]


def _tables() -> list[Tamper]:
    out: list[Tamper] = []
    for kind, what, columns in (
        (
            "publications",
            "publication",
            ["entity_key", "event_timestamp", "valid_until", "revision", *_names(BY_DRIVER)],
        ),
        (
            "training",
            "training",
            ["request_id", "request_time", "km", *FEATURES, "_partition", "_position"],
        ),
        (
            "history",
            "offline",
            ["driver", "event_timestamp", REVISION, VALID_UNTIL, *_fields()],
        ),
        ("appended", "offline", ["driver", "event_timestamp", REVISION, *_fields()]),
    ):
        keys = ("driver", "event_timestamp", REVISION, "_partition", "_position")
        out += [
            Tamper(
                f"{column} in {kind}",
                cell(kind, column),
                what,
                "" if column in keys and kind != "publications" else _named(kind, column),
            )
            for column in columns
        ]
        out += [
            Tamper(f"a row of {kind}", rows(kind, lambda table: table.slice(1)), what),
            Tamper(f"a file of {kind}", removed(kind), what),
        ]
    return [
        *out,
        Tamper("publications more", copied("publications", "00001-00009-1.parquet"), "publication"),
        Tamper("publications twice", copied_segment, "publication"),
        Tamper(
            "a training row twice",
            rows("training", lambda table: pa.concat_tables([table, table.slice(0, 1)])),
            "training",
        ),
        Tamper("a file of no day", undated, "offline"),
        Tamper("the span of a log", span_changed, "offline"),
        Tamper("no span", removed("span"), "offline"),
    ]


def _named(kind: str, column: str) -> str:
    """Return what a mismatch says of a column: in offline logs features have short names."""
    is_short = kind in ("history", "appended") and column in _fields()
    return f"{BY_DRIVER.name}__{column}" if is_short else column


def copied_segment(config: Configuration) -> None:
    path = file_of(config, "publications")
    shutil.copy(path, path.with_name(path.name.replace("00001-", "00002-", 1)))


def span_changed(config: Configuration) -> None:
    path = file_of(config, "span")
    first, last = map(int, path.read_text().split())
    path.write_text(f"{first} {last + 1}")


def _names(view: Any) -> list[str]:
    return [column.name for column in view.columns]


def _fields() -> list[str]:
    return [field_name(column) for column in BY_DRIVER.columns]


def first_of(value: Any, change: Any) -> Any:
    return {**value, next(iter(value)): change(next(iter(value.values())))}


def with_other_name(definitions: dict[str, Any]) -> dict[str, Any]:
    return {**definitions, "project": "another"}


def _records() -> list[Tamper]:
    plus = [lambda number: number + 1]
    changes: dict[tuple[str, str], Any] = {
        ("stream.json", "began"): "0" * 16,
        ("stream.json", "mode"): "eager",
        ("stream.json", "poll_rows"): 40,
        ("stream.json", "generation"): "0" * 16,
        ("stream.json", "as_of_us"): lambda at: at - 3_600_000_000,
        ("stream.json", "positions"): lambda of: {**of, "rides": [of["rides"][0] - 1]},
        ("stream.json", "digests"): lambda of: {**of, "rides": "0" * 64},
        ("stream.json", "clock"): "wall",
        ("stream.json", "offline"): None,
        ("stream.json", "views"): lambda of: first_of(of, lambda _: "0" * 16),
        ("stream.json", "shards"): 3,
        ("stream.json", "request"): "0" * 16,
        ("stream.json", "definitions"): with_other_name,
        ("stream.json", "models"): lambda of: [{**of[0], "bundle": "b2"}],
        ("stream.json", "until_us"): lambda at: at - 3_600_000_000,
        ("handoff.json", "kind"): "stop",
        ("handoff.json", "as_of_us"): plus[0],
        ("handoff.json", "positions"): lambda of: {**of, "rides": [of["rides"][0] - 1]},
        ("handoff.json", "views"): lambda of: first_of(of, lambda _: "0" * 16),
        ("handoff.json", "shards"): 3,
        ("handoff.json", "segment"): 1,
        ("handoff.json", "frontiers"): lambda of: first_of(of, lambda at: [at[0] + 1, *at[1:]]),
        ("handoff.json", "polls"): 1,
        ("handoff.json", "marks"): lambda of: first_of(of, lambda at: ["0" * 32, *at[1:]]),
        ("handoff.json", "began"): "0" * 16,
        ("handoff.json", "mode"): "eager",
        ("handoff.json", "files"): lambda of: first_of(of, lambda _: "0" * 64),
        ("handoff.json", "generation"): "0" * 16,
        ("handoff.json", "digests"): lambda of: first_of(of, lambda _: "0" * 64),
        ("build.json", "generation"): "0" * 16,
        ("build.json", "project"): "0" * 16,
        ("build.json", "definitions"): with_other_name,
        ("build.json", "views"): lambda of: first_of(of, lambda _: "0" * 16),
        ("build.json", "shards"): 3,
        ("build.json", "training_table"): lambda of: first_of(of, lambda _: "0" * 64),
        ("build.json", "handoff"): "0" * 16,
    }
    out = [
        Tamper(
            f"{field} in {name}",
            record(name, field, value),
            "release" if field in ("mode", "poll_rows", "as_of_us", "until_us")
            and name == "stream.json" else "publication" if field == "offline"
            else "score" if field == "models" else "record",
            field if name != "stream.json" or field in
            ("began", "generation", "positions", "digests", "views", "shards", "clock", "request",
             "definitions")
            else "",
        )
        for (name, field), value in changes.items()
    ]  # fmt: skip
    return [
        *out,
        Tamper("stream.json is gone", lambda c: (stream_of(c.root) / "stream.json").unlink(),
               "StateMismatch"),
        Tamper("the handoff is gone", lambda c: (build_of(c.root) / "states/handoff.json").unlink(),
               "StateMismatch"),
        Tamper("a state", flipped("state"), "state"),
        Tamper("a state is gone", removed("state"), "state"),
        Tamper("the log", changed_log, "log"),
        Tamper("CURRENT names no build", record(CURRENT, "build", 7), "StateMismatch"),
        Tamper("CURRENT names no log", record(CURRENT, "offline", 7), "record"),
    ]  # fmt: skip


def ghost(config: Configuration) -> None:
    (key,) = online_keys("driver", pa.array(["ghost"]))
    sql(
        'INSERT INTO "{rows}" SELECT ?, event_timestamp, revision, valid_until, shard, cells '
        'FROM "{rows}" LIMIT 1',
        key,
    )(config)


def value_in_store(feature: str, bit: int = 1) -> Change:
    """Change a bit of a feature's word, in the row of a driver that has a value of it."""

    def change(config: Configuration) -> None:
        place = _names(BY_DRIVER).index(feature)
        database = open_database(config.online_store)
        space = KeySpace.of(PROJECT.name, BY_DRIVER)
        keys = online_keys("driver", pa.array([f"d{number}" for number in range(6)]))
        (snapshot,) = database.read([(space, keys)])
        database.close()
        row = next(
            row
            for row in snapshot.rows
            if row is not None and decode_row(space.dtypes, row.cells)[place] is not None
        )
        cells = bytearray(row.cells)
        cells[8 * place] ^= bit
        sql('UPDATE "{rows}" SET cells = ? WHERE entity_key = ?', bytes(cells), row.key)(config)

    return change


def _store() -> list[Tamper]:
    some = 'entity_key = (SELECT min(entity_key) FROM "{rows}")'
    out = [
        Tamper(
            f"{column} of a row",
            sql(f'UPDATE "{{rows}}" SET {column} = {column} + {by} WHERE {some}'),
            "store",
            column,
        )
        for column, by in (("event_timestamp", 1), ("revision", 1), ("valid_until", 1),
                           ("shard", 1))
    ]  # fmt: skip
    return [
        *out,
        *(
            Tamper(f"{name} in the store", value_in_store(name), "store", name)
            for name in _names(BY_DRIVER)
        ),
        Tamper("a bool that is no 0 or 1", value_in_store("by_driver__last_dear", 2), "store"),
        Tamper("a row more", ghost, "store", "status"),
        Tamper("a row is gone", sql(f'DELETE FROM "{{rows}}" WHERE {some}'), "store", "status"),
        Tamper(
            "the frontier",
            sql("UPDATE tidemill_parts SET frontier = frontier + 1 WHERE fill = {fill}"),
            "store",
            "frontier",
        ),
        Tamper(
            "the mark",
            sql("UPDATE tidemill_parts SET mark = zeroblob(16) WHERE fill = {fill}"),
            "store",
            "mark",
        ),
        Tamper(
            "a part is gone",
            sql("DELETE FROM tidemill_parts WHERE fill = {fill} AND part = 0"),
            "store",
        ),
        *(
            Tamper(
                f"{column} of the fill",
                sql(f"UPDATE tidemill_fills SET {column} = ? WHERE id = {{fill}}", value),
                "store",
                column,
            )
            for column, value in (("cuts", "{}"), ("mode", "eager"))
        ),
        Tamper(
            "generation of the fill",
            sql("UPDATE tidemill_fills SET generation = ? WHERE id = {fill}", "0" * 16),
            "store",
        ),
        Tamper("shards of the fill", sql("UPDATE tidemill_current SET shards = 3"), "store"),
    ]


TAMPERS = [*_predictions(), *_releases(), *_tables(), *_records(), *_store()]


@pytest.mark.parametrize("tamper", TAMPERS, ids=[tamper.name for tamper in TAMPERS])
def test_a_tamper_is_found_and_named(
    tamper: Tamper, streamed: Configuration, tmp_path: Path
) -> None:
    shutil.copytree(streamed.root, tmp_path / "run")
    config = configuration(streamed.path.parent, tmp_path / "run")
    config = replace(config, stream=streamed.stream)
    tamper.change(config)
    if tamper.what in ("StateMismatch", "StateVersionError", "InputError"):
        with pytest.raises(TidemillError, match="tidemill") as refused:
            verify(config, QuietProgress(), 0)
        assert type(refused.value).__name__ == tamper.what
        return
    figures = verify(config, QuietProgress(), 0)
    found = [
        row
        for row in figures["first_mismatches"]
        if row["what"] == tamper.what and (not tamper.field or row["feature"] == tamper.field)
    ]
    assert figures["mismatches"] > 0
    assert found, figures["first_mismatches"][:5]
    assert all(row["cause"] for row in found if row["what"] != "doubled")


def test_there_are_enough_of_them() -> None:
    assert len({tamper.name for tamper in TAMPERS}) == len(TAMPERS) >= 60
