-- One group: where each copy stands, and every move between those places.

local function count(group, what, by)
  call('HINCRBY', group.G .. 'm', what, by)
end

local function is_bound(group, queue)
  return call('HEXISTS', group.G .. 'm', 'b' .. queue) == 1
end

-- What is known of a copy; nil when it is gone. A value that nobody here wrote has no parts.
local function load_copy(group, seq)
  local blob = call('HGET', group.G .. 'c', seq)
  if not blob then
    return nil
  end
  local copy = { seq = seq, blob = blob, accepted = now, expires = 0, queue = '0', priority = 0 }
  if #blob > HEAD then
    local accepted, expires, queue = struct.unpack('>ddI4', blob)
    copy.accepted, copy.expires, copy.queue = accepted, expires, int(queue)
    local ok, message = pcall(cmsgpack.unpack, string.sub(blob, HEAD + 1))
    if ok and type(message) == 'table' and type(message[1]) == 'string' then
      copy.id, copy.topic, copy.key = message[1], message[2], message[3] or nil
      copy.priority, copy.ttl, copy.unique = message[4], message[5] or nil, message[6] or nil
    end
  end
  return copy
end

local function load_state(group, seq)
  local text = call('HGET', group.G .. 's', seq)
  if not text then
    return { attempts = 0, crashes = 0, since = 0, error = '' }
  end
  local attempts, crashes, since, at = string.match(text, '^(%d+):(%d+):(%d+):()')
  if not attempts then
    return { attempts = 0, crashes = 0, since = 0, error = '' }
  end
  return {
    attempts = tonumber(attempts),
    crashes = tonumber(crashes),
    since = tonumber(since),
    error = string.sub(text, at),
  }
end

local function save_state(group, seq, state)
  local head = string.format('%d:%d:%.0f:', state.attempts, state.crashes, state.since)
  call('HSET', group.G .. 's', seq, head .. state.error)
end

local function line_prefix(key)
  return #key .. ':' .. key .. ':'
end

-- Returns the seq of the first of a key, or nil.
local function head_of(group, key)
  local prefix = line_prefix(key)
  local found = call('ZRANGEBYLEX', group.G .. 'k', '[' .. prefix, '(' .. prefix .. ':', 'LIMIT', 0, 1)
  return found[1] and string.sub(found[1], #prefix + 1)
end

local function make_ready(group, copy)
  call('ZADD', group.G .. 'z' .. copy.queue, -copy.priority, copy.seq)
  group.wakes[copy.queue] = (group.wakes[copy.queue] or 0) + 1
end

-- Puts a copy that is in no place where it belongs.
local function place(group, copy, due)
  if copy.expires > 0 then
    call('ZADD', group.G .. 'e', int(copy.expires), copy.seq)
    look_at(group, copy.expires)
  end
  if due > now then
    call('ZADD', group.G .. 'd', int(due), copy.seq)
    look_at(group, due)
    -- Somebody must sleep no longer than until then.
    group.wakes[copy.queue] = (group.wakes[copy.queue] or 0) + 1
  elseif copy.key and head_of(group, copy.key) ~= copy.seq then
    call('ZADD', group.G .. 'b', copy.seq, copy.seq)
  else
    make_ready(group, copy)
  end
end

-- Takes a waiting copy out of its place.
local function displace(group, copy)
  local G = group.G
  if call('ZREM', G .. 'z' .. copy.queue, copy.seq) == 0
    and call('ZREM', G .. 'd', copy.seq) == 0
    and call('ZREM', G .. 'b', copy.seq) == 0 then
    call('LREM', G .. 'l' .. copy.queue, 1, copy.seq)
  end
  if copy.expires > 0 then
    call('ZREM', G .. 'e', copy.seq)
  end
end

-- Ends the claim of a copy.
local function unlease(group, seq)
  call('HDEL', group.G .. 'a', seq)
  call('ZREM', group.G .. 't', seq)
end

local function note_id(group, id, seq)
  local key = group.G .. 'i'
  local seqs = call('HGET', key, id)
  call('HSET', key, id, seqs and seqs .. ',' .. seq or seq)
  if is_again(id) then
    call('ZADD', group.G .. 'r', 0, id)
  end
end

local function forget_id(group, id, seq)
  local key = group.G .. 'i'
  local seqs = call('HGET', key, id)
  if not seqs or seqs == seq then
    call('HDEL', key, id)
    if is_again(id) then
      call('ZREM', group.G .. 'r', id)
    end
    return
  end
  local left = {}
  for other in string.gmatch(seqs, '[^,]+') do
    if other ~= seq then
      left[#left + 1] = other
    end
  end
  call('HSET', key, id, table.concat(left, ','))
end

-- Removes a copy that is in no place; the next of its key moves up.
local function remove(group, copy)
  local G = group.G
  call('HDEL', G .. 'c', copy.seq)
  call('HDEL', G .. 's', copy.seq)
  if copy.id then
    forget_id(group, copy.id, copy.seq)
  end
  if copy.unique then
    call('HDEL', G .. 'u', copy.queue .. ':' .. copy.unique)
  end
  if copy.key then
    call('ZREM', G .. 'k', line_prefix(copy.key) .. copy.seq)
    local head = head_of(group, copy.key)
    if head and call('ZREM', G .. 'b', head) == 1 then
      local next_copy = load_copy(group, head)
      if next_copy then
        make_ready(group, next_copy)
      end
    end
  end
end

local function trim_dead(group)
  local G = group.G
  local meta = call('HMGET', G .. 'm', 'dead')
  local dead = tonumber(meta[1] or 0)
  local config = call('HMGET', P .. 'config', 'dead_retention', 'max_dead')
  local until_time = now - tonumber(config[1] or 1209600000000)
  local max = tonumber(config[2] or 100000)
  local removed = 0
  for _ = 1, 1000 do
    if dead - removed <= 0 then
      break
    end
    local first = call('ZRANGE', G .. 'D', 0, 0)[1]
    if not first then
      break
    end
    local letters = cmsgpack.unpack(call('HGET', G .. 'L', first))
    if dead - removed <= max and letters[1][7] > until_time then
      break
    end
    table.remove(letters, 1)
    removed = removed + 1
    if #letters == 0 then
      call('ZREM', G .. 'D', first)
      call('HDEL', G .. 'L', first)
    else
      call('HSET', G .. 'L', first, cmsgpack.pack(letters))
    end
  end
  if removed > 0 then
    call('HINCRBY', G .. 'm', 'dead', 0 - removed)
    count(group, 'removed', removed)
  end
end

-- What no handler decides is told to the next who asks, newest first kept.
local NEWS = { crashed = true, undecodable = true, expired = true, unsigned = true }

-- Moves a copy that is in no place to the dead letters.
local function bury(group, copy, state, reason, error)
  local G = group.G
  remove(group, copy)
  local id = copy.id or string.sub(copy.seq .. copy.seq, 1, 16)
  local binding = call('HGET', G .. 'm', 'b' .. copy.queue) or ''
  local letter = {
    copy.queue, binding, reason, error or state.error, state.attempts, state.crashes, now, copy.blob,
  }
  local letters = call('HGET', G .. 'L', id)
  letters = letters and cmsgpack.unpack(letters) or {}
  letters[#letters + 1] = letter
  call('HSET', G .. 'L', id, cmsgpack.pack(letters))
  if #letters == 1 then
    call('ZADD', G .. 'D', call('HINCRBY', G .. 'm', 'nextdead', 1), id)
  end
  call('HINCRBY', G .. 'm', 'dead', 1)
  if NEWS[reason] then
    -- A full server refuses it; then the letter is there, but is not told.
    if redis.pcall('RPUSH', G .. 'N', id) == 1001 then
      call('LPOP', G .. 'N')
    end
  end
  trim_dead(group)
end

-- Removes a copy that is in no place and counts it as removed.
local function discard(group, copy)
  remove(group, copy)
  count(group, 'removed', 1)
end

-- Returns a copy that is in no place to its queue, if that is still there.
local function give_back(group, copy, due)
  if not is_bound(group, copy.queue) then
    return discard(group, copy)
  end
  place(group, copy, due)
end

-- Buries what waits and may no longer be delivered.
local function expire(group)
  local over = call('ZRANGEBYSCORE', group.G .. 'e', '-inf', int(now), 'LIMIT', 0, 1000)
  for _, seq in ipairs(over) do
    local copy = load_copy(group, seq)
    call('ZREM', group.G .. 'e', seq)
    if copy then
      displace(group, copy)
      bury(group, copy, load_state(group, seq), 'expired', 'not delivered before its time to live ended')
    end
  end
end

-- Does what time has brought: leases that ran out, messages now due, ended times to live.
local function sweep(group)
  local G = group.G
  -- After a removal a full server takes what else is written.
  call('HDEL', G .. 'm', 'next')
  local ended = call('ZRANGEBYSCORE', G .. 't', '-inf', int(now), 'LIMIT', 0, 1000)
  for _, seq in ipairs(ended) do
    local copy = load_copy(group, seq)
    unlease(group, seq)
    if copy then
      local state = load_state(group, seq)
      state.crashes, state.since = state.crashes + 1, now
      save_state(group, seq, state)
      count(group, 'expired', 1)
      give_back(group, copy, now)
    end
  end
  local due = call('ZRANGEBYSCORE', G .. 'd', '-inf', int(now), 'LIMIT', 0, 1000)
  for _, seq in ipairs(due) do
    local copy = load_copy(group, seq)
    call('ZREM', G .. 'd', seq)
    if copy then
      local state = load_state(group, seq)
      state.since = now
      save_state(group, seq, state)
      place(group, copy, now)
    end
  end
  expire(group)
  local earliest = false
  for _, key in ipairs({ 'd', 't', 'e' }) do
    local at = tonumber(call('ZRANGE', G .. key, 0, 0, 'WITHSCORES')[2])
    if at and (not earliest or at < earliest) then
      earliest = at
    end
  end
  group.next = earliest
  if earliest then
    call('HSET', G .. 'm', 'next', int(earliest))
  end
end

local function wake_all(group)
  local meta = call('HGETALL', group.G .. 'm')
  for at = 1, #meta, 2 do
    local queue = string.match(meta[at], '^b(%d+)$')
    if queue then
      wake(group.g, queue, 1000000)
    end
  end
end

-- Wakes who waits for what this script made ready.
local function wake_waiting(group)
  if call('HGET', group.G .. 'm', 'paused') == '1' then
    return
  end
  for queue, ready in pairs(group.wakes) do
    wake(group.g, queue, ready)
  end
  group.wakes = {}
end

-- Returns the seq that a lease holds, and its queue, or nil.
local function held(group, id, token, queue)
  local seqs = call('HGET', group.G .. 'i', id)
  if not seqs then
    return nil
  end
  for seq in string.gmatch(seqs, '[^,]+') do
    local claim = call('HGET', group.G .. 'a', seq)
    if claim and string.find(claim, token .. ':' .. queue .. ':', 1, true) == 1 then
      return seq
    end
  end
  return nil
end
