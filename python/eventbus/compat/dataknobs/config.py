"""The names of ``dataknobs_common.events.config``."""

from eventbus.compat.dataknobs.configured import EventBusConfig, MemoryEventBusConfig
from eventbus.compat.dataknobs.postgres import PostgresEventBusConfig
from eventbus.compat.dataknobs.redis import RedisEventBusConfig

__all__ = [
    "EventBusConfig",
    "MemoryEventBusConfig",
    "PostgresEventBusConfig",
    "RedisEventBusConfig",
]
