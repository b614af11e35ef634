"""The machinery behind every dispatcher: receives events, runs handlers, acknowledges."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeAlias

from eventbus._asyncio import is_running
from eventbus.dispatcher.handlers import H, HandlerSet, HandlerTable
from eventbus.dispatcher.transport import Incoming, Message, Transport
from eventbus.errors import BusClosedError, EventBusError, NotConnectedError
from eventbus.supervisor import Supervisor
from eventbus.texts import describe_error
from eventbus.types import Gap

__all__ = ["Engine", "EngineOptions", "ExceptionHandler", "Observer"]

log = logging.getLogger("eventbus.dispatcher")

ExceptionHandler: TypeAlias = Callable[
    [type[BaseException], BaseException, TracebackType | None], Awaitable[None]
]
"""``async (type, exception, traceback)``, called when a handler raised."""

Observer: TypeAlias = Callable[[Any, Message, float, BaseException | None], object]
"""``(handler, message, seconds, exception or None)``, called when a handler call ended."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How handlers are run.

    Attributes:
        concurrency: Handler calls in flight; consumers and subscribers are counted apart.
        drain_timeout: Seconds that running handlers get at ``close``.
        retry: Whether the transport retries an event whose handler failed.
        consumer_exception_handler: Told what a consuming handler raised; else the loop's.
        subscriber_exception_handler: The same for subscribing handlers.
        observer: Told the end of each handler call.
        on_gap: Called with a ``Gap`` when broadcasts were lost, before the next one.
        log_events: Log each dispatch at debug level.
    """

    concurrency: int = 1000
    drain_timeout: float = 1.0
    retry: bool = False
    consumer_exception_handler: ExceptionHandler | None = None
    subscriber_exception_handler: ExceptionHandler | None = None
    observer: Observer | None = None
    on_gap: Callable[[Gap], object] | None = None
    log_events: bool = False


class _Slots:
    """Counts handler calls in flight; waits for a free place in order of asking."""

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        if self.free > 0 and not self._waiting:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1

    async def some(self) -> int:
        """Wait until a place is free; return how many are."""
        if self.free < 1:
            await self.acquire()
            self.release()
        return max(self.free, 1)


@dataclass(slots=True, eq=False)
class _Flight:
    """One event and the handler calls that have not ended yet."""

    message: Message
    incoming: Incoming | None
    left: int
    decoded: dict[type, Any] = field(default_factory=dict[type, Any])
    error: BaseException | None = None
    unfinished: bool = False


class _Side(Generic[H]):
    """What consumers and subscribers have each of their own."""

    def __init__(self, kind: str, concurrency: int, report: ExceptionHandler | None) -> None:
        self.kind = kind
        self.table: HandlerTable[H] = HandlerTable()
        self.slots = _Slots(concurrency)
        self.report = report


def _task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name=f"eventbus-dispatcher-{name}")


class Engine(Generic[H]):
    """Receives events of a transport and runs the handlers registered for their names."""

    def __init__(self, transport: Transport | None, options: EngineOptions) -> None:
        """Make an engine that does not run yet; the transport may be given later."""
        self._transport = transport
        self.options = options
        self._consuming: _Side[H] = _Side(
            "consumer", options.concurrency, options.consumer_exception_handler
        )
        self._subscribing: _Side[H] = _Side(
            "subscriber", options.concurrency, options.subscriber_exception_handler
        )
        self.consumers = self._consuming.table
        self.subscribers = self._subscribing.table
        self._calls: dict[asyncio.Task[None], _Flight] = {}
        self._helpers: set[asyncio.Task[None]] = set()
        self._loops: set[asyncio.Task[None]] = set()
        self._supervisor: Supervisor | None = None
        self._in_hand: dict[Incoming, None] = {}
        self._done: list[Incoming] = []
        self._flusher: asyncio.Task[None] | None = None
        self._aborting = False
        self._closing: asyncio.Future[None] | None = None
        self._running = False
        self._last_log = 0.0
        self.counts: Counter[str] = Counter()

    @property
    def transport(self) -> Transport:
        """What carries the events.

        Raises:
            NotConnectedError: There is none yet.
        """
        if self._transport is None:
            raise NotConnectedError("the dispatcher is not connected: make it by 'await …new(…)'")
        return self._transport

    @transport.setter
    def transport(self, transport: Transport) -> None:
        self._transport = transport

    # Life

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closing is not None

    async def listen(self) -> None:
        """Connect and receive broadcasts; returns once the server confirmed it."""
        await self.transport.connect()
        self.subscribers.on_change = self._subscribed
        self._subscribed()
        await self.transport.listen(self._gap)
        self._spawn(self._serve_broadcasts, "broadcasts")

    def _subscribed(self) -> None:
        """Tell the transport what is subscribed to here."""
        self.transport.wants(frozenset(self.subscribers))

    def pop(self) -> None:
        """Begin to take queued events, when there are handlers. Idempotent."""
        if not self._running and not self.closed:
            self._running = True
            self.consumers.on_change = self.names_changed
            self._spawn(self._serve_queue, "queue")
            self.names_changed()

    def names_changed(self) -> None:
        """Tell the transport what is handled here."""
        if self._running and not self.closed:
            # An event that coalesces is in hand without a running call: it needs a place too.
            limit = self.options.concurrency + self.consumers.coalescing
            self.transport.consume(frozenset(self.consumers), limit)

    def _spawn(self, serve: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Receive until the end; a loop that ends for no good reason is logged and replaced."""
        if self._supervisor is None:
            self._supervisor = Supervisor("dispatcher", self._replaced)

        def begin() -> asyncio.Task[None]:
            task = _task(serve(), name)
            self._loops.add(task)
            task.add_done_callback(self._loops.discard)
            return task

        self._supervisor.keep(begin)

    def _replaced(self) -> None:
        self.counts["replaced"] += 1
        if self._transport is not None:
            self._transport.replaced()

    @property
    def _loop_ends(self) -> bool:
        """Whether calls that are cancelled now are so because all tasks are."""
        return self._supervisor is not None and self._supervisor.loop_ends

    def _help(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something beside the handlers; ``close`` waits for it a moment."""
        task = _task(work, name)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)

    async def close(self) -> None:
        """Take nothing more, wait for running handlers, give back what did not end. Idempotent.

        Called inside a handler it does not wait for that handler, whose event counts as handled.
        """
        if self._closing is not None:
            if asyncio.current_task() not in self._calls:
                await asyncio.shield(self._closing)
            return
        self._closing = asyncio.get_running_loop().create_future()
        try:
            await self._close()
        finally:
            self._closing.set_result(None)

    async def _close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.stop()
        if loops := set(self._loops):
            for task in loops:
                task.cancel()
            await asyncio.wait(loops)
        if self._transport is None:
            return
        current = asyncio.current_task()
        await asyncio.gather(self._stop_receiving(), self._let_finish(current))
        self._aborting = True
        if late := self._calls.keys() - {current}:
            for call in late:
                call.cancel()
            await asyncio.wait(late, timeout=0.5)
        own = None if current is None else self._calls.get(current)
        if own is not None and own.incoming is not None:
            # The handler that closes the dispatcher ends by itself; its event was handled.
            self._settle(own.incoming)
        try:
            async with asyncio.timeout(5.0):
                await self._flush()
                await self.transport.push_back(list(self._in_hand))
        except (EventBusError, TimeoutError) as error:
            log.warning(
                "cannot give back events count=%d reason=%s; their leases end by themselves",
                len(self._in_hand),
                error,
            )
        self._in_hand.clear()
        if helpers := self._helpers - {current}:
            await asyncio.wait(helpers, timeout=0.5)
        await self.transport.close()

    async def _stop_receiving(self) -> None:
        try:
            await self.transport.stop()
        except EventBusError as error:
            log.warning("cannot stop receiving reason=%s", error)

    async def _let_finish(self, current: asyncio.Task[Any] | None) -> None:
        if waiting := self._calls.keys() - {current}:
            await asyncio.wait(waiting, timeout=self.options.drain_timeout)

    # Receiving

    async def _serve_queue(self) -> None:
        pause = 0.0
        while True:
            try:
                limit = await self._consuming.slots.some()
                batch = await self.transport.receive(limit)
            except BusClosedError:
                return
            except EventBusError as error:
                pause = await self._trouble("receive queued events", error, pause)
                continue
            pause = 0.0
            for incoming in batch:
                self._in_hand[incoming] = None
            for incoming in batch:
                await self._dispatch_queued(incoming)
            # Handlers begin, and another dispatcher gets a chance to take the next event.
            await asyncio.sleep(0)

    async def _dispatch_queued(self, incoming: Incoming) -> None:
        message = incoming.message
        handlers = self.consumers.find(message.name)
        if handlers is None:
            del self._in_hand[incoming]
            self.counts["unhandled"] += 1
            try:
                await self.transport.unhandled(incoming)
            except EventBusError as error:
                await self._trouble("give back an event", error, 0.0)
            return
        await self._dispatch(self._consuming, handlers, message, incoming)

    async def _serve_broadcasts(self) -> None:
        pause = 0.0
        while True:
            try:
                message = await self.transport.receive_broadcast()
            except BusClosedError:
                return
            except EventBusError as error:
                pause = await self._trouble("receive broadcasts", error, pause)
                continue
            pause = 0.0
            handlers = self.subscribers.find(message.name)
            if handlers is not None:
                await self._dispatch(self._subscribing, handlers, message, None)

    async def _trouble(self, what: str, error: EventBusError, pause: float) -> float:
        """Log, at most every 10 s, and wait; return the next pause."""
        now = time.monotonic()
        if now - self._last_log >= 10.0:
            self._last_log = now
            log.warning("cannot %s reason=%s; trying again", what, error)
        pause = min(max(pause * 2, 0.1), 5.0)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return pause

    async def _gap(self, gap: Gap) -> None:
        self.counts["gaps"] += 1
        if self.options.on_gap is not None:
            result = self.options.on_gap(gap)
            if inspect.isawaitable(result):
                await result

    # Running handlers

    async def run_consumers(self, message: Message) -> None:
        """Run the local consuming handlers; returns when they were started."""
        if (handlers := self.consumers.find(message.name)) is not None:
            await self._dispatch(self._consuming, handlers, message, None)

    async def run_subscribers(self, message: Message) -> None:
        """Run the local subscribing handlers; returns when they were started."""
        if (handlers := self.subscribers.find(message.name)) is not None:
            await self._dispatch(self._subscribing, handlers, message, None)

    async def _dispatch(
        self, side: _Side[H], handlers: HandlerSet[H], message: Message, incoming: Incoming | None
    ) -> None:
        """Start the handlers of an event in order; what is registered meanwhile comes next time."""
        if self.options.log_events:
            log.debug("dispatch %s event=%s source=%s", side.kind, message.name, message.source)
        chosen = list(handlers)
        if incoming is None and message.number is not None:
            # Produced here before the handler was registered: not for it.
            chosen = [one for one in chosen if handlers.since(one) < message.number]
            if not chosen:
                return
        flight = _Flight(message, incoming, len(chosen))
        try:
            for handler in chosen:
                if handler.coalescing_opts is None:
                    await side.slots.acquire()
                    self._start(self._call(side, handlers, handler, flight), flight)
                else:
                    self._start(self._call_last(side, handlers, handler, flight), flight)
        except asyncio.CancelledError:
            flight.unfinished = True
            raise

    def _start(self, call: Coroutine[Any, Any, None], flight: _Flight) -> None:
        task = _task(call, "call")
        self._calls[task] = flight
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._calls.pop(task, None)

    async def _call_last(
        self, side: _Side[H], handlers: HandlerSet[H], handler: H, flight: _Flight
    ) -> None:
        """Run a handler for the last event of a burst."""
        try:
            wanted = handler.accepts(
                flight.message
            ) and await handler.coalescing_state.rate_control(handler.coalescing_opts)
            if wanted:
                await side.slots.acquire()
        except asyncio.CancelledError:
            flight.unfinished = True
            self._ended(flight)
            raise
        except Exception as error:  # noqa: BLE001 - it concerns this handler only
            self._failed(side, handler, flight, error)
            self._ended(flight)
            return
        if wanted:
            await self._call(side, handlers, handler, flight, asked=True)
        else:
            self._ended(flight)

    async def _call(
        self,
        side: _Side[H],
        handlers: HandlerSet[H],
        handler: H,
        flight: _Flight,
        *,
        asked: bool = False,
    ) -> None:
        """Run one handler for one event, in a task and a context of its own."""
        message = flight.message
        observed = self.options.observer is not None
        began = time.perf_counter() if observed else 0.0
        own = asyncio.current_task()
        error: BaseException | None = None
        called = False
        try:
            if handler in handlers and (asked or handler.accepts(message)):
                called = True
                result = handler.invoke(message, flight.decoded)
                if inspect.isawaitable(result):
                    await result
        except asyncio.CancelledError as cancelled:
            error = cancelled
            if self._aborting or self._loop_ends:
                flight.unfinished = True
                raise
            self._failed(side, handler, flight, cancelled)
        except (SystemExit, KeyboardInterrupt) as ending:
            error = ending
            flight.unfinished = True
            if flight.incoming is not None and self._in_hand.pop(flight.incoming, 0) is None:
                self.transport.leave(flight.incoming, ending)
            raise
        except BaseException as raised:
            error = raised
            if isinstance(raised, GeneratorExit) and not is_running(own):
                # Its task was dropped: nobody is there to hear of it.
                flight.unfinished = True
                raise
            self._failed(side, handler, flight, raised)
        finally:
            side.slots.release()
            if called:
                self.counts["calls"] += 1
                if observed:
                    self._observe(handler, message, time.perf_counter() - began, error)
            self._ended(flight)

    def _observe(
        self, handler: H, message: Message, seconds: float, error: BaseException | None
    ) -> None:
        assert self.options.observer is not None
        try:
            self.options.observer(handler, message, seconds, error)
        except Exception:
            log.exception("error in observer")

    def _failed(self, side: _Side[H], handler: H, flight: _Flight, error: BaseException) -> None:
        """Report what a handler raised, once."""
        flight.error = error
        self.counts["failed"] += 1
        if side.report is not None:
            self._help(self._report(side.report, error), "report")
            return
        asyncio.get_running_loop().call_exception_handler(
            {
                "message": f"{side.kind} of event {flight.message.name!r} failed",
                "exception": error,
                "handler": handler,
            }
        )

    async def _report(self, report: ExceptionHandler, error: BaseException) -> None:
        try:
            await report(type(error), error, error.__traceback__)
        except Exception:
            log.exception("error in exception handler")

    # Settling

    def _ended(self, flight: _Flight) -> None:
        """Settle an event when its last handler ended."""
        flight.left -= 1
        incoming = flight.incoming
        if flight.left or incoming is None or flight.unfinished:
            return
        if flight.error is not None and self.options.retry:
            del self._in_hand[incoming]
            self._help(self._retry(incoming, flight.error), "retry")
            return
        self._settle(incoming)

    async def _retry(self, incoming: Incoming, error: BaseException) -> None:
        try:
            await self.transport.retry(incoming, describe_error(error))
        except EventBusError as trouble:
            log.warning("cannot retry event=%s reason=%s", incoming.message.name, trouble)

    def _settle(self, incoming: Incoming) -> None:
        if incoming not in self._in_hand:
            return
        del self._in_hand[incoming]
        self._done.append(incoming)
        if self._flusher is None:
            self._flusher = _task(self._flush_soon(), "ack")

    async def _flush_soon(self) -> None:
        try:
            await self._flush()
        finally:
            self._flusher = None

    async def _flush(self) -> None:
        """Acknowledge everything that ended; what comes meanwhile goes with the next round."""
        while self._done:
            done, self._done = self._done, []
            await self._ack(done)
        flusher = self._flusher
        if flusher is not None and flusher is not asyncio.current_task():
            await asyncio.wait([flusher])

    async def _ack(self, done: Sequence[Incoming]) -> None:
        pause = 0.0
        while True:
            try:
                await self.transport.ack(done)
            except BusClosedError:
                return
            except EventBusError as error:
                if not error.is_retryable or self._aborting:
                    log.warning("cannot acknowledge count=%d reason=%s", len(done), error)
                    return
                pause = await self._trouble("acknowledge events", error, pause)
            else:
                self.counts["handled"] += len(done)
                return

    def figures(self) -> dict[str, Any]:
        """Return counts and what is in flight."""
        return {
            "calls": self.counts["calls"],
            "failed": self.counts["failed"],
            "handled": self.counts["handled"],
            "unhandled": self.counts["unhandled"],
            "gaps": self.counts["gaps"],
            "in_flight": len(self._calls),
            "in_hand": len(self._in_hand),
            **self.transport.figures(),
        }
