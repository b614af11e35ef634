"""Priority: higher first, strictly, then older."""

from __future__ import annotations

import pytest

from conformance.support import take
from eventbus import Bus
from eventbus.errors import InvalidArgumentError


async def test_higher_goes_first_then_older(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    sent = [(0, "c1"), (-32768, "d"), (5, "b1"), (0, "c2"), (32767, "a"), (5, "b2")]
    for priority, payload in sent:
        await bus.publish(topic, payload, priority=priority)
    got = []
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        for _ in sent:
            delivery = await take(deliveries)
            got.append((delivery.priority, delivery.event.payload))
            await delivery.ack()
    assert got == [(32767, "a"), (5, "b1"), (5, "b2"), (0, "c1"), (0, "c2"), (-32768, "d")]


async def test_it_is_compared_across_the_topics_of_a_group(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, [topic, topic + ":b"])
    await bus.publish(topic, "low", priority=1)
    await bus.publish(topic + ":b", "high", priority=2)
    async with bus.deliveries([topic, topic + ":b"], group=group, prefetch=1) as deliveries:
        for wanted in ("high", "low"):
            delivery = await take(deliveries)
            assert delivery.event.payload == wanted
            await delivery.ack()


@pytest.mark.parametrize("priority", [32768, -32769])
async def test_it_has_a_range(bus: Bus, topic: str, priority: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{priority}.*-32768 to 32767"):
        await bus.publish(topic, 1, priority=priority)
