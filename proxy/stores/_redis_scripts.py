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
"""
# What a holder holds is in a field of its own: "h" and its name; how much, the time at which its lease ends, and the
# number of its last command. It is freed when its room is needed.
HOLD = f"""{_USED}{_NOW}
local number, kept, spent, owed = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local more, spare, parts, limit = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local window, field, held = found[2], 'h' .. ARGV[12], 0
local before = window and redis.call('HGET', KEYS[1], field)
if before then
  local amount, ends, last = string.match(before, '(%d+) (%d+) ?(%d*)')
  held = tonumber(amount)
  if number <= (tonumber(last) or 0) then return {{held, used, window, redis.call('PTTL', KEYS[1])}} end
end
if window ~= ARGV[2] then kept, spent = 0, 0 end
used = math.max(0, used - held) + spent + owed
local is_short = more > limit - used - kept
if window and (is_short or not before) then
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 1) == 'h' and fields[i] ~= field then
      local amount, ends = string.match(fields[i + 1], '(%d+) (%d+)')
      if tonumber(ends) <= now and (is_short or amount == '0') then
        used = math.max(0, used - tonumber(amount))
        redis.call('HDEL', KEYS[1], fields[i])
      end
    end
  end
end
local left = math.max(0, limit - used - kept)
more = math.min(more, left)
held = kept + more + math.min(spare, math.floor((left - more) / parts))
if not window then
  if used + held == 0 then return {{0, 0, '0', tonumber(ARGV[10])}} end
  window = ARGV[11]
  redis.call('HSET', KEYS[1], 'window', window)
  redis.call('PEXPIRE', KEYS[1], ARGV[10])
end
used = used + held
redis.call('HSET', KEYS[1], 'used', string.format('%.0f', used))
if held > 0 or spent > 0 or owed > 0 or before then
  redis.call('HSET', KEYS[1], field, string.format('%.0f %.0f %.0f', held, now + tonumber(ARGV[13]), number))
end
return {{held, used, window, redis.call('PTTL', KEYS[1])}}
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
# A value in pieces: its mark, how long it is kept, whether only under a free key, the key of the pieces so far, the one
# that they get, and a field that says that they are complete. Both keys have the slot of the key itself.
FINISH = """
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('UNLINK', ARGV[4])
  return 0
end
redis.call('UNLINK', ARGV[5])
redis.call('RENAME', ARGV[4], ARGV[5])
redis.call('HSET', ARGV[5], ARGV[6], '1')
redis.call('PEXPIRE', ARGV[5], ARGV[2])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# The pieces of a value that was replaced: how a mark begins, and their key.
CLEAR = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' and redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then return 0 end
return redis.call('UNLINK', ARGV[2])
"""
DIGESTS = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (TAKE, GIVE, HOLD, APPEND, ADD, CLAIM, RELEASE, FINISH, CLEAR)
}
