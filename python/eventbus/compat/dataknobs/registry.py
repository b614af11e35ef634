"""The names of ``dataknobs_common.events.registry``."""

from eventbus.factory import EventBusFactory, event_bus_backends

__all__ = ["EventBusFactory", "event_bus_backends"]
