"""The bridge between Rust and asyncio: awaitables, handlers, loops, forks, leases."""
