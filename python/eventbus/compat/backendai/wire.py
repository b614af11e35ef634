"""Backend.AI's own wire: a Redis list for consumers and a channel for subscribers (B33-B37)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from eventbus import redis_client
from eventbus.compat.backendai import scripts
from eventbus.compat.backendai.codec import NAME_KEYS, Era, decode_message, encode_message
from eventbus.dispatcher import Incoming, Message, Target
from eventbus.errors import BusClosedError, EventBusError, InvalidArgumentError
from eventbus.redis_client import RedisClient, RedisReply, RedisSubscription
from eventbus.supervisor import Supervisor
from eventbus.types import Gap

__all__ = ["CHANNEL", "QUEUE", "ListTransport"]

log = logging.getLogger("eventbus.compat.backendai")

QUEUE = "events.prodcons"
CHANNEL = "events.pubsub"

# What is ours begins with the name of the list and is ignored by old processes.
_INFLIGHT = f"{QUEUE}.inflight:"
_FORWARDED = f"{QUEUE}.to:"
_DISPATCHERS = f"{QUEUE}.dispatchers"
_NAMES = f"{QUEUE}.names"
_DEAD = f"{QUEUE}.dead"
_MARK = f"{QUEUE}.id:"

_BLOCK = 0.5  # seconds that one pop waits: shorter than any time-out, and than a close may take
_HOLD = 5.0  # seconds after the start for which events without a handler are held
_MOST_HELD = 10_000
_MOST_DEAD = 10_000
_DEDUP_SECONDS = 86_400
_DEEP = 100_000


class ListTransport:
    """Events through ``events.prodcons`` and ``events.pubsub``, beside unchanged processes.

    At least once: a popped event is kept in an in-flight list of this dispatcher until it is
    acknowledged. A dispatcher whose lease ran out loses that list to the head of the queue.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        era: Era,
        at_least_once: bool = True,
        lease: float = 30.0,
        queue_size: int = 10_000,
    ) -> None:
        """Remember how to use the server.

        Args:
            config: Of the Redis client; see ``eventbus.redis_client.open_redis``.
            era: Which field names are written.
            at_least_once: Keep what is being handled; needs Redis 6.2.
            lease: Seconds after which a dispatcher that shows no sign of life is dead.
            queue_size: Broadcasts buffered.
        """
        if not lease > 0:
            raise InvalidArgumentError(f"lease={lease!r} must be more than 0 seconds")
        self._config = config
        self._era: Era = era
        self._keeps = at_least_once
        self._lease = lease
        self._queue_size = queue_size
        self._id = uuid.uuid4().hex
        self._inflight = _INFLIGHT + self._id
        self._forwarded = _FORWARDED + self._id
        self.redis: RedisClient = redis_client.open_redis(config)
        self._popper: RedisClient | None = None
        self._popper_id: RedisReply = None
        self._connected = False
        self._subscription: RedisSubscription | None = None
        self._wanted: frozenset[str] = frozenset()
        self._on_gap: Callable[[Gap], Any] | None = None
        self._names: frozenset[str] = frozenset()
        self._limit = 1
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._supervisor: Supervisor | None = None
        self._beat_now = asyncio.Event()
        self._beaten = asyncio.Event()
        self._taking = asyncio.Lock()
        self._room = asyncio.Event()
        self._ready: deque[Incoming] = deque()
        self._some = asyncio.Event()
        self._known: Counter[bytes] = Counter()
        self._in_hand = 0
        self._held: list[Incoming] = []
        self._hold_until = 0.0
        self._stopped = False
        self._counts: Counter[str] = Counter()
        self._unhandled: Counter[str] = Counter()
        self._logged: dict[str, float] = {}
        self._depth = 0
        self._head: tuple[bytes | None, float] = (None, 0.0)

    # Producing

    async def connect(self) -> None:
        """Connect. Idempotent."""
        if not self._connected:
            await self.redis.connect()
            self._connected = True

    async def produce(
        self, message: Message, *, to: Target = "both", dedup_id: str | None = None
    ) -> None:
        """Push and publish the same bytes in one step."""
        if to not in ("both", "consumers", "subscribers"):
            raise InvalidArgumentError(f"to={to!r} must be one of consumers, subscribers, both")
        data = encode_message(message, self._era, dedup_id)
        if dedup_id is not None:
            flags = (int(to != "subscribers"), int(to != "consumers"))
            keys = (QUEUE, CHANNEL, f"{_MARK}{message.name}:{dedup_id}")
            await self.redis.script(scripts.PRODUCE_ONCE, keys, (data, _DEDUP_SECONDS, *flags))
        elif to == "both":
            await self.redis.script(scripts.PRODUCE, (QUEUE, CHANNEL), (data,))
        elif to == "consumers":
            await self.redis.command("RPUSH", QUEUE, data)
        else:
            await self.redis.command("PUBLISH", CHANNEL, data)

    # Broadcasts

    def wants(self, names: frozenset[str]) -> None:
        """Let the client drop broadcasts of other names unread."""
        self._wanted = names
        self.redis.keep(CHANNEL, NAME_KEYS, sorted(names))

    async def listen(self, on_gap: Callable[[Gap], Any]) -> None:
        """Subscribe to the channel."""
        self._on_gap = on_gap
        self._subscription = await self.redis.subscribe(CHANNEL, self._queue_size)
        self._hold_until = time.monotonic() + _HOLD

    async def receive_broadcast(self) -> Message:
        """Return the next broadcast of a wanted name."""
        assert self._subscription is not None, "listen() comes first"
        while True:
            try:
                item = await anext(self._subscription)
            except StopAsyncIteration:
                raise BusClosedError("the connection was closed") from None
            if item is None:
                if self._on_gap is not None:
                    await self._on_gap(Gap("reconnect", None))
                continue
            try:
                message = decode_message(item[1])
            except Exception as error:  # noqa: BLE001 - it concerns this message only
                self._bad("broadcast", error)
                continue
            # One that begins with another key than the name was not seen through.
            if message.name in self._wanted:
                return message

    def _bad(self, kind: str, error: Exception) -> None:
        self._counts["malformed"] += 1
        self._warn(f"malformed {kind}", "malformed %s skipped reason=%s", kind, error)

    def _warn(self, kind: str, text: str, *args: object) -> None:
        """Warn, once a minute for each kind."""
        now = time.monotonic()
        if now - self._logged.get(kind, -60.0) >= 60.0:
            self._logged[kind] = now
            log.warning(text, *args)

    # Queue

    def consume(self, names: frozenset[str], limit: int) -> None:
        """Announce the names and pop while there are any."""
        self._names, self._limit = names, limit
        self._beaten.clear()
        self._beat_now.set()
        self._make_room()
        if not self._tasks and names and not self._stopped:
            popper = self._popper = redis_client.open_redis(self._config)
            self._supervisor = Supervisor("the Backend.AI wire", self.replaced)
            self._keep("beat", self._serve_beats)
            self._keep("pop", lambda: self._serve_pops(popper))
            self._keep("forwarded", self._serve_forwarded)
        found = [one for one in self._held if one.message.name in names]
        if found:
            self._held = [one for one in self._held if one.message.name not in names]
            self._in_hand += len(found)
            self._ready.extendleft(reversed(found))
            self._some.set()

    def _keep(self, name: str, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task until the stop; one that ends for no good reason is logged and replaced."""
        assert self._supervisor is not None
        self._supervisor.keep(partial(self._begin, name, serve))

    def _begin(
        self, name: str, serve: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        create = asyncio.get_running_loop().create_task
        task = self._tasks[name] = create(serve(), name=f"eventbus-backendai-{name}")
        return task

    def replaced(self) -> None:
        """Count a task that had ended for no good reason, and was replaced."""
        self._counts["replaced"] += 1

    async def bound(self) -> None:
        """Wait until the names are announced."""
        if self._tasks:
            await self._beaten.wait()

    def _make_room(self) -> None:
        if self._names and self._in_hand < self._limit:
            self._room.set()
        else:
            self._room.clear()

    async def _serve_beats(self) -> None:
        """Show that this dispatcher lives, and take over from dead ones."""
        while True:
            self._beat_now.clear()
            names = self._names
            try:
                await self._beat(names)
                if names == self._names:
                    self._beaten.set()
                await self._pass_on_held()
            except EventBusError as error:
                self._warn("beat", "cannot renew the dispatcher's lease reason=%s", error)
            try:
                async with asyncio.timeout(min(self._lease / 3, 2.0)):
                    await self._beat_now.wait()
            except TimeoutError:
                continue

    async def _pass_on_held(self) -> None:
        """Hand over what was held for handlers that did not come; what fails stays held."""
        if not self._held or time.monotonic() < self._hold_until:
            return
        held, self._held = self._held, []
        for index, one in enumerate(held):
            try:
                await self._pass_on(one)
            except Exception:
                self._in_hand -= 1
                self._held = held[index:] + self._held
                raise

    async def _beat(self, names: frozenset[str]) -> None:
        text = "\n" + "\n".join(sorted(names)) + "\n"
        reply = await self.redis.script(
            scripts.BEAT,
            (_DISPATCHERS, _NAMES, QUEUE),
            (self._id, self._lease, text, _INFLIGHT, _FORWARDED),
        )
        assert isinstance(reply, list)
        moved, self._depth, head = reply
        if head != self._head[0]:
            self._head = (head, time.monotonic())
        if moved:
            log.warning("took over from a dead dispatcher count=%d", moved)
        if self._depth > _DEEP:
            self._warn("deep", "the list %s holds %d events", QUEUE, self._depth)

    async def _serve_pops(self, popper: RedisClient) -> None:
        """Move events to the in-flight list, one by waiting for it and what more there is."""
        # Without a sign of life first, what is popped would belong to nobody.
        await self._beaten.wait()
        doubtful = True
        pause = 0.0
        while True:
            await self._room.wait()
            if self._stopped:
                return
            try:
                if doubtful:
                    await popper.connect()
                    self._popper_id = await self._id_of(popper)
                    await self._find_lost()
                    doubtful = False
                await self._pop(popper)
                pause = 0.0
            except EventBusError as error:
                # The server may have moved an event although its answer was lost.
                doubtful = True
                self._warn("pop", "cannot pop events reason=%s; trying again", error)
                pause = min(max(pause * 2, 0.1), 5.0)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _id_of(self, popper: RedisClient) -> RedisReply:
        """Return what the server knows a connection by; ``None`` when this user may not ask."""
        try:
            return await popper.command("CLIENT", "ID")
        except EventBusError as error:
            if error.is_retryable:
                raise
            return None

    async def _pop(self, popper: RedisClient) -> None:
        if self._keeps:
            found = await popper.command("BLMOVE", QUEUE, self._inflight, "LEFT", "RIGHT", _BLOCK)
        else:
            reply = await popper.command("BLPOP", QUEUE, _BLOCK)
            found = reply[1] if isinstance(reply, list) else None
        if not isinstance(found, bytes):
            return
        await self._accept([found])
        room = self._limit - self._in_hand
        if room > 0 and not self._stopped:
            await self._take(popper, (self._forwarded, QUEUE), room)

    async def _take(self, redis: RedisClient, lists: tuple[str, ...], most: int) -> None:
        async with self._taking:
            keys = (self._inflight if self._keeps else "", *lists)
            reply = await redis.script(scripts.TAKE, keys, (most,))
            assert isinstance(reply, list)
            await self._accept(reply)

    async def _find_lost(self) -> None:
        """Take in hand what the server moved for this dispatcher without it hearing of that."""
        if not self._keeps:
            return
        async with self._taking:
            reply = await self.redis.command("LRANGE", self._inflight, 0, -1)
            assert isinstance(reply, list)
            surplus = Counter(reply) - self._known
            lost: list[bytes] = []
            for one in reply:
                if surplus[one] > 0:
                    surplus[one] -= 1
                    lost.append(one)
            await self._accept(lost)

    async def _serve_forwarded(self) -> None:
        """Take what other dispatchers popped and hand over, since it is consumed here."""
        while True:
            try:
                async with asyncio.timeout(5.0):
                    subscription = await self.redis.subscribe(self._forwarded, 100)
                break
            except (EventBusError, TimeoutError):
                await asyncio.sleep(0.5)
        while True:
            await self._room.wait()
            try:
                await self._take(self.redis, (self._forwarded,), self._limit - self._in_hand)
                async with asyncio.timeout(2.0):
                    await anext(subscription)
            except (TimeoutError, StopAsyncIteration):
                await asyncio.sleep(0)
            except EventBusError:
                await asyncio.sleep(0.5)

    async def _accept(self, found: list[Any]) -> None:
        """Take popped bytes in hand; what cannot be read is kept as a dead letter."""
        for data in found:
            try:
                message = decode_message(data)
            except Exception as error:  # noqa: BLE001 - it concerns this message only
                self._bad("queued event", error)
                keys = (self._inflight, _DEAD)
                await self.redis.script(scripts.BURY, keys, (data, _MOST_DEAD))
                continue
            self._known[data] += 1
            self._in_hand += 1
            self._ready.append(Incoming(message, data))
        if self._ready:
            self._some.set()
        self._make_room()

    async def receive(self, limit: int) -> Sequence[Incoming]:
        """Return what was popped."""
        while not self._ready:
            if self._stopped:
                raise BusClosedError("the transport was stopped")
            self._some.clear()
            await self._some.wait()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    async def ack(self, done: Sequence[Incoming]) -> None:
        """Remove events from the in-flight list."""
        if self._keeps:
            await self.redis.script(scripts.ACK, (self._inflight,), [one.handle for one in done])
        self._forget(done)

    def _forget(self, done: Sequence[Incoming]) -> None:
        for one in done:
            self._known[one.handle] -= 1
            if self._known[one.handle] <= 0:
                del self._known[one.handle]
        self._in_hand -= len(done)
        self._make_room()

    async def retry(self, failed: Incoming, reason: str) -> None:
        """Give the event up: this wire has no retries."""
        del reason
        await self.ack([failed])

    async def push_back(self, unfinished: Sequence[Incoming]) -> None:
        """Put events back at the head of the list, in their order."""
        if self._stopped and self._keeps:
            # Leaving gives the whole in-flight list back, in its order.
            return
        back = [*self._held, *unfinished, *self._ready] if self._stopped else list(unfinished)
        if back:
            args = (int(self._keeps), *(one.handle for one in back))
            await self.redis.script(scripts.PUSH_BACK, (self._inflight, QUEUE), args)
            self._forget(back)

    def leave(self, incoming: Incoming, ending: SystemExit | KeyboardInterrupt) -> None:
        """Do nothing: this wire counts no crashes, and hands on what a process had in hand."""

    async def unhandled(self, incoming: Incoming) -> None:
        """Hold it while handlers may still be registered; then hand it over, or drop it."""
        young = time.monotonic() < self._hold_until and len(self._held) < _MOST_HELD
        if young and not await self._hand_over(incoming):
            if incoming.message.name in self._names:
                # Its handler was registered meanwhile.
                self._ready.append(incoming)
                self._some.set()
                return
            self._in_hand -= 1
            self._held.append(incoming)
            self._make_room()
        elif not young:
            self._in_hand -= 1
            await self._pass_on(incoming)

    async def _pass_on(self, incoming: Incoming) -> None:
        """Hand a held event over, or drop and count it when nobody consumes its name."""
        self._in_hand += 1
        if not self._names:
            await self.push_back([incoming])
        elif not await self._hand_over(incoming):
            name = incoming.message.name
            self._unhandled[name] += 1
            self._warn(f"unhandled {name}", "no dispatcher consumes event=%s; dropped", name)
            await self.ack([incoming])

    async def _hand_over(self, incoming: Incoming) -> bool:
        """Give an event to a live dispatcher that announced its name; false when there is none."""
        reply = await self.redis.script(
            scripts.FORWARD,
            (self._inflight, _NAMES, _DISPATCHERS),
            (
                incoming.handle,
                incoming.message.name,
                self._id,
                _FORWARDED,
                random.randrange(1 << 30),  # noqa: S311 - which of several equal ones
                int(self._keeps),
            ),
        )
        if not reply:
            return False
        self._counts["forwarded"] += 1
        self._forget([incoming])
        return True

    def figures(self) -> dict[str, Any]:
        """Return counts, and the state of the list as of the last sign of life (B62).

        ``depth`` of the list, ``head_age`` in seconds since its head was first seen, ``in_flight``
        events, ``malformed``, ``forwarded``, ``replaced`` tasks, ``dropped`` by event name.
        """
        head, since = self._head
        return {
            "malformed": self._counts["malformed"],
            "forwarded": self._counts["forwarded"],
            "replaced": self._counts["replaced"],
            "dropped": dict(self._unhandled),
            "depth": self._depth,
            "head_age": 0.0 if head is None else time.monotonic() - since,
            "in_flight_list": sum(self._known.values()),
        }

    # End

    async def stop(self) -> None:
        """Pop nothing more; a pop that is under way ends first, or its event would be lost."""
        if self._stopped:
            return
        self._stopped = True
        if self._supervisor is not None:
            self._supervisor.stop()
            self._room.set()
            await self._unblock()
            await asyncio.wait([self._tasks["pop"]], timeout=_BLOCK + 0.4)
            for task in self._tasks.values():
                task.cancel()
            await asyncio.wait(self._tasks.values())
        self._some.set()

    async def _unblock(self) -> None:
        """End the pop that waits, if the server lets this user; else it ends by itself."""
        if isinstance(self._popper_id, int):
            with suppress(EventBusError, TimeoutError):
                async with asyncio.timeout(_BLOCK):
                    await self.redis.command("CLIENT", "UNBLOCK", self._popper_id)

    async def close(self) -> None:
        """Leave the dispatchers, giving everything back, and disconnect."""
        await self.stop()
        if self._tasks:
            keys = (_DISPATCHERS, _NAMES, QUEUE, self._inflight, self._forwarded)
            try:
                async with asyncio.timeout(2.0):
                    await self.redis.script(scripts.LEAVE, keys, (self._id,))
            except (EventBusError, TimeoutError) as error:
                log.warning("cannot leave the dispatchers reason=%s; the lease ends", error)
        if self._popper is not None:
            await self._popper.close()
        await self.redis.close()
