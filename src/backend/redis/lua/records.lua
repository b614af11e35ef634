-- Records: versioned values by key, with time to live, and the memory that no version is used twice.
--
--   r   hash   key -> version:value          rk  zset  keys in byte order
--   rx  zset   key by the end of its life    rt  hash  deleted key -> its last version
--   rd  list   version:key of deletions, oldest first

-- Replaces a record by its tombstone.
local function bury_record(key)
  local found = call('HGET', P .. 'r', key)
  if not found then
    return
  end
  local version = string.match(found, '^(%d+):')
  call('HDEL', P .. 'r', key)
  call('ZREM', P .. 'rk', key)
  call('ZREM', P .. 'rx', key)
  call('HSET', P .. 'rt', key, version)
  call('RPUSH', P .. 'rd', version .. ':' .. key)
end

local function sweep_records()
  local over = call('ZRANGEBYSCORE', P .. 'rx', '-inf', int(now), 'LIMIT', 0, 1000)
  for _, key in ipairs(over) do
    bury_record(key)
  end
end

-- Forgets the oldest tombstones beyond the limit.
local function trim_tombstones()
  local over = call('LLEN', P .. 'rd') - tonumber(call('HGET', P .. 'config', 'max_tombstones') or 100000)
  for _ = 1, math.min(over, 1000) do
    local entry = call('LPOP', P .. 'rd')
    local forgotten, at = string.match(entry, '^(%d+):()')
    local key = string.sub(entry, at)
    if call('HGET', P .. 'rt', key) == forgotten then
      call('HDEL', P .. 'rt', key)
      local floor = tonumber(call('HGET', P .. 'n', 'floor') or 0)
      if tonumber(forgotten) > floor then
        call('HSET', P .. 'n', 'floor', forgotten)
      end
    end
  end
end

-- Returns whether a record exists, and its version or the last one that was used for its key.
local function record_version(key)
  local found = call('HGET', P .. 'r', key)
  if found then
    return true, tonumber(string.match(found, '^(%d+):'))
  end
  local last_version = call('HGET', P .. 'rt', key) or call('HGET', P .. 'n', 'floor') or 0
  return false, tonumber(last_version)
end

local function put_record(key, value, ttl)
  local exists, before = record_version(key)
  if not exists then
    call('HDEL', P .. 'rt', key)
    call('ZADD', P .. 'rk', 0, key)
  end
  call('HSET', P .. 'r', key, int(before + 1) .. ':' .. value)
  if ttl then
    call('ZADD', P .. 'rx', int(now + ttl), key)
  else
    call('ZREM', P .. 'rx', key)
  end
  return before + 1
end
