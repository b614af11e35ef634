"""Fault runs: cancellation, exits, thread switches, killed workers, broken servers and networks."""
