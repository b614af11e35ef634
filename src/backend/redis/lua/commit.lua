-- A batch of transactions, first part: runs of plain publishes and plain acknowledgements, in bulk.
--
-- ARGV[1] is msgpack: [version, producer, number, topics, segments, dedup_window, again, keeps, others]
--   version   of the registry of bindings that the targets were computed with
--   number    counts the batches of the producer: a batch sent again answers what it did before
--   again     whether it was sent before
--   keeps     whether broadcasts are kept for replay, as the registry says
--   others    whether there is a message among them that is not the first of its event
--   topics    [[channel, [g, queue, g, queue, ...], topic if keeps], ...], named by index from 1
--   segments  ['p', topic, message, frame, ...]             plain publishes
--             ['P', topic, message, frame, ...]             the same, as one transaction
--             ['b', count, topic, frames, ...]              publishes that are broadcast only
--             ['a', group, id, token, queue, ...]           plain acknowledgements
--             ['t', op, op, ...]                            one transaction of any kind
-- frame: true = the message itself is broadcast, false = nothing, a string = that; if keeps, it is
-- [frame, event key] instead.
-- Answers 'STALE', or msgpack: one result per segment.
local batch = cmsgpack.unpack(ARGV[1])
local version, producer, number = batch[1], batch[2], batch[3]
local topics, segments, dedup_window, others = batch[4], batch[5], batch[6], batch[9]

local slot = P .. 'p:' .. producer
local last = batch[7] and call('GET', slot)
if last then
  local done, at = string.match(last, '^(%d+):()')
  if tonumber(done) == number then
    return string.sub(last, at)
  end
end
-- Without topics nothing depends on the bindings.
if #topics > 0 and (call('GET', P .. 'v') or '0') ~= version then
  return 'STALE'
end

local results = {}
local keeps, keep_most, keep_age = batch[8], nil, nil
if keeps then
  keep_most, keep_age = retention()
end

local function finish()
  if keeps then
    trim_kept(keep_age)
  end
  local reply = cmsgpack.pack(results)
  -- A full server refuses it; then only a lost reply could tell.
  redis.pcall('SET', slot, int(number) .. ':' .. reply, 'EX', 3600)
  return reply
end

-- Sends frames in order; neighbours on one channel share a message, which a megabyte ends.
local frames, channel, frame_bytes = {}, nil, 0
local function flush()
  if channel then
    call('PUBLISH', channel, table.concat(frames))
    frames, channel, frame_bytes = {}, nil, 0
  end
end

local function broadcast(topic, message, frame)
  if not frame then
    return
  end
  if keeps then
    if keep_most > 0 then
      keep(topic[3], frame[2], message, keep_most)
    end
    frame = frame[1]
  end
  if frame == true then
    if channel ~= topic[1] or #frames >= 64 or frame_bytes >= 1048576 then
      flush()
      channel = topic[1]
    end
    frames[#frames + 1] = message
    frame_bytes = frame_bytes + #message
  else
    flush()
    call('PUBLISH', topic[1], frame)
  end
end

-- Notes in the index of a group the ids that are not the first of their event; or forgets them.
local function index_others(G, ids, command)
  local found = {}
  for _, id in ipairs(ids) do
    if is_again(id) then
      if command == 'ZADD' then
        found[#found + 1] = 0
      end
      found[#found + 1] = id
    end
  end
  bulk(command, G .. 'r', found)
end

-- Whether every group has room for what a run adds; tells which are paused.
local paused = {}
local function have_room(run)
  local need = {}
  for at = 2, #run, 3 do
    local targets = topics[run[at]][2]
    for to = 1, #targets, 2 do
      need[targets[to]] = (need[targets[to]] or 0) + 1
    end
  end
  for g, adds in pairs(need) do
    local meta = call('HMGET', P .. 'g' .. g .. ':m', 'max', 'paused')
    local max = meta[1]
    paused[g] = meta[2] == '1'
    if max and call('HLEN', P .. 'g' .. g .. ':c') + adds > tonumber(max) then
      return false
    end
  end
  return true
end

local function publish_run(run)
  local copies = 0
  for at = 2, #run, 3 do
    copies = copies + #topics[run[at]][2] / 2
  end
  local published = (#run - 1) / 3
  if copies > 0 then
    local seq = count_published(published, copies)
    local groups, ready = {}, {}
    for at = 2, #run, 3 do
      local targets, message = topics[run[at]][2], run[at + 1]
      for to = 1, #targets, 2 do
        local g, queue = targets[to], targets[to + 1]
        local group = groups[g]
        if not group then
          group = { blobs = {}, ids = {}, seqs = {}, lists = {}, heads = {} }
          groups[g] = group
        end
        if not group.heads[queue] then
          group.heads[queue] = struct.pack('>ddI4c1', now, 0, queue, 'p')
          group.lists[queue] = {}
        end
        seq = seq + 1
        local name = name_of(seq)
        local n = #group.seqs + 1
        group.seqs[n] = name
        group.ids[n] = string.sub(message, 3, 18)
        group.blobs[n * 2 - 1] = name
        group.blobs[n * 2] = group.heads[queue] .. message
        local list = group.lists[queue]
        list[#list + 1] = name
      end
    end
    for g, group in pairs(groups) do
      local G = P .. 'g' .. g .. ':'
      bulk('HSET', G .. 'c', group.blobs)
      if #group.ids > 1 or call('HSETNX', G .. 'i', group.ids[1], group.seqs[1]) == 0 then
        local known = bulk_get('HMGET', G .. 'i', group.ids)
        local mine, fields = {}, {}
        for at, id in ipairs(group.ids) do
          local before = mine[id] or known[at]
          mine[id] = before and before .. ',' .. group.seqs[at] or group.seqs[at]
        end
        for id, seqs in pairs(mine) do
          fields[#fields + 1] = id
          fields[#fields + 1] = seqs
        end
        bulk('HSET', G .. 'i', fields)
      end
      if others then
        index_others(G, group.ids, 'ZADD')
      end
      call('HINCRBY', G .. 'm', 'accepted', #group.seqs)
      for queue, list in pairs(group.lists) do
        bulk('RPUSH', G .. 'l' .. queue, list)
      end
      ready[#ready + 1] = g
    end
    for _, g in ipairs(ready) do
      if not paused[g] then
        for queue, list in pairs(groups[g].lists) do
          wake(g, queue, #list)
        end
      end
    end
  else
    -- A full server can still broadcast.
    redis.pcall('HINCRBY', P .. 'n', 'more', 0 - published)
  end
  for at = 2, #run, 3 do
    broadcast(topics[run[at]], run[at + 1], run[at + 2])
  end
  flush()
  return true
end

-- Broadcasts what nothing keeps; neighbours of one topic stand together already.
local function publish_heard(run)
  flush()
  -- A full server can still broadcast.
  redis.pcall('HINCRBY', P .. 'n', 'more', 0 - run[2])
  for at = 3, #run, 2 do
    call('PUBLISH', topics[run[at]][1], run[at + 1])
  end
  return true
end

local M, X = string.byte('m'), string.byte('x')

-- Acknowledges what is plain; answers the places of what it left, and of what was lost.
local function ack_run(run)
  local g = call('HGET', P .. 'names', run[2])
  local left, lost = {}, {}
  if not g then
    for at = 3, #run, 3 do
      lost[#lost + 1] = at
    end
    return left, lost
  end
  local G = P .. 'g' .. g .. ':'
  local ids = {}
  for at = 3, #run, 3 do
    ids[#ids + 1] = run[at]
  end
  local seqs = bulk_get('HMGET', G .. 'i', ids)
  for at = 1, #seqs do
    seqs[at] = seqs[at] or ''
  end
  local claims = bulk_get('HMGET', G .. 'a', seqs)
  local done_ids, done_seqs, moved, seen = {}, {}, {}, {}
  for at = 1, #ids do
    local place = at * 3
    local claim = claims[at]
    if #seqs[at] > 16 then
      left[#left + 1] = place
    elseif not claim or seen[claim] then
      lost[#lost + 1] = place
    else
      local mine = run[place + 1] .. ':' .. run[place + 2] .. ':'
      local kind = #mine + 1
      if string.sub(claim, 1, #mine) ~= mine then
        lost[#lost + 1] = place
      elseif string.byte(claim, kind) == X then
        left[#left + 1] = place
      else
        seen[claim] = true
        done_ids[#done_ids + 1] = ids[at]
        done_seqs[#done_seqs + 1] = seqs[at]
        if string.byte(claim, kind) == M then
          moved[#moved + 1] = seqs[at]
        end
      end
    end
  end
  if #done_seqs > 0 then
    bulk('HDEL', G .. 'c', done_seqs)
    bulk('HDEL', G .. 'a', done_seqs)
    bulk('ZREM', G .. 't', done_seqs)
    bulk('HDEL', G .. 's', moved)
    bulk('HDEL', G .. 'i', done_ids)
    if others then
      index_others(G, done_ids, 'ZREM')
    end
    call('HINCRBY', G .. 'm', 'acked', #done_seqs)
  end
  return left, lost
end

local at_segment, pending_acks = 1, nil
while at_segment <= #segments do
  local segment = segments[at_segment]
  if (segment[1] == 'p' or segment[1] == 'P') and have_room(segment) then
    results[at_segment] = publish_run(segment)
  elseif segment[1] == 'b' then
    results[at_segment] = publish_heard(segment)
  elseif segment[1] == 'a' then
    local left, lost = ack_run(segment)
    results[at_segment] = lost
    if #left > 0 then
      pending_acks = left
      break
    end
  else
    break
  end
  at_segment = at_segment + 1
end
if at_segment > #segments then
  return finish()
end
