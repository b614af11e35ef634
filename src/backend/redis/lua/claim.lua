-- Claims, first part: what is plain and in order, from one queue.
--
-- Claims the best ready copies of the queues a consumer serves; or looks whether there are any.
-- ARGV: group, max (0 = look only), lease, max_deliveries, process, slot, number, kind,
--       version, g, most bytes, count, queue, ..., binding, ...
--   slot, number         name the claim
--   kind                 'first', or, of one whose answer was lost: 'again' answers as much of what
--                        it gave before as is asked for now, and gives the rest back; 'defer' does
--                        so too, but puts off for a while what is large; 'void' gives all back
--   version, g, queues   what the caller knows of the group, if that version still holds
-- Answers {'nogroup'}, {'ready'}, {'deferred', bytes}, {'empty', next change or -1, now, version}, or
-- {'claimed', now, until, then per copy: token, attempts:crashes, copy}.
local most_bytes, known = tonumber(ARGV[11]), tonumber(ARGV[12])
local group, queues
local version = call('GET', P .. 'v')
if version == ARGV[9] and known > 0 then
  group, queues = open_group(ARGV[10]), {}
  for at = 13, 12 + known do
    queues[#queues + 1] = ARGV[at]
  end
else
  group = find_group(ARGV[1])
  if not group then
    return { 'nogroup' }
  end
end
local G = group.G
local max, lease, max_deliveries = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local process = ARGV[5]
-- Stands in what is claimed: a claim sent again finds by it what it was given before.
local tag = process .. '/' .. ARGV[6] .. '/' .. ARGV[7]

local meta = call('HMGET', G .. 'm', 'paused', 'next')
local paused = meta[1] == '1'
group.next = tonumber(meta[2] or nil) or false

local function is_ours(blob)
  -- Five values behind an id of 16 bytes, as commits write them.
  return blob and #blob > HEAD + 18 and string.sub(blob, HEAD + 1, HEAD + 2) == '\151\176'
end

-- Reads copies until an answer that has `size` bytes already would have too many; one always comes.
-- Returns them, and the bytes of all.
local function read_copies(seqs, size)
  local found = {}
  for from = 1, #seqs, 100 do
    local some = call('HMGET', G .. 'c', unpack(seqs, from, math.min(from + 99, #seqs)))
    for at = 1, #some do
      local blob = some[at]
      local bytes = blob and #blob or 0
      if size > 0 and size + bytes > most_bytes then
        return found, size
      end
      size = size + bytes
      found[#found + 1] = blob
    end
  end
  return found, size
end

-- Leases what was taken out of its places; `states` are of those that moved before.
local function hand_out(seqs, blobs, states)
  local token = call('HINCRBY', P .. 'n', 'token', #seqs) - #seqs
  local until_time = int(now + lease)
  local answer = { 'claimed', int(now), until_time }
  local claims, leases, ends = {}, {}, {}
  for at = 1, #seqs do
    token = token + 1
    local name, blob, tries = int(token), blobs[at], '0:0'
    local kind, queue = string.sub(blob, HEAD, HEAD), struct.unpack('>I4', blob, 17)
    if kind == 'x' then
      ends[#ends + 1] = seqs[at]
    end
    if states and states[at] then
      tries = string.match(states[at], '^%d+:%d+')
      kind = kind == 'p' and 'm' or kind
    end
    claims[at * 2 - 1], claims[at * 2] = seqs[at], name .. ':' .. queue .. ':' .. kind .. ':' .. tag
    leases[at * 2 - 1], leases[at * 2] = until_time, seqs[at]
    answer[at * 3 + 1], answer[at * 3 + 2], answer[at * 3 + 3] = name, tries, blob
  end
  bulk('ZREM', G .. 'e', ends)
  bulk('HSET', G .. 'a', claims)
  bulk('ZADD', G .. 't', leases)
  look_at(group, now + lease)
  return answer
end

-- Nothing is there: whoever publishes next wakes this process.
local function wait_for_more()
  if process ~= '' then
    for _, queue in ipairs(queues) do
      -- A full server refuses it; then the sweep finds what comes.
      redis.pcall('SADD', G .. 'w' .. queue, process)
    end
  end
  return { 'empty', group.next and int(group.next) or '-1', int(now), version or '0' }
end

if max > 0 and ARGV[8] == 'first' and not paused and queues and #queues == 1
  and not (group.next and group.next <= now) and call('ZCARD', G .. 'z' .. queues[1]) == 0 then
  local list = G .. 'l' .. queues[1]
  local seqs = call('LPOP', list, max)
  if not seqs then
    return wait_for_more()
  end
  local blobs, fine = read_copies(seqs, 0), true
  for at = 1, #blobs do
    fine = fine and is_ours(blobs[at])
  end
  if fine then
    for at = #seqs, #blobs + 1, -1 do
      call('LPUSH', list, seqs[at])
      seqs[at] = nil
    end
    return hand_out(seqs, blobs)
  end
  for at = #seqs, 1, -1 do
    call('LPUSH', list, seqs[at])
  end
end
