"""The scripts: one that writes some rows of a shard, and one that reads rows of several views.

A script runs alone in Redis: what it finds cannot change before it ends. Layouts:
`serving.online.redis.rows`.

**Write** decides first, about everything, and writes last: a refusal has written nothing.
``KEYS``: the key space's record, its frontiers, then a key for each row. ``ARGV``: the shard (empty
where no frontier is known), the shard count, the frontier that must have been reached (empty for
none), the frontier reached (empty where more rows of the parcel follow), then a row for each key.
It answers how many rows were written, or a refusal: ``{"space"}``, ``{"shards", found}``,
``{"lost", found or false}``, ``{"conflict", number of the row from 1, found}``.

**Read** is no transaction (``MULTI``), because a Redis whose memory is full takes none. ``KEYS``:
for each key space its record, its frontiers and the keys of its rows; ``ARGV``: for each key space
the number of these rows. It answers for each key space the record, the frontiers, and the rows in
lists of `ROWS_A_LIST`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from tidemill.serving.online.redis.connections import Command

ROWS_A_LIST: Final = 1_000
"""How many keys one command of a script is given; a Lua stack holds 8,000 values."""

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
local stands = false
if shard ~= '' then
  if space[2] and space[2] ~= shard_count then return {'shards', space[2]} end
  stands = redis.call('HGET', KEYS[2], shard)
  if since ~= '' and (not stands or earlier(stands, since)) then return {'lost', stands} end
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
  if not stands or earlier(stands, frontier) then
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
    """Return the call of the script that writes; a server may have forgotten it."""
    return ("EVALSHA", _WRITE_NAME, len(keys), *keys, *arguments)


def read_command(keys: Sequence[str | bytes], counts: Sequence[int]) -> Command:
    """Return the call of the script that reads; a server may have forgotten it."""
    return ("EVALSHA", _READ_NAME, len(keys), *keys, *counts)


def with_source(command: Command) -> Command:
    """Return the same call with the script itself, which the server then remembers."""
    return ("EVAL", _SOURCES[str(command[1])], *command[2:])
