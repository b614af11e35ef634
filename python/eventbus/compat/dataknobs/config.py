"""The names of ``dataknobs_common.events.config``."""

from eventbus.factory import EventBusConfig, MemoryEventBusConfig

__all__ = ["EventBusConfig", "MemoryEventBusConfig"]
