-- What a publisher sees and does of its events: copies in one group or in all, found by event.
--
-- ARGV: 'list' or 'act', group, 'one' or 'all' groups, event, low, high, group of the place, id of the
--       place, most, and for 'act': action, time
--   event, low, high  the id of the first message of the event, and the bounds of the ids of others
--   place             where the step before this one stopped; both '' at first
--   most              ids that one step looks at, so that the server serves others in between
-- Answers {'nogroup'}, or {'ok', group and id of the place or '' and '' at the end, ...}, and then the
-- number of changes, or per copy: group, id, seq, queue, topic, state, at, attempts, priority.
local operation, name, scope, event, low, high = unpack(ARGV, 1, 6)
local place_group, place_id, most = ARGV[7], ARGV[8], tonumber(ARGV[9])
local action, time = ARGV[10], tonumber(ARGV[11] or 0)

-- Returns the ids of the event behind an id, at most so many.
local function ids_of(group, after, limit)
  local ids = {}
  if after == '' and call('HEXISTS', group.G .. 'i', event) == 1 then
    ids[1] = event
  end
  local from = (after == '' or after == event) and '[' .. low or '(' .. after
  local others = call('ZRANGEBYLEX', group.G .. 'r', from, '[' .. high, 'LIMIT', 0, limit)
  for _, id in ipairs(others) do
    ids[#ids + 1] = id
  end
  return ids
end

local function describe(group, group_name, id, seq, answer)
  local copy, state = load_copy(group, seq), load_state(group, seq)
  if not copy or not copy.id then
    return
  end
  local leased, due = call('ZSCORE', group.G .. 't', seq), call('ZSCORE', group.G .. 'd', seq)
  local where, at = 'ready', math.max(copy.accepted, state.since)
  if leased then
    where, at = 'active', tonumber(leased)
  elseif due then
    where, at = 'delayed', tonumber(due)
  end
  answer[#answer + 1] = {
    group_name, id, seq, copy.queue, copy.topic, where, int(at), int(state.attempts),
    int(copy.priority),
  }
end

-- Returns how many copies changed: one or none.
local function act(group, seq)
  local copy = load_copy(group, seq)
  if not copy or call('HEXISTS', group.G .. 'a', seq) == 1 then
    return 0
  end
  if action == 'promote' and not call('ZSCORE', group.G .. 'd', seq) then
    return 0
  end
  displace(group, copy)
  if action == 'cancel' then
    discard(group, copy)
    return 1
  end
  local at = action == 'promote' and now or time
  local state = load_state(group, seq)
  state.since = math.max(at, now)
  save_state(group, seq, state)
  place(group, copy, at)
  return 1
end

local names = { name }
if scope == 'all' then
  names = call('HKEYS', P .. 'names')
  table.sort(names)
end
local answer, changes, looked = { 'ok', '', '' }, 0, 0
for _, group_name in ipairs(names) do
  local group = find_group(group_name)
  if not group then
    return { 'nogroup' }
  end
  local after = group_name == place_group and place_id or ''
  if group_name >= place_group and #ids_of(group, after, 1) > 0 then
    if looked >= most then
      answer[2], answer[3] = group_name, after
      break
    end
    sweep(group)
    local ids = ids_of(group, after, most - looked)
    for _, id in ipairs(ids) do
      looked, after = looked + 1, id
      for seq in string.gmatch(call('HGET', group.G .. 'i', id) or '', '[^,]+') do
        if operation == 'list' then
          describe(group, group_name, id, seq, answer)
        else
          changes = changes + act(group, seq)
        end
      end
    end
    wake_waiting(group)
    if looked >= most and #ids_of(group, after, 1) > 0 then
      answer[2], answer[3] = group_name, after
      break
    end
  end
end
if operation == 'act' then
  answer[4] = changes
end
return answer
