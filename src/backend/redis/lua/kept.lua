-- The broadcasts kept for replay.
--   log     stream: <milliseconds>-<position> -> e (event key), t (topic), m (message)
--   le      event key -> position of the oldest broadcast of it
--   n       field log: position of the newest one; positions are consecutive
--   config  fields retention (milliseconds or '') and retention_max (0 = nothing is kept)

-- Publishers compute targets with a copy of the bindings; a new version makes them read again.
local function changed()
  -- An epoch ends when the data are lost: who knew another one declares again what it knew.
  call('HSETNX', P .. 'config', 'epoch', int(now))
  -- The time, so that no version comes twice even when all data or the last changes were lost.
  local version = tonumber(call('GET', P .. 'v') or 0)
  call('SET', P .. 'v', int(math.max(version + 1, now)))
end

-- Returns how many are kept and for how many milliseconds (nil = for ever).
local function retention()
  local limits = call('HMGET', P .. 'config', 'retention', 'retention_max')
  return tonumber(limits[2] or 0), tonumber(limits[1] or '')
end

-- Keeps from now on what these texts say.
local function set_retention(age, max)
  local before = call('HMGET', P .. 'config', 'retention', 'retention_max')
  if (before[1] or '') == age and (before[2] or '0') == max then
    return
  end
  call('HSET', P .. 'config', 'retention', age, 'retention_max', max)
  if max == '0' then
    call('UNLINK', P .. 'log', P .. 'le')
  end
  changed()
end

-- Keeps one more.
local function keep(topic, event, message, max)
  local position = int(call('HINCRBY', P .. 'n', 'log', 1))
  local time = int(math.floor(now / 1000))
  local entry = { 'e', event, 't', topic, 'm', message }
  local added = redis.pcall(
    'XADD', P .. 'log', 'MAXLEN', '=', max, time .. '-' .. position, unpack(entry)
  )
  if type(added) == 'table' and added.err then
    -- The clock went back: the order is that of the positions.
    local info = call('XINFO', 'STREAM', P .. 'log')
    for at = 1, #info, 2 do
      if info[at] == 'last-generated-id' then
        time = string.match(info[at + 1], '^%d+')
      end
    end
    call('XADD', P .. 'log', 'MAXLEN', '=', max, time .. '-' .. position, unpack(entry))
  end
  call('ZADD', P .. 'le', 'NX', position, event)
end

-- Forgets what is too old, and which events that was.
local function trim_kept(age)
  if age then
    call('XTRIM', P .. 'log', 'MINID', '=', int(math.max(math.floor(now / 1000) - age, 0)))
  end
  local newest = tonumber(call('HGET', P .. 'n', 'log') or 0)
  call('ZREMRANGEBYSCORE', P .. 'le', '-inf', int(newest - call('XLEN', P .. 'log')))
end
