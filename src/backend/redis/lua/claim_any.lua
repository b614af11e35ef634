-- Claims, second part: any claim: sent again, of several queues, ranked, or with what time has brought.

-- What is not larger never fills a client's buffer beyond its fixed part, 16 KiB.
local LARGE = 16384
-- For how long what is too large for an answer is put off, in microseconds.
local PUT_OFF = 60000000

-- Gives back a copy that nobody has seen; nothing is counted.
local function give_back_unseen(seq, due)
  local copy = load_copy(group, seq)
  unlease(group, seq)
  if copy then
    local state = load_state(group, seq)
    state.since = due
    save_state(group, seq, state)
    give_back(group, copy, due)
  end
end

-- Returns what this claim gave before, in the order of its tokens.
local function given_before()
  local given, claims = {}, call('HGETALL', G .. 'a')
  for at = 1, #claims, 2 do
    local token, claimer = string.match(claims[at + 1], '^(%d+):%d+:%a:(.*)$')
    if claimer == tag then
      given[#given + 1] = { seq = claims[at], token = token }
    end
  end
  table.sort(given, function(one, other)
    return tonumber(one.token) < tonumber(other.token)
  end)
  return given
end

local kind = ARGV[8]
if kind ~= 'first' then
  local given, seqs = given_before(), {}
  for at = 1, math.min(#given, kind == 'void' and 0 or max) do
    seqs[at] = given[at].seq
  end
  local blobs = read_copies(seqs, 0)
  local put_off = kind == 'defer' and blobs[1] and #blobs[1] > LARGE and #blobs[1]
  local keep = put_off and 0 or #blobs
  for at = #given, keep + 1, -1 do
    give_back_unseen(given[at].seq, put_off and at == 1 and now + PUT_OFF or now)
  end
  if keep < #given then
    wake_waiting(group)
  end
  if put_off then
    return { 'deferred', int(put_off) }
  end
  if kind == 'void' then
    return { 'ready' }
  end
  if keep > 0 then
    local answer = { 'claimed', int(now), int(now + lease) }
    for at = 1, keep do
      local state = call('HGET', G .. 's', seqs[at])
      answer[#answer + 1] = given[at].token
      answer[#answer + 1] = state and string.match(state, '^%d+:%d+') or '0:0'
      answer[#answer + 1] = blobs[at]
      call('ZADD', G .. 't', int(now + lease), seqs[at])
    end
    look_at(group, now + lease)
    return answer
  end
end

if group.next and group.next <= now then
  sweep(group)
end

if not queues then
  queues = {}
  if #ARGV >= 13 + known then
    for at = 13 + known, #ARGV do
      queues[#queues + 1] = call('HGET', G .. 'q', ARGV[at]) or nil
    end
  else
    queues = call('HVALS', G .. 'q')
  end
end

-- Returns what is ready, best first, at most `most`: seqs and the number taken from each source.
local function best(most)
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

if max == 0 then
  if not paused then
    for _, queue in ipairs(queues) do
      if call('LLEN', G .. 'l' .. queue) > 0 or call('ZCARD', G .. 'z' .. queue) > 0 then
        return { 'ready' }
      end
    end
  end
end

local seqs, blobs, tried, asked, size, cut = {}, {}, {}, 0, 0, false
while max > #seqs and not paused do
  asked = max - #seqs
  local picked = best(asked)
  if #picked == 0 then
    break
  end
  local names = {}
  for at = 1, #picked do
    names[at] = picked[at][1]
  end
  local found = read_copies(names, size)
  local states = bulk_get('HMGET', G .. 's', names)
  -- One that must not be delivered ends the run: what it frees may come before the rest.
  local bad, reason
  local fine = #found
  for at = 1, #found do
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
    size = size + #found[at]
    seqs[#seqs + 1] = names[at]
    blobs[#blobs + 1] = found[at]
    tried[#seqs] = states[at]
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
  cut = not bad and #found < #picked
  if not bad and (cut or #picked < asked) then
    break
  end
end

if #seqs == 0 then
  return wait_for_more()
end
local answer = hand_out(seqs, blobs, tried)
if #seqs >= max or cut then
  wake_waiting(group)
end
return answer
