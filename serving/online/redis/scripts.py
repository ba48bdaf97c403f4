"""The scripts: each is one atomic step, because Redis runs nothing else until a script ends.

`serving.online.redis.rows` defines the layouts. Each script decides about everything first, and
writes last: a refusal, a list that begins with its kind, has written nothing.

**Write** writes a parcel, or a stock client's rows. ``KEYS``: the fill's record, its parts, the
name of the current fill, then a key for each row. ``ARGV``: the writer's token (empty for a stock
client), part, shards, slices, attempt (empty for the one that stands), the marks that it may build
on (empty for none), mark, frontier (empty if more chunks follow), ``1`` if the writer knows the
fill as current, the fill's id, then each key's row. It returns the number of rows written.

**Read** reads rows of the current fills of several key spaces. ``KEYS``: for each the name of the
current fill, its parts and the keys of its rows. ``ARGV``: for each the id that the reader knows
and the number of rows. It returns for each key space the parts, and the rows in lists of
`ROWS_A_LIST`; or ``moved``, if an id is not the present one, with the present records of all key
spaces. It is not a transaction (``MULTI``), because a Redis whose memory is full refuses them.

**Create** makes a key space, or brings it to the present layout. **Restore** makes lost records
again. **Take** takes a token, **switch** moves readers, **withdraw** takes a part's frontier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from tidemill.serving.online.fills import LAYOUT
from tidemill.serving.online.redis.connections import Command

ROWS_A_LIST: Final = 1_000
"""Keys per command of a script; a Lua stack holds 8,000 values."""

# Numbers of 64 bits are compared as two of 32, because Lua has none, and compares strings by the
# server's locale.
_COMMON: Final = """
local unpack_numbers = struct.unpack
local NONE = string.rep('\\0', 32)

local function earlier(a, b)
  local a1, a2 = unpack_numbers('>I4I4', a)
  local b1, b2 = unpack_numbers('>I4I4', b)
  if a1 ~= b1 then return a1 < b1 end
  return a2 < b2
end

local function number(token)
  if token == '' then return 0 end
  local found = unpack_numbers('>I4', token)
  return found
end
"""

_WRITE: Final = (
    _COMMON
    + f"""
local token, marks_before, mark, frontier = ARGV[1], ARGV[6], ARGV[7], ARGV[8]
local LAYOUT, STEP, HEADER = '{LAYOUT}', {ROWS_A_LIST}, 10
"""
    + """
local function is_before(stands)
  for at = 1, #marks_before, 16 do
    if string.sub(marks_before, at, at + 15) == stands then return true end
  end
  return false
end

local fill = redis.call('HMGET', KEYS[1], 'layout', 'token', 'state', 'shards', 'slices')
local stood, header
if token == '' then
  if redis.call('GET', KEYS[3]) ~= ARGV[10] then return {'moved'} end
else
  if fill[1] ~= LAYOUT then return {'fill', fill[1]} end
  if fill[2] ~= token then
    if fill[3] ~= 'past' and number(fill[2]) < number(token) then return {'token'} end
    return {'superseded'}
  end
  if fill[4] ~= ARGV[3] or fill[5] ~= ARGV[4] then return {'parts', fill[4], fill[5]} end
  if ARGV[9] == '1' and fill[3] ~= 'current' then return {'unread'} end
  if frontier == '' and fill[3] ~= 'filling' then return {'read'} end
  local at = 32 * tonumber(ARGV[2])
  stood = redis.call('GETRANGE', KEYS[2], at, at + 31)
  if #stood < 32 then stood = NONE end
  local attempt = tonumber(ARGV[5]) or 0
  if string.sub(stood, 25, 28) == string.sub(token, 1, 4) then
    local standing = unpack_numbers('>I4', string.sub(stood, 29, 32))
    if ARGV[5] == '' then attempt = standing end
    if standing > attempt then return {'attempt', standing} end
  end
  header = string.sub(token, 1, 4) .. struct.pack('>I4', attempt)
  local has_later = frontier ~= '' and earlier(frontier, stood)
  local stands = string.sub(stood, 9, 24)
  local is_repeat = stands == mark and marks_before ~= ''
  if is_repeat or (has_later and not is_before(stands)) then
    if string.sub(stood, 25, 32) ~= header then
      redis.call('SETRANGE', KEYS[2], at + 24, header)
    end
    return 0
  end
  if marks_before ~= '' then
    if not is_before(stands) then return {'lost', stood} end
    if has_later then return {'backwards', stood} end
  end
end

local wins, n = {}, 0
for first = 4, #KEYS, STEP do
  local last = math.min(first + STEP - 1, #KEYS)
  local found = redis.call('MGET', unpack(KEYS, first, last))
  for i = first, last do
    local old, new = found[i - first + 1], ARGV[i - 3 + HEADER]
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
      else return {'conflict', i - 3, old}
      end
    end
    if newer then
      wins[n + 1] = KEYS[i]
      wins[n + 2] = new
      n = n + 2
    end
  end
end

for first = 1, n, 2 * STEP do
  redis.call('MSET', unpack(wins, first, math.min(first + 2 * STEP - 1, n)))
end
if token ~= '' then
  local reached = frontier
  if reached == '' then reached = string.sub(NONE, 1, 8) end
  redis.call('SETRANGE', KEYS[2], 32 * tonumber(ARGV[2]), reached .. mark .. header)
end
return n / 2
"""
)

_READ: Final = f"""
local at = 1
for i = 1, #ARGV, 2 do
  if redis.call('GET', KEYS[at]) ~= ARGV[i] then
    local out, place = {{'moved'}}, 1
    for j = 1, #ARGV, 2 do
      local id = redis.call('GET', KEYS[place])
      local name = string.sub(KEYS[place], #'tm:current:' + 1)
      local found = {{}}
      if id then
        found = redis.call('HMGET', 'tm:fill:' .. id, 'layout', 'shards', 'slices')
        found[4] = id
      elseif redis.call('HEXISTS', 'tm:space:' .. name, 'id') == 1 then
        found = {{'1'}}
      end
      out[#out + 1] = found
      place = place + 2 + tonumber(ARGV[j + 1])
    end
    return out
  end
  at = at + 2 + tonumber(ARGV[i + 1])
end
local out
out, at = {{}}, 1
for i = 1, #ARGV, 2 do
  out[#out + 1] = redis.call('GET', KEYS[at + 1])
  at = at + 2
  local stop = at + tonumber(ARGV[i + 1])
  while at < stop do
    local next = math.min(at + {ROWS_A_LIST}, stop)
    out[#out + 1] = redis.call('MGET', unpack(KEYS, at, next - 1))
    at = next
  end
end
return out
"""

# KEYS: list of key spaces, current, fills, old record, old frontiers. ARGV: name, id, old id, then
# the fields of the fill.
_CREATE: Final = """
redis.call('SADD', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local old = redis.call('HMGET', KEYS[4], 'id', 'shard_count')
local id, shards = ARGV[2], '0'
if old[1] then
  id = ARGV[3]
  shards = old[2] or '0'
  local found = redis.call('HGETALL', KEYS[5])
  for i = 1, #found, 2 do
    redis.call('SETRANGE', 'tm:parts:' .. id, 32 * tonumber(found[i]),
      found[i + 1] .. string.rep('\\0', 24))
  end
end
redis.call('HSET', 'tm:fill:' .. id, 'shards', shards, 'state', 'current', unpack(ARGV, 4))
redis.call('SADD', KEYS[3], id)
redis.call('SET', KEYS[2], id)
redis.call('DEL', KEYS[4], KEYS[5])
return 1
"""

# KEYS: the list of key spaces, the fill's record, current, fills. ARGV: name, id, token, root,
# holder, then the fields of the fill.
_RESTORE: Final = (
    _COMMON
    + """
local fill = redis.call('HMGET', KEYS[2], 'layout', 'token', 'state')
if not fill[1] then
  redis.call('SADD', KEYS[1], ARGV[1])
  redis.call('SADD', KEYS[4], ARGV[2])
  local state = 'filling'
  if redis.call('EXISTS', KEYS[3]) == 0 then
    state = 'current'
    redis.call('SET', KEYS[3], ARGV[2])
  end
  redis.call('HSET', KEYS[2], 'state', state, 'token', ARGV[3], 'root', ARGV[4], 'holder', ARGV[5],
    unpack(ARGV, 6))
elseif fill[3] ~= 'past' and number(fill[2]) < number(ARGV[3]) then
  redis.call('HSET', KEYS[2], 'token', ARGV[3], 'root', ARGV[4], 'holder', ARGV[5])
end
local highest = tonumber(redis.call('GET', 'tm:token') or '0')
if highest < number(ARGV[3]) then redis.call('SET', 'tm:token', number(ARGV[3])) end
return 0
"""
)

# KEYS: the highest token, then the records of the fills. ARGV: root, holder, random bytes, 1 to
# take over, then generation and mode of each fill.
_TAKE: Final = (
    _COMMON
    + f"local LAYOUT = '{LAYOUT}'\n"
    + """
local highest = tonumber(redis.call('GET', KEYS[1]) or '0')
for i = 2, #KEYS do
  local fill = redis.call('HMGET', KEYS[i], 'layout', 'state', 'token', 'root')
  if fill[1] ~= LAYOUT then return {'fill', i - 1, fill[1]} end
  if fill[2] == 'past' then return {'past', i - 1} end
  if fill[4] ~= '' and fill[4] ~= ARGV[1] and ARGV[4] ~= '1' then return {'held', i - 1} end
  highest = math.max(highest, number(fill[3]))
end
highest = highest + 1
redis.call('SET', KEYS[1], highest)
for i = 2, #KEYS do
  redis.call('HSET', KEYS[i], 'token', struct.pack('>I4', highest) .. ARGV[3], 'root', ARGV[1],
    'holder', ARGV[2], 'generation', ARGV[2 * i + 1], 'mode', ARGV[2 * i + 2])
end
return highest
"""
)

# KEYS: the highest token, then for each fill its record, its parts, current. ARGV: token, root,
# holder, 1 to take over, random bytes, then the ids of the fills.
_SWITCH: Final = (
    _COMMON
    + f"local LAYOUT = '{LAYOUT}'\n"
    + """
local function frontier(parts, part)
  local found = string.sub(parts, 32 * part + 1, 32 * part + 8)
  if #found < 8 then return string.sub(NONE, 1, 8) end
  return found
end

local function limit(parts, first, stop, wanted_earlier)
  local best, at
  for part = first, stop - 1 do
    local found = frontier(parts, part)
    if not best or (wanted_earlier and earlier(found, best))
      or (not wanted_earlier and earlier(best, found)) then best, at = found, part end
  end
  return best or string.sub(NONE, 1, 8), at or 0
end

local switched = {}
local highest = tonumber(redis.call('GET', KEYS[1]) or '0')
for i = 1, (#KEYS - 1) / 3 do
  local id, at = ARGV[5 + i], 3 * i - 1
  local fill = redis.call('HMGET', KEYS[at], 'layout', 'token', 'state', 'shards', 'slices')
  if fill[1] ~= LAYOUT then return {'fill', i, fill[1]} end
  if fill[2] ~= ARGV[1] then
    if fill[3] ~= 'past' and number(fill[2]) < number(ARGV[1]) then return {'token', i} end
    return {'superseded', i}
  end
  highest = math.max(highest, number(fill[2]))
  local now = redis.call('GET', KEYS[at + 2])
  if not now then return {'space', i} end
  if now ~= id then
    local old = redis.call('HMGET', 'tm:fill:' .. now, 'token', 'root', 'shards', 'slices')
    if old[2] ~= '' and old[2] ~= ARGV[2] and ARGV[4] ~= '1' then return {'held', i, now} end
    highest = math.max(highest, number(old[1]))
    local mine = redis.call('GET', KEYS[at + 1]) or ''
    local theirs = redis.call('GET', 'tm:parts:' .. now) or ''
    local shards, slices = tonumber(fill[4]), tonumber(fill[5])
    local old_shards, old_slices = tonumber(old[3]), tonumber(old[4])
    local groups, per, old_per = 1, shards * slices, old_shards * old_slices
    if shards == old_shards then
      groups, per, old_per = shards, slices, old_slices
      if slices == old_slices then groups, per, old_per = shards * slices, 1, 1 end
    end
    for group = 0, groups - 1 do
      local shown = limit(theirs, group * old_per, (group + 1) * old_per, false)
      local least, part = limit(mine, group * per, (group + 1) * per, true)
      if earlier(least, shown) then
        return {'behind', i, math.floor(part / slices), least, shown}
      end
    end
    switched[#switched + 1] = {id, now, KEYS[at], KEYS[at + 2]}
  end
end
if #switched > 0 then redis.call('SET', KEYS[1], highest + 1) end
for _, one in ipairs(switched) do
  redis.call('HSET', 'tm:fill:' .. one[2], 'state', 'past', 'token',
    struct.pack('>I4', highest + 1) .. ARGV[5], 'root', ARGV[2], 'holder', ARGV[3])
  redis.call('HSET', one[3], 'state', 'current')
  redis.call('SET', one[4], one[1])
end
local out = {}
for _, one in ipairs(switched) do out[#out + 1] = one[2] end
return {'switched', out}
"""
)

# KEYS: the fill's record, its parts. ARGV: token, part, mark, frontier (zeros for none).
_WITHDRAW: Final = (
    _COMMON
    + """
local fill = redis.call('HMGET', KEYS[1], 'layout', 'token', 'state')
if not fill[1] then return {'fill', fill[1]} end
if fill[2] ~= ARGV[1] then
  if fill[3] ~= 'past' and number(fill[2]) < number(ARGV[1]) then return {'token'} end
  return {'superseded'}
end
local at = 32 * tonumber(ARGV[2])
local stood = redis.call('GETRANGE', KEYS[2], at, at + 31)
if #stood < 32 then stood = NONE end
if string.sub(stood, 1, 24) == ARGV[4] .. ARGV[3] then
  redis.call('SETRANGE', KEYS[2], at, string.sub(NONE, 1, 24))
end
return 0
"""
)

# Redis names a script by the SHA-1 of its source.
_SOURCES: Final = {
    hashlib.sha1(text.encode()).hexdigest(): text
    for text in (_WRITE, _READ, _CREATE, _RESTORE, _TAKE, _SWITCH, _WITHDRAW)
}
_WRITE_NAME, _READ_NAME, _CREATE_NAME, _RESTORE_NAME, _TAKE_NAME, _SWITCH_NAME, _WITHDRAW_NAME = (
    _SOURCES
)

Texts = Sequence[str | bytes | int]


def write_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that writes; the server may have lost the script."""
    return ("EVALSHA", _WRITE_NAME, len(keys), *keys, *arguments)


def read_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that reads."""
    return ("EVALSHA", _READ_NAME, len(keys), *keys, *arguments)


def create_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that makes a key space."""
    return ("EVALSHA", _CREATE_NAME, len(keys), *keys, *arguments)


def restore_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that makes lost records again."""
    return ("EVALSHA", _RESTORE_NAME, len(keys), *keys, *arguments)


def take_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that takes a token."""
    return ("EVALSHA", _TAKE_NAME, len(keys), *keys, *arguments)


def switch_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that moves readers."""
    return ("EVALSHA", _SWITCH_NAME, len(keys), *keys, *arguments)


def withdraw_command(keys: Texts, arguments: Texts) -> Command:
    """Return the call of the script that takes a part's frontier."""
    return ("EVALSHA", _WITHDRAW_NAME, len(keys), *keys, *arguments)


def with_source(command: Command) -> Command:
    """Return the same call with the source of the script, which the server then keeps."""
    return ("EVAL", _SOURCES[str(command[1])], *command[2:])
