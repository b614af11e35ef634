"""Dedup: a second publish with the same id is accepted and dropped, for everybody."""

from __future__ import annotations

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, figures
from eventbus import Bus, Event, EventType, QueueFull
from eventbus.testing import Recorder


async def test_it_covers_broadcast_and_groups(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    for payload in ("first", "second"):
        assert await bus.publish(topic, payload, dedup_id="same") is None
    await bus.publish(topic, "last", dedup_id="other")
    await seen.wait_for(2, WITHIN)
    assert seen.payloads == ["first", "last"]
    assert (await figures(bus, group))["ready"] == 2
    assert (await bus.inspect())["duplicates"] >= 1


async def test_it_works_without_any_group(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    for payload in (1, 2):
        await bus.publish(topic, payload, dedup_id="same")
    await bus.publish(topic, 3)
    await seen.wait_for(2, WITHIN)
    assert seen.payloads == [1, 3]


async def test_the_scope_is_the_topic_on_every_bus(make_bus: MakeBus, topic: str) -> None:
    one, two = await make_bus(), await make_bus()
    await one.declare_group(topic, pattern=topic + "*")
    await one.publish(topic, 1, dedup_id="same")
    await two.publish(topic, 2, dedup_id="same")
    await two.publish(topic + ":b", 3, dedup_id="same")
    assert (await figures(one, topic))["ready"] == 2


async def test_a_refused_publish_remembers_no_id(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic, max_length=1)
    await bus.publish(topic, 1)
    with pytest.raises(QueueFull):
        await bus.publish(topic, 2, dedup_id="same")
    await bus.purge(group)
    await bus.publish(topic, 2, dedup_id="same")
    assert (await figures(bus, group))["ready"] == 1


async def test_an_event_id_never_deduplicates(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    event = Event(EventType.CREATED, topic, 1)
    await bus.publish(topic, event)
    await bus.publish(topic, event)
    await seen.wait_for(2, WITHIN)
    assert (await figures(bus, group))["ready"] == 2


async def test_a_delayed_event_is_deduplicated_too(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    for _ in range(2):
        await bus.publish(topic, 1, dedup_id="same", delay=3600)
    assert (await figures(bus, group))["delayed"] == 1


async def test_unique_drops_while_one_is_waiting_or_active(
    bus: Bus, topic: str, group: str
) -> None:
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        await bus.publish(topic, 1, unique="job")
        await bus.publish(topic, 2, unique="job")
        delivery = await anext(deliveries)
        await bus.publish(topic, 3, unique="job")
        assert (await figures(bus, group))["ready"] == 0
        await delivery.ack()
        await bus.publish(topic, 4, unique="job")
        again = await anext(deliveries)
        assert again.event.payload == 4
        await again.ack()
