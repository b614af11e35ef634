"""What carries events between dispatchers: a small interface, and its form on any bus."""

from __future__ import annotations

import asyncio
import glob
import itertools
import logging
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

from eventbus.bus import Bus
from eventbus.config import RetryPolicy
from eventbus.consumer import Deliveries
from eventbus.delivery import Delivery
from eventbus.errors import (
    BusClosedError,
    DecodeError,
    EventBusError,
    InvalidArgumentError,
    LeaseLost,
)
from eventbus.outcomes import leave
from eventbus.stream import Stream
from eventbus.types import Event, Gap

__all__ = [
    "BusTransport",
    "Coding",
    "Incoming",
    "Message",
    "NamedCoding",
    "Target",
    "Transport",
    "next_number",
]

log = logging.getLogger("eventbus.dispatcher")

Target: TypeAlias = Literal["consumers", "subscribers", "both"]
"""Whom an event is for: one consuming dispatcher, every subscribing one, or both."""

OnGap: TypeAlias = Callable[[Gap], object]

_numbers = itertools.count(1)
_ORIGIN = uuid.uuid4().hex
"""Marks what this process produced, so that a handler does not see what was produced before it."""

_PAUSE = 0.2
"""Seconds before a failed binding is tried again."""


def next_number() -> int:
    """Return a number greater than all before it in this process."""
    return next(_numbers)


@dataclass(slots=True, eq=False)
class Message:
    """An event on its way.

    Attributes:
        name: The event name.
        source: Who produced it.
        args: Its arguments.
        number: Its place among what this process produced; ``None`` = produced elsewhere.
    """

    name: str
    source: str
    args: tuple[Any, ...]
    number: int | None = None


@dataclass(slots=True, eq=False)
class Incoming:
    """A queued event in hand, until it is acknowledged or given back.

    Attributes:
        message: The event.
        handle: What the transport knows it by.
    """

    message: Message
    handle: Any


class Transport(Protocol):
    """What a dispatcher or producer needs of whatever carries its events.

    One task receives from the queue and one the broadcasts; every other call may come from any
    task of the loop. A cancelled receive loses nothing.
    """

    async def connect(self) -> None:
        """Open it. Idempotent."""

    async def produce(
        self, message: Message, *, to: Target = "both", dedup_id: str | None = None
    ) -> None:
        """Send an event.

        Raises:
            ConnectError: The server cannot be reached.
            EncodeError: The arguments cannot be encoded.
        """

    async def listen(self, on_gap: OnGap) -> None:
        """Receive broadcasts from now on; returns once the server confirmed it."""

    def wants(self, names: frozenset[str]) -> None:
        """Receive broadcasts of these names only, from now on; none before the first call."""

    async def receive_broadcast(self) -> Message:
        """Return the next broadcast of a wanted name.

        Raises:
            BusClosedError: There will be none.
        """
        ...

    def consume(self, names: frozenset[str], limit: int) -> None:
        """Take queued events of these names, and nothing of other names, from now on.

        Args:
            names: What has a handler here.
            limit: Most events in hand.
        """

    async def bound(self) -> None:
        """Wait until the server knows the names last given to ``consume``."""

    async def receive(self, limit: int) -> Sequence[Incoming]:
        """Return at least one and at most ``limit`` queued events, oldest first; waits for one.

        Raises:
            BusClosedError: There will be none.
        """
        ...

    async def ack(self, done: Sequence[Incoming]) -> None:
        """Forget events that were handled."""

    async def retry(self, failed: Incoming, reason: str) -> None:
        """Let an event be handled again, as the retry policy says."""

    async def push_back(self, unfinished: Sequence[Incoming]) -> None:
        """Give events back to their place, in their order; nothing is counted."""

    def leave(self, incoming: Incoming, ending: SystemExit | KeyboardInterrupt) -> None:
        """Give back an event whose handler ends the process; needs no loop."""

    async def unhandled(self, incoming: Incoming) -> None:
        """Take back an event that no handler here wants."""

    def replaced(self) -> None:
        """Take note that a task which receives had ended for no good reason, and was replaced."""

    def figures(self) -> dict[str, Any]:
        """Return what the transport counted."""
        ...

    async def stop(self) -> None:
        """Take nothing more; what is in hand can still be acknowledged or pushed back."""

    async def close(self) -> None:
        """End it. Idempotent."""


class Coding(Protocol):
    """How a message is a payload on the bus."""

    def encode(self, message: Message) -> object:
        """Return the payload."""
        ...

    def decode(self, name: str, event: Event) -> Message:
        """Return the message of an event.

        Raises:
            DecodeError: It is none.
        """
        ...


class NamedCoding:
    """The native form: ``{"name": …, "source": …, "args": (…)}``."""

    def encode(self, message: Message) -> object:
        """Return the payload."""
        return {"name": message.name, "source": message.source, "args": message.args}

    def decode(self, name: str, event: Event) -> Message:
        """Return the message of an event."""
        payload: Any = event.payload
        if isinstance(payload, dict):
            fields: Mapping[Any, Any] = cast("Any", payload)
            args, source = fields.get("args"), fields.get("source")
            listed = fields.get("name") == name and isinstance(args, tuple | list)
            if listed and isinstance(source, str):
                return Message(name, source, tuple(cast("Sequence[Any]", args)))
        raise DecodeError(f"payload of event {name!r} is no map of name, source and args")


_rebinding: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Task[None]]] = (
    weakref.WeakKeyDictionary()
)
"""Bindings being declared, by loop: what is produced behind a registration waits for them."""


class BusTransport:
    """Events on any bus: topic ``<prefix>:<event name>``, one group for all consumers.

    The group is bound to a name as soon as a dispatcher consumes it; the binding is durable, so
    what is produced while no dispatcher runs waits. A dispatcher claims only names that it handles.
    Broadcasts come through one subscription of ``<prefix>:*``.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        prefix: str = "events",
        group: str = "manager",
        lease: float = 30.0,
        retry: RetryPolicy | None = None,
        queue_size: int = 10_000,
        owned: bool = False,
        coding: Coding | None = None,
    ) -> None:
        """Remember how to use the bus.

        Args:
            bus: The bus; connected when it is new.
            prefix: What the topics begin with.
            group: The durable queue of the consumers.
            lease: Seconds that a claim holds; renewed until the event is settled.
            retry: What follows a failed handler; without it a failure counts as handled.
            queue_size: Broadcasts buffered.
            owned: Close the bus with the transport.
            coding: How a message is a payload.
        """
        if not prefix or "@" in prefix:
            raise InvalidArgumentError(f"prefix={prefix!r} must be a text without @")
        self._bus = bus
        self._prefix = prefix
        self._group = group
        self._lease = lease
        self._retry = retry
        self._queue_size = queue_size
        self._owned = owned
        self._coding: Coding = coding if coding is not None else NamedCoding()
        self._gather = not bus.capabilities["in_process"]
        self._names: frozenset[str] = frozenset()
        self._limit = 1
        self._bound: tuple[frozenset[str], int] = (frozenset(), 1)
        self._deliveries: Deliveries | None = None
        self._read_ahead: list[Incoming] = []
        self._changed = asyncio.Event()
        self._rebinder: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._wanted: frozenset[str] = frozenset()
        self._stopped = False
        self._malformed = 0
        self._replaced = 0

    # Producing

    async def connect(self) -> None:
        """Connect the bus when it is new."""
        if self._bus.state == "new":
            await self._bus.connect()

    async def produce(
        self, message: Message, *, to: Target = "both", dedup_id: str | None = None
    ) -> None:
        """Publish the event; see ``Bus.publish`` for its errors."""
        waiting = _rebinding.get(asyncio.get_running_loop())
        if waiting:
            # A name that was registered a moment ago in this process must not be missed.
            await asyncio.wait(waiting, timeout=5.0)
        topic = self._topic(message.name, to)
        await self._bus.publish(
            topic,
            self._coding.encode(message),
            source=message.source,
            dedup_id=dedup_id,
            metadata={"origin": _ORIGIN, "number": next_number()},
        )

    def _topic(self, name: str, to: Target) -> str:
        """Return where an event goes.

        ``p:name`` reaches both kinds; ``p@:name`` is bound by consumers only, and ``p:@:name``
        matches the pattern of subscribers only.
        """
        if name.startswith("@:"):
            raise InvalidArgumentError(f"event name {name!r} must not begin with '@:'")
        if to == "both":
            return f"{self._prefix}:{name}"
        if to == "consumers":
            return f"{self._prefix}@:{name}"
        if to == "subscribers":
            return f"{self._prefix}:@:{name}"
        raise InvalidArgumentError(f"to={to!r} must be one of consumers, subscribers, both")

    def _name(self, topic: str) -> str:
        """Return the event name of a topic."""
        rest = topic[len(self._prefix) :]
        return rest[2:] if rest.startswith("@") else rest[1:].removeprefix("@:")

    # Broadcasts

    def wants(self, names: frozenset[str]) -> None:
        """Skip broadcasts of other names before their payload is decoded."""
        self._wanted = names

    async def listen(self, on_gap: OnGap) -> None:
        """Subscribe to every name of the prefix."""
        pattern = f"{glob.escape(self._prefix)}:*"
        stream = self._bus.stream(pattern=pattern, buffer=self._queue_size, on_gap=on_gap)
        await stream.__aenter__()
        self._stream = stream

    async def receive_broadcast(self) -> Message:
        """Return the next broadcast of a wanted name."""
        assert self._stream is not None, "listen() comes first"
        while True:
            try:
                event = await anext(self._stream)
            except StopAsyncIteration:
                raise BusClosedError("the bus was closed") from None
            name = self._name(event.topic)
            if name not in self._wanted:
                continue
            try:
                return self._decode(name, event)
            except Exception as error:  # noqa: BLE001 - it concerns this message only
                self._bad(error)

    def _decode(self, name: str, event: Event) -> Message:
        message = self._coding.decode(name, event)
        given: Any = event.metadata
        made: Mapping[Any, Any] = cast("Any", given) if isinstance(given, dict) else {}
        if made.get("origin") == _ORIGIN:
            number: Any = made.get("number")
            message.number = number if isinstance(number, int) else None
        return message

    def _bad(self, error: Exception) -> None:
        self._malformed += 1
        if self._malformed == 1 or self._malformed % 1000 == 0:
            log.warning("malformed event skipped count=%d reason=%s", self._malformed, error)

    # Queue

    def consume(self, names: frozenset[str], limit: int) -> None:
        """Bind the group to the names and claim them, one loop iteration from now."""
        self._names, self._limit = names, limit
        if self._stopped or self._rebinder is not None:
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._rebind(), name="eventbus-dispatcher-bind")
        self._rebinder = task
        waiting = _rebinding.setdefault(loop, set())
        waiting.add(task)
        task.add_done_callback(waiting.discard)

    async def bound(self) -> None:
        """Wait until the group is bound to the names last given to ``consume``."""
        if self._rebinder is not None:
            await asyncio.wait([self._rebinder])

    async def _rebind(self) -> None:
        try:
            while (wanted := (self._names, self._limit)) != self._bound and not self._stopped:
                try:
                    await self._claim(*wanted)
                    self._bound = wanted
                except BusClosedError:
                    return
                except EventBusError as error:
                    log.warning("cannot bind group=%s reason=%s", self._group, error)
                    await asyncio.sleep(_PAUSE)
                except Exception:
                    log.exception("cannot bind group=%s; trying again", self._group)
                    self.replaced()
                    await asyncio.sleep(_PAUSE)
        finally:
            self._rebinder = None
            self._tell_change()

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _claim(self, names: frozenset[str], limit: int) -> None:
        """Replace what is claimed; what was claimed and not handed over goes back first."""
        await asyncio.sleep(0)
        before, self._deliveries = self._deliveries, None
        if before is not None:
            await before.aclose()
        if not names:
            return
        topics = [self._topic(name, to) for name in sorted(names) for to in ("both", "consumers")]
        deliveries = self._bus.deliveries(
            topics,
            group=self._group,
            prefetch=min(limit, 10_000),
            lease=self._lease,
            retry=self._retry,
        )
        await deliveries.__aenter__()
        self._deliveries = deliveries
        self._tell_change()

    async def receive(self, limit: int) -> Sequence[Incoming]:
        """Wait for a queued event; return it and what more is in hand."""
        while not self._read_ahead:
            deliveries, changed = self._deliveries, self._changed
            if self._stopped or self._bus.state in ("closed", "draining"):
                raise BusClosedError("the bus was closed")
            if deliveries is None:
                await changed.wait()
                continue
            try:
                delivery: Delivery | None = await anext(deliveries)
            except StopAsyncIteration:
                if self._deliveries is deliveries:
                    self._deliveries = None
                continue
            while delivery is not None:
                # What was read stays in hand when this is cancelled.
                if (incoming := await self._read(delivery)) is not None:
                    self._read_ahead.append(incoming)
                delivery = deliveries.ready() if len(self._read_ahead) < limit else None
        found, self._read_ahead = self._read_ahead, []
        return found

    async def _read(self, delivery: Delivery) -> Incoming | None:
        """Return what a delivery holds; one that cannot be read becomes a dead letter."""
        try:
            return Incoming(self._decode(self._name(delivery.topic), delivery.event), delivery)
        except Exception as error:  # noqa: BLE001 - it concerns this message only
            self._bad(error)
            await delivery.reject(f"malformed event: {error}")
            return None

    async def ack(self, done: Sequence[Incoming]) -> None:
        """Acknowledge: one after the other in process, together on a broker."""
        if self._gather and len(done) > 1:
            await asyncio.gather(*(self._ack(one.handle) for one in done))
            return
        for one in done:
            await self._ack(one.handle)

    async def _ack(self, delivery: Delivery) -> None:
        try:
            await delivery.ack()
        except LeaseLost:
            log.warning("acknowledged too late topic=%s", delivery.topic)

    async def retry(self, failed: Incoming, reason: str) -> None:
        """Retry by the policy, or acknowledge when there is none."""
        delivery: Delivery = failed.handle
        if self._retry is None:
            await self._ack(delivery)
            return
        try:
            await delivery.retry(reason=reason)
        except LeaseLost:
            log.warning("retried too late topic=%s", delivery.topic)

    async def push_back(self, unfinished: Sequence[Incoming]) -> None:
        """Release: each keeps its place in the group."""
        for one in unfinished:
            try:
                await one.handle.release()
            except LeaseLost:
                log.debug("pushed back too late name=%s", one.message.name)

    def leave(self, incoming: Incoming, ending: SystemExit | KeyboardInterrupt) -> None:
        """Count a crash for an exit, release it for an interrupt."""
        delivery: Delivery = incoming.handle
        leave(delivery._core, ending)

    async def unhandled(self, incoming: Incoming) -> None:
        """Release it: its name is no longer claimed here, another dispatcher may handle it."""
        await self.bound()
        await self.push_back([incoming])

    def replaced(self) -> None:
        """Let ``health()`` of the bus tell that a task of the dispatcher had ended."""
        self._replaced += 1
        self._bus._replaced()

    def figures(self) -> dict[str, Any]:
        """Return ``malformed`` and ``replaced``; the queue's own are in ``Bus.inspect``."""
        return {"malformed": self._malformed, "replaced": self._replaced}

    # End

    async def stop(self) -> None:
        """Claim nothing more."""
        self._stopped = True
        if self._rebinder is not None:
            self._rebinder.cancel()
            await asyncio.wait([self._rebinder])
        deliveries, self._deliveries = self._deliveries, None
        if deliveries is not None:
            await deliveries.aclose()
        read_ahead, self._read_ahead = self._read_ahead, []
        await self.push_back(read_ahead)
        if self._stream is not None:
            await self._stream.aclose()
        self._tell_change()

    async def close(self) -> None:
        """Stop, and close the bus when it is owned."""
        await self.stop()
        if self._owned:
            await self._bus.close()
