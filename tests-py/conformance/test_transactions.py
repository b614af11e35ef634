"""Transactions: settle, publish and write together, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from conformance.conftest import MakeBus
from conformance.support import (
    AT_ONCE,
    SHORT_LEASE,
    WITHIN,
    figures,
    figures_become,
    nothing_from,
    take,
)
from eventbus import Bus, Delivery, EncodeError, LeaseLost, QueueFull, Record, VersionConflict
from eventbus.testing import Recorder, eventually


async def test_publishes_and_writes_take_effect_together(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    async with bus.transaction() as tx:
        tx.publish(topic, 1)
        tx.publish(topic, 2, priority=5)
        tx.put(topic, "value")
        tx.put(topic + ":b", "other")
        await asyncio.sleep(0.01)
        assert seen.events == []
        assert await bus.read(topic) is None
    await seen.wait_for(2, WITHIN)
    assert seen.payloads == [1, 2]
    assert tx.versions == {topic: 1, topic + ":b": 1}
    assert (await figures(bus, group))["ready"] == 2
    assert await bus.read(topic) == Record(topic, 1, "value")


async def test_a_block_that_raises_does_nothing(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)

    async def fail() -> None:
        async with bus.transaction() as tx:
            tx.publish(topic, 1)
            tx.put(topic, 1)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    assert await bus.read(topic) is None
    assert (await figures(bus, group))["ready"] == 0
    assert seen.events == []


async def test_a_failed_precondition_leaves_nothing(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    tx = bus.transaction()
    tx.put(topic, 1)
    tx.publish(topic, 1)
    tx.put(topic + ":b", 1, if_version=7)
    with pytest.raises(VersionConflict):
        await tx.commit()
    assert await bus.read(topic) is None
    assert (await figures(bus, group))["ready"] == 0
    await bus.publish(topic, "last")
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == ["last"]


async def test_a_full_group_leaves_nothing(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic, max_length=1)
    tx = bus.transaction()
    tx.put(topic, 1)
    tx.publish(topic, 1)
    tx.publish(topic, 2)
    with pytest.raises(QueueFull, match=group):
        await tx.commit()
    assert await bus.read(topic) is None
    assert (await figures(bus, group))["ready"] == 0


async def test_later_steps_see_earlier_ones(bus: Bus, topic: str) -> None:
    async with bus.transaction() as tx:
        tx.put(topic, 1, if_version=0)
        tx.put(topic, 2, if_version=1)
        tx.delete(topic + ":none")
    assert await bus.read(topic) == Record(topic, 2, 2)


async def test_a_delivery_is_acknowledged_with_its_effects(
    bus: Bus, topic: str, group: str
) -> None:
    async with (
        bus.deliveries(topic, group=group) as deliveries,
        bus.stream(topic + ":out") as out,
    ):
        await bus.publish(topic, 7)
        delivery = await take(deliveries)
        async with delivery.transaction() as tx:
            tx.publish(topic + ":out", delivery.event.payload + 1)
            tx.put(topic, "done")
        assert delivery.settled
        assert (await take(out)).payload == 8
        with pytest.raises(LeaseLost):
            await delivery.ack()
    assert await bus.read(topic) == Record(topic, 1, "done")
    found = await figures(bus, group)
    assert (found["acked"], found["in_flight"], found["ready"]) == (1, 0, 0)


async def test_in_a_handler_it_replaces_the_acknowledgement(
    bus: Bus, topic: str, group: str
) -> None:
    async def handle(delivery: Delivery) -> None:
        async with delivery.transaction() as tx:
            tx.put(topic, delivery.event.payload)

    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1, in_flight=0, retried=0)
    assert await bus.read(topic) == Record(topic, 1, 1)


async def test_an_exception_in_the_block_rolls_back_and_is_tried_again(
    bus: Bus, topic: str, group: str
) -> None:
    out = Recorder()
    await bus.subscribe(topic + ":out", out)

    async def handle(delivery: Delivery) -> None:
        async with delivery.transaction() as tx:
            tx.publish(topic + ":out", delivery.attempt)
            tx.put(f"{topic}/{delivery.attempt}", 1)
            if delivery.attempt < 3:
                raise ValueError("not yet")

    await bus.consume(topic, handle, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1, retried=2, dead=0, in_flight=0)
    await out.wait_for(1, WITHIN)
    assert out.payloads == [3]
    assert [one.key for one in await bus.scan(f"{topic}/")] == [f"{topic}/3"]


async def test_a_version_conflict_leaves_the_delivery_in_hand(
    bus: Bus, topic: str, group: str
) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, 1)
        delivery = await take(deliveries)
        tx = delivery.transaction()
        tx.put(topic, 1, if_version=5)
        tx.publish(topic + ":out", 1)
        with pytest.raises(VersionConflict):
            await tx.commit()
        assert not delivery.settled
        assert (await figures(bus, group))["in_flight"] == 1
        async with delivery.transaction() as again:
            again.put(topic, 1, if_version=0)
    assert await bus.read(topic) == Record(topic, 1, 1)
    assert (await figures(bus, group))["acked"] == 1


async def test_an_increment_by_compare_and_set_counts_every_event_once(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    buses = [await make_bus() for _ in range(2)]

    async def handle(delivery: Delivery) -> None:
        record = await bus.read(topic)
        await asyncio.sleep(0)
        async with delivery.transaction() as tx:
            number = 0 if record is None else record.value
            tx.put(topic, number + 1, if_version=0 if record is None else record.version)

    for bus in buses:
        from eventbus import RetryPolicy

        often = RetryPolicy(max_attempts=1000, base=0.0)
        await bus.consume(topic, handle, group=group, concurrency=4, retry=often)
    await buses[0].publish_many([(topic, number) for number in range(50)])
    await figures_become(buses[0], group, acked=50, in_flight=0, dead=0)
    found = await buses[0].read(topic)
    assert found is not None
    assert found.value == 50


async def test_a_stale_transaction_changes_nothing(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    lease = {"lease": SHORT_LEASE, "max_lease": SHORT_LEASE}
    async with (
        bus.deliveries(topic, group=group, **lease) as sleepy,
        other.deliveries(topic, group=group) as fresh,
        bus.stream(topic + ":out") as out,
    ):
        await bus.publish(topic, 1)
        old = await take(sleepy)
        new = await take(fresh)
        tx = old.transaction()
        tx.publish(topic + ":out", "stale")
        tx.put(topic, "stale")
        with pytest.raises(LeaseLost):
            await tx.commit()
        async with new.transaction() as tx:
            tx.publish(topic + ":out", "good")
            tx.put(topic, "good")
        assert (await take(out)).payload == "good"
        await nothing_from(out)
    assert await bus.read(topic) == Record(topic, 1, "good")


async def test_bad_steps_are_refused_where_they_are_added(bus: Bus, topic: str) -> None:
    tx = bus.transaction()
    with pytest.raises(EncodeError):
        tx.put(topic, object())
    with pytest.raises(ValueError, match="record key"):
        tx.put("", 1)
    with pytest.raises(TypeError, match="nonsense"):
        tx.publish(topic, 1, nonsense=2)
    tx.put(topic, 1)
    await tx.commit()
    assert await bus.read(topic) == Record(topic, 1, 1)


async def test_a_transaction_commits_once(bus: Bus, topic: str) -> None:
    async with bus.transaction() as tx:
        tx.put(topic, 1)
    with pytest.raises(RuntimeError):
        await tx.commit()
    assert await bus.read(topic) == Record(topic, 1, 1)


async def test_an_empty_transaction_is_fine(bus: Bus, topic: str) -> None:
    async with bus.transaction() as tx:
        pass
    assert tx.versions == {}


async def test_what_it_publishes_is_broadcast_by_a_handler_too(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic + ":out", seen)

    async def handle(delivery: Delivery) -> None:
        async with delivery.transaction() as tx:
            tx.publish(topic + ":out", 1)

    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, 0)
    await eventually(lambda: seen.payloads == [1], timeout=WITHIN)
