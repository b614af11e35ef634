#!lua name=LIBRARY
-- The scripts of eventbus as functions, loaded by `eventbus redis-setup`.

-- What needs more memory: a full server refuses it, unless something was written before.
local GROWS = {
  HSET = true, HSETNX = true, HINCRBY = true, SET = true, SADD = true, RPUSH = true, LPUSH = true,
  ZADD = true, XADD = true,
}
local SHRINKS = {
  DEL = true, UNLINK = true, HDEL = true, LPOP = true, LREM = true, LTRIM = true, SPOP = true, SREM = true,
  ZREM = true, ZREMRANGEBYRANK = true, ZREMRANGEBYSCORE = true, XTRIM = true, EXPIRE = true,
}

-- Returns the commands as a full server answers scripts: it refuses functions as a whole, unless they
-- may do everything; so what consumers need to make room has to be told apart here.
local function commands_when_full()
  local dirty = false
  local full = { err = "OOM command not allowed when used memory > 'maxmemory'." }
  local function is_refused(command)
    if GROWS[command] and not dirty then
      return true
    end
    dirty = dirty or GROWS[command] or SHRINKS[command] or false
    return false
  end
  return {
    call = function(command, ...)
      if is_refused(command) then
        error(full)
      end
      return redis.call(command, ...)
    end,
    pcall = function(command, ...)
      if is_refused(command) then
        return full
      end
      return redis.pcall(command, ...)
    end,
    error_reply = redis.error_reply,
  }
end

-- A script as two functions: for a server with room, and for a full one.
local function register(name, run)
  redis.register_function('LIBRARY_' .. name, function(keys, arguments)
    return run(keys, arguments, redis)
  end)
  redis.register_function{
    function_name = 'LIBRARY_' .. name .. '_full',
    callback = function(keys, arguments)
      return run(keys, arguments, commands_when_full())
    end,
    flags = { 'allow-oom' },
  }
end

-- FUNCTIONS
redis.register_function{
  function_name = 'LIBRARY_about',
  callback = function()
    return 'DIGEST'
  end,
  flags = { 'no-writes' },
}
