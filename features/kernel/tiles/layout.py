"""The layout of a batch in time: rows grouped by entity, tiles, queries.

These functions decide the tile of each event, the tiles that each query covers, and the instants of
publications. The folds then do the arithmetic.

An event at ``e`` counts from its change point ``c``: ``e + 1``, or the frontier if the event is
late, or a later instant that the caller gives. A query as of ``t`` sees it if ``c <= t``. So a
batch is ordered by change point and ``as_of``, events first where they are equal; every clause of
the contract of time follows from that rule.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tidemill.features.contract import TIME_MAX, TIME_MIN, Int64Array
from tidemill.features.kernel.compiled import entry, inner
from tidemill.features.kernel.exact.wide_ints import prefetch, row_address
from tidemill.features.kernel.tiles.state import CHANGED, HOP, LENGTH, NOBODY, REVISION, ROWS, START
from tidemill.features.kernel.tiles.tile_pool import lower_bound, make_tiles

PUBLISH_NOTHING: Final = 0
PUBLISH_NEWEST: Final = 1
PUBLISH_EVERY: Final = 2
PUBLISH_ALL: Final = 3

# Columns of the query matrix.
Q_AS_OF: Final = 0
Q_HEAD: Final = 1  # row of the newest tile it covers
Q_REQUEST: Final = 2  # index of the request, or -1 for a publication
Q_ENTITY: Final = 3
Q_CHANGED: Final = 4  # a publication's event_timestamp
Q_REVISION: Final = 5
Q_VALID_UNTIL: Final = 6
Q_TAILS: Final = 7  # from here on, per window, the row of the oldest tile it covers

_NONE: Final = 2**63 - 1
"""No change point: later than all of them."""
_LAID: Final = 1 << 62
"""Added to the number of rows of a tile between the layout of its first event of a batch and
`mark_presence`: the tile's own number is that of former batches until then."""


@entry
def group_rows(
    event_entity: Int64Array,
    event_order: Int64Array,
    event_change: Int64Array,
    request_entity: Int64Array,
    request_order: Int64Array,
    request_as_of: Int64Array,
    due: Int64Array,
    stamps: Int64Array,
    batch_number: int,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Merge events and requests in order of time, and group them by entity.

    Args:
        event_entity: int64: the entity of each event.
        event_order: int64: the events to take, in order of change point.
        event_change: int64: the change point of each event.
        request_entity: int64: the entity of each request; a request of NOBODY is skipped.
        request_order: int64: the requests to take, in order of as_of.
        request_as_of: int64: the instant of each request.
        due: int64: entities that get a group even without rows.
        stamps: int64, per entity: scratch that is kept between calls.
        batch_number: A number that was never used with these stamps.

    Returns:
        The groups' entities; the start of each group in the codes, and the end of the last; the
        codes: the index of an event, or ``~index`` of a request.
    """
    n = event_order.shape[0] + request_order.shape[0]
    local_of = np.empty(n, np.int64)
    codes = np.empty(n, np.int64)
    group_entity = np.empty(n + due.shape[0], np.int64)
    count = np.zeros(n + due.shape[0] + 1, np.int64)
    groups = 0
    rows = 0
    i = 0
    j = 0
    shift = batch_number << 32
    while i < event_order.shape[0] or j < request_order.shape[0]:
        if j >= request_order.shape[0] or (
            i < event_order.shape[0]
            and event_change[event_order[i]] <= request_as_of[request_order[j]]
        ):
            code = event_order[i]
            entity = event_entity[code]
            i += 1
        else:
            code = ~request_order[j]
            entity = request_entity[request_order[j]]
            j += 1
            if entity == NOBODY:
                continue
        stamp = stamps[entity]
        if stamp >> 32 != batch_number:
            stamp = shift | groups
            stamps[entity] = stamp
            group_entity[groups] = entity
            groups += 1
        local = stamp & 0xFFFFFFFF
        local_of[rows] = local
        codes[rows] = code
        count[local + 1] += 1
        rows += 1
    for k in range(due.shape[0]):
        entity = due[k]
        if stamps[entity] >> 32 != batch_number:
            stamps[entity] = shift | groups
            group_entity[groups] = entity
            groups += 1
    for g in range(groups):
        count[g + 1] += count[g]
    starts = count[: groups + 1].copy()
    fill = starts.copy()
    grouped = np.empty(rows, np.int64)
    for r in range(rows):
        local = local_of[r]
        grouped[fill[local]] = codes[r]
        fill[local] += 1
    return group_entity[:groups], starts, grouped


@inner(forceinline=True)
def _ask(
    queries: Int64Array,
    q: int,
    as_of: int,
    request: int,
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
) -> None:
    """Write a query: the rows of tiles that each window covers as of ``as_of``."""
    low = entities[entity, START]
    high = low + entities[entity, LENGTH]
    queries[q, Q_AS_OF] = as_of
    queries[q, Q_REQUEST] = request
    queries[q, Q_ENTITY] = entity
    # Tiles after the hop of the last covered microsecond hold only later events.
    head = lower_bound(tiles, low, high, (as_of - 1) // hop_us + 1) - 1
    queries[q, Q_HEAD] = head
    high = head + 1
    for w in range(window_hops.shape[0]):
        # floor((t - n * h) / h) is floor(t / h) - n.
        high = lower_bound(tiles, low, high, as_of // hop_us - window_hops[w])
        queries[q, Q_TAILS + w] = high


@inner(forceinline=True)
def _boundary(tiles: Int64Array, row: int, hop_us: int, window: int) -> int:
    """Return the instant at which a tile leaves a window of so many hops."""
    return (tiles[row, HOP] + 1 + window) * hop_us


@inner
def _last_boundary(
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    until: int,
) -> int:
    """Return the last instant at or before ``until`` at which a tile left a window."""
    low = entities[entity, START]
    end = low + entities[entity, LENGTH]
    last = TIME_MIN
    for w in range(window_hops.shape[0]):
        at = lower_bound(tiles, low, end, until // hop_us - window_hops[w])
        if at > low:
            last = max(last, _boundary(tiles, at - 1, hop_us, window_hops[w]))
    return last


@inner(forceinline=True)
def _prefetch_group(
    g: int, group_entity: Int64Array, entities: Int64Array, tiles: Int64Array
) -> None:
    """Prefetch the entity of a later group, and the newest tile of a nearer one."""
    if g + 16 < group_entity.shape[0]:
        prefetch(row_address(entities, group_entity[g + 16], 0))
    if g + 8 < group_entity.shape[0]:
        ahead = group_entity[g + 8]
        newest = entities[ahead, START] + entities[ahead, LENGTH] - 1
        prefetch(row_address(tiles, newest, 0))


@inner(forceinline=True)
def _oldest_hop(change: int, hop_us: int, window_hops: Int64Array) -> int:
    """Return the oldest hop that a window still covers at a change point."""
    return change // hop_us - window_hops[-1]


@inner(forceinline=True)
def _find_hops(
    codes: Int64Array,
    low: int,
    high: int,
    event_time: Int64Array,
    event_change: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    hops: Int64Array,
) -> tuple[int, int]:
    """Write the distinct hops of a group's events into ``hops``, without those of expired events.

    They are ascending, also where events count in another order than that of their times.

    Returns:
        The number of events, and the number of hops.
    """
    n_events = 0
    n_hops = 0
    ascending = True
    for r in range(low, high):
        code = codes[r]
        if code >= 0:
            n_events += 1
            hop = event_time[code] // hop_us
            if hop >= _oldest_hop(event_change[code], hop_us, window_hops) and (
                n_hops == 0 or hop != hops[n_hops - 1]
            ):
                ascending &= n_hops == 0 or hop > hops[n_hops - 1]
                hops[n_hops] = hop
                n_hops += 1
    if not ascending:
        hops[:n_hops].sort()
        distinct = 1
        for i in range(1, n_hops):
            if hops[i] != hops[distinct - 1]:
                hops[distinct] = hops[i]
                distinct += 1
        n_hops = distinct
    return n_events, n_hops


@inner
def _publish(
    as_of: int,
    changed: int,
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    filled: Int64Array,
) -> None:
    """Append a publication of an entity as of ``as_of``; there is room."""
    q = filled[1]
    _ask(queries, q, as_of, -1, entities, entity, tiles, hop_us, window_hops)
    queries[q, Q_CHANGED] = changed
    queries[q, Q_REVISION] = entities[entity, REVISION]
    step_row[filled[0]] = -1
    step_at[filled[0]] = q
    filled[0] += 1
    filled[1] += 1


@inner
def _publish_before(
    key: int,
    event: int,
    leaving: Int64Array,
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    filled: Int64Array,
) -> int:
    """Publish an entity at each of its change points before ``key``.

    ``event`` is the change point of the last event, or `_NONE` once it is published, and is
    returned. ``leaving``, per window the row of the tile that leaves it next, is updated. A tile
    whose events all count later changes nothing when it leaves.
    """
    end = entities[entity, START] + entities[entity, LENGTH]
    while True:
        instant = event
        for w in range(window_hops.shape[0]):
            if leaving[w] < end:
                instant = min(instant, _boundary(tiles, leaving[w], hop_us, window_hops[w]))
        if instant >= key:
            return event
        changes = event == instant
        for w in range(window_hops.shape[0]):
            if leaving[w] < end and tiles[leaving[w], ROWS]:
                changes |= _boundary(tiles, leaving[w], hop_us, window_hops[w]) == instant
        if changes:
            entities[entity, CHANGED] = instant
            _publish(
                instant,
                instant,
                entities,
                entity,
                tiles,
                hop_us,
                window_hops,
                step_row,
                step_at,
                queries,
                filled,
            )
        if event == instant:
            event = _NONE
        for w in range(window_hops.shape[0]):
            if leaving[w] < end:
                leaving[w] += _boundary(tiles, leaving[w], hop_us, window_hops[w]) == instant


@inner(forceinline=True)
def _lay_out_rows(
    codes: Int64Array,
    low: int,
    high: int,
    event_time: Int64Array,
    event_change: Int64Array,
    request_as_of: Int64Array,
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    every: bool,
    since: int,
    until: int,
    leaving: Int64Array,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    filled: Int64Array,
) -> None:
    """Append the steps of a group's rows and, with ``every``, of its publications."""
    start = entities[entity, START]
    end = start + entities[entity, LENGTH]
    event = _NONE
    if every:
        for w in range(window_hops.shape[0]):
            leaving[w] = lower_bound(tiles, start, end, since // hop_us - window_hops[w])
    at = start
    for r in range(low, high + 1):
        code = 0
        # After the last row, publish at the boundaries up to the frontier.
        key = until + 1
        if r < high:
            code = codes[r]
            key = event_change[code] if code >= 0 else request_as_of[~code]
        if every:
            event = _publish_before(
                key,
                event,
                leaving,
                entities,
                entity,
                tiles,
                hop_us,
                window_hops,
                step_row,
                step_at,
                queries,
                filled,
            )
        if r == high:
            break
        step = filled[0]
        filled[0] += 1
        if code >= 0:
            event = key
            entities[entity, REVISION] += 1
            entities[entity, CHANGED] = max(entities[entity, CHANGED], key)
            step_row[step] = code
            hop = event_time[code] // hop_us
            if hop < _oldest_hop(key, hop_us, window_hops):
                step_at[step] = -1
            else:
                if tiles[at, HOP] != hop:
                    at = lower_bound(tiles, start, end, hop)
                step_at[step] = at
                tiles[at, ROWS] |= _LAID
        else:
            _ask(queries, filled[1], key, ~code, entities, entity, tiles, hop_us, window_hops)
            step_row[step] = -1
            step_at[step] = filled[1]
            filled[1] += 1


@inner
def _close_group(
    has_events: bool,
    publish: int,
    since: int,
    until: int,
    entities: Int64Array,
    entity: int,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    filled: Int64Array,
) -> None:
    """Record the last boundary up to ``until``, and publish the newest values if required."""
    boundary = _last_boundary(entities, entity, tiles, hop_us, window_hops, until)
    changes = has_events
    if boundary > since:
        entities[entity, CHANGED] = max(entities[entity, CHANGED], boundary)
        changes = True
    if publish == PUBLISH_ALL or (publish == PUBLISH_NEWEST and changes):
        _publish(
            until,
            entities[entity, CHANGED],
            entities,
            entity,
            tiles,
            hop_us,
            window_hops,
            step_row,
            step_at,
            queries,
            filled,
        )


@entry
def lay_out(
    group: int,
    group_entity: Int64Array,
    group_start: Int64Array,
    codes: Int64Array,
    event_time: Int64Array,
    event_change: Int64Array,
    request_as_of: Int64Array,
    entities: Int64Array,
    tiles: Int64Array,
    tile_meta: Int64Array,
    template: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
    publish: int,
    tracks: bool,
    since: int,
    until: int,
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    filled: Int64Array,
) -> int:
    """Lay out the groups from ``group`` on.

    Args:
        group: The first group to lay out.
        group_entity: The groups' entities, as `group_rows` returned them.
        group_start: The start of each group in the codes.
        codes: The groups' events and requests.
        event_time: int64: the time of each event.
        event_change: int64: its change point.
        request_as_of: int64: the instant of each request.
        entities: The state's entities.
        tiles: The state's tiles.
        tile_meta: The bookkeeping of their pool.
        template: An empty tile.
        hop_us: The hop.
        window_hops: The windows, in hops, ascending.
        publish: ``PUBLISH_...``.
        tracks: Whether to keep each entity's last change point.
        since: The frontier before this batch: boundaries in ``(since, until]`` belong to the batch.
        until: The frontier after this batch.
        step_row: Receives, per step, the event's index, or -1 for a query.
        step_at: Receives, per step, the event's tile row (-1: expired), or the query's index.
        queries: Receives the queries (columns ``Q_...``).
        filled: int64, ``(2,)``: the numbers of steps and of queries, over all calls.

    Returns:
        The next group to lay out. It is less than the number of groups if there is no room for it
        (tiles, steps or queries): the caller grows all three and calls again.
    """
    hops = np.empty(codes.shape[0], np.int64)
    leaving = np.empty(window_hops.shape[0], np.int64)
    for g in range(group, group_entity.shape[0]):
        _prefetch_group(g, group_entity, entities, tiles)
        entity = group_entity[g]
        low, high = group_start[g], group_start[g + 1]
        n_events, n_hops = _find_hops(
            codes, low, high, event_time, event_change, hop_us, window_hops, hops
        )
        publications = 0
        if publish == PUBLISH_NEWEST or publish == PUBLISH_ALL:
            publications = 1
        elif publish == PUBLISH_EVERY:
            publications = n_events + (entities[entity, LENGTH] + n_hops) * window_hops.shape[0]
        rows = high - low
        if (
            filled[0] + rows + publications > step_row.shape[0]
            or filled[1] + rows - n_events + publications > queries.shape[0]
        ):
            return g
        if n_hops and not make_tiles(entities, entity, tiles, tile_meta, template, hops, n_hops):
            return g
        _lay_out_rows(
            codes,
            low,
            high,
            event_time,
            event_change,
            request_as_of,
            entities,
            entity,
            tiles,
            hop_us,
            window_hops,
            publish == PUBLISH_EVERY,
            since,
            until,
            leaving,
            step_row,
            step_at,
            queries,
            filled,
        )
        if tracks:
            _close_group(
                n_events > 0,
                publish,
                since,
                until,
                entities,
                entity,
                tiles,
                hop_us,
                window_hops,
                step_row,
                step_at,
                queries,
                filled,
            )
    return group_entity.shape[0]


@entry
def mark_presence(
    step_row: Int64Array,
    step_at: Int64Array,
    queries: Int64Array,
    tiles: Int64Array,
    hop_us: int,
    window_hops: Int64Array,
) -> None:
    """Count the rows of tiles, and write the ``valid_until`` of each publication.

    A publication is valid until the first boundary at which a tile *with rows* leaves a window. A
    tile that the batch has laid out, but whose events come later, does not count.
    """
    for i in range(step_row.shape[0]):
        at = step_at[i]
        if step_row[i] >= 0:
            if at >= 0:
                tiles[at, ROWS] = (tiles[at, ROWS] & ~_LAID) + 1
        elif queries[at, Q_REQUEST] == -1:
            until = TIME_MAX
            for w in range(window_hops.shape[0]):
                for row in range(queries[at, Q_TAILS + w], queries[at, Q_HEAD] + 1):
                    if tiles[row, ROWS] & ~_LAID:
                        until = min(until, _boundary(tiles, row, hop_us, window_hops[w]))
                        break
            queries[at, Q_VALID_UNTIL] = until
