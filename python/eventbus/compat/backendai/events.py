"""Era B: typed events, a dispatcher and a producer apart (B9-B12)."""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from eventbus.compat.backendai import event_classes
from eventbus.compat.backendai.base import BaseDispatcher, BaseProducer
from eventbus.compat.backendai.codec import Era
from eventbus.compat.backendai.connection import Address, connected_to
from eventbus.compat.backendai.event_classes import *  # noqa: F403
from eventbus.compat.backendai.facade import RedisLike
from eventbus.dispatcher import (
    AbstractEvent,
    CoalescingOptions,
    CoalescingState,
    Message,
    Target,
)
from eventbus.dispatcher.coalescing import check_coalescing
from eventbus.dispatcher.handlers import decode_once

__all__ = [
    "AbstractEvent",
    "CoalescingOptions",
    "CoalescingState",
    "EventCallback",
    "EventDispatcher",
    "EventHandler",
    "EventProducer",
]
__all__ += event_classes.__all__

log = logging.getLogger("eventbus.compat.backendai")

Connector = Callable[[], Awaitable[Any]]
"""``async () ->`` a URL, a bus, an aioredis 1.x pool or a redis-py client."""

E_contra = TypeVar("E_contra", bound=AbstractEvent, contravariant=True)


class EventCallback(Protocol[E_contra]):
    """What ``consume`` and ``subscribe`` call; the result is awaited when it is awaitable."""

    def __call__(self, context: Any, source: str, event: E_contra, /) -> object:
        """Handle an event."""
        ...


@dataclass(frozen=True, eq=False)
class EventHandler:
    """One registration; immutable, compared and hashed by identity.

    Attributes:
        event_cls: The class of the events.
        name: Names the handler; need not be unique.
        context: Handed to the callback as it was given.
        callback: ``callback(context, source, event)``.
        coalescing_opts: How bursts are coalesced, or ``None``.
        coalescing_state: The burst of this handler.
    """

    event_cls: type[AbstractEvent]
    name: str
    context: Any
    callback: EventCallback[Any]
    coalescing_opts: CoalescingOptions | None = None
    coalescing_state: CoalescingState = field(default_factory=CoalescingState)

    def accepts(self, message: Message) -> bool:
        """Take every event of the name."""
        del message
        return True

    def invoke(self, message: Message, decoded: dict[type, Any]) -> object:
        """Call the callback with the typed event."""
        event = decode_once(self.event_cls, message, decoded)
        return self.callback(self.context, message.source, event)


class _Connecting:
    """Asks the connector once, unless a bus was given."""

    async def _where(self, connector: Connector | None, given: object) -> Address:
        if given is not None:
            return ""
        if connector is None:
            raise TypeError("new() takes a connector, or bus=…")
        return connected_to(await connector())


class EventDispatcher(_Connecting, BaseDispatcher[EventHandler]):
    """Runs handlers for typed events; made by ``await EventDispatcher.new(connector)``.

    Attributes:
        consumers: The consuming handlers by event name.
        subscribers: The subscribing handlers by event name.
    """

    era: ClassVar[Era] = "B"

    def __init__(self, connector: Connector | None = None, log_events: bool = False) -> None:
        """Keep the connector; use ``new``.

        Args:
            connector: Asked once for the server or bus.
            log_events: Log each dispatch at debug level.
        """
        self._connector = connector
        self._log_events = log_events
        self._prepare(log_events)

    async def __ainit__(self) -> None:
        """Connect and subscribe."""
        await self._start(await self._where(self._connector, self._options.bus))

    def consume(
        self,
        event_cls: type[AbstractEvent],
        context: Any,
        callback: EventCallback[Any],
        coalescing_opts: CoalescingOptions | None = None,
        *,
        name: str | None = None,
    ) -> EventHandler:
        """Handle events that one dispatcher must handle.

        Args:
            event_cls: Their class.
            context: Handed to the callback.
            callback: Called with ``(context, source, event)``.
            coalescing_opts: Handle only the last event of a burst.
            name: Names the handler; made up by default.

        Returns:
            The registration, for ``unconsume``.

        Raises:
            InvalidArgumentError: The coalescing options cannot be used.
        """
        handler = self._handler(event_cls, context, callback, coalescing_opts, name)
        self.consumers[event_cls.name].add(handler)
        self._engine.names_changed()
        return handler

    def unconsume(self, handler: EventHandler) -> None:
        """Remove a consuming handler; an unknown one in silence."""
        self.consumers[handler.event_cls.name].discard(handler)

    def subscribe(
        self,
        event_cls: type[AbstractEvent],
        context: Any,
        callback: EventCallback[Any],
        coalescing_opts: CoalescingOptions | None = None,
        *,
        name: str | None = None,
    ) -> EventHandler:
        """See events that every dispatcher sees, from now on; arguments as for ``consume``."""
        handler = self._handler(event_cls, context, callback, coalescing_opts, name)
        self.subscribers[event_cls.name].add(handler)
        return handler

    def unsubscribe(self, handler: EventHandler) -> None:
        """Remove a subscribing handler; an unknown one in silence."""
        self.subscribers[handler.event_cls.name].discard(handler)

    async def handle(
        self, evh_type: str, evh: EventHandler, source: str, args: tuple[Any, ...]
    ) -> None:
        """Run one handler for an event, if its coalescing options let it; nothing is sent.

        Args:
            evh_type: ``"CONSUMER"`` or ``"SUBSCRIBER"``, for the log.
            evh: The handler.
            source: Who produced.
            args: What the event's class makes the event from.

        Raises:
            Exception: What the handler raised.
        """
        if not await evh.coalescing_state.rate_control(evh.coalescing_opts):
            return
        if self._log_events:
            log.debug("dispatch %s handler=%s source=%s", evh_type.lower(), evh.name, source)
        result = evh.invoke(self._local(evh.event_cls.name, source, args), {})
        if inspect.isawaitable(result):
            await result

    def _handler(
        self,
        event_cls: type[AbstractEvent],
        context: Any,
        callback: EventCallback[Any],
        coalescing_opts: CoalescingOptions | None,
        name: str | None,
    ) -> EventHandler:
        return EventHandler(
            event_cls,
            name if name is not None else f"evh-{secrets.token_urlsafe(16)}",
            context,
            callback,
            check_coalescing(coalescing_opts),
        )

    async def dispatch_consumers(
        self, event_name: str, source: str, args: tuple[Any, ...] = ()
    ) -> None:
        """Run the consuming handlers of this dispatcher; nothing is sent."""
        await self._engine.run_consumers(self._local(event_name, source, args))

    async def dispatch_subscribers(
        self, event_name: str, source: str, args: tuple[Any, ...] = ()
    ) -> None:
        """Run the subscribing handlers of this dispatcher; nothing is sent."""
        await self._engine.run_subscribers(self._local(event_name, source, args))


class EventProducer(_Connecting, BaseProducer):
    """Produces typed events; made by ``await EventProducer.new(connector)``.

    Attributes:
        redis_producer: A small Redis client, on every bus.
    """

    era: ClassVar[Era] = "B"
    redis_producer: RedisLike

    def __init__(self, connector: Connector | None = None, log_events: bool = False) -> None:
        """Keep the connector; use ``new``."""
        self._connector = connector
        self._log_events = log_events

    async def __ainit__(self) -> None:
        """Connect."""
        await self._start(await self._where(self._connector, self._options.bus))
        self.redis_producer = self.connection.redis

    async def produce_event(
        self,
        event: AbstractEvent,
        *,
        source: str = "manager",
        to: Target = "both",
        dedup_id: str | None = None,
    ) -> None:
        """Send an event; waits for a server that is away.

        Args:
            event: The event.
            source: Who produces.
            to: ``"consumers"``, ``"subscribers"`` or ``"both"``.
            dedup_id: A second event of this name and id is dropped (24 hours).

        Raises:
            TypeError: An argument cannot be encoded.
            OverflowError: An integer beyond 64 bits.
            TimeoutError: There was no server for 60 seconds.
        """
        await self._produce(Message(event.name, source, tuple(event.serialize())), to, dedup_id)
