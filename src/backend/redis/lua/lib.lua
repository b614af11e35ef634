-- What every script shares: keys, time, and the moves of one copy between the places of its group.
--
-- KEYS[1] is the prefix of all keys of the bus; its hash tag keeps them on one node.
-- A copy of a message is named by its order of acceptance ("seq", 16 digits, so that names sort).
-- Keys of a group g (P .. 'g' .. g .. ':' ..):
--   m  hash   name, max, paused, next (sweep), nextq, counters, b<queue> -> binding
--   q  hash   binding -> queue
--   c  hash   seq -> head (accepted, expires, queue, kind) .. message
--   s  hash   seq -> attempts:crashes:since:error, for what was claimed or moved before
--   i  hash   message id -> its seqs, joined by commas
--   l<queue>  list of ready seqs: what was accepted plain and never moved
--   z<queue>  ready seqs that need an order: score -priority
--   b, d, t   blocked behind their key, delayed (score due), leased (score end of lease)
--   a  hash   seq -> token:queue:kind:claim of the claim that holds it; kind p = plain,
--             m = plain but moved before, x = anything else
--   e         ends of the time to live of what waits
--   k         lines of the ordering keys: member <length>:<key>:<seq>
--   u  hash   queue:unique -> seq
--   D, L      dead letters: message ids by place, message id -> letters
--   w<queue>  processes that wait for a claim
local P = KEYS[1]
local call = redis.call
local HEAD = 21

local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local function int(number)
  return string.format('%d', number)
end

local function name_of(seq)
  return string.format('%016d', seq)
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

-- Wakes waiting processes, at most one per message that became ready.
local function wake(g, queue, count)
  local key = P .. 'g' .. g .. ':w' .. queue
  while count > 0 do
    local process = call('SPOP', key)
    if not process then
      return
    end
    -- A process that is gone has no subscription: the next one is woken instead.
    if call('PUBLISH', P .. 'wake:' .. process, g .. ':' .. queue) > 0 then
      count = count - 1
    end
  end
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
