-- Claims: the best ready copies of the queues a consumer serves; or a look whether there are any.
--
-- ARGV: group, max (0 = look only), lease, max_deliveries, process, slot, number, again,
--       version, g, count, queue, ..., binding, ...
--   slot, number, again  a claim sent again answers what its number gave before
--   version, g, queues   what the caller knows of the group, if that version still holds
-- Answers {'nogroup'}, {'nodata'}, {'ready'}, {'empty', next change or -1, now}, or
-- {'claimed', now, until, then per copy: token, attempts:crashes, copy}.
local known = tonumber(ARGV[11])
local group, queues
local version = call('GET', P .. 'v')
if version == ARGV[9] and known > 0 then
  group, queues = open_group(ARGV[10]), {}
  for at = 12, 11 + known do
    queues[#queues + 1] = ARGV[at]
  end
else
  group = find_group(ARGV[1])
  if not group then
    -- Without a version of the registry everything was lost, not only this group deleted.
    return { version and 'nogroup' or 'nodata' }
  end
end
local G = group.G
local max, lease, max_deliveries = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local process, number = ARGV[5], ARGV[7]
local slot = P .. 'q:' .. process .. ':' .. ARGV[6]

local function tried(seq)
  local state = call('HGET', G .. 's', seq)
  return state and string.match(state, '^%d+:%d+') or '0:0'
end

if max > 0 and ARGV[8] == '1' then
  local before = call('GET', slot)
  local same, at = string.match(before or '', '^(%d+):()')
  if same == number then
    local gave = cmsgpack.unpack(string.sub(before, at))
    local answer = { 'claimed', int(now), int(now + lease) }
    for n = 1, #gave, 2 do
      local seq, token = gave[n], gave[n + 1]
      local claim = call('HGET', G .. 'a', seq)
      if claim and string.find(claim, token .. ':', 1, true) == 1 then
        answer[#answer + 1] = token
        answer[#answer + 1] = tried(seq)
        answer[#answer + 1] = call('HGET', G .. 'c', seq)
      end
    end
    return answer
  end
end

local meta = call('HMGET', G .. 'm', 'paused', 'next')
local paused = meta[1] == '1'
group.next = tonumber(meta[2] or nil) or false
if group.next and group.next <= now then
  sweep(group)
end

if not queues then
  queues = {}
  if #ARGV >= 12 + known then
    for at = 12 + known, #ARGV do
      queues[#queues + 1] = call('HGET', G .. 'q', ARGV[at]) or nil
    end
  else
    queues = call('HVALS', G .. 'q')
  end
end

-- Returns what is ready, best first, at most `most`: seqs and the number taken from each source.
local function best(most)
  if #queues == 1 and call('ZCARD', G .. 'z' .. queues[1]) == 0 then
    -- The common case: taken at once, the list is in order.
    local source, picked = { queue = queues[1], taken = true }, {}
    for n, seq in ipairs(call('LPOP', G .. 'l' .. queues[1], most) or {}) do
      picked[n] = { seq, source }
    end
    return picked
  end
  local sources = {}
  for _, queue in ipairs(queues) do
    local list = call('LRANGE', G .. 'l' .. queue, 0, most - 1)
    if #list > 0 then
      sources[#sources + 1] = { queue = queue, list = list, at = 1 }
    end
    local ranked = call('ZRANGE', G .. 'z' .. queue, 0, most - 1, 'WITHSCORES')
    if #ranked > 0 then
      local seqs, ranks = {}, {}
      for n = 1, #ranked, 2 do
        seqs[#seqs + 1], ranks[#ranks + 1] = ranked[n], tonumber(ranked[n + 1])
      end
      sources[#sources + 1] = { queue = queue, list = seqs, ranks = ranks, at = 1 }
    end
  end
  local picked = {}
  if #sources == 1 then
    local source = sources[1]
    for n = 1, #source.list do
      picked[n] = { source.list[n], source }
    end
    return picked
  end
  while #picked < most do
    local first, first_rank, first_seq
    for _, source in ipairs(sources) do
      local seq = source.list[source.at]
      if seq then
        local rank = source.ranks and source.ranks[source.at] or 0
        if not first or rank < first_rank or (rank == first_rank and seq < first_seq) then
          first, first_rank, first_seq = source, rank, seq
        end
      end
    end
    if not first then
      break
    end
    first.at = first.at + 1
    picked[#picked + 1] = { first_seq, first }
  end
  return picked
end

-- Takes the first `n` of what was picked out of their places.
local function take(picked, n)
  if picked[1][2].taken then
    -- What stands behind goes back where it was.
    for at = #picked, n + 1, -1 do
      call('LPUSH', G .. 'l' .. picked[at][2].queue, picked[at][1])
    end
    return
  end
  local taken = {}
  for at = 1, n do
    local source = picked[at][2]
    taken[source] = (taken[source] or 0) + 1
  end
  for source, many in pairs(taken) do
    if source.ranks then
      call('ZREMRANGEBYRANK', G .. 'z' .. source.queue, 0, many - 1)
    else
      call('LTRIM', G .. 'l' .. source.queue, many, -1)
    end
  end
end

local function is_ours(blob)
  -- Five values behind an id of 16 bytes, as commits write them.
  return #blob > HEAD + 18 and string.sub(blob, HEAD + 1, HEAD + 2) == '\151\176'
end

if max == 0 then
  if not paused then
    for _, queue in ipairs(queues) do
      if call('LLEN', G .. 'l' .. queue) > 0 or call('ZCARD', G .. 'z' .. queue) > 0 then
        return { 'ready' }
      end
    end
  end
end

local seqs, blobs, tries = {}, {}, {}
while max > #seqs and not paused do
  local picked = best(max - #seqs)
  if #picked == 0 then
    break
  end
  local names = {}
  for at = 1, #picked do
    names[at] = picked[at][1]
  end
  local found = bulk_get('HMGET', G .. 'c', names)
  local states = bulk_get('HMGET', G .. 's', names)
  -- One that must not be delivered ends the run: what it frees may come before the rest.
  local bad, reason
  local fine = #picked
  for at = 1, #picked do
    if not found[at] then
      bad, reason = at, 'gone'
    elseif not is_ours(found[at]) then
      bad, reason = at, 'undecodable'
    elseif states[at] then
      local crashes = tonumber(string.match(states[at], '^%d+:(%d+)') or 0)
      if crashes >= max_deliveries then
        bad, reason = at, 'crashed'
      end
    end
    if bad then
      fine = at - 1
      break
    end
  end
  take(picked, bad or fine)
  for at = 1, fine do
    seqs[#seqs + 1] = names[at]
    blobs[#blobs + 1] = found[at]
    tries[#tries + 1] = states[at] and string.match(states[at], '^%d+:%d+') or '0:0'
  end
  if bad and reason ~= 'gone' then
    local copy = load_copy(group, names[bad])
    copy.queue = picked[bad][2].queue
    if copy.expires > 0 then
      call('ZREM', G .. 'e', copy.seq)
    end
    local error = 'the stored bytes are no message'
    if reason == 'crashed' then
      error = string.format(
        'claimed %d times without settle or release; limit %d', max_deliveries, max_deliveries
      )
    end
    bury(group, copy, load_state(group, copy.seq), reason, error)
  end
end

if #seqs == 0 then
  if process ~= '' then
    for _, queue in ipairs(queues) do
      -- A full server refuses it; then the sweep finds what comes.
      redis.pcall('SADD', G .. 'w' .. queue, process)
    end
  end
  return { 'empty', group.next and int(group.next) or '-1', int(now) }
end

local token = call('HINCRBY', P .. 'n', 'token', #seqs) - #seqs
local until_time = int(now + lease)
local answer = { 'claimed', int(now), until_time }
local claims, leases, gave, ends = {}, {}, {}, {}
for at = 1, #seqs do
  token = token + 1
  local name, blob = int(token), blobs[at]
  local kind = string.sub(blob, HEAD, HEAD)
  local queue = struct.unpack('>I4', blob, 17)
  claims[at * 2 - 1], claims[at * 2] = seqs[at], name .. ':' .. queue .. ':' .. kind
  leases[at * 2 - 1], leases[at * 2] = until_time, seqs[at]
  gave[at * 2 - 1], gave[at * 2] = seqs[at], name
  if kind == 'x' then
    ends[#ends + 1] = seqs[at]
  end
  answer[at * 3 + 1], answer[at * 3 + 2], answer[at * 3 + 3] = name, tries[at], blob
end
bulk('ZREM', G .. 'e', ends)
bulk('HSET', G .. 'a', claims)
bulk('ZADD', G .. 't', leases)
look_at(group, now + lease)
if process ~= '' then
  redis.pcall('SET', slot, number .. ':' .. cmsgpack.pack(gave), 'EX', 300)
end
if #seqs >= max then
  wake_waiting(group)
end
return answer
