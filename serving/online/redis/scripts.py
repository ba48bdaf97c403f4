"""The scripts: one writes some rows of a shard, and one reads rows of several views.

A script runs alone in Redis: the data cannot change until it ends. `serving.online.redis.rows`
defines the layouts.

**Write** decides about everything first, and writes last: a refusal has written nothing. ``KEYS``:
the key space's record, its frontiers, then a key for each row. ``ARGV``: the shard (empty for
unknown), the shard count, the frontier that must have been reached (empty for none), the frontier
reached (empty if more rows of the parcel follow), then each key's row. It returns the number of
rows written, or a refusal: ``{"space"}``, ``{"shards", found}``, ``{"lost", found or false}``,
``{"conflict", number of the row from 1, found}``.

**Read** is not a transaction (``MULTI``), because a Redis whose memory is full refuses them.
``KEYS``: for each key space its record, its frontiers and the keys of its rows; ``ARGV``: for each
key space the number of these rows. It returns for each key space the record, the frontiers, and the
rows in lists of `ROWS_A_LIST`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from tidemill.serving.online.redis.connections import Command

ROWS_A_LIST: Final = 1_000
"""Keys per command of a script; a Lua stack holds 8,000 values."""

_WRITE: Final = """
local shard, shard_count, since, frontier = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local unpack_numbers = struct.unpack

local function earlier(a, b)
  local a1, a2 = unpack_numbers('>I4I4', a)
  local b1, b2 = unpack_numbers('>I4I4', b)
  if a1 ~= b1 then return a1 < b1 end
  return a2 < b2
end

local space = redis.call('HMGET', KEYS[1], 'id', 'shard_count')
if not space[1] then return {'space'} end
local reached = false
if shard ~= '' then
  if space[2] and space[2] ~= shard_count then return {'shards', space[2]} end
  reached = redis.call('HGET', KEYS[2], shard)
  if since ~= '' and (not reached or earlier(reached, since)) then return {'lost', reached} end
end

local wins, n = {}, 0
local rows = #KEYS - 2
if rows > 0 then
  local found = redis.call('MGET', unpack(KEYS, 3))
  for i = 1, rows do
    local old, new = found[i], ARGV[i + 4]
    local newer = true
    if old == new then
      newer = false
    elseif old then
      local o1, o2, o3, o4 = unpack_numbers('>I4I4I4I4', old)
      local n1, n2, n3, n4 = unpack_numbers('>I4I4I4I4', new)
      if n1 ~= o1 then newer = n1 > o1
      elseif n2 ~= o2 then newer = n2 > o2
      elseif n3 ~= o3 then newer = n3 > o3
      elseif n4 ~= o4 then newer = n4 > o4
      elseif string.sub(old, 17, 24) == string.sub(new, 17, 24)
        and string.sub(old, 29) == string.sub(new, 29) then newer = false
      else return {'conflict', i, old}
      end
    end
    if newer then
      wins[n + 1] = KEYS[i + 2]
      wins[n + 2] = new
      n = n + 2
    end
  end
end

if n > 0 then redis.call('MSET', unpack(wins)) end
if frontier ~= '' then
  if not reached or earlier(reached, frontier) then
    redis.call('HSET', KEYS[2], shard, frontier)
  end
  if not space[2] then redis.call('HSET', KEYS[1], 'shard_count', shard_count) end
end
return n / 2
"""

_READ: Final = f"""
local out, at = {{}}, 1
for i = 1, #ARGV do
  out[#out + 1] = redis.call('HMGET', KEYS[at], 'id', 'shard_count')
  out[#out + 1] = redis.call('HGETALL', KEYS[at + 1])
  at = at + 2
  local stop = at + tonumber(ARGV[i])
  while at < stop do
    local next = math.min(at + {ROWS_A_LIST}, stop)
    out[#out + 1] = redis.call('MGET', unpack(KEYS, at, next - 1))
    at = next
  end
end
return out
"""

# Redis names a script by the SHA-1 of its source.
_SOURCES: Final = {hashlib.sha1(text.encode()).hexdigest(): text for text in (_WRITE, _READ)}
_WRITE_NAME, _READ_NAME = _SOURCES


def write_command(keys: Sequence[str | bytes], arguments: Sequence[str | bytes | int]) -> Command:
    """Return the call of the script that writes; the server may have lost the script."""
    return ("EVALSHA", _WRITE_NAME, len(keys), *keys, *arguments)


def read_command(keys: Sequence[str | bytes], counts: Sequence[int]) -> Command:
    """Return the call of the script that reads; the server may have lost the script."""
    return ("EVALSHA", _READ_NAME, len(keys), *keys, *counts)


def with_source(command: Command) -> Command:
    """Return the same call with the source of the script, which the server then keeps."""
    return ("EVAL", _SOURCES[str(command[1])], *command[2:])
