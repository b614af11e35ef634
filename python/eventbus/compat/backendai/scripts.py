"""The Lua scripts of the list wire; each is one atomic step."""

__all__ = [
    "ACK",
    "BEAT",
    "BURY",
    "FORWARD",
    "LEAVE",
    "PRODUCE",
    "PRODUCE_ONCE",
    "PUSH_BACK",
    "TAKE",
]

# KEYS: list, channel. ARGV: message.
PRODUCE = """
redis.call('RPUSH', KEYS[1], ARGV[1])
return redis.call('PUBLISH', KEYS[2], ARGV[1])
"""

# KEYS: list, channel, mark. ARGV: message, seconds, 1 = push, 1 = publish.
PRODUCE_ONCE = """
if not redis.call('SET', KEYS[3], '1', 'NX', 'EX', ARGV[2]) then return 0 end
if ARGV[3] == '1' then redis.call('RPUSH', KEYS[1], ARGV[1]) end
if ARGV[4] == '1' then redis.call('PUBLISH', KEYS[2], ARGV[1]) end
return 1
"""

# KEYS: in-flight list or '' to keep nothing, lists to take from. ARGV: how many at most.
TAKE = """
local most, found = tonumber(ARGV[1]), {}
for i = 2, #KEYS do
  while #found < most do
    local one
    if KEYS[1] == '' then one = redis.call('LPOP', KEYS[i])
    else one = redis.call('LMOVE', KEYS[i], KEYS[1], 'LEFT', 'RIGHT') end
    if not one then break end
    found[#found + 1] = one
  end
end
return found
"""

# KEYS: in-flight list. ARGV: messages.
ACK = """
for i = 1, #ARGV do redis.call('LREM', KEYS[1], 1, ARGV[i]) end
return #ARGV
"""

# KEYS: in-flight list, list of the unreadable. ARGV: message, most kept.
BURY = """
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[2]), -1)
return 1
"""

# KEYS: in-flight list, list. ARGV: 1 = they are in the in-flight list, messages in their order.
PUSH_BACK = """
for i = #ARGV, 2, -1 do
  if ARGV[1] == '0' or redis.call('LREM', KEYS[1], -1, ARGV[i]) > 0 then
    redis.call('LPUSH', KEYS[2], ARGV[i])
  end
end
return #ARGV - 1
"""

# KEYS: dispatchers, names, list. ARGV: id, lease, names, prefix of in-flight lists, prefix of
# lists of forwarded messages. Renews a dispatcher, and gives back what dead ones had in hand.
BEAT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
local moved = 0
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  for _, source in ipairs({ARGV[5] .. dead, ARGV[4] .. dead}) do
    while redis.call('LMOVE', source, KEYS[3], 'RIGHT', 'LEFT') do moved = moved + 1 end
  end
  redis.call('ZREM', KEYS[1], dead)
  redis.call('HDEL', KEYS[2], dead)
end
return {moved, redis.call('LLEN', KEYS[3]), redis.call('LINDEX', KEYS[3], 0)}
"""

# KEYS: in-flight list, names, dispatchers. ARGV: message, event name, id, prefix of lists of
# forwarded messages, a random number, 1 = it is in the in-flight list.
FORWARD = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local all, fit = redis.call('HGETALL', KEYS[2]), {}
for i = 1, #all, 2 do
  if all[i] ~= ARGV[3] and string.find(all[i + 1], '\\n' .. ARGV[2] .. '\\n', 1, true) then
    local till = redis.call('ZSCORE', KEYS[3], all[i])
    if till and tonumber(till) > now then fit[#fit + 1] = all[i] end
  end
end
if #fit == 0 then return 0 end
local target = ARGV[4] .. fit[tonumber(ARGV[5]) % #fit + 1]
if ARGV[6] == '1' then redis.call('LREM', KEYS[1], 1, ARGV[1]) end
redis.call('RPUSH', target, ARGV[1])
redis.call('PUBLISH', target, '1')
return 1
"""

# KEYS: dispatchers, names, list, own in-flight list, own list of forwarded messages. ARGV: id.
LEAVE = """
local moved = 0
for i = 5, 4, -1 do
  while redis.call('LMOVE', KEYS[i], KEYS[3], 'RIGHT', 'LEFT') do moved = moved + 1 end
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return moved
"""
