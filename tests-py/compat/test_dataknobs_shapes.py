"""DataKnobs contract D58 on memory: call sites of existing code, with only the import changed."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus.compat.dataknobs import (
    Event,
    EventBus,
    EventType,
    InMemoryEventBus,
    Subscription,
    create_event_bus,
)

DROPS = (EventType.UPDATED, EventType.DELETED, EventType.DEACTIVATED)


class BotCache:
    """Shape 1: forgets a bot when an event says so; the bus belongs to somebody else."""

    def __init__(self, bus: EventBus | None) -> None:
        self.bus = bus
        self.bots: dict[str, str] = {}
        self.sub: Subscription | None = None

    async def start(self) -> None:
        await self.load()
        if self.bus:
            self.sub = await self.bus.subscribe("registry:bots", self.forget)

    async def load(self) -> None:
        for name in ("b1", "b2"):
            await asyncio.sleep(0)
            self.bots[name] = "loaded"

    async def forget(self, event: Event) -> None:
        if event.type in DROPS:
            self.bots.pop(event.payload.get("bot_id"), None)

    async def changed(self, bot_id: str, kind: EventType = EventType.UPDATED) -> None:
        if self.bus:
            topic = f"registry:bots:{bot_id}"
            await self.bus.publish("registry:bots", Event(kind, topic, {"bot_id": bot_id}))

    async def stop(self) -> None:
        if self.sub:
            await self.sub.cancel()
            self.sub = None


@pytest.mark.parametrize("kind", DROPS)
async def test_d58_1_cache_invalidation(kind: EventType) -> None:
    bus = create_event_bus({"backend": "memory"})
    await bus.connect()
    reader, writer = BotCache(bus), BotCache(bus)
    await reader.start()
    await writer.start()
    await writer.changed("b1", EventType.CREATED)
    assert set(reader.bots) == {"b1", "b2"}
    await writer.changed("b1", kind)
    assert set(reader.bots) == set(writer.bots) == {"b2"}
    await reader.stop()
    await reader.stop()
    await writer.changed("b2", kind)
    assert set(reader.bots) == {"b2"}
    assert writer.bots == {}
    await bus.close()


async def test_d58_1_cache_without_a_bus() -> None:
    cache = BotCache(None)
    await cache.start()
    await cache.changed("b1")
    await cache.stop()
    assert set(cache.bots) == {"b1", "b2"}


class Component:
    """Shape 2: makes a bus of its own when it is given none, and never connects it."""

    def __init__(self, bus: EventBus | None = None) -> None:
        self.bus = bus or InMemoryEventBus()
        self.seen: list[Event] = []

    async def run(self) -> None:
        await self.bus.subscribe("component:done", self.seen.append)
        await self.bus.publish(
            "component:done", Event(type=EventType.CUSTOM, topic="component:done")
        )


async def test_d58_2_stand_in_bus() -> None:
    component = Component()
    await component.run()
    assert len(component.seen) == 1


async def test_d58_2_a_given_bus_is_truthy_and_taken(bus: InMemoryEventBus) -> None:
    component = Component(bus)
    assert component.bus is bus
    await component.run()
    assert len(component.seen) == 1


class FanOut:
    """Shape 3: tells several buses at once, from a loop or from plain code."""

    def __init__(self, targets: list[tuple[EventBus, str]]) -> None:
        self.targets = targets

    async def tell(self, topic: str, payload: dict[str, Any]) -> list[Any]:
        return await asyncio.gather(
            *(
                bus.publish(
                    prefix + topic,
                    Event(type=EventType.CUSTOM, topic=prefix + topic, payload=payload),
                )
                for bus, prefix in self.targets
            ),
            return_exceptions=True,
        )

    def tell_from_plain_code(self, topic: str, payload: dict[str, Any]) -> list[Any]:
        return asyncio.run(self.tell(topic, payload))


async def test_d58_3_callback_fan_out_on_a_loop() -> None:
    first, second = InMemoryEventBus(), InMemoryEventBus()
    seen: list[tuple[str, str]] = []
    for name, bus in (("first", first), ("second", second)):
        await bus.connect()

        def record(event: Event, name: str = name) -> None:
            seen.append((name, event.topic))

        await bus.subscribe("*", record, pattern="*")

    def fails(event: Event) -> None:
        raise ValueError

    await first.subscribe("a:done", fails)
    fan_out = FanOut([(first, "a:"), (second, "b:"), (first, "c:")])
    assert await fan_out.tell("done", {"n": 1}) == [None] * 3
    assert sorted(seen) == [("first", "a:done"), ("first", "c:done"), ("second", "b:done")]


def test_d58_3_callback_fan_out_under_a_fresh_run_per_call_in_any_thread() -> None:
    bus = InMemoryEventBus()
    seen: list[tuple[int, int]] = []
    asyncio.run(bus.connect())

    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append((threading.get_ident(), event.payload["n"]))

    asyncio.run(bus.subscribe("*", handler, pattern="*"))
    fan_out = FanOut([(bus, "a:"), (bus, "a:")])

    def calls(_: int) -> None:
        for number in range(100):
            assert fan_out.tell_from_plain_code("done", {"n": number}) == [None, None]

    calls(0)
    expected = sorted(list(range(100)) * 2)
    assert [number for _, number in seen] == expected
    seen.clear()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(calls, range(4)))
    assert sorted(number for _, number in seen) == sorted(expected * 4)
    asyncio.run(bus.close())


class Consumer:
    """Shape 4: knows the protocol and nothing of backends."""

    def __init__(self, bus: EventBus) -> None:
        assert isinstance(bus, EventBus)
        self.bus = bus
        self.seen: list[Event] = []

    async def start(self) -> None:
        self.sub = await self.bus.subscribe("jobs", self.seen.append)


async def test_d58_4_bus_from_a_configuration_block() -> None:
    block = {"backend": "memory"}
    bus = await asyncio.to_thread(create_event_bus, block)
    await bus.connect()
    consumer = Consumer(bus)
    await consumer.start()
    await bus.publish("jobs", Event(EventType.CREATED, "jobs"))
    assert len(consumer.seen) == 1
    await bus.close()
    assert block == {"backend": "memory"}


class Orchestrator:
    """Shape 5: a trigger comes in, a result goes out on another topic."""

    def __init__(self, bus: EventBus, topic: str) -> None:
        self._bus = bus
        self._topic = topic

    async def start(self) -> None:
        self._sub = await self._bus.subscribe(self._topic, self._on_trigger)

    async def _on_trigger(self, event: Event) -> None:
        payload = event.payload or {}
        result = {"caused_by": event.event_id, "name": payload.get("name", "unnamed")}
        await self._bus.publish(
            "results", Event(type=EventType.CUSTOM, topic="results", payload=result)
        )

    async def stop(self) -> None:
        await self._sub.cancel()
        await self._sub.cancel()


async def test_d58_5_orchestrator(bus: InMemoryEventBus) -> None:
    results: list[Event] = []
    orchestrator = Orchestrator(bus, "triggers")
    await orchestrator.start()
    await bus.subscribe("results", results.append)
    triggers = [
        Event(EventType.CUSTOM, "triggers", {"name": "n"}),
        Event(EventType.CUSTOM, "triggers", None),
    ]
    for trigger in triggers:
        await bus.publish("triggers", trigger)
    assert [one.payload["name"] for one in results] == ["n", "unnamed"]
    assert [one.payload["caused_by"] for one in results] == [one.event_id for one in triggers]
    await orchestrator.stop()
    await bus.publish("triggers", triggers[0])
    assert len(results) == 2


@contextlib.asynccontextmanager
async def watching(bus: EventBus, pattern: str) -> AsyncIterator[list[Event]]:
    """Shape 6: the pattern given twice, cancelled at the end of the block."""
    seen: list[Event] = []

    async def handler(event: Event) -> None:
        seen.append(event)

    subscription = await bus.subscribe(pattern, handler, pattern=pattern)
    try:
        yield seen
    finally:
        await subscription.cancel()


async def test_d58_6_pattern_given_twice(bus: InMemoryEventBus) -> None:
    async with watching(bus, "jobs:*") as seen:
        for topic in ("jobs:1", "jobs:1:done", "jobs", "other:1"):
            await bus.publish(topic, Event(EventType.CUSTOM, topic))
    await bus.publish("jobs:2", Event(EventType.CUSTOM, "jobs:2"))
    assert [one.topic for one in seen] == ["jobs:1", "jobs:1:done"]
    assert bus.subscription_count == 0


async def test_d58_6_cancelled_when_the_block_fails(bus: InMemoryEventBus) -> None:
    with pytest.raises(LookupError):
        async with watching(bus, "*"):
            raise LookupError
    assert bus.subscription_count == 0


def test_d58_7_validation() -> None:
    class Own:
        async def connect(self) -> None: ...

        async def close(self) -> None: ...

        async def publish(self, topic: str, event: Event) -> None: ...

        async def subscribe(
            self, topic: str, handler: Any, pattern: str | None = None
        ) -> Subscription:
            return Subscription("id", topic, handler, pattern)

    assert isinstance(InMemoryEventBus(), EventBus)
    assert isinstance(Own(), EventBus)
    assert not isinstance(None, EventBus)


# The example that the contract prints.


class PriceCache:
    def __init__(self, bus: EventBus) -> None:
        self.bus, self.prices = bus, {"s1": 5, "s2": 7}
        self.sub: Subscription | None = None

    async def load(self) -> None:
        await asyncio.sleep(0)

    async def start(self) -> None:
        await self.load()
        if self.bus:
            self.sub = await self.bus.subscribe("shop:prices", self.forget)

    async def forget(self, event: Event) -> None:
        if event.type in (EventType.UPDATED, EventType.DELETED):
            self.prices.pop(event.payload.get("sku"), None)

    async def changed(self, sku: str) -> None:
        await self.bus.publish(
            "shop:prices", Event(EventType.UPDATED, f"shop:prices:{sku}", {"sku": sku})
        )


async def test_d58_the_printed_example(bus: InMemoryEventBus) -> None:
    cache = PriceCache(bus)
    await cache.start()
    await cache.changed("s1")
    assert cache.prices == {"s2": 7}
