-- One plain publish alone: what `commit` does with a batch of it, with nothing to unpack.
--
-- ARGV: version, producer, number     as there
--       channel, message, how it is broadcast ('0' = not, '1' = as it is, '2' = as the next), frame,
--       and, if a queue keeps it: group, queue
-- Answers 'STALE', 'MORE' (nothing was done, `commit` can tell why not), or what `commit` answers.
if (call('GET', P .. 'v') or '0') ~= ARGV[1] then
  return 'STALE'
end
local message, how, g, queue = ARGV[5], ARGV[6], ARGV[8], ARGV[9]
if g then
  local G = P .. 'g' .. g .. ':'
  local meta = call('HMGET', G .. 'm', 'max', 'paused')
  if meta[1] and call('HLEN', G .. 'c') + 1 > tonumber(meta[1]) then
    return 'MORE'
  end
  local name = name_of(call('HINCRBY', P .. 'n', 'seq', 1))
  local id = string.sub(message, 3, 18)
  call('HSET', G .. 'c', name, struct.pack('>ddI4c1', clock(), 0, queue, 'p') .. message)
  if call('HSETNX', G .. 'i', id, name) == 0 then
    call('HSET', G .. 'i', id, call('HGET', G .. 'i', id) .. ',' .. name)
  end
  call('HINCRBY', G .. 'm', 'accepted', 1)
  call('RPUSH', G .. 'l' .. queue, name)
  if meta[2] ~= '1' then
    wake(g, queue, 1)
  end
else
  -- A full server can still broadcast.
  redis.pcall('HINCRBY', P .. 'n', 'more', -1)
end
if how ~= '0' then
  call('PUBLISH', ARGV[4], how == '1' and message or ARGV[7])
end
-- [true] as msgpack.
local reply = '\145\195'
redis.pcall('SET', P .. 'p:' .. ARGV[2], ARGV[3] .. ':' .. reply, 'EX', 3600)
return reply
