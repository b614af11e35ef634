"""Events by name or by class, for clusters of managers and agents that share nothing but a bus."""

from eventbus.dispatcher.coalescing import CoalescingOptions, CoalescingState
from eventbus.dispatcher.dispatcher import EventDispatcher
from eventbus.dispatcher.events import AbstractEvent
from eventbus.dispatcher.handlers import ArgsMatcher, EventHandler
from eventbus.dispatcher.producer import EventProducer
from eventbus.dispatcher.transport import BusTransport, Incoming, Message, Target, Transport

__all__ = [
    "AbstractEvent",
    "ArgsMatcher",
    "BusTransport",
    "CoalescingOptions",
    "CoalescingState",
    "EventDispatcher",
    "EventHandler",
    "EventProducer",
    "Incoming",
    "Message",
    "Target",
    "Transport",
]
