"""The names of ``dataknobs_common.events``: change the import and the code runs here.

They are the same objects that ``eventbus`` offers (contract D1).
"""

from eventbus.compat.dataknobs.bus import EventBus, create_event_bus, create_event_bus_async
from eventbus.compat.dataknobs.config import (
    EventBusConfig,
    MemoryEventBusConfig,
    PostgresEventBusConfig,
    RedisEventBusConfig,
)
from eventbus.compat.dataknobs.exceptions import ConfigurationError as ConfigurationError
from eventbus.compat.dataknobs.exceptions import DataknobsError as DataknobsError
from eventbus.compat.dataknobs.exceptions import NotFoundError as NotFoundError
from eventbus.compat.dataknobs.exceptions import OperationError as OperationError
from eventbus.compat.dataknobs.install import install as install
from eventbus.compat.dataknobs.install import uninstall as uninstall
from eventbus.compat.dataknobs.memory import InMemoryEventBus
from eventbus.compat.dataknobs.postgres import PostgresEventBus
from eventbus.compat.dataknobs.redis import RedisEventBus
from eventbus.compat.dataknobs.registry import EventBusFactory, event_bus_backends
from eventbus.compat.dataknobs.types import Event, EventType, Subscription

__all__ = [
    "Event",
    "EventBus",
    "EventBusConfig",
    "EventBusFactory",
    "EventType",
    "InMemoryEventBus",
    "MemoryEventBusConfig",
    "PostgresEventBus",
    "PostgresEventBusConfig",
    "RedisEventBus",
    "RedisEventBusConfig",
    "Subscription",
    "create_event_bus",
    "create_event_bus_async",
    "event_bus_backends",
]
