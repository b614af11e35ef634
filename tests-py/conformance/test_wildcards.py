"""Patterns alone, and topics that look like patterns but are taken as they are."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, take
from eventbus import Bus, TopicError, connect
from eventbus.compat.dataknobs import InMemoryEventBus
from eventbus.dispatch import Registry
from eventbus.testing import Recorder, eventually


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that name ``pattern=``."""
    return [one.getMessage() for one in caplog.records if "pattern=" in one.getMessage()]


async def test_a_pattern_alone_is_enough_everywhere(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    pattern, seen, handled = f"{topic}:*", Recorder(), Recorder()
    subscription = await bus.subscribe(handler=seen, pattern=pattern)
    assert (subscription.topic, subscription.pattern) == (pattern, pattern)
    await bus.consume(handler=handled, pattern=pattern, group=group)
    await bus.declare_group(f"{group}:audit", pattern=pattern)
    deliveries = bus.deliveries(pattern=pattern, group=f"{group}:audit")
    async with deliveries, bus.stream(pattern=pattern) as stream:
        await bus.publish(f"{topic}:a", 1)
        assert (await take(stream)).payload == 1
        delivery = await take(deliveries)
        assert delivery.event.payload == 1
        await delivery.ack()
        await eventually(lambda: (len(seen), len(handled)) == (1, 1), WITHIN)
    assert await bus.unbind(f"{group}:audit", pattern=pattern) == 0
    assert warned(caplog) == []


async def test_the_forms_with_a_topic_stay(bus: Bus, topic: str, group: str) -> None:
    pattern, seen, handled = f"{topic}:*", Recorder(), Recorder()
    await bus.subscribe(topic, seen, pattern)
    await bus.subscribe(pattern, seen, pattern=pattern)
    await bus.subscribe(topic=topic, handler=seen, pattern=None)
    await bus.consume(None, handled, pattern=pattern, group=group)
    await bus.consume(topic=[topic], handler=handled, group=group)
    await bus.publish(f"{topic}:a", 1)
    await bus.publish(topic, 2)
    await eventually(lambda: (len(seen), len(handled)) == (3, 2), WITHIN)


async def test_neither_topic_nor_pattern_nor_handler_is_refused(bus: Bus) -> None:
    anything: Any = bus
    for call in (
        lambda: anything.subscribe(handler=print),
        lambda: anything.subscribe("a"),
        lambda: anything.subscribe(pattern="a*"),
        lambda: anything.consume(handler=print),
        lambda: anything.consume("a"),
        lambda: anything.consume(pattern="a*"),
        lambda: anything.declare_group("g"),
        lambda: anything.unbind("g"),
    ):
        with pytest.raises(TypeError):
            await call()
    with pytest.raises(TypeError):
        bus.deliveries()


@pytest.mark.parametrize("wildcard", ["*", "?", "[ab]"])
async def test_a_topic_with_wildcards_is_taken_as_it_is_and_warned_of_once(
    make_bus: MakeBus, topic: str, group: str, wildcard: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"{topic}:{wildcard}"
    registry = Registry()
    registry.event_handler(text, group=group)(print)
    registry.event_handler(text)(print)
    verbs: list[Any] = [
        lambda bus: bus.subscribe(text, print),
        lambda bus: bus.consume(text, print, group=group),
        lambda bus: bus.consume([topic, text], print, group=group),
        lambda bus: bus.declare_group(group, text),
        lambda bus: bus.include(registry),
    ]
    for verb in verbs:
        bus = await make_bus()
        for _ in range(3):
            await verb(bus)
        (warning,) = warned(caplog)
        assert f"pattern={text!r}" in warning
        caplog.clear()
    bus = await make_bus()
    bus.deliveries(text, group=group)
    bus.stream(text)
    assert len(warned(caplog)) == 1
    # It is literal: the topic of this very text is heard, others are not.
    seen = Recorder()
    await bus.subscribe(text, seen)
    await bus.publish(f"{topic}:a", 1)
    await bus.publish(text, 2)
    await eventually(lambda: seen.payloads == [2], WITHIN)


async def test_a_pattern_beside_the_topic_says_that_it_is_meant(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = f"{topic}:*"
    await bus.subscribe(pattern, print, pattern)
    await bus.consume(pattern, print, pattern=pattern, group=group)
    await bus.declare_group(group, pattern, pattern=pattern)
    await bus.publish(pattern, 1)
    assert warned(caplog) == []


async def test_the_warnings_of_a_bus_take_little_memory(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with connect("memory://") as bus:
        for number in range(2500):
            await bus.subscribe(f"{number}:*", print)
        assert len(bus._literal_topics._told) <= 1000
        with pytest.raises(TopicError):
            await bus.subscribe("*" * 10_000, print)
    assert max(len(one) for one in warned(caplog)) < 600


async def test_the_dataknobs_bus_takes_such_topics_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = InMemoryEventBus()
    await bus.subscribe("orders:*", print)
    assert warned(caplog) == []
    anything: Any = bus
    with pytest.raises(TypeError, match="topic must be a str"):
        await anything.subscribe(None, print, "orders:*")
