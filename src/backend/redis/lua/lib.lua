-- What most scripts share: the time, groups, and commands in bulk.
local HEAD = 21
local now = clock()

local function int(number)
  return string.format('%d', number)
end

-- Copies of messages, whereof `published` messages; the common case, one copy each, costs one command.
local function count_published(published, copies)
  if copies ~= published then
    call('HINCRBY', P .. 'n', 'more', copies - published)
  end
  return call('HINCRBY', P .. 'n', 'seq', copies) - copies
end

-- Calls a command with many arguments, a thousand at a time.
local function bulk(command, key, list)
  local n = #list
  if n == 0 then
    return
  end
  if n <= 1000 then
    return call(command, key, unpack(list))
  end
  for from = 1, n, 1000 do
    call(command, key, unpack(list, from, math.min(from + 999, n)))
  end
end

-- As bulk, for commands that answer one value per argument.
local function bulk_get(command, key, list)
  local n = #list
  if n <= 1000 then
    return call(command, key, unpack(list))
  end
  local all = {}
  for from = 1, n, 1000 do
    local part = call(command, key, unpack(list, from, math.min(from + 999, n)))
    for at = 1, #part do
      all[#all + 1] = part[at]
    end
  end
  return all
end

local function open_group(g)
  local G = P .. 'g' .. g .. ':'
  return { g = g, G = G, wakes = {} }
end

-- Returns the group of a name, or nil.
local function find_group(name)
  local g = call('HGET', P .. 'names', name)
  return g and open_group(g)
end

-- Remembers the earliest time at which a sweep may find something; it may be too early, never late.
local function look_at(group, at)
  if group.next == nil then
    group.next = tonumber(call('HGET', group.G .. 'm', 'next') or nil) or false
  end
  if not group.next or at < group.next then
    group.next = at
    call('HSET', group.G .. 'm', 'next', int(at))
  end
end

-- Whether a message is one of several that may carry its event: then its id stands in an index, too.
-- Its version, the upper half of byte 7, is 8.
local function is_again(id)
  local version = string.byte(id, 7) or 0
  return version >= 128 and version < 144
end
