-- Moves the ends of leases.
--
-- ARGV: lease, then per lease: group, message id, token, queue. Answers 1 or 0 (lost) for each.
local answer, groups = {}, {}
for at = 2, #ARGV, 4 do
  local name = ARGV[at]
  if groups[name] == nil then
    groups[name] = find_group(name) or false
  end
  local group = groups[name]
  local seq = group and held(group, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  if seq then
    call('ZADD', group.G .. 't', int(now + tonumber(ARGV[1])), seq)
  end
  answer[#answer + 1] = seq and 1 or 0
end
return answer
