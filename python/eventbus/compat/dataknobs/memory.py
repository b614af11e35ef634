"""The names of ``dataknobs_common.events.memory``."""

from eventbus.bus import InMemoryEventBus

__all__ = ["InMemoryEventBus"]
