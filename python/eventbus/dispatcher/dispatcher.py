"""Dispatching events to consumers and subscribers, by name or by class, on any bus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from eventbus.bus import Bus
from eventbus.config import RetryPolicy, Seconds, seconds
from eventbus.dispatcher.coalescing import CoalescingOptions, check_coalescing
from eventbus.dispatcher.engine import Engine, EngineOptions, ExceptionHandler, Observer
from eventbus.dispatcher.events import AbstractEvent
from eventbus.dispatcher.handlers import ArgsMatcher, EventHandler, HandlerTable, new_name
from eventbus.dispatcher.producer import message_of, transport_of
from eventbus.dispatcher.transport import Message, Target, Transport
from eventbus.errors import BusClosedError, InvalidArgumentError, NotConnectedError
from eventbus.signatures import check_call, check_gap_handler
from eventbus.types import Gap

__all__ = ["EventDispatcher"]


class EventDispatcher:
    """Runs handlers for the events of a cluster.

    Each event reaches the consumers of exactly one dispatcher of the group, at least once, and the
    subscribers of every live dispatcher, at most once. A dispatcher takes only events that it has
    a consumer for, and acknowledges one when all its handlers ended; what it did not finish goes to
    another one when it closes, or when its lease ends after a crash.

    Each handler call is a task with context variables of its own. Calls start in order of arrival,
    those of one event in order of registration. What a handler raises concerns nobody else.

    Use it as ``async with EventDispatcher(bus) as dispatcher:``. Handlers registered before that
    are there before the first event is taken.
    """

    def __init__(
        self,
        bus: Bus | str | Transport,
        *,
        prefix: str = "events",
        group: str = "manager",
        source: str = "",
        concurrency: int = 1000,
        lease: Seconds = 30.0,
        retry: RetryPolicy | None = None,
        queue_size: int = 10_000,
        drain_timeout: Seconds = 1.0,
        on_gap: Callable[[Gap], object] | None = None,
        consumer_exception_handler: ExceptionHandler | None = None,
        subscriber_exception_handler: ExceptionHandler | None = None,
        observer: Observer | None = None,
        log_events: bool = False,
    ) -> None:
        """Make a dispatcher that is not started yet.

        Args:
            bus: A bus (connected when it is new, never closed here), the URL of one of its own,
                or a transport.
            prefix: What the topics begin with: event ``e`` is topic ``<prefix>:e``.
            group: Dispatchers of one group share the consumed events; each group gets all.
            source: Who produces, unless a call says otherwise.
            concurrency: Most handler calls in flight; consumers and subscribers counted apart.
            lease: Seconds or a timedelta that an event is held; renewed while handlers run.
            retry: What follows when a handler of a consumed event raised: all its handlers run
                again. Without it the event counts as handled.
            queue_size: Broadcasts buffered; more of them make a gap.
            drain_timeout: Seconds or a timedelta that running handlers get at ``close``.
            on_gap: Called with a ``Gap`` when broadcasts were lost.
            consumer_exception_handler: ``async (type, exception, traceback)`` for what consumers
                raise; the loop's exception handler by default.
            subscriber_exception_handler: The same for subscribers.
            observer: ``(handler, message, seconds, exception or None)`` after each call.
            log_events: Log each dispatch at debug level.

        Raises:
            InvalidArgumentError: ``concurrency`` is not at least 1.
        """
        most: object = concurrency
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InvalidArgumentError(f"concurrency={concurrency!r} must be an int of at least 1")
        check_gap_handler(on_gap)
        self.source = source
        transport = transport_of(
            bus,
            prefix=prefix,
            group=group,
            lease=seconds(lease, "lease"),
            retry=retry,
            queue_size=queue_size,
        )
        options = EngineOptions(
            concurrency=concurrency,
            drain_timeout=seconds(drain_timeout, "drain_timeout"),
            retry=retry is not None,
            consumer_exception_handler=consumer_exception_handler,
            subscriber_exception_handler=subscriber_exception_handler,
            observer=observer,
            on_gap=on_gap,
            log_events=log_events,
        )
        self._engine: Engine[EventHandler] = Engine(transport, options)
        self._started = False

    # Life

    async def start(self) -> None:
        """Connect, subscribe, and take events once there is a consumer. Idempotent.

        Raises:
            BusClosedError: The dispatcher was closed.
        """
        if self._engine.closed:
            raise BusClosedError("the dispatcher was closed; make a new one")
        if not self._started:
            self._started = True
            await self._engine.listen()
            self._engine.pop()
            await self._engine.transport.bound()

    async def close(self) -> None:
        """Stop taking events, let running handlers finish, give back the rest. Idempotent.

        Returns within ``drain_timeout`` and a second. What was taken and not finished goes back to
        its place and counts no attempt.
        """
        await self._engine.close()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    # Handlers

    @property
    def consumers(self) -> Mapping[str, Any]:
        """The consuming handlers by event name, in order of registration."""
        return self._engine.consumers

    @property
    def subscribers(self) -> Mapping[str, Any]:
        """The subscribing handlers by event name, in order of registration."""
        return self._engine.subscribers

    async def consume(
        self,
        event: str | type[AbstractEvent],
        callback: Callable[..., object],
        *,
        context: object = None,
        name: str | None = None,
        coalescing: CoalescingOptions | None = None,
        args_matcher: ArgsMatcher | None = None,
    ) -> EventHandler:
        """Handle events that one dispatcher of the group must handle.

        Once a started dispatcher returns from this, every event of the name is kept until it is
        handled, whether or not a dispatcher runs.

        Args:
            event: The event name: ``callback(context, source, name, *args)``; or a class:
                ``callback(context, source, event)``.
            callback: ``async def``, function, method, partial, or any callable object; its result
                is awaited when it is awaitable.
            context: Handed to the callback as it is.
            name: Names the handler in logs.
            coalescing: Handle only the last event of a burst; the others count as handled.
            args_matcher: Called with the arguments; the handler runs when the result is true.

        Returns:
            The registration, for ``unconsume``.

        Raises:
            TypeError: The callback cannot be called so: not callable, a generator function, or
                other arguments; or the event is neither name nor class.
            InvalidArgumentError: The coalescing options cannot be used.
        """
        table = self._engine.consumers
        handler = self._add(table, event, callback, context, name, coalescing, args_matcher)
        self._engine.names_changed()
        if self._started:
            await self._engine.transport.bound()
        return handler

    async def subscribe(
        self,
        event: str | type[AbstractEvent],
        callback: Callable[..., object],
        *,
        context: object = None,
        name: str | None = None,
        coalescing: CoalescingOptions | None = None,
        args_matcher: ArgsMatcher | None = None,
    ) -> EventHandler:
        """See events that every dispatcher sees, from now on; arguments as for ``consume``."""
        table = self._engine.subscribers
        return self._add(table, event, callback, context, name, coalescing, args_matcher)

    def _add(
        self,
        table: HandlerTable[EventHandler],
        event: str | type[AbstractEvent],
        callback: Callable[..., object],
        context: object,
        name: str | None,
        coalescing: CoalescingOptions | None,
        args_matcher: ArgsMatcher | None,
    ) -> EventHandler:
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        typed: type[AbstractEvent] | None = None
        if isinstance(event, type) and issubclass(event, AbstractEvent):
            typed = event
        elif not isinstance(event, str):
            raise TypeError(f"event must be a name or a class of AbstractEvent, not {event!r}")
        if typed is None:
            check_call(callback, "callback(context, source, name, *args)", 3, more="positional")
        else:
            check_call(callback, "callback(context, source, event)", 3)
        handler = EventHandler(
            callback,
            context,
            typed,
            new_name() if name is None else name,
            args_matcher,
            check_coalescing(coalescing),
        )
        table[event if isinstance(event, str) else event.name].add(handler)
        return handler

    def unconsume(self, handler: EventHandler) -> None:
        """Remove a consuming handler: no call of it starts after this; a running one goes on.

        What is produced later still waits in the group. Removing an unknown handler is silent.
        """
        _remove(self._engine.consumers, handler)

    def unsubscribe(self, handler: EventHandler) -> None:
        """Remove a subscribing handler; see ``unconsume``."""
        _remove(self._engine.subscribers, handler)

    # Events

    async def produce_event(
        self,
        event: str | AbstractEvent,
        args: Sequence[Any] = (),
        *,
        source: str | None = None,
        to: Target = "both",
        dedup_id: str | None = None,
    ) -> None:
        """Send an event; see ``EventProducer.produce_event``."""
        if not self._started or self._engine.closed:
            raise NotConnectedError("dispatcher is not started: use 'async with dispatcher:'")
        who = self.source if source is None else source
        message = message_of(event, args, who)
        await self._engine.transport.produce(message, to=to, dedup_id=dedup_id)

    async def dispatch_consumers(self, name: str, source: str, args: Sequence[Any] = ()) -> None:
        """Run the consuming handlers of this dispatcher; nothing is sent.

        Returns when they were started.
        """
        await self._engine.run_consumers(Message(name, source, tuple(args)))

    async def dispatch_subscribers(self, name: str, source: str, args: Sequence[Any] = ()) -> None:
        """Run the subscribing handlers of this dispatcher; nothing is sent."""
        await self._engine.run_subscribers(Message(name, source, tuple(args)))

    def figures(self) -> dict[str, Any]:
        """Return counts since the start, and what is in flight.

        ``calls`` ended, ``failed`` of them, events ``handled``, ``unhandled`` and ``malformed``,
        ``gaps``, calls ``in_flight`` and events ``in_hand``.
        """
        return self._engine.figures()


def _remove(table: HandlerTable[EventHandler], handler: EventHandler) -> None:
    for name in table:
        table[name].discard(handler)
