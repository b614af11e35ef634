-- A batch of transactions, second part: any transaction, checked as a whole, then applied as a whole.
--
-- Ops: ['p', topic, message, frame, [due, delay, ttl, key, priority, dedup, unique]]
--        due: absolute time or false; delay, ttl: microseconds or false; dedup: topic and id
--      ['s', group, id, token, queue, outcome, after, error]
--        outcome: ack, retry, release, crash, defer, or dead with its reason as dead:<reason>
--      ['w', key, value, version or false, ttl or false]
--      ['d', key, version or false]

local groups = {}
local function group_of(g)
  if not groups[g] then
    groups[g] = open_group(g)
  end
  return groups[g]
end

-- Returns what went wrong, or nil.
local function check_publish(op, plan)
  local topic, options = topics[op[2]], op[5]
  local dedup, unique = options[6], options[7]
  local found = { targets = {} }
  plan.publishes[#plan.publishes + 1] = found
  if dedup then
    found.dedup = P .. 'x:' .. dedup
    if plan.dedup[found.dedup] or call('EXISTS', found.dedup) == 1 then
      found.duplicate = true
      return
    end
    plan.dedup[found.dedup] = true
  end
  for to = 1, #topic[2], 2 do
    local g, queue = int(topic[2][to]), int(topic[2][to + 1])
    local group = group_of(g)
    expire(group)
    local taken = false
    if unique then
      local field = queue .. ':' .. unique
      local name = g .. ':' .. field
      taken = plan.unique[name]
      if taken == nil then
        taken = call('HEXISTS', group.G .. 'u', field) == 1
      end
      plan.unique[name] = true
    end
    if not taken then
      local limits = call('HMGET', group.G .. 'm', 'max', 'name')
      local length = call('HLEN', group.G .. 'c') + (plan.reserved[g] or 0)
      if limits[1] and length >= tonumber(limits[1]) then
        return { 'full', limits[2], limits[1] }
      end
      plan.reserved[g] = (plan.reserved[g] or 0) + 1
      found.targets[#found.targets + 1] = { group, queue }
    end
  end
end

local function check_settle(op, plan)
  local lost = { 'lost', op[2], op[4] }
  local g = call('HGET', P .. 'names', op[2])
  if not g then
    return lost
  end
  local group = group_of(g)
  local seq = held(group, op[3], op[4], op[5])
  if not seq or plan.settled[op[4]] then
    return lost
  end
  plan.settled[op[4]] = true
  local copy = load_copy(group, seq)
  plan.settles[#plan.settles + 1] = { group, copy }
  local outcome = op[6]
  local goes = outcome == 'ack' or string.sub(outcome, 1, 4) == 'dead'
  if goes or not is_bound(group, copy.queue) then
    if copy.unique then
      plan.unique[g .. ':' .. copy.queue .. ':' .. copy.unique] = false
    end
    plan.reserved[g] = (plan.reserved[g] or 0) - 1
  end
end

local function check_version(op, expected, writes, plan)
  sweep_records()
  local exists, known = record_version(op[2])
  local overlay = plan.records[op[2]]
  if overlay then
    exists, known = overlay[1], overlay[2]
  end
  local visible = exists and known or 0
  if expected and expected ~= visible then
    return { 'conflict', op[2], expected, visible }
  end
  plan.records[op[2]] = writes and { true, known + 1 } or { false, known }
end

local function settle(group, copy, op)
  local outcome, after, error = op[6], op[7], op[8]
  unlease(group, copy.seq)
  local state = load_state(group, copy.seq)
  if outcome == 'ack' then
    remove(group, copy)
    count(group, 'acked', 1)
    return
  end
  local reason = string.match(outcome, '^dead:(.*)$')
  if reason then
    if reason == 'failed' then
      state.attempts = state.attempts + 1
    end
    bury(group, copy, state, reason, error)
    return
  end
  if outcome == 'retry' then
    state.attempts, state.error = state.attempts + 1, error
    count(group, 'retried', 1)
  elseif outcome == 'crash' then
    state.crashes = state.crashes + 1
  end
  state.since = now + after
  save_state(group, copy.seq, state)
  give_back(group, copy, now + after)
end

local function store(op, found)
  local message, options = op[3], op[5]
  local due, delay, ttl, key, priority = options[1], options[2], options[3], options[4], options[5]
  due = due or (delay and now + delay) or now
  local expires = ttl and now + ttl or 0
  local plain = not ttl and not key and priority == 0 and not options[7] and due <= now
  for _, target in ipairs(found.targets) do
    local group, queue = target[1], target[2]
    local G = group.G
    local seq = name_of(call('HINCRBY', P .. 'n', 'seq', 1))
    local id = string.sub(message, 3, 18)
    -- What waited is never plain again: it may stand anywhere.
    local kind = (ttl or key or options[7]) and 'x' or 'p'
    local head = struct.pack('>ddI4c1', now, expires, tonumber(queue), kind)
    call('HSET', G .. 'c', seq, head .. message)
    note_id(group, id, seq)
    if options[7] then
      call('HSET', G .. 'u', queue .. ':' .. options[7], seq)
    end
    if key then
      call('ZADD', G .. 'k', 0, line_prefix(key) .. seq)
    end
    count(group, 'accepted', 1)
    if plain then
      call('RPUSH', G .. 'l' .. queue, seq)
      group.wakes[queue] = (group.wakes[queue] or 0) + 1
    else
      local copy = { seq = seq, expires = expires, queue = queue, key = key, priority = priority }
      place(group, copy, due)
    end
  end
end

local function transact(ops)
  local plan = {
    publishes = {}, settles = {}, settled = {}, dedup = {}, unique = {}, reserved = {}, records = {},
  }
  for at = 2, #ops do
    local op, wrong = ops[at], nil
    if op[1] == 'p' then
      wrong = check_publish(op, plan)
    elseif op[1] == 's' then
      wrong = check_settle(op, plan)
    elseif op[1] == 'w' then
      wrong = check_version(op, op[4], true, plan)
    else
      wrong = check_version(op, op[3], false, plan)
    end
    if wrong then
      return wrong
    end
  end
  -- What removes goes first: a full server must still drain.
  local settled = 0
  for at = 2, #ops do
    if ops[at][1] == 's' then
      settled = settled + 1
      settle(plan.settles[settled][1], plan.settles[settled][2], ops[at])
    end
  end
  local published, versions, wrote = {}, {}, false
  for at = 2, #ops do
    local op = ops[at]
    if op[1] == 'p' then
      local found = plan.publishes[#published + 1]
      published[#published + 1] = { found.duplicate or false, #found.targets }
      if found.duplicate then
        call('HINCRBY', P .. 'n', 'duplicates', 1)
      else
        local copies = #found.targets
        if copies ~= 1 then
          call('HINCRBY', P .. 'n', 'more', copies - 1)
        end
        if found.dedup then
          call('SET', found.dedup, '1', 'PX', int(dedup_window))
        end
        store(op, found)
        broadcast(topics[op[2]], op[3], op[4])
      end
    elseif op[1] == 'w' then
      versions[#versions + 1] = put_record(op[2], op[3], op[5])
      wrote = true
    elseif op[1] == 'd' then
      bury_record(op[2])
      wrote = true
    end
  end
  if wrote then
    trim_tombstones()
  end
  return { 'ok', published, versions }
end

-- Runs what the first part left, from the segment where it stopped.
while at_segment <= #segments do
  local segment = segments[at_segment]
  if segment[1] == 't' then
    results[at_segment] = transact(segment)
  elseif segment[1] == 'b' then
    results[at_segment] = publish_heard(segment)
  elseif segment[1] == 'p' or segment[1] == 'P' then
    if have_room(segment) then
      results[at_segment] = publish_run(segment)
    elseif segment[1] == 'P' then
      local ops = { 't' }
      for at = 2, #segment, 3 do
        local plain = { false, false, false, false, 0, false, false }
        ops[#ops + 1] = { 'p', segment[at], segment[at + 1], segment[at + 2], plain }
      end
      results[at_segment] = transact(ops)
    else
      local each = {}
      for at = 2, #segment, 3 do
        local plain = { false, false, false, false, 0, false, false }
        local op = { 'p', segment[at], segment[at + 1], segment[at + 2], plain }
        each[#each + 1] = transact({ 't', op })
      end
      results[at_segment] = each
    end
  else
    local left, lost = pending_acks, results[at_segment]
    if not left then
      left, lost = ack_run(segment)
    end
    pending_acks = nil
    for _, at in ipairs(left) do
      local op = { 's', segment[2], segment[at], segment[at + 1], segment[at + 2], 'ack', 0, '' }
      if transact({ 't', op })[1] ~= 'ok' then
        lost[#lost + 1] = at
      end
    end
    results[at_segment] = lost
  end
  at_segment = at_segment + 1
end
flush()
for _, group in pairs(groups) do
  wake_waiting(group)
end
return finish()
