"""A Redis with older data takes over at every reply of a publication, and gives back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.fills import mark_of, opened
from tests.support.parcels import DEPOT_SPACE
from tests.support.redis_proxy import SwitchingProxy
from tests.support.redis_server import RedisServer, running
from tidemill.pipelines.publish import store_writer
from tidemill.pipelines.publish.run_fills import RunFills
from tidemill.pipelines.publish.store_writer import StoreWriter, retry_while_unavailable
from tidemill.serving.online.cells import cell_matrix
from tidemill.serving.online.database import Parcel
from tidemill.serving.online.parcels import whole_parcels
from tidemill.serving.online.redis.database import RedisDatabase
from tidemill.serving.online.rows import RowBatch, online_keys

ROWS = 10_000
SLICES = 4
KEYS = online_keys("depot", pa.array(range(ROWS)))


def rows_of(release: int) -> RowBatch:
    """Every entity, as a release publishes it: its event timestamp and value are the release's."""
    times = np.full(ROWS, 10 * release, np.int64)
    return RowBatch(
        keys=KEYS,
        event_timestamps=times,
        revisions=np.full(ROWS, 1, np.int64),
        valid_until=np.full(ROWS, 10**15, np.int64),
        shard=0,
        cells=cell_matrix(DEPOT_SPACE.dtypes, [pa.array(times)]),
    )


def frontier(release: int) -> int:
    return 10 * release + 1


def parcels(writer: StoreWriter, release: int, *, whole: bool = False) -> list[Parcel]:
    """All rows in slices; they build on the release before, unless the whole shard is published."""
    fill = writer.fills.fills["by_depot"]
    return whole_parcels(
        fill,
        writer.fills.writer("by_depot"),
        rows_of(release),
        shard=0,
        mark_before=None if whole else mark_of(frontier(release - 1)),
        mark=mark_of(frontier(release)),
        frontier_us=frontier(release),
    )


def assert_no_row_is_newer_or_older_than_its_frontier(database: RedisDatabase) -> set[int]:
    """Check every row by the frontier of its slice; return the frontiers."""
    # The server may be replaced during this read, too.
    ((frontiers, rows),) = retry_while_unavailable(
        lambda: database.read([(DEPOT_SPACE, KEYS)]), database.name
    )
    for row in rows:
        assert row is not None
        as_of = frontiers.of_row(row)
        # A slice without a frontier has no age: it is not PRESENT.
        assert as_of < 0 or as_of == row.event_timestamp + 1
    return set(frontiers.by_part.values())


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[RedisServer]]:
    options = {"repl-diskless-sync-delay": "0"}
    with running(tmp_path / "one", options) as one, running(tmp_path / "two", options) as two:
        yield [one, two]


def copy(source: RedisServer, copied: RedisServer) -> None:
    """Make a server equal to another one, by replication, and let it take writes."""
    client = copied.client()
    client.replicaof("127.0.0.1", source.port)
    deadline_s = time.monotonic() + 120
    while True:
        info = client.info("replication")
        offset = source.client().info("replication")["master_repl_offset"]
        if info["master_link_status"] == "up" and info["slave_repl_offset"] == offset:
            break
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    client.replicaof("NO", "ONE")


def test_older_server_is_noticed_at_every_reply_of_a_publication_there_and_back(
    servers: list[RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "_FIRST_WAIT_S", 0.001)
    with SwitchingProxy([server.port for server in servers]) as proxy:
        database = RedisDatabase(proxy.place)
        (target,) = opened(database, [DEPOT_SPACE], slices=SLICES)
        writer = StoreWriter(database, RunFills({"by_depot": target.fill}))
        mended: list[int] = []

        def write(release: int) -> None:
            """Write a release, or the whole shard as of it if the store has lost something."""

            def whole(*_: object) -> list[Parcel]:
                mended.append(release)
                # Until it is whole again, what is missing has no age.
                assert_no_row_is_newer_or_older_than_its_frontier(database)
                return parcels(writer, release, whole=True)

            writer.write(parcels(writer, release), whole)

        writer.write(parcels(writer, 0, whole=True), lambda *_: [])
        release, leads = 1, 0
        backs = (None, 1, 2, SLICES + 1)
        for first, back in itertools.product(range(SLICES + 1), backs):
            copy(servers[leads], servers[1 - leads])
            mended.clear()
            write(release)  # the other server does not have this one
            assert not mended
            release += 1
            plan = {first: 1 - leads}
            if back is not None:
                plan[first + back] = leads
            proxy.switch_after(plan)
            write(release)
            seen = assert_no_row_is_newer_or_older_than_its_frontier(database)
            if first < SLICES or mended:
                assert seen == {frontier(release)}
            # What the stream does next: the next release.
            release += 1
            write(release)
            # There and back within one publication loses nothing: what the first server executed
            # before its replies were cut off is there again.
            assert mended or back is not None
            found = assert_no_row_is_newer_or_older_than_its_frontier(database)
            assert found == {frontier(release)}
            release += 1
            proxy.switch_after({})
            leads = proxy.server
