"""Feast's own server and SDK, in other processes, read what our write path published.

The server is the real `feast serve` with the `feature_store.yaml` that we write; the store is an
SQLite file or a real Redis. The SDK returns every bit, HTTP returns the precision of JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import feast
import pytest
from feast.protos.feast.types.Value_pb2 import Value

import tidemill
from tests.support import every_type, parcels
from tests.support.every_type import KEYS
from tests.support.parcels import BY_COURIER, courier_rows
from tests.support.redis_server import free_port
from tests.support.stock_client_process import StockClient
from tests.support.stores import STORES, place_of
from tidemill.features.contract import EARLIEST_EVENT, LATEST_EVENT
from tidemill.features.feast_objects import VALID_UNTIL
from tidemill.serving.online.backends import open_database
from tidemill.serving.registry.registration import open_store
from tidemill.serving.stores.feast_config import write_feature_store_yaml
from tidemill.serving.stores.online_places import OnlinePlace
from tidemill.serving.stores.places import StorePlaces

MICROSECOND = 1_700_000_000_123_457
COURIERS: list[dict[str, Any]] = [
    {
        "entity_key": b"ann",
        "grams_1d": 2**63 - 1,
        "metres_1d": 1.7976931348623157e308,
        "signed": True,
        "due": EARLIEST_EVENT + 1,
    },
    {
        "entity_key": b"bob",
        "grams_1d": -(2**63),
        "metres_1d": -5e-324,
        "idle": MICROSECOND,
        "signed": False,
        "due": LATEST_EVENT,
    },
    {
        "entity_key": b"cat",
        "grams_1d": 2**53 + 1,
        "metres_1d": 0.1 + 0.2,
        "scans_1d": 0,
        "due": MICROSECOND,
    },
    {"entity_key": "dé".encode(), "last_metres_0": -1 / 3, "last_metres_1": 0.0},
]
NAMES = [
    "scans_1d",
    "grams_1d",
    "metres_1d",
    "last_metres_0",
    "last_metres_1",
    "idle",
    "signed",
    "due",
]
IDS = [row["entity_key"].decode() for row in COURIERS]
OVERRUN, NEVER = "overrun", "never seen"

_MAP = {"a": "é", "b": 2**53 + 1, "none": None}
_UUID = "00112233-4455-6677-8899-aabbccddeeff"
JSON: dict[str, list[Any]] = {
    "int64": [0, 2**63 - 1, -(2**63), 2**53 + 1, 7],
    "int32": [0, 2**31 - 1, -(2**31), 5, -5],
    "float64": [-0.0, "NaN", "-Infinity", 5e-324, 0.1 + 0.2],
    "float32": [-0.0, "NaN", "Infinity", 2.0**-149, 0.10000000149011612],
    "bool": [False, True, False, True, False],
    "string": ["", "plain", "dépôt 😀", "a\0b", '"quoted"'],
    "bytes": ["", "AA==", "//4=", "YWJj", "Cg=="],
    "pdf": ["JVBERg==", "", "AA==", "MQ==", "Mg=="],
    "image": ["iVBORw==", "", "AA==", "MQ==", "Mg=="],
    "seconds": [0, -1, 2**33, 1, 2],
    "zoned": [
        "1970-01-01T01:00:00+01:00",
        "1970-01-01T00:59:59+01:00",
        "2242-03-16T13:56:32+01:00",
        "1970-01-01T01:00:01+01:00",
        "1970-01-01T01:00:02+01:00",
    ],
    "json": ["{}", "null", '{"a": [1]}', "1.0", '"x"'],
    "uuid": [_UUID] * 5,
    "time_uuid": [_UUID] * 5,
    "decimal": ["0.10", "-1E+9", "0", "1", "2.5"],
    "int64s": [[], [2**53 + 1, -1], [0], [1], [2, 3]],
    "int32s": [[], [-(2**31)], [0], [1], [2, 3]],
    "float64s": [[-0.0, 0.1], [], ["NaN"], ["Infinity"], [1.0, 2.0]],
    "strings": [["", "plain", "dépôt 😀", "a\0b", '"quoted"'], [], [""], ["a"], ["b", "c"]],
    "byteses": [[], [""], ["/w==", "YQ=="], ["MQ=="], []],
    "set": [[], ["a"], ["b", "a"], ["é"], [""]],
    "map": [{}, _MAP, {"x": None}, {}, _MAP],
    "maps": [[], [_MAP, {}], [{}], [], []],
    "struct": [_MAP] * 5,
    "scalar_map": [None] * 5,  # Feast's server cannot write them, and logs that
    "nested": [[[]], [[1]], [[1, 2]], [[2**62]], [[0]]],
}
"""What HTTP says of `every_type.VALUES`."""


@dataclass(frozen=True)
class Served:
    """A published store, the server in front of it, and the client of all stores."""

    root: Path
    place: OnlinePlace
    port: int
    client: StockClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, *rows: dict[str, Any], frontier_us: int) -> None:
        database = open_database(self.place)
        parcels.publish(database, BY_COURIER, courier_rows(*rows), frontier_us=frontier_us)
        database.close()

    def ask(self, features: list[str], **entities: list[str]) -> dict[str, dict[str, Any]]:
        """Return the server's answer: feature name to values and statuses."""
        body = json.dumps({"features": features, "entities": entities}).encode()
        request = urllib.request.Request(
            f"{self.url}/get-online-features", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        return dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))

    def sdk(self, features: list[str], rows: list[dict[str, str]], *, remote: bool = False) -> Any:
        """Ask Feast's SDK in another process, which reads the store itself or asks the server."""
        server = self.url if remote else None
        return self.client.ask(self.root, features, rows, server=server)["features"]


def _environment(root: Path) -> dict[str, str]:
    # The servers write files to the home directory; they import the plug-in from this tree.
    return {
        **os.environ,
        "HOME": str(root),
        "PYTHONPATH": str(Path(tidemill.__path__[0]).parent),
    }


@pytest.fixture(scope="module", params=STORES)
def served(
    request: pytest.FixtureRequest,
    stock_client: StockClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    root = tmp_path_factory.mktemp(request.param)
    with place_of(request.param, root) as place:
        write_feature_store_yaml(
            parcels.PARCELS.name, StorePlaces.below(root, online=place), clock="replay"
        )
        store = open_store(parcels.PARCELS, StorePlaces.below(root, online=place), clock="replay")
        store.apply(list(every_type.view(root)))
        served = Served(root, place, free_port(), stock_client)
        overrun = {"entity_key": OVERRUN.encode(), "valid_until": 4_000, "scans_1d": 1}
        served.publish(*COURIERS, overrun, frontier_us=5_000)
        foreign = store.get_feature_view("every type, ours")
        store._get_provider().online_write_batch(
            store.config, foreign, every_type.rows(), progress=None
        )
        with _feast_serve(served):
            yield served


@contextmanager
def _feast_serve(served: Served) -> Iterator[None]:
    """Run ``feast serve`` while a test needs it."""
    command = [str(Path(sys.executable).with_name("feast")), "--chdir", str(served.root)]
    command += ["serve", "--host", "127.0.0.1", "--port", str(served.port), "--no-access-log"]
    elsewhere, log = served.root / "elsewhere", served.root / "serve.log"
    elsewhere.mkdir()
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=elsewhere, env=_environment(served.root)
        )
    try:
        _wait_until_it_answers(served, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(served: Served, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{served.url}/health", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                pytest.fail(f"feast serve did not start:\n{log.read_text()}")
            time.sleep(0.1)


def _refs(*names: str) -> list[str]:
    return [f"by_courier:{name}" for name in names]


def _wire(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    field = {float: "double_val", bool: "bool_val", int: "int64_val"}[type(value)]
    return every_type.wire(Value(**{field: value}))


def test_server_answers_what_was_published(served: Served) -> None:
    answer = served.ask(_refs(*NAMES), courier=[*IDS, OVERRUN, NEVER])
    for name in NAMES:
        wanted = [row.get(name) for row in COURIERS]
        # repr: 2**53 + 1 and 2**53, 0 and 0.0, 0.0 and -0.0 are different here.
        assert repr(answer[name]["values"]) == repr([*wanted, None, None]), name
        assert answer[name]["statuses"] == ["PRESENT"] * 4 + ["OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert answer["idle"]["values"][1] == MICROSECOND


def test_server_answers_every_type_as_json_can_say_it(served: Served) -> None:
    assert list(JSON) == list(every_type.VALUES)
    answer = served.ask([f"every type, ours:{name}" for name in JSON], person=KEYS)
    for name, values in JSON.items():
        found = answer[name]["values"]
        # Entries of a map are in any order, so maps are compared as maps.
        shown = _sorted if name in ("map", "maps", "struct") else repr
        assert shown(found) == shown([*values, None]), name
        assert answer[name]["statuses"] == ["PRESENT"] * len(KEYS)


def _sorted(values: Any) -> str:
    return json.dumps(values, sort_keys=True)


def test_float32_of_the_answer_is_the_float32_that_was_published(served: Served) -> None:
    values = served.ask(["every type, ours:float32"], person=["eve"])["float32"]["values"]
    assert every_type.wire(Value(float_val=values[0])) == every_type.written("float32")[4]
    assert math.isfinite(values[0])


def test_sdk_in_another_process_reads_every_bit(served: Served) -> None:
    rows = [{"courier": courier} for courier in [*IDS, OVERRUN, NEVER]]
    answer = served.sdk(_refs(*NAMES, VALID_UNTIL), rows)
    for name in NAMES:
        wanted = [_wire(row, name) for row in COURIERS]
        assert answer[name]["values"] == [*wanted, "", ""], name
        assert answer[name]["statuses"] == ["PRESENT"] * 4 + ["OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert answer[VALID_UNTIL]["values"][0] == every_type.wire(Value(int64_val=10**15))

    people = [{"person": key} for key in [*KEYS, NEVER]]
    answer = served.sdk([f"every type, ours:{name}" for name in every_type.VALUES], people)
    for name in every_type.VALUES:
        assert answer[name]["values"] == [*every_type.written(name), ""], name
        assert answer[name]["statuses"] == ["PRESENT"] * len(KEYS) + ["NOT_FOUND"]


def test_remote_client_reads_a_generated_view_to_the_bit(served: Served) -> None:
    rows = [{"courier": courier} for courier in [*IDS, OVERRUN, NEVER]]
    answer = served.sdk(_refs(*NAMES), rows, remote=True)
    for name in NAMES:
        wanted = [_wire(row, name) for row in COURIERS]
        assert answer[name]["values"] == [*wanted, "", ""], name
        assert answer[name]["statuses"] == ["PRESENT"] * 4 + ["OUTSIDE_MAX_AGE", "NOT_FOUND"]


def test_server_reads_what_is_published_while_it_runs(served: Served) -> None:
    served.publish(
        {"entity_key": b"late", "event_timestamp": 6_000, "scans_1d": 11}, frontier_us=6_000
    )
    answer = served.ask(_refs("scans_1d"), courier=["late"])["scans_1d"]
    assert (answer["values"], answer["statuses"]) == ([11], ["PRESENT"])
    served.publish(
        {"entity_key": b"late", "event_timestamp": 6_000, "revision": 2, "scans_1d": 12},
        frontier_us=6_001,
    )
    assert served.ask(_refs("scans_1d"), courier=["late"])["scans_1d"]["values"] == [12]


def test_repository_file_names_everything_that_the_sdk_needs(served: Served) -> None:
    store = feast.FeatureStore(repo_path=str(served.root))
    assert store.config.project == "parcels"
    assert {view.name for view in store.list_feature_views()} >= {"by_courier", "by_depot"}
