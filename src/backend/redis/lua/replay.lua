-- What a replay reads.
--
-- ARGV: operation, own retention in milliseconds or '', own most, ...
-- A place is a position and a time in milliseconds: what follows it has a greater (time, position).
local operation = ARGV[1]
if not call('HGET', P .. 'config', 'retention_max') then
  -- The server lost it.
  set_retention(ARGV[2], ARGV[3])
end
local max, age = retention()
trim_kept(age)
local newest = tonumber(call('HGET', P .. 'n', 'log') or 0)
local length = call('XLEN', P .. 'log')

local function parse(entry)
  local time, position = string.match(entry[1], '^(%d+)-(%d+)$')
  return tonumber(time), tonumber(position)
end

-- Returns time and position of the first at this time or later.
local function first_from(time)
  local found = call('XRANGE', P .. 'log', time, '+', 'COUNT', 1)[1]
  if found then
    return parse(found)
  end
end

if operation == 'find' then
  -- kind, value; answers position, time, and 1 when what was asked for is not kept any more
  local kind, value = ARGV[4], ARGV[5]
  local oldest_time, oldest = first_from('-')
  local before = oldest and oldest - 1 or newest
  local beginning = { int(before), '0' }
  local cut = { int(before), '0', 1 }
  if kind == 'beginning' then
    return beginning
  end
  if kind == 'time' then
    local wanted = math.floor(tonumber(value) / 1000)
    local time, position = first_from(int(math.max(wanted, 0)))
    if not position then
      local last = call('XREVRANGE', P .. 'log', '+', '-', 'COUNT', 1)[1]
      time, position = last and parse(last), newest + 1
    end
    local lost = length >= max or (age and wanted < math.floor(now / 1000) - age)
    if before > 0 and lost and position == before + 1 then
      return cut
    end
    return { int(position - 1), int(time or 0) }
  end
  local position = tonumber(kind == 'event' and call('ZSCORE', P .. 'le', value) or kind == 'after' and value or -1)
  if position < before or position > newest then
    return cut
  end
  if position == before then
    return beginning
  end
  -- Its time: the latest at which the first one stands at this position or before it.
  local low = oldest_time
  local high = parse(call('XREVRANGE', P .. 'log', '+', '-', 'COUNT', 1)[1])
  while low < high do
    local middle = math.ceil((low + high) / 2)
    local _, at = first_from(int(middle))
    if at <= position then
      low = middle
    else
      high = middle - 1
    end
  end
  return { int(position), int(low) }
end

-- page: position, time, most messages, most bytes, then kind and text of what is wanted
-- (t topic, p all that begin so); answers position and time of the end, 1 when there may be more,
-- then position, message of each, or 0, '' where something is missing
local position, time = tonumber(ARGV[4]), tonumber(ARGV[5])
local most, most_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local topics, prefixes = {}, {}
for at = 8, #ARGV, 2 do
  if ARGV[at] == 't' then
    topics[ARGV[at + 1]] = true
  else
    prefixes[#prefixes + 1] = ARGV[at + 1]
  end
end

local function wanted(topic)
  if topics[topic] then
    return true
  end
  for _, prefix in ipairs(prefixes) do
    if string.sub(topic, 1, #prefix) == prefix then
      return true
    end
  end
  return false
end

local answer = { '', '', 0 }
local function add(at, message)
  answer[#answer + 1] = int(at)
  answer[#answer + 1] = message
end

local AT_ONCE, MOST_LOOKED_AT = 20, 5000
local frames, size, looked, finished = 0, 0, 0, false
while not finished and answer[3] == 0 do
  local from = '(' .. int(time) .. '-' .. int(position)
  local some = call('XRANGE', P .. 'log', from, '+', 'COUNT', AT_ONCE)
  for _, entry in ipairs(some) do
    if frames >= most or size >= most_bytes or looked >= MOST_LOOKED_AT then
      answer[3] = 1
      break
    end
    local entry_time, at = parse(entry)
    if at ~= position + 1 then
      add(0, '')
    end
    time, position, looked = entry_time, at, looked + 1
    local topic, message = entry[2][4], entry[2][6]
    if wanted(topic) then
      add(at, message)
      frames, size = frames + 1, size + #message
    end
  end
  finished = #some < AT_ONCE
end
if answer[3] == 0 and position ~= newest then
  -- Everything up to the newest is gone, or all of it.
  add(0, '')
  position = newest
end
answer[1], answer[2] = int(position), int(time)
return answer
