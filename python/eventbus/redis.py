"""A module that the DataKnobs contract promises (D1): its bus over Redis."""

from eventbus.compat.dataknobs.redis import RedisEventBus, RedisEventBusConfig

__all__ = ["RedisEventBus", "RedisEventBusConfig"]
