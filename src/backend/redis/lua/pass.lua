-- Passes a wake-up on that reached a process where nobody waits any more.
--
-- ARGV: group, queue
wake(ARGV[1], ARGV[2], 1)
return 'ok'
