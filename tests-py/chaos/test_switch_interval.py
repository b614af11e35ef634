"""F10: four threads on one bus, switched at every instruction: exact counts, no deadlock."""

from __future__ import annotations

import asyncio
import faulthandler
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import eventbus
from bridge.support import group_of, seeded, sizes, until
from eventbus import Bus, Event, Stream

THREADS = 4
# Without any progress for this long it is a deadlock.
PATIENCE = 60.0


@pytest.fixture
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    faulthandler.cancel_dump_traceback_later()


class Counts:
    """What one thread publishes and sees; nobody else writes to it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.published = 0
        self.inline = 0
        self.queued = 0
        self.consumed = 0
        self.streamed = 0

    async def handle_queued(self, event: Event) -> None:
        if self.rng.random() < 0.2:
            await asyncio.sleep(0)
        self.queued += 1

    async def consume(self, event: Event) -> None:
        if self.rng.random() < 0.2:
            await asyncio.sleep(0)
        self.consumed += 1

    async def read(self, stream: Stream) -> None:
        async for _ in stream:
            self.streamed += 1

    async def publish(self, bus: Bus, seconds: float) -> None:
        """Publish for a while; subscribe and cancel in between."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            await bus.publish("topic", self.published)
            self.published += 1
            if self.rng.random() < 0.05:
                topic, how = f"other:{self.rng.randrange(9)}", self.rng.choice(["inline", "queued"])
                await (await bus.subscribe(topic, print, delivery=how)).cancel()
            if self.published % 8 == 0:
                # Let receivers keep up, so that the run measures races and not a backlog.
                await asyncio.sleep(0)


def inline(event: Event) -> None:
    # Runs in the publisher's thread.
    mine[threading.get_ident()].inline += 1


async def work(bus: Bus, counts: Counts, seconds: float, everyone: threading.Barrier) -> None:
    """Publish and receive on this thread's loop."""

    async def together() -> None:
        await asyncio.get_running_loop().run_in_executor(None, everyone.wait, PATIENCE)

    mine[threading.get_ident()] = counts
    subscriptions = [
        await bus.subscribe("topic", inline),
        await bus.subscribe("topic", counts.handle_queued, delivery="queued", queue_size=1_000_000),
    ]
    consumer = await bus.consume("topic", counts.consume, group="group", concurrency=4)
    async with bus.stream(pattern="top*", buffer=1_000_000) as stream:
        reading = asyncio.create_task(counts.read(stream))
        await together()
        await counts.publish(bus, seconds)
        await together()
        total = sum(one.published for one in mine.values())
        await until(lambda: counts.queued == total, PATIENCE)
        await until(lambda: counts.streamed == total, PATIENCE)
        while (await group_of(bus, "group"))["acked"] < total:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await together()
        reading.cancel()
        await asyncio.wait([reading])
    for subscription in subscriptions:
        await subscription.cancel()
    await consumer.stop()
    await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("eventbus")])


mine: dict[int, Counts] = {}


@sizes(2, 180, "seconds")
def test_counts_are_exact_when_threads_switch_at_every_instruction(
    seconds: int, switching: None
) -> None:
    rng = seeded()
    mine.clear()
    buses = [eventbus.connect("memory://switching") for _ in range(2)]
    for bus in buses:
        asyncio.run(bus.connect())
    every = [Counts(random.Random(rng.random())) for _ in range(THREADS)]
    everyone = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [
            pool.submit(
                asyncio.run,
                work(buses[number % 2], counts, float(seconds), everyone),
            )
            for number, counts in enumerate(every)
        ]
        for future in futures:
            future.result()
    total = sum(one.published for one in every)
    assert total > 100
    assert [one.queued for one in every] == [total] * THREADS
    assert [one.streamed for one in every] == [total] * THREADS
    # Each publish calls the inline handler of every thread, in the publisher's own.
    assert [one.inline for one in every] == [THREADS * one.published for one in every]
    assert sum(one.consumed for one in every) == total
    figures = asyncio.run(group_of(buses[0], "group"))
    assert (figures["accepted"], figures["acked"]) == (total, total)
    assert (figures["in_flight"], figures["expired_leases"]) == (0, 0)
    sys.stdout.write(f"{total} events by {THREADS} threads in {seconds} s\n")
    for bus in buses:
        asyncio.run(bus.close())
