"""Inspect, health and capabilities: what an operator sees."""

from __future__ import annotations

import asyncio

from conformance.support import AT_ONCE, figures, figures_become, take, take_all
from eventbus import Bus


async def test_the_figures_add_up_through_a_life(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, retry=AT_ONCE) as deliveries:
        await bus.publish_many([(topic, number) for number in range(4)])
        await bus.publish(topic, "later", delay=3600)
        taken = await take_all(deliveries, 4)
        await taken[0].ack()
        await taken[1].reject("no")
        await taken[2].retry(after=3600)
        found = await figures(bus, group)
        wanted = {"acked": 1, "dead": 1, "retried": 1, "delayed": 2, "in_flight": 1, "ready": 0}
        assert {key: found[key] for key in wanted} == wanted
        assert found["accepted"] == 5
        await taken[3].ack()
        assert await bus.purge(group) == 2
        found = await figures(bus, group)
        waiting = found["ready"] + found["delayed"] + found["in_flight"]
        assert found["accepted"] == found["acked"] + found["dead"] + found["removed"] + waiting


async def test_the_oldest_age_grows_while_something_waits(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    assert (await figures(bus, group))["oldest_age"] == 0
    await bus.publish(topic, 1)
    await asyncio.sleep(0.05)
    assert 0.04 < (await figures(bus, group))["oldest_age"] < 60
    async with bus.deliveries(topic, group=group) as deliveries:
        await (await take(deliveries)).ack()
    await figures_become(bus, group, oldest_age=0)


async def test_groups_are_listed_by_name_with_their_bindings(
    bus: Bus, topic: str, group: str
) -> None:
    for suffix in "cab":
        await bus.declare_group(f"{group}:{suffix}", topic, pattern=topic + ":*")
    groups = (await bus.inspect())["groups"]
    names = [one["group"] for one in groups if one["group"].startswith(group)]
    assert names == [f"{group}:{suffix}" for suffix in "abc"]
    assert groups[0]["bindings"] == [topic, topic + ":*"]


async def test_records_and_publishes_are_counted(bus: Bus, topic: str, group: str) -> None:
    before = await bus.inspect()
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1)
    async with bus.transaction() as tx:
        tx.put(topic, 1)
    after = await bus.inspect()
    assert after["published"] - before["published"] == 1
    assert after["records"] - before["records"] == 1
    assert after["backend"] == bus.capabilities["name"]


async def test_capabilities_and_health_have_the_documented_shape(bus: Bus) -> None:
    wanted = {"name", "in_process", "durable", "replay", "max_partitions"}
    assert wanted <= set(bus.capabilities)
    health = await bus.health()
    assert health["ok"] is True
    assert health["state"] == bus.state == "live"
    assert health["backend"] == dict(bus.capabilities)
    assert health["counters"] == bus.counters
    await bus.close()
    assert (await bus.health())["ok"] is False
