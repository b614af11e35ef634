-- Declares groups, tells what is declared, and sets what is kept for replay: what every process may do.
--
-- ARGV[1] names the operation, ARGV[2] the group.
local operation, name = ARGV[1], ARGV[2]

if operation == 'declare' then
  -- max or '', binding, ...
  local g = call('HGET', P .. 'names', name)
  local new = not g
  if new then
    g = int(call('HINCRBY', P .. 'n', 'group', 1))
    call('HSET', P .. 'names', name, g)
    call('HSET', P .. 'g' .. g .. ':m', 'name', name)
  end
  local group = open_group(g)
  if ARGV[3] ~= '' then
    call('HSET', group.G .. 'm', 'max', ARGV[3])
  end
  local bound = new
  for at = 4, #ARGV do
    if call('HEXISTS', group.G .. 'q', ARGV[at]) == 0 then
      local queue = int(call('HINCRBY', group.G .. 'm', 'nextq', 1) - 1)
      call('HSET', group.G .. 'q', ARGV[at], queue)
      call('HSET', group.G .. 'm', 'b' .. queue, ARGV[at])
      bound = true
    end
  end
  if bound then
    changed()
  end
  wake_all(group)
  return { 'ok' }
end

if operation == 'registry' then
  -- answers version, whether broadcasts are kept, epoch, whether nothing was there, then per binding:
  -- name, group, queue, binding, max or ''
  local new = not (call('GET', P .. 'v') and call('HGET', P .. 'config', 'epoch'))
  if new then
    -- From now on a version that is missing means lost data. A full server refuses it.
    pcall(changed)
  end
  local answer = {
    call('GET', P .. 'v') or '0', retention() > 0 and '1' or '0',
    call('HGET', P .. 'config', 'epoch') or '', new and '1' or '0',
  }
  local names = call('HGETALL', P .. 'names')
  for at = 1, #names, 2 do
    local G = P .. 'g' .. names[at + 1] .. ':'
    local queues, max = call('HGETALL', G .. 'q'), call('HGET', G .. 'm', 'max') or ''
    for to = 1, #queues, 2 do
      answer[#answer + 1] = names[at]
      answer[#answer + 1] = names[at + 1]
      answer[#answer + 1] = queues[to + 1]
      answer[#answer + 1] = queues[to]
      answer[#answer + 1] = max
    end
  end
  return answer
end

if operation == 'retain' then
  -- milliseconds or '', most
  set_retention(ARGV[3], ARGV[4])
  return { 'ok' }
end
return redis.error_reply('ERR unknown operation')
