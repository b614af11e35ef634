"""Keys: events of one key in one group are handled one at a time, in order of acceptance."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from conformance.conftest import MakeBus
from conformance.support import AT_ONCE, WITHIN, figures_become, nothing_from, take, take_all
from eventbus import Bus, Event, RetryPolicy
from eventbus.testing import eventually


async def test_one_of_a_key_is_handled_at_a_time_in_order(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    buses = [await make_bus(), await make_bus()]
    running: dict[str, int] = defaultdict(int)
    order: dict[str, list[int]] = defaultdict(list)

    async def handle(event: Event) -> None:
        key, number = event.payload
        running[key] += 1
        assert running[key] == 1
        await asyncio.sleep(0.0005)
        order[key].append(number)
        running[key] -= 1

    for bus in buses:
        await bus.consume(topic, handle, group=group, concurrency=4)
    for number in range(20):
        for key in "abc":
            await buses[0].publish(topic, (key, number), key=key)
    await figures_become(buses[0], group, acked=60, dead=0, retried=0)
    assert order == {key: list(range(20)) for key in "abc"}


async def test_other_keys_and_events_without_key_go_on(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, "a1", key="a")
        await bus.publish(topic, "a2", key="a")
        await bus.publish(topic, "b1", key="b")
        await bus.publish(topic, "none 1")
        await bus.publish(topic, "none 2")
        taken = await take_all(deliveries, 4)
        assert {one.event.payload for one in taken} == {"a1", "b1", "none 1", "none 2"}
        assert {one.key for one in taken} == {"a", "b", None}
        await nothing_from(deliveries)
        for one in taken:
            await one.ack()
        last = await take(deliveries)
        assert last.event.payload == "a2"
        await last.ack()


async def test_a_retrying_head_blocks_its_key(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        for number in (1, 2):
            await bus.publish(topic, number, key="k")
        head = await take(deliveries)
        await head.retry(after=0.15)
        await nothing_from(deliveries)
        again = await take(deliveries)
        assert (again.event.payload, again.attempt) == (1, 2)
        await again.ack()
        assert (await take(deliveries)).event.payload == 2


async def test_a_delayed_head_blocks_its_key(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, 1, key="k", delay=0.15)
        await bus.publish(topic, 2, key="k")
        await nothing_from(deliveries)
        first = await take(deliveries)
        assert first.event.payload == 1
        await first.ack()
        await (await take(deliveries)).ack()


async def test_a_dead_head_lets_the_next_go(bus: Bus, topic: str, group: str) -> None:
    done: list[int] = []

    async def handle(event: Event) -> None:
        if event.payload == 1:
            raise ValueError("poison")
        done.append(event.payload)

    await bus.consume(topic, handle, group=group, retry=AT_ONCE)
    for number in (1, 2, 3):
        await bus.publish(topic, number, key="k")
    await eventually(lambda: done == [2, 3], timeout=WITHIN)
    await figures_become(bus, group, dead=1, retried=2)


async def test_a_key_of_one_group_does_not_block_another(bus: Bus, topic: str, group: str) -> None:
    async with (
        bus.deliveries(topic, group=group) as one,
        bus.deliveries(topic, group=group + ":b") as two,
    ):
        await bus.publish(topic, 1, key="k")
        await bus.publish(topic, 2, key="k")
        held = await take(one)
        for number in (1, 2):
            delivery = await take(two)
            assert delivery.event.payload == number
            await delivery.ack()
        await held.ack()


async def test_order_of_a_key_ignores_priority(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1, key="k", priority=0)
    await bus.publish(topic, 2, key="k", priority=9)
    policy = RetryPolicy()
    async with bus.deliveries(topic, group=group, retry=policy) as deliveries:
        for number in (1, 2):
            delivery = await take(deliveries)
            assert delivery.event.payload == number
            await delivery.ack()
