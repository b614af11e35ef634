"""Delay, due time and time to live: when the groups get an event."""

from __future__ import annotations

import datetime as dt
import logging
import time

import pytest

from conformance.support import WITHIN, figures, figures_become, nothing_from, take
from eventbus import Bus
from eventbus.testing import Recorder


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


async def test_a_delayed_event_is_delivered_when_due(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        began = time.monotonic()
        await bus.publish(topic, "later", delay=0.2)
        await bus.publish(topic, "now")
        assert (await figures(bus, group))["delayed"] == 1
        first = await take(deliveries)
        assert first.event.payload == "now"
        await first.ack()
        second = await take(deliveries)
        assert second.event.payload == "later"
        assert time.monotonic() - began >= 0.19
        await second.ack()


@pytest.mark.parametrize("delay", [dt.timedelta(milliseconds=120), 0.12])
async def test_a_delay_is_seconds_or_a_timedelta(
    bus: Bus, topic: str, group: str, delay: object
) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, 1, delay=delay)
        await nothing_from(deliveries)
        await (await take(deliveries)).ack()


async def test_at_names_the_time(bus: Bus, topic: str, group: str) -> None:
    zone = dt.timezone(dt.timedelta(hours=-7))
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, "past", at=_now() - dt.timedelta(days=1))
        await bus.publish(topic, "soon", at=(_now() + dt.timedelta(seconds=0.2)).astimezone(zone))
        for wanted in ("past", "soon"):
            delivery = await take(deliveries)
            assert delivery.event.payload == wanted
            await delivery.ack()


async def test_a_delayed_event_is_not_broadcast(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, "later", delay=0.05)
        await bus.publish(topic, "zero", delay=0)
        for _ in range(2):
            await (await take(deliveries)).ack()
    await bus.publish(topic, "now")
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == ["now"]


async def test_without_a_group_it_is_dropped_with_a_warning(
    bus: Bus, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    with caplog.at_level(logging.WARNING, "eventbus"):
        await bus.publish(topic, 1, delay=0.01)
    assert topic in caplog.text
    assert "no group" in caplog.text
    await bus.publish(topic, 2)
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == [2]


async def test_it_goes_to_the_groups_bound_when_it_was_published(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1, delay=0.05)
    await bus.declare_group(group + ":late", topic)
    await figures_become(bus, group, ready=1, delayed=0)
    late = await figures(bus, group + ":late")
    assert (late["ready"], late["delayed"], late["accepted"]) == (0, 0, 0)


async def test_a_consumer_that_waits_is_woken_when_it_is_due(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.consume(topic, seen, group=group)
    for number in (3, 1, 2):
        await bus.publish(topic, number, delay=number * 0.2)
    await seen.wait_for(3, WITHIN)
    assert seen.payloads == [1, 2, 3]


async def test_an_expired_event_is_not_delivered(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, "short", expires_after=0.05)
    await bus.publish(topic, "long", expires_after=3600)
    await bus.publish(topic, "late", delay=0.1)
    await figures_become(bus, group, delayed=0)
    async with bus.deliveries(topic, group=group) as deliveries:
        for wanted in ("long", "late"):
            delivery = await take(deliveries)
            assert delivery.event.payload == wanted
            await delivery.ack()
        await nothing_from(deliveries)


async def test_delay_and_at_together_are_refused(bus: Bus, topic: str) -> None:
    with pytest.raises(TypeError, match="not both"):
        await bus.publish(topic, 1, delay=1, at=_now())
