"""eventbus over either broker: one by one, 50 at once, publish_many, publish_nowait; a queue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Any

from benches.payload import TOPIC
from benches.peers import SIGNING
from benches.peers.role import BATCH, Payload, Producer, Seen, batches, by_lanes
from eventbus import Bus, Event, EventType, QueueFull, connect

GROUP = "bench"
CREATED = EventType.CREATED
SIGNING_KEY = "a secret of some thirty-two bytes" if os.environ.get(SIGNING) else None


class Ours(Producer):
    """Publishes events, built one by one."""

    def __init__(self, bus: Bus, how: str) -> None:
        self._bus = bus
        self._how = how

    async def one(self, payload: Payload) -> None:
        await self._bus.publish(TOPIC, Event(CREATED, TOPIC, payload))

    async def flood(self, payloads: Iterable[Payload]) -> None:
        match self._how:
            case "one":
                for payload in payloads:
                    await self.one(payload)
            case "gather":
                await by_lanes(payloads, self.one)
            case "many":
                # As many batches under way as the pipelines of the peers have commands: one.
                for batch in batches(payloads, BATCH):
                    items = [(TOPIC, Event(CREATED, TOPIC, payload)) for payload in batch]
                    await self._bus.publish_many(items)
            case "nowait":
                await self._nowait(payloads)

    async def _nowait(self, payloads: Iterable[Payload]) -> None:
        publish = self._bus.publish_nowait
        for payload in payloads:
            event = Event(CREATED, TOPIC, payload)
            try:
                publish(TOPIC, event)
            except QueueFull:
                await self._bus.flush()
                publish(TOPIC, event)
        await self._bus.flush()

    async def close(self) -> None:
        await self._bus.close()


async def producer(url: str, how: str, queue: bool = False, in_hand: int = 16) -> Producer:
    bus = connect(url, signing_key=SIGNING_KEY)
    await bus.connect()
    if queue:
        await bus.declare_group(GROUP, TOPIC)
    return Ours(bus, how)


class OurConsumer:
    """Subscribes, or consumes; ``in_hand`` deliveries at a time, by default as the library does."""

    def __init__(self, url: str, queue: bool, in_hand: int) -> None:
        self._url = url
        self._queue = queue
        self._in_hand = in_hand

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        async def handle(event: Any) -> None:
            seen(event.payload)

        # A flood of the benchmark is larger than the default buffer, and must arrive whole.
        async with connect(self._url, queue_size=1_000_000, signing_key=SIGNING_KEY) as bus:
            if self._queue:
                await bus.consume(TOPIC, handle, group=GROUP, concurrency=self._in_hand)
            else:
                await bus.subscribe(TOPIC, handle)
            ready()
            await asyncio.Event().wait()


def consumer(url: str, name: str, how: str, queue: bool = False, in_hand: int = 16) -> OurConsumer:
    return OurConsumer(url, queue, in_hand)
