"""Private servers for the tests: real processes, killed at the end, and their faults."""
