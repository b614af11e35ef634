"""The names of ``dataknobs_common.events.config``."""

from eventbus.factory import EventBusConfig, MemoryEventBusConfig
from eventbus.postgres import PostgresEventBusConfig
from eventbus.redis import RedisEventBusConfig

__all__ = [
    "EventBusConfig",
    "MemoryEventBusConfig",
    "PostgresEventBusConfig",
    "RedisEventBusConfig",
]
