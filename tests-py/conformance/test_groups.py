"""Groups: durable queues, their bindings, limits and operation."""

from __future__ import annotations

import asyncio

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, figures, figures_become, nothing_from, take, take_all
from eventbus import Bus, NotFoundError, QueueFull
from eventbus.testing import Recorder


async def test_each_group_gets_one_copy(bus: Bus, topic: str, group: str) -> None:
    recorders = {f"{group}:{number}": Recorder() for number in range(3)}
    for name, recorder in recorders.items():
        await bus.consume(topic, recorder, group=name)
    await bus.publish(topic, 1)
    for recorder in recorders.values():
        await recorder.wait_for(1, WITHIN)
    await bus.wait_idle(WITHIN)
    assert [len(recorder) for recorder in recorders.values()] == [1, 1, 1]


async def test_a_group_sees_what_is_published_after_its_binding(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.publish(topic, "before")
    await bus.declare_group(group, topic)
    await bus.publish(topic, "after")
    await bus.declare_group(group, topic + ":2")
    await bus.publish(topic + ":2", "second")
    async with bus.deliveries([topic, topic + ":2"], group=group) as deliveries:
        taken = await take_all(deliveries, 2)
        assert [one.event.payload for one in taken] == ["after", "second"]
        await nothing_from(deliveries)


async def test_declaring_again_keeps_everything(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1)
    await bus.declare_group(group, topic)
    await bus.declare_group(group, pattern=topic + ":*")
    found = await figures(bus, group)
    assert found["ready"] == 1
    assert found["bindings"] == [topic, topic + ":*"]


async def test_another_bus_sees_the_group(make_bus: MakeBus, topic: str, group: str) -> None:
    one, two = await make_bus(), await make_bus()
    await one.declare_group(group, topic)
    await two.publish(topic, 1)
    seen = Recorder()
    await two.consume(topic, seen, group=group)
    await seen.wait_for(1, WITHIN)
    assert (await figures(one, group))["accepted"] == 1


async def test_the_queue_outlives_its_consumer(make_bus: MakeBus, topic: str, group: str) -> None:
    keeper, worker = await make_bus(), await make_bus()
    consumer = await worker.consume(topic, Recorder(), group=group)
    await consumer.stop()
    await worker.close()
    await keeper.publish(topic, 1)
    assert (await figures(keeper, group))["ready"] == 1


async def test_unbind_removes_what_waits_and_what_would_come(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, [topic, topic + ":kept"], pattern=topic + ":p*")
    await bus.publish_many([(topic, 1), (topic, 2), (topic + ":kept", 3), (topic + ":p", 4)])
    assert await bus.unbind(group, topic) == 2
    assert await bus.unbind(group, pattern=topic + ":p*") == 1
    await bus.publish(topic, 5)
    found = await figures(bus, group)
    assert (found["ready"], found["bindings"]) == (1, [topic + ":kept"])


async def test_delete_group_says_what_it_removed(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, 1), (topic, 2)])
    assert await bus.delete_group(group) == 2
    assert group not in [one["group"] for one in (await bus.inspect())["groups"]]
    await bus.publish(topic, 3)
    await bus.declare_group(group, topic)
    assert (await figures(bus, group))["ready"] == 0


async def test_deleting_a_group_ends_those_who_wait_for_it(
    bus: Bus, topic: str, group: str
) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        waiting = asyncio.create_task(anext(deliveries))
        await asyncio.sleep(0.01)
        await bus.delete_group(group)
        with pytest.raises(NotFoundError, match=group):
            await asyncio.wait_for(waiting, WITHIN)


async def test_purge_leaves_what_is_being_handled(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        await bus.publish_many([(topic, number) for number in range(4)])
        delivery = await take(deliveries)
        assert await bus.purge(group) == 3
        await delivery.ack()
    found = await figures(bus, group)
    assert (found["ready"], found["in_flight"], found["acked"]) == (0, 0, 1)


async def test_a_paused_group_gives_nothing_until_resumed(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.consume(topic, seen, group=group)
    await bus.pause(group)
    await bus.pause(group)
    assert (await figures(bus, group))["paused"]
    await bus.publish(topic, 1)
    with pytest.raises(TimeoutError):
        await seen.wait_for(1, 0.1)
    await bus.resume(group)
    await seen.wait_for(1, WITHIN)
    assert not (await figures(bus, group))["paused"]


async def test_max_length_counts_what_waits_and_what_is_handled(
    bus: Bus, topic: str, group: str
) -> None:
    async with bus.deliveries(topic, group=group, max_length=2, prefetch=1) as deliveries:
        await bus.publish(topic, 1)
        delivery = await take(deliveries)
        await bus.publish(topic, 2, delay=3600)
        with pytest.raises(QueueFull, match=group):
            await bus.publish(topic, 3)
        await delivery.ack()
        await bus.publish(topic, 4)


async def test_a_full_group_keeps_the_others_empty_too(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic, max_length=1)
    await bus.declare_group(group + ":b", topic)
    await bus.publish(topic, 1)
    with pytest.raises(QueueFull):
        await bus.publish(topic, 2)
    assert (await figures(bus, group + ":b"))["ready"] == 1


async def test_a_consumer_goes_on_after_its_group_was_full(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.declare_group(group, topic, max_length=1)
    await bus.publish(topic, 1)
    with pytest.raises(QueueFull):
        await bus.publish(topic, 2)
    await bus.consume(topic, seen, group=group)
    await figures_become(bus, group, acked=1)
    await bus.publish(topic, 3)
    await seen.wait_for(2, WITHIN)
    assert seen.payloads == [1, 3]


@pytest.mark.parametrize("operation", ["purge", "delete_group", "pause", "resume", "unbind"])
async def test_an_unknown_group_is_named(bus: Bus, topic: str, group: str, operation: str) -> None:
    arguments = (group, topic) if operation == "unbind" else (group,)
    with pytest.raises(NotFoundError, match=group):
        await getattr(bus, operation)(*arguments)
    with pytest.raises(NotFoundError, match=group):
        await bus.dead_letters(group).list()
