"""The names of ``dataknobs_common.events.bus``."""

from eventbus.compat.dataknobs.factory import create_event_bus, create_event_bus_async
from eventbus.compat.dataknobs.protocol import EventBus

__all__ = ["EventBus", "create_event_bus", "create_event_bus_async"]
