-- Claims, first part: what is plain and in order, from one queue.
--
-- Claims the best ready copies of the queues a consumer serves; or looks whether there are any.
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
  return { 'empty', group.next and int(group.next) or '-1', int(now) }
end

if max > 0 and ARGV[8] == '0' and not paused and queues and #queues == 1
  and not (group.next and group.next <= now) and call('ZCARD', G .. 'z' .. queues[1]) == 0 then
  local list = G .. 'l' .. queues[1]
  local seqs = call('LPOP', list, max)
  if not seqs then
    return wait_for_more()
  end
  local blobs, fine = bulk_get('HMGET', G .. 'c', seqs), true
  for at = 1, #seqs do
    fine = fine and is_ours(blobs[at])
  end
  if fine then
    return hand_out(seqs, blobs)
  end
  for at = #seqs, 1, -1 do
    call('LPUSH', list, seqs[at])
  end
end
