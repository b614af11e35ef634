-- What operators see and do.
--
-- ARGV[1] names the operation, ARGV[2] the group. Answers {'nogroup'} when there is none.
local operation, name = ARGV[1], ARGV[2]

-- Returns the oldest acceptance of what is ready, blocked ones included.
local function ready_of(group, queues)
  local oldest
  local function older(seq)
    if seq and (not oldest or seq < oldest) then
      oldest = seq
    end
  end
  for at = 1, #queues, 2 do
    local queue = queues[at + 1]
    older(call('LINDEX', group.G .. 'l' .. queue, 0) or nil)
    for _, seq in ipairs(call('ZRANGE', group.G .. 'z' .. queue, 0, 9999)) do
      older(seq)
    end
  end
  older(call('ZRANGE', group.G .. 'b', 0, 0)[1])
  local copy = oldest and load_copy(group, oldest)
  return copy and int(copy.accepted) or '-1'
end

if operation == 'inspect' then
  sweep_records()
  local counts = call('HMGET', P .. 'n', 'seq', 'more', 'duplicates')
  local published = (counts[1] or 0) - (counts[2] or 0)
  local answer = { int(published), counts[3] or '0', int(call('ZCARD', P .. 'rk')), int(now) }
  local names = call('HGETALL', P .. 'names')
  for at = 1, #names, 2 do
    local group = open_group(names[at + 1])
    sweep(group)
    trim_dead(group)
    wake_waiting(group)
    local G = group.G
    local queues = call('HGETALL', G .. 'q')
    local meta = call(
      'HMGET', G .. 'm', 'paused', 'accepted', 'acked', 'retried', 'expired', 'removed', 'dead'
    )
    answer[#answer + 1] = {
      names[at], meta[1] or '0', meta[2] or '0', meta[3] or '0', meta[4] or '0', meta[5] or '0',
      meta[6] or '0', meta[7] or '0', int(call('HLEN', G .. 'c')), int(call('ZCARD', G .. 'd')),
      int(call('ZCARD', G .. 't')), ready_of(group, queues), queues,
    }
  end
  return answer
end

local group = find_group(name)
if not group then
  return { 'nogroup' }
end
local G = group.G

-- Removes at most `limit` waiting copies, of one queue or all; returns how many.
local function remove_waiting(queue, limit)
  local cursor, removed = '0', 0
  repeat
    local page = call('HSCAN', G .. 'c', cursor, 'COUNT', 1000)
    cursor = page[1]
    for at = 1, #page[2], 2 do
      local seq, blob = page[2][at], page[2][at + 1]
      local of = #blob > HEAD and int(struct.unpack('>I4', blob, 17)) or '0'
      if (not queue or of == queue) and call('HEXISTS', G .. 'a', seq) == 0 and removed < limit then
        local copy = load_copy(group, seq)
        displace(group, copy)
        discard(group, copy)
        removed = removed + 1
      end
    end
  until cursor == '0' or removed >= limit
  return removed
end

if operation == 'unbind' then
  sweep(group)
  local removed = 0
  for at = 3, #ARGV do
    local queue = call('HGET', G .. 'q', ARGV[at])
    if queue then
      call('HDEL', G .. 'q', ARGV[at])
      call('HDEL', G .. 'm', 'b' .. queue)
      removed = removed + remove_waiting(queue, 1000000)
      wake(group.g, queue, 1000000)
      changed()
    end
  end
  wake_waiting(group)
  wake_all(group)
  return { 'ok', removed }
end

if operation == 'delete' then
  local held_here = call('HLEN', G .. 'c') + tonumber(call('HGET', G .. 'm', 'dead') or 0)
  wake_all(group)
  local last_queue = tonumber(call('HGET', G .. 'm', 'nextq') or 0) - 1
  for queue = 0, last_queue do
    call('UNLINK', G .. 'l' .. queue, G .. 'z' .. queue, G .. 'w' .. queue)
  end
  for part in string.gmatch('m c s i r b d t a e k u D L N q', '%a') do
    call('UNLINK', G .. part)
  end
  call('HDEL', P .. 'names', name)
  changed()
  return { 'ok', held_here }
end

if operation == 'purge' then
  -- limit; answers how many and whether there may be more
  sweep(group)
  local removed = remove_waiting(nil, tonumber(ARGV[3]))
  wake_waiting(group)
  return { 'ok', removed }
end

if operation == 'pause' then
  call('HSET', G .. 'm', 'paused', ARGV[3])
  wake_all(group)
  return { 'ok' }
end

sweep(group)

trim_dead(group)

local function show_letter(id, letter)
  return {
    id, letter[1], letter[3], letter[4], int(letter[5]), int(letter[6]), int(letter[7]), letter[8],
  }
end

if operation == 'dead' then
  -- after or '', limit; answers per letter: id, parts
  local place_after = ARGV[3] ~= '' and call('ZSCORE', G .. 'D', ARGV[3])
  local from = place_after and '(' .. place_after or '-inf'
  local ids = call('ZRANGEBYSCORE', G .. 'D', from, '+inf', 'LIMIT', 0, tonumber(ARGV[4]))
  local answer, letters_given = { 'ok' }, 0
  for _, id in ipairs(ids) do
    if letters_given >= tonumber(ARGV[4]) then
      break
    end
    for _, letter in ipairs(cmsgpack.unpack(call('HGET', G .. 'L', id))) do
      letters_given = letters_given + 1
      answer[#answer + 1] = show_letter(id, letter)
    end
  end
  wake_waiting(group)
  return answer
end

if operation == 'dead_news' then
  -- answers per letter as 'dead'
  local answer = { 'ok' }
  for _ = 1, 100 do
    local id = call('LPOP', G .. 'N')
    if not id then
      break
    end
    local letters = call('HGET', G .. 'L', id)
    if letters then
      -- The copies of one message may have died apart: the newest is last.
      letters = cmsgpack.unpack(letters)
      answer[#answer + 1] = show_letter(id, letters[#letters])
    end
  end
  wake_waiting(group)
  return answer
end

if operation == 'discard_dead' then
  local found = 0
  for at = 3, #ARGV do
    local letters = call('HGET', G .. 'L', ARGV[at])
    if letters then
      found = found + #cmsgpack.unpack(letters)
      call('HDEL', G .. 'L', ARGV[at])
      call('ZREM', G .. 'D', ARGV[at])
    end
  end
  call('HINCRBY', G .. 'm', 'dead', 0 - found)
  count(group, 'removed', found)
  return { 'ok', found }
end

if operation == 'retry_dead' then
  local asked = 0
  for at = 3, #ARGV do
    local letters = call('HGET', G .. 'L', ARGV[at])
    asked = asked + (letters and #cmsgpack.unpack(letters) or 0)
  end
  local max = call('HGET', G .. 'm', 'max')
  if max and call('HLEN', G .. 'c') + asked > tonumber(max) then
    return { 'full', max }
  end
  local found = 0
  for at = 3, #ARGV do
    local letters = call('HGET', G .. 'L', ARGV[at])
    local left = {}
    for _, letter in ipairs(letters and cmsgpack.unpack(letters) or {}) do
      local queue = call('HGET', G .. 'q', letter[2])
      local message = string.sub(letter[8], HEAD + 1)
      local ok, parts = pcall(cmsgpack.unpack, message)
      local unique = ok and type(parts) == 'table' and parts[6]
      local ours = ok and type(parts) == 'table' and type(parts[1]) == 'string' and #parts[1] == 16
      if ours and queue and not (unique and call('HEXISTS', G .. 'u', queue .. ':' .. unique) == 1) then
        local seq = name_of(count_published(0, 1) + 1)
        local ttl = parts[5]
        local copy = {
          seq = seq, queue = queue, key = parts[3] or nil, priority = parts[4], id = parts[1],
          expires = ttl and now + ttl or 0,
        }
        local kind = string.sub(letter[8], HEAD, HEAD)
        local head = struct.pack('>ddI4c1', now, copy.expires, tonumber(queue), kind)
        call('HSET', G .. 'c', seq, head .. message)
        note_id(group, copy.id, seq)
        if unique then
          call('HSET', G .. 'u', queue .. ':' .. unique, seq)
        end
        if copy.key then
          call('ZADD', G .. 'k', 0, line_prefix(copy.key) .. seq)
        end
        place(group, copy, now)
        found = found + 1
      else
        left[#left + 1] = letter
      end
    end
    if letters and #left == 0 then
      call('HDEL', G .. 'L', ARGV[at])
      call('ZREM', G .. 'D', ARGV[at])
    elseif letters then
      call('HSET', G .. 'L', ARGV[at], cmsgpack.pack(left))
    end
  end
  call('HINCRBY', G .. 'm', 'dead', 0 - found)
  wake_waiting(group)
  return { 'ok', found }
end
