"""The bus: publish, subscribe, consume, transactions and records."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from types import MappingProxyType, ModuleType, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Self,
    Unpack,
    overload,
)
from uuid import UUID

from eventbus import dispatch, joined
from eventbus._asyncio import calling_task
from eventbus._eventbus import CoreBus
from eventbus.arguments import one_of as _one_of
from eventbus.arguments import positive as _positive
from eventbus.config import (
    ConsumeOptions,
    DeliveryMode,
    MemoryOptions,
    Overflow,
    RetryPolicy,
    RunIn,
    Seconds,
    seconds,
)
from eventbus.consumer import ConsumeHandler, Consumer, Deliveries
from eventbus.delivery import Transaction
from eventbus.errors import (
    BusClosedError,
    ConfigError,
    EventBusError,
    InvalidArgumentError,
    NotConnectedError,
    TopicError,
    UnsupportedError,
)
from eventbus.handlers import check_consumer, check_subscriber, warn_of_subscriber
from eventbus.included import Included
from eventbus.names import LiteralTopics, shown
from eventbus.outbox import Outbox
from eventbus.outcomes import DeadLetterHook, is_undecodable
from eventbus.signatures import check_gap_handler
from eventbus.signing import Watch, signing_keys
from eventbus.stream import Stream
from eventbus.subscription import GapHandler, Handler, QueuedReceiver, Subscription
from eventbus.types import (
    BusState,
    DeadLetter,
    Event,
    MessageInfo,
    PublishOptions,
    Record,
    Since,
    UnreadableRecord,
    new_id,
)
from eventbus.waiting import Unattended, listed, work_left

if TYPE_CHECKING:
    from eventbus import payloads
    from eventbus._eventbus import CoreConsumer, CoreDelivery, CoreSubscription
    from eventbus.figures import BusFigures, Health
    from eventbus.keywords import ConsumeKeywords, SubscribeKeywords

__all__ = ["INTAKE", "Bus", "DeadLetters"]

log = logging.getLogger("eventbus.bus")
handlers_log = logging.getLogger("eventbus.handlers")

# The codec recurses: deeper nesting could exhaust the stack of a small thread.
_MOST_DEPTH = 512
# The warnings of servers that this process has logged, by server.
_TOLD: dict[str, set[str]] = {}

# Seconds between two looks of `health` for groups that nobody consumes, and for one of them.
_LOOK_EVERY = 10.0
_LOOK_FOR = 1.0
# Seconds between two warnings of the same kind.
_MALFORMED_EVERY = 60.0
# Seconds for which `health` warns of a task that had to be replaced.
_TROUBLE_SHOWN = 60.0
_OVERFLOWS: tuple[Overflow, ...] = ("drop_oldest", "drop_newest", "close")

# What a draining bus refuses.
INTAKE = ("subscribe", "consume", "declare_group")

Topics = str | Iterable[str]
ErrorHook = Callable[[str, BaseException], object]


class Bus(CoreBus):
    """An event bus, over the embedded memory backend by default; ``eventbus.connect`` makes one.

    Use it as ``async with connect("memory://") as bus:``; leaving the block drains it. Several
    event loops and threads may share one bus: a subscription's handler runs on the loop that
    subscribed, an inline one in the publisher's task. After a fork the child must make a bus of its
    own (``ForkedError``).

    Attributes:
        on_handler_error: Called with (subscription id or group, exception) when a handler raised,
            after it was logged; ``None`` by default.
        on_dead_letter: Called with each ``DeadLetter`` of the groups that this bus consumes, once
            it is stored and was logged; ``None`` by default. A plain function, on the loop of the
            consumer; what it raises is logged. What no handler decided (``crashed``, ``expired``,
            ``undecodable``, ``unsigned``) is told within the sweep interval, to one consumer of the
            group.
    """

    # Whether the DataKnobs contract holds: handlers get the event whatever their annotation says,
    # and topics with wildcard characters are nothing to warn of.
    _IS_DATAKNOBS: ClassVar[bool] = False
    # What a warning about an unreadable broadcast begins with.
    _MALFORMED = "cannot read a broadcast: "

    def __init__(
        self,
        *,
        name: str | None = None,
        delivery: DeliveryMode = "inline",
        queue_size: int = 10_000,
        overflow: Overflow = "drop_oldest",
        outbox_size: int = 10_000,
        drain_timeout: Seconds = 25.0,
        strict: bool = False,
        max_message_bytes: int = 1 << 20,
        max_depth: int = 64,
        max_elements: int = 100_000,
        _any_topic: bool = False,
        _manual_clock: int | None = None,
        _backend: tuple[str, dict[str, Any]] | None = None,
        **backend: Unpack[MemoryOptions],
    ) -> None:
        """Make a bus that is not connected yet.

        Args:
            name: Share the backend with every bus of this name in the process.
            delivery: ``"inline"``: handlers have run when ``publish`` returns; ``"queued"``: each
                subscription has a buffer and a task of its own.
            queue_size: Events buffered per queued subscription or stream.
            overflow: What a full buffer does: ``"drop_oldest"``, ``"drop_newest"`` or ``"close"``;
                each announces a gap.
            outbox_size: Events buffered by ``publish_nowait``.
            drain_timeout: Seconds that running handlers get when the bus is drained.
            strict: Encode broadcasts too, so that a payload that would fail on a broker fails here.
            max_message_bytes: Largest encoded message.
            max_depth: Deepest nesting of a payload, at most 512.
            max_elements: Most elements in a payload.
            **backend: Options of the memory backend: ``max_length`` (messages per group),
                ``dedup_window`` (seconds), ``max_dedup_ids``, ``dead_retention`` (seconds),
                ``max_dead``, ``max_tombstones``, ``retention`` (seconds), ``retention_max``,
                ``signing_key`` (without effect).

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        super().__init__()
        self._delivery = _one_of("delivery", delivery, ("inline", "queued"), ConfigError)
        self._queue_size = _positive("queue_size", queue_size, ConfigError)
        self._told: set[str] = set()
        self._overflow: Overflow = _one_of("overflow", overflow, _OVERFLOWS, ConfigError)
        self._drain_timeout = seconds(drain_timeout, "drain_timeout")
        if self._drain_timeout < 0 or math.isnan(self._drain_timeout):
            raise ConfigError(f"drain_timeout={drain_timeout!r} must be 0 seconds or more")
        self._outbox = Outbox(self, _positive("outbox_size", outbox_size, ConfigError))
        kind, config = _backend or ("memory", _memory_config(backend))
        self._open(
            kind,
            name,
            config,
            strict_topics=not _any_topic,
            strict_payloads=strict,
            max_bytes=_positive("max_message_bytes", max_message_bytes, ConfigError),
            max_depth=_positive("max_depth", max_depth, ConfigError, most=_MOST_DEPTH),
            max_elements=_positive("max_elements", max_elements, ConfigError),
            manual_clock=_manual_clock,
        )
        self._malformed_at: dict[str, float] = {}
        self._apart: set[str] = set()
        self._watch: Watch | None = None
        self._literal_topics = LiteralTopics()
        self._topics: dict[str, str] = {}
        self._unattended = Unattended()
        self._neglected: list[str] = []
        self._looked_at = -math.inf
        self._leaving: asyncio.Task[None] | None = None
        self._subscriptions: dict[str, Callable[[], None]] = {}
        self._receivers: dict[str, QueuedReceiver] = {}
        self._consumers: set[Consumer] = set()
        self._included = Included(self)
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._deliveries: weakref.WeakSet[Deliveries] = weakref.WeakSet()
        self._state: BusState = "new"
        self._workers_replaced = 0
        self._replaced_at = 0.0
        self.on_handler_error: ErrorHook | None = None
        self.on_dead_letter: DeadLetterHook | None = None
        self.on_state_change: Callable[[BusState], object] | None = None

    # Life

    @cached_property
    def _in_process(self) -> bool:
        return bool(self._capabilities()["in_process"])

    async def connect(self) -> None:
        """Open the bus. Idempotent; a closed bus opens again, without its old subscriptions."""
        self._check_origin()
        if not self._in_process and self._state not in ("live", "draining"):
            before = self._state
            self._enter("connecting")
            try:
                if self._leaving is not None and not self._leaving.done():
                    await asyncio.wait([self._leaving])
                await self._connect()
                self._tell_limits()
                self._watch = Watch(self)
            except BaseException:
                if self._state == "connecting":
                    self._enter("new" if before == "connecting" else before)
                raise
        self._set_live(True)
        self._enter("live")

    def _tell_limits(self) -> dict[str, Any]:
        """Warn, once per process and server, of what the server does not do as it should."""
        server = self._health()
        # A server that cannot be told from others: once per bus.
        told = _TOLD.setdefault(server["server_id"], set()) if server["server_id"] else self._told
        for warning in server["warnings"]:
            if warning not in told:
                told.add(warning)
                log.warning("%s", warning)
        return server

    async def close(self) -> None:
        """Drain with the ``drain_timeout`` of the bus. Idempotent."""
        await self.drain()

    async def drain(self, timeout: Seconds | None = None) -> None:
        """Flush, stop intake, finish what runs, release what waits, close. Idempotent.

        Called inside a handler, directly or in a task that the handler started, it does not wait
        for that handler and does not cancel it.

        Args:
            timeout: Seconds or a timedelta for handlers that run; ``drain_timeout`` by default.
                Later ones are cancelled and their deliveries released, counting no attempt.
        """
        limit = self._drain_timeout if timeout is None else seconds(timeout, "timeout")
        if self._state in ("new", "closed"):
            self._enter("closed")
            return
        self._enter("draining")
        # From now on each call asks `_not_live`, which refuses new receivers.
        self._set_live(False)
        deadline = asyncio.get_running_loop().time() + limit
        try:
            if len(self._outbox):
                async with asyncio.timeout(limit):
                    await self._outbox.flush()
        except TimeoutError:
            self._outbox.fail_waiting(BusClosedError("the bus was closed before it was published"))
        except Exception:
            log.exception("buffered publishes failed while draining")
        caller = calling_task()
        around = [consumer for consumer in self._consumers if consumer.runs_in(caller)]
        await self._stop_consumers(limit, caller)
        for deliveries in list(self._deliveries):
            await deliveries.aclose()
        if not self._in_process:
            with suppress(TimeoutError, EventBusError):
                async with asyncio.timeout_at(deadline):
                    # The server may have taken what its publisher would be told has failed.
                    await self._finish_commits()
                    if self._streams or self._receivers:
                        # What was published last may still be on its way back.
                        await self._heard()
        for stream in list(self._streams):
            stream._stop()
        await self._drain_receivers(deadline, caller)
        self._drop_subscriptions()
        self._set_live(False)
        if self._watch is not None:
            self._watch.stop()
        if not self._in_process:
            if caller is not None and around:
                self._leaving = asyncio.create_task(self._leave(caller, around, limit))
            else:
                await self._disconnect()
        self._enter("closed")

    async def _stop_consumers(self, limit: float, caller: asyncio.Task[Any] | None) -> None:
        """Stop all consumers; a server that is away does not keep the bus open."""
        stops = [consumer._stop(limit, caller) for consumer in list(self._consumers)]
        for failure in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(failure, EventBusError):
                log.warning("what a consumer held comes back when its lease ends: %s", failure)
            elif failure is not None:
                raise failure

    async def _leave(self, caller: asyncio.Task[Any], around: list[Consumer], limit: float) -> None:
        """Disconnect once the handler that closed the bus has ended and is acknowledged."""
        try:
            for consumer in around:
                await consumer.finish(caller, limit)
        finally:
            await self._disconnect()

    async def _drain_receivers(self, deadline: float, caller: asyncio.Task[Any] | None) -> None:
        """Let queued subscriptions handle what is buffered, until the deadline."""
        loop = asyncio.get_running_loop()
        for receiver in self._receivers.values():
            receiver.stop()
        own = [
            receiver.task
            for receiver in self._receivers.values()
            if receiver.task.get_loop() is loop and receiver.task is not caller
        ]
        if not own:
            return
        # A handler that awaits this close cannot end before it: do not wait for its receiver.
        _, late = await asyncio.wait(own, timeout=max(0.0, deadline - loop.time()))
        for receiver in self._receivers.values():
            if receiver.task in late:
                receiver.abort()
        if late:
            await asyncio.wait(late, timeout=1.0)

    def _drop_subscriptions(self) -> None:
        for remove in list(self._subscriptions.values()):
            remove()
        self._subscriptions.clear()
        self._receivers.clear()
        self._topics.clear()

    def _enter(self, state: BusState) -> None:
        if state != self._state:
            self._state = state
            if self.on_state_change is not None:
                self.on_state_change(state)

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain and close."""
        await self.drain()

    def __bool__(self) -> bool:
        """A bus is true in every state."""
        return True

    @property
    def state(self) -> BusState:
        """``new``, ``live``, ``draining`` or ``closed``; ``on_state_change`` is told it."""
        return self._state

    @property
    def capabilities(self) -> MappingProxyType[str, Any]:
        """What the backend can do.

        ``name``, ``in_process``, ``durable``, ``replay`` and ``max_partitions``.
        """
        return MappingProxyType(self._capabilities())

    @property
    def counters(self) -> dict[str, int]:
        """Counts since the bus was made.

        ``delivered``, ``failed``, ``dropped``, ``malformed``, ``unsigned`` (without a valid
        signature, on a bus with a ``signing_key``), ``gaps``, ``leases_lost`` and
        ``workers_replaced`` (tasks of consumers and subscriptions that had ended for no reason).
        """
        return {**self._counters(), "workers_replaced": self._workers_replaced}

    def _replaced(self) -> None:
        """Count a task that had to be replaced; called by its supervisor."""
        self._workers_replaced += 1
        self._replaced_at = time.monotonic()

    @property
    def subscription_count(self) -> int:
        """How many subscriptions are active."""
        return len(self._subscriptions)

    def _not_live(self, operation: str) -> None:
        """Refuse a call on a bus that is not connected; called by the core."""
        if self._state == "draining" and operation not in INTAKE:
            # What still runs may finish its work.
            return
        if self._state in ("closed", "draining"):
            raise BusClosedError(f"{type(self).__name__} is closed: cannot {operation}")
        raise NotConnectedError(
            f"{type(self).__name__} not connected: use 'async with bus:' or 'await bus.connect()'"
        )

    def _delayed_dropped(self, topic: str) -> None:
        """Tell that a delayed event has nowhere to wait; called by the core."""
        log.warning("delayed event dropped, no group is bound topic=%s", shown(topic))

    def _went_apart(self, topic: str) -> None:
        """Tell once per topic that other systems do not see a large event; called by the core."""
        if topic not in self._apart:
            if len(self._apart) > 1000:
                self._apart.clear()
            self._apart.add(topic)
            log.warning(
                "event too large for a notification goes by table: processes of the original "
                "package skip it topic=%s",
                shown(topic),
            )

    def _handler_failed(self, name: object, error: BaseException) -> None:
        """Log the exception of a subscriber and tell the hook; called by the core."""
        if is_undecodable(error):
            self._undecodable(self._topics.get(str(name), ""), error)
            return
        text, topic = "Error in event handler for subscription %s", self._topics.get(str(name))
        if topic is None or self._IS_DATAKNOBS:
            # Contract D25 has this very text.
            handlers_log.error(text, name, exc_info=error)
        else:
            handlers_log.error(f"{text} topic=%s", name, shown(topic), exc_info=error)
        self._tell_handler_error(str(name), error)

    def _undecodable(self, topic: str, error: BaseException) -> None:
        """Count and log an event that a handler could not read."""
        self._count_malformed()
        self._malformed(topic, str(error))

    def _consumer_failed(self, core: CoreDelivery, error: BaseException) -> None:
        """Log the exception of a consumer's handler and tell the hook."""
        handlers_log.error(
            "Error in event handler for group %s topic=%s event=%s",
            shown(core.group),
            shown(core.topic),
            shown(core.event.event_id),
            exc_info=error,
        )
        self._tell_handler_error(core.group, error)

    def _tell_handler_error(self, name: str, error: BaseException) -> None:
        if self.on_handler_error is not None:
            try:
                self.on_handler_error(name, error)
            except Exception:
                # A broken hook must not reach the publisher, nor stop the other handlers.
                log.exception("error in handler error hook subscription=%s", shown(name))

    # Broadcast

    @overload
    async def subscribe(
        self,
        topic: str,
        handler: Handler,
        pattern: str | None = None,
        **options: Unpack[SubscribeKeywords],
    ) -> Subscription: ...

    @overload
    async def subscribe(
        self, *, handler: Handler, pattern: str, **options: Unpack[SubscribeKeywords]
    ) -> Subscription: ...

    async def subscribe(
        self,
        topic: str | None = None,
        handler: Handler | None = None,
        pattern: str | None = None,
        *,
        on_gap: GapHandler | None = None,
        delivery: DeliveryMode | None = None,
        queue_size: int | None = None,
        overflow: Overflow | None = None,
        since: Since | None = None,
    ) -> Subscription:
        """Call the handler with every event that is published from now on.

        With ``since`` first with what was published before, as far as the bus keeps it
        (``retention``): in order, without a hole or a repeat, also where a connection is lost. Such
        a subscription is always queued and never overflows: when its handler is slow it falls
        behind, and ``on_gap`` tells where retention overtook it.

        Args:
            topic: The topic, taken as it is; with a pattern it is only kept in the subscription and
                may be left out: ``subscribe(handler=on_event, pattern="orders:*")``.
            handler: ``async def``, function, or anything callable; awaited when it returns a
                coroutine. What the annotation of its first parameter asks for is made of the
                payload: a dataclass, TypedDict, msgspec or pydantic type, ``list[Order]``,
                ``Order | None``.
            pattern: ``fnmatch`` syntax: ``*`` and ``?`` cross ``:``.
            on_gap: Called with a ``Gap`` when events were lost.
            delivery: ``"inline"`` or ``"queued"``; the bus's by default.
            queue_size: Buffer in events when queued; the bus's by default.
            overflow: Policy of a full buffer; the bus's by default.
            since: ``"beginning"`` (the oldest event kept), the ``event_id`` of the event behind
                which to begin, or an aware datetime. What is not kept any more, or is not known,
                is a gap first, then the oldest kept.

        Returns:
            The subscription; ``await subscription.cancel()`` ends it.

        Raises:
            TypeError: The handler cannot be called with an event: not callable, a generator
                function, or other arguments; topic or pattern is no str or both are missing.
            TopicError: The topic breaks a rule.
            InvalidArgumentError: ``since`` is an empty text or a datetime without time zone.
            UnsupportedError: ``since`` on a bus without ``retention``, or inline.
            BusClosedError: The bus was closed.
        """
        call = _callable(handler)
        self._check_subscriber(call)
        if pattern is not None and not isinstance(pattern, str):
            raise TypeError(f"pattern must be a str, not {_kind(pattern)}")
        if topic is None and pattern and not self._IS_DATAKNOBS:
            topic = pattern
        if not isinstance(topic, str):
            raise TypeError(f"topic must be a str, not {_kind(topic)}; or give pattern=")
        if not pattern:
            self._expect_literal("subscribe", (topic,))
        how = self._delivery if since is None else "queued"
        how = _one_of("delivery", how if delivery is None else delivery, ("inline", "queued"))
        size, policy = self._buffering("queue_size", queue_size, overflow, on_gap)
        subscription_id = new_id()
        text = pattern or topic
        if how == "inline" and since is not None:
            raise UnsupportedError("delivery='inline' with since: a replay is always queued")
        if how == "inline" and not self._in_process:
            raise UnsupportedError(
                "delivery='inline' is for buses in one process; over a server every subscription "
                "is queued"
            )
        taking = self._taking(call)
        if how == "inline":
            number = self._subscribe_inline(
                text, bool(pattern), taking, self._handler_failed, subscription_id
            )
            self._subscriptions[subscription_id] = lambda: self._remove_inline(number)
        else:
            near = topic if pattern else None
            core = await self._buffered(text, bool(pattern), size, policy, since, near)
            receiver = QueuedReceiver(self, core, subscription_id, text, taking, on_gap)
            self._receivers[subscription_id] = receiver
            self._subscriptions[subscription_id] = receiver.cancel
        self._topics[subscription_id] = text
        return Subscription(subscription_id, topic, call, pattern, _cancel_callback=self._cancel)

    def _converter(
        self, handler: Callable[..., Any], *, of_list: bool = False
    ) -> payloads.Convert | None:
        """Return what makes the handler's argument of an event; ``None`` = it is the event."""
        if self._IS_DATAKNOBS:
            return None
        from eventbus.payloads import converter

        return converter(handler, of_list=of_list)

    def _taking(self, handler: Callable[..., Any]) -> Handler:
        """Return the handler, or one that converts the payload as its annotation asks."""
        convert = self._converter(handler)
        if convert is None:
            return handler

        def call(event: Event) -> Any:
            return handler(convert(event))

        return call

    def _expect_literal(self, verb: str, topics: Topics | None) -> None:
        """Warn of topics that were probably meant as patterns."""
        if not self._IS_DATAKNOBS and topics is not None:
            self._literal_topics.check(verb, (topics,) if isinstance(topics, str) else topics)

    def _check_subscriber(self, handler: Handler) -> None:
        """Refuse what cannot be called with an event; the DataKnobs classes warn (D24, D25)."""
        if self._IS_DATAKNOBS:
            warn_of_subscriber(handler)
        else:
            check_subscriber(handler)

    async def _buffered(
        self,
        text: str,
        is_pattern: bool,
        size: int,
        policy: Overflow,
        since: Since | None,
        near: str | None = None,
    ) -> CoreSubscription:
        """Subscribe with a buffer; on a broker the server has confirmed it."""
        if self._in_process and since is None:
            return self._subscribe_queued(text, is_pattern, size, policy)
        return await self._listen(text, is_pattern, size, policy, self._malformed, since, near)

    def _malformed(self, topic: str, reason: str) -> None:
        """Log a broadcast that cannot be read, once a minute per reason; called by the core."""
        now = time.monotonic()
        kind = reason.partition(":")[0]
        if now - self._malformed_at.get(kind, -math.inf) >= _MALFORMED_EVERY:
            if len(self._malformed_at) > 100:
                self._malformed_at.clear()
            self._malformed_at[kind] = now
            log.warning("%s%s topic=%s", self._MALFORMED, reason, shown(topic))

    def _remove_inline(self, number: int) -> None:
        self._unsubscribe(number)

    def _buffering(
        self, name: str, size: int | None, overflow: Overflow | None, on_gap: GapHandler | None
    ) -> tuple[int, Overflow]:
        """Check how a subscription is buffered; what is not given is as for the bus."""
        check_gap_handler(on_gap)
        if overflow is not None:
            _one_of("overflow", overflow, _OVERFLOWS)
        return (
            self._queue_size if size is None else _positive(name, size),
            self._overflow if overflow is None else overflow,
        )

    async def _cancel(self, subscription_id: str) -> None:
        remove = self._subscriptions.pop(subscription_id, None)
        self._receivers.pop(subscription_id, None)
        self._topics.pop(subscription_id, None)
        if remove is not None:
            remove()

    def stream(
        self,
        topic: str | None = None,
        *,
        pattern: str | None = None,
        buffer: int | None = None,
        overflow: Overflow | None = None,
        on_gap: GapHandler | None = None,
        since: Since | None = None,
    ) -> Stream:
        """Return the events of a topic or pattern as an async iterator.

        Args:
            topic: The topic, or
            pattern: the pattern.
            buffer: Events buffered; the bus's ``queue_size`` by default.
            overflow: Policy of a full buffer; the bus's by default.
            on_gap: Called with a ``Gap`` when events were lost.
            since: Begin with what was published before, as in ``subscribe``.
        """
        size, policy = self._buffering("buffer", buffer, overflow, on_gap)
        if pattern is None and isinstance(topic, str):
            self._expect_literal("stream", topic)
        return Stream(self, topic, pattern, size, policy, on_gap, since)

    def publish_nowait(self, topic: str, event: object, **options: Unpack[PublishOptions]) -> None:
        """Buffer a publish; ``await bus.flush()`` waits for it and raises what failed.

        Args:
            topic: The topic.
            event: An event or a plain payload.
            **options: As for ``publish``.

        Raises:
            QueueFull: The buffer is full; the event was not taken.
            RuntimeError: No event loop is running in this thread.
            TypeError: ``connection`` was given: its transaction may be over before the publish.
        """
        self._check_origin()
        if "connection" in options:
            raise TypeError("publish_nowait() takes no connection; await bus.publish() with it")
        self._outbox.put(topic, event, options)

    async def flush(self) -> None:
        """Wait until everything given to ``publish_nowait`` so far was published.

        Raises:
            EventBusError: The one publish that failed since the last flush.
            ExceptionGroup: When several failed.
        """
        await self._outbox.flush()

    # Queues

    @overload
    async def consume(
        self,
        topic: Topics | None,
        handler: ConsumeHandler,
        *,
        pattern: str | None = None,
        **options: Unpack[ConsumeKeywords],
    ) -> Consumer: ...

    @overload
    async def consume(
        self, *, handler: ConsumeHandler, pattern: str, **options: Unpack[ConsumeKeywords]
    ) -> Consumer: ...

    async def consume(
        self,
        topic: Topics | None = None,
        handler: ConsumeHandler | None = None,
        *,
        pattern: str | None = None,
        group: str = "default",
        concurrency: int = 16,
        batch: int | None = None,
        timeout: Seconds | None = None,
        run_in: RunIn = "loop",
        lease: Seconds = 30.0,
        max_lease: Seconds = 3600.0,
        max_length: int | None = None,
        retry: RetryPolicy | None = None,
    ) -> Consumer:
        """Handle the events of a group: each is handled by one consumer, at least once.

        The group is declared, durably, before this returns: what is published after that waits in
        it, whether or not a consumer is there. Handler returns → acknowledged; raises → tried again
        with back-off, then a dead letter; ``raise Retry(...)`` and ``raise Reject(...)`` say it.

        Args:
            topic: A topic or several, taken as they are; may be left out when a pattern is given:
                ``consume(handler=handle, pattern="orders:*")``.
            handler: Called with the event (or with what its annotation asks for); a parameter
                annotated ``Delivery`` gets the delivery.
            pattern: A pattern, beside or instead of topics.
            group: The durable queue.
            concurrency: Deliveries handled at a time.
            batch: Call the handler with a list of up to this many events.
            timeout: Seconds a handler may run; then it is cancelled and the attempt has failed,
                whatever it returns.
            run_in: ``"loop"``, or ``"thread"``: up to ``concurrency`` daemon threads for a plain
                function that blocks. Context variables are copied. A thread that exceeds
                ``timeout`` keeps its slot, lease and ordering key until the function returns.
            lease: Seconds a claim holds; renewed while the handler runs.
            max_lease: Seconds it is renewed at most.
            max_length: Most messages in the group; then publishing raises ``QueueFull``.
            retry: What follows a failure.

        Returns:
            The running consumer; ``await consumer.stop()`` ends it.

        Raises:
            ConfigError: Options out of range, all problems at once; ``timeout`` with a plain
                function on the loop, ``run_in="thread"`` with an ``async def``.
            TypeError: The handler cannot be called so: not callable, a generator function, or
                other arguments; or neither topic nor pattern is given.
            TopicError: A topic or the group breaks a rule.
        """
        call = _callable(handler)
        options = ConsumeOptions(
            group=group,
            concurrency=concurrency,
            batch=batch,
            timeout=None if timeout is None else seconds(timeout, "timeout"),
            run_in=run_in,
            lease=seconds(lease, "lease"),
            max_lease=seconds(max_lease, "max_lease"),
            max_length=max_length,
            retry=retry or RetryPolicy(),
        )
        check_consumer(call, options)
        _encodable("group", options.group)
        bindings = self._bound("consume", topic, pattern)
        # Before anything is declared: what the annotation asks for may not be possible.
        self._converter(call, of_list=batch is not None)
        core: CoreConsumer = await self._consume(bindings, options, True)
        self._tell_limits()
        consumer = Consumer(self, core, call, options)
        consumer.bindings = frozenset(text for text, _ in bindings)
        self._consumers.add(consumer)
        return consumer

    def _bound(
        self, verb: str, topic: Topics | None, pattern: str | None
    ) -> list[tuple[str, bool]]:
        """Return (text, is pattern) pairs, and warn of topics that look like patterns."""
        bindings = _bindings(topic, pattern)
        if pattern is None:
            self._expect_literal(verb, [text for text, _ in bindings])
        return bindings

    def deliveries(
        self,
        topic: Topics | None = None,
        *,
        pattern: str | None = None,
        group: str = "default",
        prefetch: int = 16,
        lease: Seconds = 30.0,
        max_lease: Seconds = 3600.0,
        max_length: int | None = None,
        retry: RetryPolicy | None = None,
    ) -> Deliveries:
        """Return the deliveries of a group as an async iterator; settle each yourself.

        Args:
            topic: A topic or several, taken as they are; may be left out when a pattern is given.
            pattern: A pattern, beside or instead of topics.
            group: The durable queue.
            prefetch: Most deliveries in hand, settled ones not counted.
            lease: Seconds a claim holds; renewed until the delivery is settled.
            max_lease: Seconds it is renewed at most.
            max_length: Most messages in the group.
            retry: What ``delivery.retry()`` does.
        """
        options = ConsumeOptions(
            group=group,
            concurrency=prefetch,
            lease=seconds(lease, "lease"),
            max_lease=seconds(max_lease, "max_lease"),
            max_length=max_length,
            retry=retry or RetryPolicy(),
        )
        _encodable("group", options.group)
        return Deliveries(self, self._bound("deliveries", topic, pattern), options)

    async def declare_group(
        self,
        group: str,
        topic: Topics | None = None,
        *,
        pattern: str | None = None,
        max_length: int | None = None,
    ) -> None:
        """Declare a group without consuming: what is published from now on waits in it."""
        if max_length is not None:
            _positive("max_length", max_length)
        bindings = self._bound("declare_group", topic, pattern)
        await self._declare_group(_text("group", group), bindings, max_length)
        self._tell_limits()

    async def unbind(
        self, group: str, topic: Topics | None = None, *, pattern: str | None = None
    ) -> int:
        """Remove bindings and what waits for them; return how many messages were removed."""
        return await self._group_action("unbind", _text("group", group), _bindings(topic, pattern))

    async def delete_group(self, group: str) -> int:
        """Remove a group with everything in it; return how many messages were removed."""
        return await self._group_action("delete", _text("group", group))

    async def purge(self, group: str) -> int:
        """Remove what waits, not what is being handled; return how many messages."""
        return await self._group_action("purge", _text("group", group))

    async def pause(self, group: str) -> None:
        """Stop claims of a group on every worker; what is being handled goes on."""
        await self._group_action("pause", _text("group", group))

    async def resume(self, group: str) -> None:
        """Let a paused group be claimed again."""
        await self._group_action("resume", _text("group", group))

    async def message(
        self, event: Event | str | UUID, *, group: str | None = None
    ) -> list[MessageInfo]:
        """Return where an event waits or is being handled.

        Whoever published it knows its id: of the ``Event``, or given as ``event_id=`` to
        ``publish``. There is one copy per group, binding that matched, and publish of the event,
        however it was published: alone, in a batch, in a transaction once that is committed.

        Args:
            event: The event, or its ``event_id`` as text or UUID. A ``message_id`` that is another
                means one publish of an event alone.
            group: Only the copies of this group; of all groups by default.

        Returns:
            The copies by group, then in the order they were accepted; empty when it was handled, is
            a dead letter, or is unknown.

        Raises:
            TypeError: ``event`` is no event, text or UUID.
            InvalidArgumentError: The id is empty.
            NotFoundError: There is no such group.
        """
        found = await self._messages(event, _group_or_all(group))
        return [MessageInfo(**copy) for copy in found]

    async def cancel_message(self, event: Event | str | UUID, *, group: str | None = None) -> int:
        """Remove an event from the groups where it still waits.

        A copy that is being handled stays: each is either cancelled or handled, never both. What
        has the same ``key`` goes on, a ``unique`` name is free again. Arguments and errors as for
        ``message``. Cancelling this call may leave it done in part.

        Returns:
            How many copies were removed: 0 when all of them are being handled or gone.
        """
        return await self._message_action(event, _group_or_all(group), "cancel", None)

    async def promote_message(self, event: Event | str | UUID, *, group: str | None = None) -> int:
        """Make a delayed event due now; arguments and errors as for ``message``.

        One with a ``key`` keeps its place behind what was published before it.

        Returns:
            How many copies changed: what is ready already, or being handled, does not count.
        """
        return await self._message_action(event, _group_or_all(group), "promote", None)

    async def reschedule_message(
        self, event: Event | str | UUID, at: datetime, *, group: str | None = None
    ) -> int:
        """Make a waiting event due at another time.

        Its ``key`` waits with it. A time in the past makes it due now. Arguments and errors as for
        ``message``.

        Args:
            event: As for ``message``.
            at: When it is due, by the server's clock: an aware datetime.
            group: As for ``message``.

        Returns:
            How many copies changed; one that is being handled does not.

        Raises:
            InvalidArgumentError: ``at`` has no time zone.
        """
        return await self._message_action(event, _group_or_all(group), "reschedule", at)

    def dead_letters(self, group: str) -> DeadLetters:
        """Return the dead letters of a group: list, retry, discard."""
        return DeadLetters(self, group)

    # Records and transactions

    def transaction(self, *, connection: object = None) -> Transaction:
        """Return a transaction: ``async with bus.transaction() as tx:`` commits at its end.

        Args:
            connection: An asyncpg ``Connection``, a psycopg ``AsyncConnection`` or ``Connection``,
                or an ``AsyncSession``, ``AsyncConnection``, ``Session`` or ``Connection`` of
                SQLAlchemy, to the database of a Postgres bus: the block is a transaction on it, or
                a savepoint inside yours, and what you do there takes effect with the steps or not
                at all. ``commit()`` without a block needs a transaction that is open there.

        Raises:
            UnsupportedError: The bus is not over Postgres.
            TypeError: The connection is of another kind.
        """
        return Transaction(self, connection=connection)

    async def _publish_joined(
        self, connection: object, topic: str, event: object, options: PublishOptions
    ) -> None:
        """Publish in the caller's transaction; called by the core."""
        await joined.publish(self, connection, [(topic, event, options)])

    async def _publish_many_joined(
        self, connection: object, items: Iterable[tuple[str, object]]
    ) -> None:
        """Publish several events in the caller's transaction; called by the core."""
        pairs = [(topic, event, PublishOptions()) for topic, event in items]
        await joined.publish(self, connection, pairs, many=True)

    async def read(self, key: str) -> Record | None:
        """Return a record, or ``None`` when there is none of this key."""
        found = await self._read([_text("key", key)])
        return None if found[0] is None else Record(*found[0])

    async def scan(
        self, prefix: str = "", *, after: str | None = None, limit: int = 100
    ) -> list[Record]:
        """Return records whose key begins with a prefix, in key order.

        Args:
            prefix: What the keys begin with.
            after: Only keys greater than this one: the last key of the page before.
            limit: Most records to return.

        A record whose value cannot be decoded raises ``DecodeError`` where its ``value`` is read.
        """
        found = await self._scan(_text("prefix", prefix), after, _positive("limit", limit))
        return [
            Record(key, version, value) if error is None else UnreadableRecord(key, version, error)
            for key, version, value, error in found
        ]

    # Operation

    async def inspect(self) -> BusFigures:
        """Return the figures of the bus: published, duplicates, records, and one dict per group.

        A group has ``ready``, ``delayed``, ``in_flight``, ``dead``, ``oldest_age`` (seconds),
        ``accepted``, ``acked``, ``retried``, ``expired_leases``, ``removed``, ``paused`` and
        ``bindings``.
        """
        return await self._inspect()

    async def health(self) -> Health:
        """Return ``ok`` (bool), ``state``, ``backend``, ``counters`` and ``warnings`` (list).

        Not ok: the bus is not live, the server is not reached, or a consumer or subscription of
        this bus has no task left that could run its handler. A group whose messages have waited for
        a minute without anybody who consumes them is among the warnings; for that the server is
        asked at most every ten seconds, for a second at most.
        """
        server = self._tell_limits()
        await self._look_for_unattended(server["state"])
        idle, warnings = self._receiver_health()
        return {
            "ok": self._state == "live" and server["state"] in ("live", "degraded") and not idle,
            "state": self._state,
            "backend": dict(self.capabilities),
            "counters": self.counters,
            "warnings": [*server["warnings"], *idle, *warnings, *self._neglected],
            "connection": server["state"],
            "server": server["server"],
            "reconnects": server["reconnects"],
            "last_error": server["last_error"],
            "malformed": server["malformed"],
        }

    def _receiver_health(self) -> tuple[list[str], list[str]]:
        """Return what has no task left that could run its handler, and what had lately."""
        receivers: list[Consumer | QueuedReceiver] = [*self._consumers, *self._receivers.values()]
        idle = [trouble for one in receivers if (trouble := one.trouble()) is not None]
        lately = time.monotonic() - self._replaced_at
        if self._workers_replaced == 0 or lately > _TROUBLE_SHOWN:
            return idle, []
        return idle, [
            f"{self._workers_replaced} tasks of consumers or subscriptions have ended and were "
            f"replaced, the last {lately:.0f} s ago; the log of eventbus.supervisor has tracebacks"
        ]

    async def wait_idle(self, timeout: Seconds = 5.0) -> None:
        """Wait until this bus has nothing left to do; for tests.

        Idle: the outbox and every buffer are empty, no handler runs, and no group with a consumer
        of this bus has anything ready or in flight. Delayed messages do not count.

        Raises:
            TimeoutError: Not idle in time; it says what is not.
        """
        limit = seconds(timeout, "timeout")
        left = ["the server has not answered"]
        try:
            async with asyncio.timeout(limit):
                pause = 0.0
                while left := await self._work_left():
                    await asyncio.sleep(pause)
                    pause = min(pause + 0.0005, 0.02)
        except TimeoutError:
            raise TimeoutError(f"not idle within {limit:g} s: {'; '.join(left)}") from None

    async def _work_left(self) -> list[str]:
        """Return what is not idle, in words; empty = all is done.

        It looks twice, as every look takes time in which a handler may go on. What was published
        before the first look has come back before the last one. If no handler was called or ended
        and no commit began between them, nothing is left that could do more.
        """
        before = self._commits()[0], self.counters
        if left := self._not_quiet():
            return left
        own = {consumer.group for consumer in self._consumers}
        if own and (left := work_left((await self.inspect())["groups"], own)):
            return left
        await self._heard()
        if left := self._not_quiet():
            return left
        same = (self._commits()[0], self.counters) == before
        return [] if same else ["handlers or commits have just run"]

    def _not_quiet(self) -> list[str]:
        """Return what is buffered, and which handlers and commits are under way."""
        left: list[str] = []
        if waiting := len(self._outbox):
            left.append(f"publish_nowait has {waiting} events buffered")
        if commits := self._commits()[1]:
            left.append(f"{commits} commits are under way")
        busy = {name: one for name, one in self._receivers.items() if not one.idle}
        if busy:
            running = sum(one.busy for one in busy.values())
            names = listed(self._topics.get(name, name) for name in busy)
            left.append(
                f"{len(busy)} subscriptions have events buffered or {running} handlers running: "
                f"{names}"
            )
        return left

    async def _look_for_unattended(self, connection: str) -> None:
        """Ask, now and then and not for long, which groups nobody consumes."""
        now = time.monotonic()
        if self._state != "live" or connection not in ("live", "degraded"):
            return
        if now - self._looked_at < _LOOK_EVERY:
            return
        self._looked_at = now
        try:
            async with asyncio.timeout(_LOOK_FOR):
                figures = await self.inspect()
        except (EventBusError, TimeoutError):
            # The rest of the answer tells how the server is.
            self._neglected = []
            return
        handled: dict[str, set[str]] = {}
        claiming: list[Consumer | Deliveries] = [*self._consumers, *self._deliveries]
        for one in claiming:
            handled.setdefault(one.group, set()).update(one.bindings)
        self._neglected = self._unattended.look(figures["groups"], handled)

    async def include(
        self, target: ModuleType | dispatch.Registry | object
    ) -> list[Subscription | Consumer]:
        """Start the decorated handlers of a module, a registry or an instance.

        Idempotent: what runs already is not started again. A call that finds nothing to start logs
        a warning.

        Returns:
            The subscriptions and consumers of the target, those that ran already too.

        Raises:
            InvalidArgumentError: It has no decorated handlers.
        """
        return await self._included.start(target)

    def __repr__(self) -> str:
        """Return class and state."""
        return f"<{type(self).__name__} {self._state}>"


class DeadLetters:
    """The dead letters of a group; made by ``Bus.dead_letters``."""

    def __init__(self, bus: Bus, group: str) -> None:
        """Remember bus and group."""
        self._bus = bus
        self._group = group

    async def list(self, *, after: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, oldest first.

        Args:
            after: Only those after this message id: the last one of the page before.
            limit: Most to return.
        """
        found = await self._bus._dead_letters(self._group, after, _positive("limit", limit))
        return [DeadLetter(**letter) for letter in found]

    async def retry(self, *message_ids: str) -> int:
        """Queue dead letters again with fresh counters; return how many were found."""
        return await self._bus._settle_dead(self._group, message_ids, True)

    async def discard(self, *message_ids: str) -> int:
        """Remove dead letters; return how many were found."""
        return await self._bus._settle_dead(self._group, message_ids, False)


def _memory_config(options: MemoryOptions) -> dict[str, Any]:
    """Return the options as the core reads them: durations in seconds."""
    config: dict[str, Any] = {**options}
    # Checked, and without effect: nothing leaves the process.
    if (key := config.pop("signing_key", None)) is not None:
        signing_keys(key)
    for option in ("dedup_window", "dead_retention"):
        window = config.get(option)
        if window is not None:
            config[option] = seconds(window, option)
            if not config[option] > 0:
                raise ConfigError(f"{option}={window!r} must be more than 0 seconds")
    if config.get("retention") is not None:
        config["retention"] = seconds(config["retention"], "retention")
    return config


def _callable(handler: object) -> Callable[..., object]:
    if not callable(handler):
        raise TypeError(f"handler must be callable, not {_kind(handler)}")
    return handler


def _kind(value: object) -> str:
    """Return type and value, for messages."""
    return f"{type(value).__name__}: {shown(repr(value))}"


def _bindings(topic: Topics | None, pattern: str | None) -> list[tuple[str, bool]]:
    """Return (text, is pattern) pairs.

    Raises:
        TypeError: Neither topic nor pattern, or one that is no str.
    """
    topics = [topic] if isinstance(topic, str) else list(topic or ())
    for text in [*topics, *([] if pattern is None else [pattern])]:
        if not isinstance(text, str):
            raise TypeError(f"topic must be a str, not {_kind(text)}")
        _encodable("topic", text)
    bindings = [(text, False) for text in topics]
    if pattern is not None:
        bindings.append((pattern, True))
    if not bindings:
        raise TypeError("give a topic, several, or pattern=")
    return bindings


def _group_or_all(group: str | None) -> str | None:
    return None if group is None else _text("group", group)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {_kind(value)}")
    return _encodable(name, value)


def _encodable(name: str, text: str) -> str:
    """Refuse a name that no backend could store or send."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        kind = TopicError if name in ("topic", "group") else InvalidArgumentError
        shown = ascii(text[:80])
        raise kind(f"invalid {name} {shown}: cannot be encoded in UTF-8: {error}") from None
    return text
