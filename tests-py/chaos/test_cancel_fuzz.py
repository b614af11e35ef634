"""T7: whatever is cancelled, what was accepted is delivered or still queued, once and whole."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import eventbus
from bridge.support import CANCEL_WITHIN, Footprint, group_of, seeded, sizes, until
from eventbus import Consumer, Deliveries, Event, Stream

KINDS = ["publish", "stream", "deliveries", "handler", "subscribe"]
MODES = ["first", "turns", "later", "wait_for", "timeout", "group"]
LANES = 24
PER_LOOP = 5_000
BLOCKS_PER_CANCEL = 0.02
GROWTH = 12 << 20


class _Stop(Exception):
    """Ends a task group from outside."""


async def cancelled(rng: random.Random, work: Callable[[], Awaitable[Any]]) -> bool:
    """Run work and cancel it at a random moment; return whether it was finished before."""
    mode = rng.choice(MODES)
    delay = rng.uniform(0.0, CANCEL_WITHIN)
    try:
        if mode == "wait_for":
            await asyncio.wait_for(work(), delay)
        elif mode == "timeout":
            async with asyncio.timeout(delay):
                await work()
        elif mode == "group":
            await _abort_group(rng, work)
        else:
            await _cancel_task(rng, asyncio.ensure_future(work()), mode, delay)
    except (TimeoutError, asyncio.CancelledError):
        return False
    return True


async def _abort_group(rng: random.Random, work: Callable[[], Awaitable[Any]]) -> None:
    task: asyncio.Task[Any] | None = None
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work())  # type: ignore[arg-type]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            raise _Stop
    except* _Stop:
        pass
    assert task is not None
    await task


async def _cancel_task(
    rng: random.Random, task: asyncio.Future[Any], mode: str, delay: float
) -> None:
    if mode == "first":
        task.cancel()
    elif mode == "later":
        asyncio.get_running_loop().call_later(delay, task.cancel)
    else:
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
    await task


class Fuzz:
    """Counts what was tried, told, received and done, by number of the event."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng = rng
        self.count = count
        self.bus = eventbus.connect("memory://", queue_size=1_000_000)
        self.cancels = 0
        self.numbers = 0
        # One byte per event, so that the book-keeping itself does not grow.
        room = 4 * count + 100_000
        self.told = bytearray(room)
        self.done = {"one": bytearray(room), "two": bytearray(room)}
        self.fed = 0
        self.feed_seen = bytearray(room)
        self.queued_done = 0
        self.running: dict[asyncio.Task[Any], int] = {}
        self.killed = 0

    # What is cancelled

    def publish(self) -> Awaitable[Any]:
        """Publish to both groups, past an inline handler that suspends."""
        number = self.numbers
        self.numbers += 1
        bus, way = self.bus, self.rng.randrange(4)

        async def tell(work: Callable[[], Awaitable[Any]]) -> None:
            await work()
            self.told[number] = 1

        if way == 0:
            return tell(lambda: bus.publish_many([("work", number)]))
        if way == 1:
            return tell(lambda: bus.publish("work", number, priority=number % 3))
        if way == 2:
            return tell(lambda: bus.publish("work", number))
        # The bare awaitable: nothing of ours between it and asyncio.
        return bus.publish("work", number)

    async def feed(self) -> None:
        """Publish without being cancelled: what the receivers wait for."""
        number = self.fed
        self.fed += 1
        await self.bus.publish("feed", number)

    async def receive(self, stream: Stream) -> None:
        event = await anext(stream)
        self.feed_seen[event.payload] += 1

    async def take(self, deliveries: Deliveries) -> None:
        delivery = await anext(deliveries)
        number = delivery.event.payload
        dice = self.rng.random()
        if dice < 0.1:
            return  # Forgotten: it is released.
        if dice < 0.2:
            await delivery.release()
            return
        await delivery.ack()
        self.done["one"][number] += 1

    async def subscribe(self) -> None:
        """Subscribe with a buffer and end it, wherever the cancellation strikes."""
        subscription = await self.bus.subscribe(
            "feed", lambda event: asyncio.sleep(0), delivery="queued"
        )
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            await subscription.cancel()

    # What handles

    async def inline(self, event: Event) -> None:
        dice = self.rng.random()
        if dice < 0.4:
            return
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        if dice < 0.6:
            await asyncio.sleep(self.rng.uniform(0, CANCEL_WITHIN))

    async def handle(self, event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.running[task] = event.payload
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
            if self.rng.random() < 0.3:
                await asyncio.sleep(self.rng.uniform(0, CANCEL_WITHIN))
        except asyncio.CancelledError:
            self.killed += 1
            raise
        finally:
            del self.running[task]
        self.done["two"][event.payload] += 1

    async def queued(self, event: Event) -> None:
        if self.rng.random() < 0.3:
            await asyncio.sleep(0)
        self.queued_done += 1

    async def cancel_handler(self) -> None:
        """Cancel the task of a running handler: its worker ends, its event goes back."""
        await self.bus.publish("work", self.next_told())
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        if self.running:
            self.rng.choice(list(self.running)).cancel()

    def next_told(self) -> int:
        number = self.numbers
        self.numbers += 1
        self.told[number] = 1
        return number

    # One event loop

    @asynccontextmanager
    async def consuming(self) -> AsyncIterator[None]:
        """Consume group two; workers that were cancelled are replaced now and then."""
        consumer: Consumer | None = None
        replacing = asyncio.Lock()

        async def start() -> None:
            nonlocal consumer
            async with replacing:
                if consumer is not None:
                    await consumer.stop(0.0)
                self.killed = 0
                consumer = await self.bus.consume("work", self.handle, group="two", concurrency=16)

        self.restart = start
        await start()
        yield
        assert consumer is not None
        await consumer.stop(5.0)

    async def segment(self, until_cancels: int) -> None:
        """Cancel on a fresh loop, and leave it with receives and publishes pending."""
        bus = self.bus
        inline = await bus.subscribe("work", self.inline)
        buffered = await bus.subscribe("feed", self.queued, delivery="queued")
        stream = bus.stream("feed")
        deliveries = bus.deliveries("work", group="one", prefetch=LANES * 2)
        async with stream, deliveries, self.consuming():
            fed_before, seen_before = self.fed, sum(self.feed_seen)
            lanes = [self.lane(stream, deliveries, until_cancels) for _ in range(LANES)]
            await asyncio.gather(*lanes)
            await self.drain(deliveries)
            while sum(self.feed_seen) - seen_before < self.fed - fed_before:
                await asyncio.wait_for(self.receive(stream), 10)
            await until(lambda: self.queued_done == self.fed)
            await self.check()
        # The loop ends with these: what they would receive must stay.
        left: list[Any] = [asyncio.ensure_future(anext(bus.stream("feed"))) for _ in range(4)]
        for _ in range(4):
            pending = bus.deliveries("work", group="one", prefetch=1)
            left.append(asyncio.ensure_future(self.take(pending)))
        left += [asyncio.ensure_future(self.publish()) for _ in range(4)]
        await asyncio.sleep(0)
        await inline.cancel()
        await buffered.cancel()
        self.cancels += len(left)

    async def lane(self, stream: Stream, deliveries: Deliveries, until_cancels: int) -> None:
        rng = self.rng
        while self.cancels < until_cancels:
            self.cancels += 1
            kind = rng.choice(KINDS)
            if kind == "publish":
                await cancelled(rng, self.publish)
            elif kind == "stream":
                if rng.random() < 0.6:
                    await self.feed()
                await cancelled(rng, lambda: self.receive(stream))
            elif kind == "deliveries":
                await cancelled(rng, lambda: self.take(deliveries))
            elif kind == "subscribe":
                await cancelled(rng, self.subscribe)
            else:
                await self.cancel_handler()
                if self.killed > 12:
                    await self.restart()

    async def drain(self, deliveries: Deliveries) -> None:
        """Handle what is left in both groups."""
        await self.restart()
        while await self.waiting("one"):
            await asyncio.wait_for(self.take(deliveries), 10)
        async with asyncio.timeout(10):
            while await self.waiting("two"):  # noqa: ASYNC110 - what inspect says is the point
                await asyncio.sleep(0.001)

    async def waiting(self, group: str) -> int:
        figures = await group_of(self.bus, group)
        return int(figures["accepted"] - figures["acked"])

    async def check(self) -> None:
        """Compare the books with what inspect says."""
        one, two = await group_of(self.bus, "one"), await group_of(self.bus, "two")
        for name, group in (("one", one), ("two", two)):
            left = group["ready"] + group["delayed"] + group["in_flight"] + group["dead"]
            assert group["accepted"] == group["acked"] + left, group
            assert sum(self.done[name]) == group["acked"], name
            assert max(self.done[name]) == 1, name
        assert one["accepted"] == two["accepted"]
        # Nothing is left, so each publish is whole or absent, the same in both groups.
        assert (one["ready"], one["in_flight"]) == (0, 0)
        assert self.done["one"] == self.done["two"]
        done = int.from_bytes(self.done["one"], "big")
        told = int.from_bytes(self.told, "big")
        assert told & ~done == 0, "a publish that returned is missing"
        assert max(self.feed_seen) == 1
        assert sum(self.feed_seen) == self.fed


@sizes(20_000, 1_000_000)
def test_cancelling_loses_nothing_doubles_nothing_and_leaves_nothing(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    fuzz = Fuzz(seeded(), count)
    footprints: list[tuple[int, Footprint]] = []

    def tasks_of_the_bus() -> list[str]:
        names = [task.get_name() for task in asyncio.all_tasks()]
        return [name for name in names if name.startswith("eventbus-")]

    async def run(target: int) -> None:
        await fuzz.segment(target)
        await until(lambda: not tasks_of_the_bus(), 5.0)

    async def open_groups() -> None:
        await fuzz.bus.connect()
        for group in ("one", "two"):
            await fuzz.bus.declare_group(group, "work")

    asyncio.run(open_groups())
    while fuzz.cancels < count:
        asyncio.run(run(min(count, fuzz.cancels + PER_LOOP)))
        footprints.append((fuzz.cancels, Footprint.now()))
    asyncio.run(run(0))
    assert fuzz.bus.subscription_count == 0
    (begin, first), (end, last) = footprints[len(footprints) // 2 - 1], footprints[-1]
    assert last.files == first.files
    assert last.blocks - first.blocks < BLOCKS_PER_CANCEL * (end - begin)
    assert last.bytes - first.bytes < GROWTH
    sys.stdout.write(f"{fuzz.cancels} cancels, {fuzz.numbers} publishes: {first} {last}\n")
