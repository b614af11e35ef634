"""T7 over a broker: whatever is cancelled, what was told is handled, and nothing is stuck."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from bridge.support import seeded, sizes
from chaos.conftest import Connect
from chaos.load import drained, group_of, soon
from eventbus import Bus, Deliveries, Event, RetryPolicy, Stream

LANES = 8
TOPIC = "work"
LATEST = 0.002
"""Seconds until a cancellation strikes: some calls are over by then, most are not."""


class Fuzz:
    """Counts what was told and what was handled, by number of the event."""

    def __init__(self, rng: random.Random, bus: Bus) -> None:
        self.rng = rng
        self.bus = bus
        self.numbers = 0
        self.told: set[int] = set()
        self.taken: dict[int, int] = {}
        self.handled: dict[int, int] = {}
        self.cancels = 0
        self.fed = 0
        self.streamed: list[int] = []

    async def cancelled(self, work: Callable[[], Awaitable[object]]) -> None:
        """Run work and cancel it at a random moment."""
        delay = self.rng.uniform(0.0, LATEST)
        try:
            match self.rng.randrange(3):
                case 0:
                    await asyncio.wait_for(work(), delay)
                case 1:
                    async with asyncio.timeout(delay):
                        await work()
                case _:
                    task = asyncio.ensure_future(work())
                    asyncio.get_running_loop().call_later(delay, task.cancel)
                    await task
        except (TimeoutError, asyncio.CancelledError):
            self.cancels += 1

    async def publish(self) -> None:
        number = self.numbers
        self.numbers += 1
        if self.rng.random() < 0.5:
            await self.bus.publish(TOPIC, number)
        else:
            await self.bus.publish_many([(TOPIC, number)])
        self.told.add(number)

    async def take(self, deliveries: Deliveries) -> None:
        delivery = await anext(deliveries)
        if self.rng.random() < 0.1:
            await delivery.release()
            return
        # Before: whether an acknowledgement that was cancelled had an effect is not known.
        number = delivery.event.payload
        self.taken[number] = self.taken.get(number, 0) + 1
        await delivery.ack()

    async def handle(self, event: Event) -> None:
        if self.rng.random() < 0.2:
            await asyncio.sleep(self.rng.uniform(0, LATEST))
        self.handled[event.payload] = self.handled.get(event.payload, 0) + 1

    async def receive(self, stream: Stream) -> None:
        event = await anext(stream)
        self.streamed.append(event.payload)

    async def subscribe(self) -> None:
        subscription = await self.bus.subscribe("other", print)
        await subscription.cancel()

    async def lane(self, count: int, stream: Stream, deliveries: Deliveries) -> None:
        for _ in range(count):
            match self.rng.randrange(6):
                case 0 | 1:
                    await self.cancelled(self.publish)
                case 2:
                    await self.cancelled(lambda: self.take(deliveries))
                case 3:
                    number, self.fed = self.fed, self.fed + 1
                    await self.bus.publish("feed", number)
                    await self.cancelled(lambda: self.receive(stream))
                case 4:
                    await self.cancelled(self.subscribe)
                case _:
                    await self.cancelled(self.bus.inspect)


@sizes(2_000, 200_000)
async def test_cancelling_at_any_moment_loses_nothing(count: int, connected: Connect) -> None:
    bus = await connected()
    fuzz = Fuzz(seeded(), bus)
    retry = RetryPolicy(max_deliveries=100, base=0.0)
    stream = bus.stream("feed", buffer=1_000_000)
    deliveries = bus.deliveries(TOPIC, group="one", prefetch=32, lease=2.0, retry=retry)
    async with stream, deliveries:
        await bus.consume(TOPIC, fuzz.handle, group="two", retry=retry)
        await asyncio.gather(*(fuzz.lane(count // LANES, stream, deliveries) for _ in range(LANES)))
        assert fuzz.cancels > count // 20

        async def rest() -> None:
            while True:
                await fuzz.receive(stream)

        reading = asyncio.create_task(rest())
        await soon(lambda: len(fuzz.streamed) == fuzz.fed, 10)
        reading.cancel()
        # A cancelled receive takes nothing away: each came once, in the order of one publisher.
        assert sorted(fuzz.streamed) == list(range(fuzz.fed))

    # What cancelled tasks held comes back at the end of its lease.
    await bus.consume(
        TOPIC, lambda event: fuzz.taken.setdefault(event.payload, 1), group="one", retry=retry
    )
    await drained(bus, "two", 10)
    await drained(bus, "one", 10)
    assert not fuzz.told - fuzz.handled.keys()
    assert set(fuzz.handled.values()) == {1}
    assert not fuzz.told - fuzz.taken.keys()
    for group in ("one", "two"):
        figures = await group_of(bus, group)
        assert figures["acked"] == figures["accepted"]
        assert figures["dead"] == 0
    assert bus.state == "live"
