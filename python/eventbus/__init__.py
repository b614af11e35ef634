"""An event bus: broadcast, durable queues, records and one atomic commit."""

import atexit
import os
from typing import TYPE_CHECKING

from eventbus import _eventbus
from eventbus._eventbus import __version__

# The runtime must end while the interpreter is whole, and is dead in a forked child.
atexit.register(_eventbus._shutdown)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_eventbus._after_fork_in_child)

from eventbus.bus import Bus, DeadLetters
from eventbus.config import ConsumeOptions, RetryPolicy
from eventbus.connect import connect
from eventbus.consumer import Consumer, Deliveries
from eventbus.delivery import Delivery, Transaction, current_delivery
from eventbus.dispatch import Registration, Registry, event_handler
from eventbus.errors import (
    BatchError,
    BusClosedError,
    ConfigError,
    ConfigurationError,
    ConnectError,
    DataknobsError,
    DecodeError,
    EncodeError,
    EventBusError,
    ForkedError,
    InternalError,
    LeaseLost,
    NotConnectedError,
    NotFoundError,
    NoTransactionError,
    OperationError,
    OperationTimeout,
    PayloadTooLarge,
    QueueFull,
    Reject,
    Retry,
    SerializationError,
    TopicError,
    UnsupportedError,
    VersionConflict,
)
from eventbus.stream import Stream
from eventbus.subscription import Subscription
from eventbus.types import DeadLetter, Event, EventType, Gap, MessageInfo, Record

if TYPE_CHECKING:
    from eventbus.compat.dataknobs.configured import EventBusConfig, MemoryEventBusConfig
    from eventbus.compat.dataknobs.factory import create_event_bus, create_event_bus_async
    from eventbus.compat.dataknobs.memory import InMemoryEventBus
    from eventbus.compat.dataknobs.postgres import PostgresEventBus, PostgresEventBusConfig
    from eventbus.compat.dataknobs.protocol import EventBus
    from eventbus.compat.dataknobs.redis import RedisEventBus, RedisEventBusConfig
    from eventbus.compat.dataknobs.registry import EventBusFactory, event_bus_backends

__all__ = [
    "BatchError",
    "Bus",
    "BusClosedError",
    "ConfigError",
    "ConfigurationError",
    "ConnectError",
    "ConsumeOptions",
    "Consumer",
    "DataknobsError",
    "DeadLetter",
    "DeadLetters",
    "DecodeError",
    "Deliveries",
    "Delivery",
    "EncodeError",
    "Event",
    "EventBus",
    "EventBusConfig",
    "EventBusError",
    "EventBusFactory",
    "EventType",
    "ForkedError",
    "Gap",
    "InMemoryEventBus",
    "InternalError",
    "LeaseLost",
    "MemoryEventBusConfig",
    "MessageInfo",
    "NoTransactionError",
    "NotConnectedError",
    "NotFoundError",
    "OperationError",
    "OperationTimeout",
    "PayloadTooLarge",
    "PostgresEventBus",
    "PostgresEventBusConfig",
    "QueueFull",
    "Record",
    "RedisEventBus",
    "RedisEventBusConfig",
    "Registration",
    "Registry",
    "Reject",
    "Retry",
    "RetryPolicy",
    "SerializationError",
    "Stream",
    "Subscription",
    "TopicError",
    "Transaction",
    "UnsupportedError",
    "VersionConflict",
    "__version__",
    "connect",
    "create_event_bus",
    "create_event_bus_async",
    "current_delivery",
    "event_bus_backends",
    "event_handler",
]

# The names that the DataKnobs contract promises (D1), imported when they are first asked for: other
# code pays nothing for them.
_DATAKNOBS = {
    "EventBus": "protocol",
    "EventBusConfig": "configured",
    "EventBusFactory": "registry",
    "InMemoryEventBus": "memory",
    "MemoryEventBusConfig": "configured",
    "PostgresEventBus": "postgres",
    "PostgresEventBusConfig": "postgres",
    "RedisEventBus": "redis",
    "RedisEventBusConfig": "redis",
    "create_event_bus": "factory",
    "create_event_bus_async": "factory",
    "event_bus_backends": "registry",
}


def __getattr__(name: str) -> object:
    if name not in _DATAKNOBS:
        raise AttributeError(f"module 'eventbus' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"eventbus.compat.dataknobs.{_DATAKNOBS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_DATAKNOBS})
