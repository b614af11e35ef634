"""The dispatcher of era A: string event names and positional arguments (B3-B6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from eventbus.compat.backendai.base import BaseDispatcher
from eventbus.compat.backendai.codec import Era
from eventbus.compat.backendai.connection import Address, address_of
from eventbus.compat.backendai.facade import RedisLike
from eventbus.dispatcher import CoalescingOptions, CoalescingState, Message, Target

__all__ = ["EventCallback", "EventDispatcher", "EventHandler"]

T = TypeVar("T")


class EventCallback(Protocol):
    """What ``consume`` and ``subscribe`` call; the result is awaited when it is awaitable."""

    def __call__(self, context: Any, agent_id: str, event_name: str, /, *args: Any) -> object:
        """Handle an event."""
        ...


@dataclass(frozen=True, eq=False)
class EventHandler(Generic[T]):
    """One registration; immutable, compared and hashed by identity.

    Attributes:
        context: Handed to the callback as it was given.
        callback: ``callback(context, agent_id, event_name, *args)``.
    """

    context: T
    callback: Callable[..., object]

    @property
    def coalescing_opts(self) -> CoalescingOptions | None:
        """None: era A knows no coalescing."""
        return None

    @property
    def coalescing_state(self) -> CoalescingState:
        """No burst."""
        return CoalescingState()

    def accepts(self, message: Message) -> bool:
        """Take every event of the name."""
        del message
        return True

    def invoke(self, message: Message, decoded: dict[type, Any]) -> object:
        """Call the callback."""
        del decoded
        return self.callback(self.context, message.source, message.name, *message.args)


class EventDispatcher(BaseDispatcher[EventHandler[Any]]):
    """Runs handlers for events by name, and produces them.

    Made by ``await EventDispatcher.new(local_config, shared_config)``, ``new(app)`` or
    ``new(bus=…)``; what is produced after that is seen. The registering methods do not wait.

    Attributes:
        consumers: The consuming handlers by event name.
        subscribers: The subscribing handlers by event name.
        producer_lock: A lock for call sites that take it; nothing here needs it.
        redis_producer: A small Redis client, on every bus.
        redis_consumer: The same one.
        redis_subscriber: The same one.
    """

    era: ClassVar[Era] = "A"
    redis_producer: RedisLike
    redis_consumer: RedisLike
    redis_subscriber: RedisLike

    def __init__(self, *config: Any) -> None:
        """Read the configuration; use ``new``.

        Args:
            *config: ``local_config, shared_config``, or ``app``; nothing with ``bus=…``.
        """
        address: Address = ""
        log_events = False
        if config or self._options.bus is None:
            address, log_events = address_of(config)
        self._address = address
        self._prepare(log_events)

    async def __ainit__(self) -> None:
        """Connect and subscribe."""
        await self._start(self._address)
        redis = self.connection.redis
        self.redis_producer = self.redis_consumer = self.redis_subscriber = redis

    def consume(
        self, event_name: str, context: Any, callback: Callable[..., object]
    ) -> EventHandler[Any]:
        """Handle events that one dispatcher must handle.

        Args:
            event_name: The name.
            context: Handed to the callback.
            callback: Called with ``(context, agent_id, event_name, *args)``.

        Returns:
            The registration, for ``unconsume``.
        """
        handler = EventHandler(context, callback)
        self.consumers[event_name].add(handler)
        return handler

    def unconsume(self, event_name: str, handler: EventHandler[Any]) -> None:
        """Remove a consuming handler; an unknown one in silence."""
        self.consumers[event_name].discard(handler)

    def subscribe(
        self, event_name: str, context: Any, callback: Callable[..., object]
    ) -> EventHandler[Any]:
        """See events that every dispatcher sees, from now on; arguments as for ``consume``."""
        handler = EventHandler(context, callback)
        self.subscribers[event_name].add(handler)
        return handler

    def unsubscribe(self, event_name: str, handler: EventHandler[Any]) -> None:
        """Remove a subscribing handler; an unknown one in silence."""
        self.subscribers[event_name].discard(handler)

    async def produce_event(
        self,
        event_name: str,
        args: Sequence[Any] = (),
        *,
        agent_id: str = "manager",
        to: Target = "both",
        dedup_id: str | None = None,
    ) -> None:
        """Send an event; waits for a server that is away.

        Args:
            event_name: The name.
            args: Its arguments: what msgpack carries.
            agent_id: Who produces.
            to: ``"consumers"``, ``"subscribers"`` or ``"both"``.
            dedup_id: A second event of this name and id is dropped (24 hours).

        Raises:
            TypeError: An argument cannot be encoded.
            OverflowError: An integer beyond 64 bits.
            TimeoutError: There was no server for 60 seconds.
        """
        await self._produce(Message(event_name, agent_id, tuple(args)), to, dedup_id)

    async def dispatch_consumers(
        self, event_name: str, agent_id: str, args: Sequence[Any] = ()
    ) -> None:
        """Run the consuming handlers of this dispatcher; nothing is sent."""
        await self._engine.run_consumers(self._local(event_name, agent_id, args))

    async def dispatch_subscribers(
        self, event_name: str, agent_id: str, args: Sequence[Any] = ()
    ) -> None:
        """Run the subscribing handlers of this dispatcher; nothing is sent."""
        await self._engine.run_subscribers(self._local(event_name, agent_id, args))
