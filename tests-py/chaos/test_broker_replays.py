"""Replays under faults: what was missed is read from what is kept, so that there is no hole."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from bridge.support import sizes
from chaos.conftest import Connect
from chaos.load import soon
from eventbus import Bus, Event, EventType
from eventbus.errors import ConnectError
from servers.brokers import Broker
from servers.checker import Seen
from servers.proxy import FaultProxy

TOPIC = "numbers"


class Flood:
    """Publishes 0, 1, 2, … until it is stopped; what may have been published twice is noted."""

    def __init__(self, bus: Bus) -> None:
        """Begin with 0."""
        self.bus = bus
        self.count = 0
        self.repeated: set[int] = set()
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopped:
            event = Event(EventType.CUSTOM, TOPIC, self.count)
            try:
                await self.bus.publish(TOPIC, event)
            except ConnectError:
                # Whether it was published is not known: once more is better than not at all.
                self.repeated.add(self.count)
                continue
            self.count += 1
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """End after the publish under way."""
        self._stopped = True
        await self._task


async def begin(connected: Connect, port: int | None = None, **options: Any) -> tuple[Seen, Flood]:
    """Begin to publish, heard from the beginning by a bus that may stand behind a proxy."""
    listener, publisher = await connected(port, retention=3600), await connected()
    seen = Seen()
    await listener.subscribe(TOPIC, seen.event, on_gap=seen.gap, since="beginning", **options)
    return seen, Flood(publisher)


async def end(seen: Seen, flood: Flood) -> None:
    """Check that every number came once and in order, and that no gap was announced."""
    await flood.stop()
    assert await soon(lambda: len(set(seen.numbers)) >= flood.count, 20)
    await asyncio.sleep(0.1)
    assert not seen.gaps
    numbers = [
        number
        for before, number in zip([-1, *seen.numbers], seen.numbers, strict=False)
        if number != before or number not in flood.repeated
    ]
    assert numbers == list(range(flood.count))


@sizes(8, 50)
async def test_a_lost_connection_is_filled_from_what_is_kept(
    count: int, broker: Broker, connected: Connect
) -> None:
    seen, flood = await begin(connected)
    for _ in range(count):
        await asyncio.sleep(0.15)
        broker.cut_listeners()
    await asyncio.sleep(0.3)
    await end(seen, flood)


@sizes(4, 30)
async def test_cut_and_held_replies_are_read_again(
    count: int, proxy: FaultProxy, connected: Connect
) -> None:
    seen, flood = await begin(connected, proxy.port, queue_size=64)
    chance = random.Random(proxy.seed)
    for _ in range(count):
        await asyncio.sleep(0.2)
        # Inside a page: the connection ends after so many bytes.
        proxy.cut_after(chance.randrange(1, 4000))
        await asyncio.sleep(0.3)
        proxy.cut(rst=True)
    proxy.heal()
    await end(seen, flood)


@sizes(2, 10)
async def test_a_crashed_server_goes_on_where_it_was(
    count: int, broker: Broker, connected: Connect
) -> None:
    seen, flood = await begin(connected)
    for _ in range(count):
        await asyncio.sleep(0.5)
        broker.crash()
        await asyncio.sleep(0.2)
        await asyncio.to_thread(broker.start)
    await asyncio.sleep(1.0)
    await end(seen, flood)


async def test_a_slow_replay_holds_bounded_memory(connected: Connect) -> None:
    listener, publisher = await connected(retention=3600), await connected()
    text = "x" * 1000
    for _ in range(20):
        await publisher.publish_many([(TOPIC, text) for _ in range(500)])
    count = 0
    go_on = asyncio.Event()

    async def slow(event: Event) -> None:
        nonlocal count
        count += 1
        await go_on.wait()

    await listener.subscribe(TOPIC, slow, since="beginning", queue_size=100)
    await asyncio.sleep(0.5)
    receiver = next(iter(listener._receivers.values()))
    assert len(receiver._core) <= 100
    go_on.set()
    assert await soon(lambda: count >= 10_000, 30)
    assert count == 10_000
