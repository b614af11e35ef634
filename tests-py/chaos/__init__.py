"""Fault runs: cancellation, interpreter exits, thread switches at every instruction."""
