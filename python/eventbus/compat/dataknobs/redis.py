"""The names of ``dataknobs_common.events.redis``."""

from eventbus.redis import RedisEventBus

__all__ = ["RedisEventBus"]
