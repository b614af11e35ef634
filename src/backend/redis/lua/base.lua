-- What every script shares: keys, names, and who waits.
--
-- KEYS[1] is the prefix of all keys of the bus; its hash tag keeps them on one node.
-- A copy of a message is named by its order of acceptance ("seq", 16 digits, so that names sort).
-- Keys of a group g (P .. 'g' .. g .. ':' ..):
--   m  hash   name, max, paused, next (sweep), nextq, counters, b<queue> -> binding
--   q  hash   binding -> queue
--   c  hash   seq -> head (accepted, expires, queue, kind) .. message
--   s  hash   seq -> attempts:crashes:since:error, for what was claimed or moved before
--   i  hash   message id -> its seqs, joined by commas
--   r         of these, the ids that are not the first of their event (see is_again)
--   l<queue>  list of ready seqs: what was accepted plain and never moved
--   z<queue>  ready seqs that need an order: score -priority
--   b, d, t   blocked behind their key, delayed (score due), leased (score end of lease)
--   a  hash   seq -> token:queue:kind:claim of the claim that holds it; kind p = plain,
--             m = plain but moved before, x = anything else
--   e         ends of the time to live of what waits
--   k         lines of the ordering keys: member <length>:<key>:<seq>
--   u  hash   queue:unique -> seq
--   D, L      dead letters: message ids by place, message id -> letters
--   N  list   dead letters that nobody has been told of: message ids
--   w<queue>  processes that wait for a claim
local P = KEYS[1]
local call = redis.call

-- Returns microseconds since the epoch by the server's clock.
local function clock()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local function name_of(seq)
  return string.format('%016d', seq)
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
