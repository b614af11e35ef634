"""The names of ``dataknobs_common.events.types``."""

from eventbus.subscription import Subscription
from eventbus.types import Event, EventType

__all__ = ["Event", "EventType", "Subscription"]
