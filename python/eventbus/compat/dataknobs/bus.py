"""The names of ``dataknobs_common.events.bus``."""

from eventbus.bus import EventBus
from eventbus.factory import create_event_bus, create_event_bus_async

__all__ = ["EventBus", "create_event_bus", "create_event_bus_async"]
