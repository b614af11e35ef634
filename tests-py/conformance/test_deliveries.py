"""Deliveries: the iterator form of a consumer."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt

import pytest

from conformance.conftest import MakeBus
from conformance.support import (
    WITHIN,
    declared,
    figures,
    figures_become,
    nothing_from,
    take,
    take_all,
)
from eventbus import Bus, BusClosedError


async def test_a_delivery_says_what_it_is(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, {"n": 1}, key="k", priority=3)
        delivery = await take(deliveries)
        assert delivery.event.payload == {"n": 1}
        assert (delivery.topic, delivery.group, delivery.key) == (topic, group, "k")
        assert (delivery.priority, delivery.attempt, delivery.crashes) == (3, 1, 0)
        assert abs(delivery.accepted_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
        assert not delivery.settled
        await delivery.ack()
        assert delivery.settled


async def test_the_block_declares_the_group(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group):
        await bus.publish(topic, 1)
    assert (await figures(bus, group))["ready"] == 1


async def test_prefetch_bounds_what_is_in_hand(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, prefetch=2) as deliveries:
        await bus.publish_many([(topic, number) for number in range(5)])
        held = await take_all(deliveries, 2)
        await nothing_from(deliveries)
        assert (await figures(bus, group))["in_flight"] == 2
        await held[0].ack()
        assert (await take(deliveries)).event.payload == 2


async def test_leaving_releases_what_was_not_handed_over(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, prefetch=5) as deliveries:
        await bus.publish_many([(topic, number) for number in range(5)])
        delivery = await take(deliveries)
    found = await figures(bus, group)
    assert (found["ready"], found["in_flight"]) == (4, 1)
    await delivery.ack()
    async with bus.deliveries(topic, group=group) as again:
        rest = await take_all(again, 4)
        assert {(one.attempt, one.crashes) for one in rest} == {(1, 0)}
        for one in rest:
            await one.ack()


async def test_a_cancelled_next_loses_nothing(bus: Bus, topic: str, group: str) -> None:
    seen: list[int] = []
    async with bus.deliveries(topic, group=group, prefetch=4) as deliveries:
        for number in range(200):
            waiting = asyncio.create_task(anext(deliveries))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            await bus.publish(topic, number)
            for _ in range(number % 3):
                await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                delivery = await waiting
                seen.append(delivery.event.payload)
                await delivery.ack()
        while len(seen) < 200:
            delivery = await take(deliveries)
            seen.append(delivery.event.payload)
            await delivery.ack()
    assert sorted(seen) == list(range(200))
    await figures_become(bus, group, acked=200, ready=0, in_flight=0)


async def test_closing_it_wakes_the_reader(bus: Bus, topic: str, group: str) -> None:
    deliveries = bus.deliveries(topic, group=group)
    waiting = asyncio.create_task(anext(deliveries, None))
    await declared(bus, group)
    await deliveries.aclose()
    await deliveries.aclose()
    assert await asyncio.wait_for(waiting, WITHIN) is None


async def test_closing_the_bus_ends_the_loop_and_releases(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    deliveries = bus.deliveries(topic, group=group)
    waiting = asyncio.create_task(anext(deliveries, None))
    await declared(other, group)
    await asyncio.wait_for(bus.close(), WITHIN)
    assert await asyncio.wait_for(waiting, WITHIN) is None
    await other.publish(topic, 1)
    assert (await figures(other, group))["ready"] == 1
    with pytest.raises(BusClosedError):
        await anext(bus.deliveries(topic, group=group))


async def test_what_was_handed_over_can_be_settled_after_the_block(
    bus: Bus, topic: str, group: str
) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish_many([(topic, 1), (topic, 2)])
        one, two = await take_all(deliveries, 2)
    await one.ack()
    await two.reject("late")
    await figures_become(bus, group, acked=1, dead=1, in_flight=0)


async def test_two_loops_share_a_group(make_bus: MakeBus, topic: str, group: str) -> None:
    one, two = await make_bus(), await make_bus()
    async with (
        one.deliveries(topic, group=group, prefetch=1) as first,
        two.deliveries(topic, group=group, prefetch=1) as second,
    ):
        await one.publish_many([(topic, 1), (topic, 2)])
        taken = [await take(first), await take(second)]
        assert {delivery.event.payload for delivery in taken} == {1, 2}
        for delivery in taken:
            await delivery.ack()
