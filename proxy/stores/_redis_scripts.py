"""The scripts that Redis runs in one step. Each has its keys first, then its arguments.

Source: https://redis.io/docs/latest/commands/eval/
"""

import hashlib

_USED = """
local found = redis.call('HMGET', KEYS[1], 'used', 'window')
local used = tonumber(found[1] or '0')
if not found[1] and redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.error_reply('WRONGTYPE the key does not hold a counter')
end
"""
TAKE = f"""{_USED}
local amount, limit, window = tonumber(ARGV[1]), tonumber(ARGV[2]), found[2]
local granted = math.max(0, math.min(amount, limit - used))
if ARGV[3] == '1' and granted < amount then granted = 0 end
if not window then
  if granted == 0 then return {{0, 0, '0', tonumber(ARGV[4])}} end
  window = ARGV[5]
  redis.call('HSET', KEYS[1], 'used', '0', 'window', window)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
if granted > 0 then used = redis.call('HINCRBY', KEYS[1], 'used', granted) end
return {{granted, used, window, redis.call('PTTL', KEYS[1])}}
"""
GIVE = f"""{_USED}
if found[2] == ARGV[2] then redis.call('HSET', KEYS[1], 'used', math.max(0, used - tonumber(ARGV[1]))) end
return 0
"""
_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function set_used() redis.call('HSET', KEYS[1], 'used', string.format('%.0f', used)) end
"""
# What a holder has not settled is in a field of its own: "h" and its name; how much, and the time at which its lease
# ends. It is freed when its room is needed.
RESERVE = f"""{_USED}{_NOW}
local amount, limit, window = tonumber(ARGV[1]), tonumber(ARGV[2]), found[2]
if window and amount > limit - used then
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 1) == 'h' then
      local held, ends = string.match(fields[i + 1], '(%d+) (%d+)')
      if tonumber(ends) <= now then
        used = math.max(0, used - tonumber(held))
        redis.call('HDEL', KEYS[1], fields[i])
      end
    end
  end
  set_used()
end
if amount > limit - used then amount = 0 end
if not window then
  if amount == 0 then return {{0, 0, '0', tonumber(ARGV[3])}} end
  window = ARGV[4]
  redis.call('HSET', KEYS[1], 'used', '0', 'window', window)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
if amount > 0 then
  used = redis.call('HINCRBY', KEYS[1], 'used', amount)
  local holder = 'h' .. ARGV[5]
  local held = string.match(redis.call('HGET', KEYS[1], holder) or '', '^%d+') or '0'
  redis.call('HSET', KEYS[1], holder, string.format('%.0f %.0f', tonumber(held) + amount, now + tonumber(ARGV[6])))
end
return {{amount, used, window, redis.call('PTTL', KEYS[1])}}
"""
SETTLE = f"""{_USED}{_NOW}
if found[2] ~= ARGV[3] then return 0 end
local holder, reserved = 'h' .. ARGV[4], tonumber(ARGV[2])
local held, ends = string.match(redis.call('HGET', KEYS[1], holder) or '', '(%d+) (%d+)')
if held and tonumber(held) >= reserved then
  used = math.max(0, used - reserved)
  if tonumber(held) == reserved then redis.call('HDEL', KEYS[1], holder)
  else redis.call('HSET', KEYS[1], holder, string.format('%.0f %s', tonumber(held) - reserved, ends)) end
end
used = used + tonumber(ARGV[1])
set_used()
return 0
"""
APPEND = """
local position = redis.call('XLEN', KEYS[1]) + 1
redis.call('XADD', KEYS[1], string.format('%d-0', position), 'v', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return position
"""
# A tally is a hash: "t" marks it, "s" and the name of a source is the number of its last batch, "r" and the name of a
# row is its numbers. No field of a counter or a lease begins with these letters.
ADD = """
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HEXISTS', KEYS[1], 't') == 0 then
  return redis.error_reply('WRONGTYPE the key does not hold a tally')
end
local source = 's' .. ARGV[1]
if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[1], source) or '0') then return 0 end
redis.call('HSET', KEYS[1], 't', '1', source, ARGV[2])
for i = 4, #ARGV, 2 do
  local field, sums, position = 'r' .. ARGV[i], {}, 0
  for number in string.gmatch(redis.call('HGET', KEYS[1], field) or '', '%d+') do sums[#sums + 1] = tonumber(number) end
  for number in string.gmatch(ARGV[i + 1], '%d+') do
    position = position + 1
    sums[position] = (sums[position] or 0) + tonumber(number)
  end
  for each, sum in ipairs(sums) do sums[each] = string.format('%.0f', sum) end
  redis.call('HSET', KEYS[1], field, table.concat(sums, ' '))
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
_OWNER = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner and redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.error_reply('WRONGTYPE the key does not hold a lease')
end
"""
CLAIM = f"""{_OWNER}
if owner and owner ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
RELEASE = f"""{_OWNER}
if owner == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""
# A value in pieces: its mark, how long it is kept, whether only under a free key, the key of the pieces so far, and the
# one that they get. Both have the slot of the key itself.
FINISH = """
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('UNLINK', ARGV[4])
  return 0
end
redis.call('UNLINK', ARGV[5])
redis.call('RENAME', ARGV[4], ARGV[5])
redis.call('PEXPIRE', ARGV[5], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
DIGESTS = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (TAKE, GIVE, RESERVE, SETTLE, APPEND, ADD, CLAIM, RELEASE, FINISH)
}
