-- Reads records.
--
-- ARGV: 'read', key, ...               answers per key version:value or false
--       'scan', prefix, after, limit   answers key, version:value, ...; an empty after begins
sweep_records()
if ARGV[1] == 'read' then
  local answer = {}
  for at = 2, #ARGV do
    answer[at - 1] = call('HGET', P .. 'r', ARGV[at])
  end
  return answer
end
local prefix, after, limit = ARGV[2], ARGV[3], tonumber(ARGV[4])
local from = '[' .. prefix
if after ~= '' and after >= prefix then
  from = '(' .. after
end
-- No UTF-8 text has the byte 255.
local keys = call('ZRANGEBYLEX', P .. 'rk', from, '(' .. prefix .. '\255', 'LIMIT', 0, limit)
local answer = {}
for _, key in ipairs(keys) do
  answer[#answer + 1] = key
  answer[#answer + 1] = call('HGET', P .. 'r', key)
end
return answer
