"""Queued delivery: a bounded buffer per subscription, and gaps where it was not enough."""

from __future__ import annotations

import asyncio
import logging

import pytest

from conformance.support import WITHIN
from eventbus import Bus, Event, Gap
from eventbus.testing import Recorder, eventually


class Slow(Recorder):
    """A handler that waits for the test before it goes on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        super().__init__(self._wait_for_go)

    async def _wait_for_go(self, _event: Event) -> None:
        await self.go.wait()


async def _fill(bus: Bus, topic: str, slow: Slow, count: int) -> None:
    """Publish 0, which the handler holds, and then as many as given; all have arrived."""
    seen = Recorder()
    probe = await bus.subscribe(topic, seen, delivery="queued", queue_size=count + 1)
    await bus.publish(topic, 0)
    await slow.wait_for(1, WITHIN)
    for number in range(1, count + 1):
        await bus.publish(topic, number)
    await seen.wait_for(count + 1, WITHIN)
    await probe.cancel()


async def test_a_slow_subscriber_holds_up_neither_publisher_nor_neighbour(
    bus: Bus, topic: str
) -> None:
    slow, fast = Slow(), Recorder()
    await bus.subscribe(topic, slow, delivery="queued")
    await bus.subscribe(topic, fast, delivery="queued")
    async with asyncio.timeout(WITHIN):
        await _fill(bus, topic, slow, 20)
    await fast.wait_for(21, WITHIN)
    assert slow.payloads == [0]
    slow.go.set()
    await slow.wait_for(21, WITHIN)
    assert slow.payloads == fast.payloads == list(range(21))


async def test_a_full_buffer_drops_the_oldest_and_says_how_many(
    bus: Bus, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    slow, gaps = Slow(), list[Gap]()
    await bus.subscribe(topic, slow, delivery="queued", queue_size=3, on_gap=gaps.append)
    with caplog.at_level(logging.WARNING, "eventbus"):
        await _fill(bus, topic, slow, 10)
        slow.go.set()
        await slow.wait_for(lambda event: event.payload == 10, WITHIN)
    assert slow.payloads == [0, 8, 9, 10]
    assert gaps == [Gap("overflow", 7)]
    assert bus.counters["gaps"] == 1
    assert bus.counters["dropped"] == 7
    assert "gap" in caplog.text


async def test_a_full_buffer_can_drop_the_newest(bus: Bus, topic: str) -> None:
    slow, gaps = Slow(), list[Gap]()
    await bus.subscribe(
        topic, slow, delivery="queued", queue_size=3, overflow="drop_newest", on_gap=gaps.append
    )
    await _fill(bus, topic, slow, 10)
    slow.go.set()
    await slow.wait_for(4, WITHIN)
    await bus.publish(topic, "later")
    await slow.wait_for(lambda event: event.payload == "later", WITHIN)
    assert slow.payloads == [0, 1, 2, 3, "later"]
    assert gaps == [Gap("overflow", 7)]


async def test_a_full_buffer_can_end_the_subscription(bus: Bus, topic: str) -> None:
    slow, gaps = Slow(), list[Gap]()
    await bus.subscribe(
        topic, slow, delivery="queued", queue_size=3, overflow="close", on_gap=gaps.append
    )
    await _fill(bus, topic, slow, 10)
    slow.go.set()
    await eventually(lambda: gaps, timeout=WITHIN)
    await bus.publish(topic, "later")
    await bus.wait_idle(WITHIN)
    assert slow.payloads == [0, 1, 2, 3]
    assert len(gaps) == 1


async def test_every_event_is_seen_or_covered_by_a_gap(bus: Bus, topic: str) -> None:
    slow, gaps = Slow(), list[Gap]()
    await bus.subscribe(topic, slow, delivery="queued", queue_size=4, on_gap=gaps.append)
    for round_ in range(5):
        slow.go.clear()
        for number in range(10):
            await bus.publish(topic, (round_, number))
        slow.go.set()
        await bus.wait_idle(WITHIN)
    missing = sum(gap.count or 0 for gap in gaps)
    assert len(slow) + missing == 50
    assert missing == bus.counters["dropped"] > 0


async def test_a_failing_gap_callback_stops_nothing(bus: Bus, topic: str) -> None:
    def fail(_gap: Gap) -> None:
        raise ValueError("mine")

    slow = Slow()
    await bus.subscribe(topic, slow, delivery="queued", queue_size=1, on_gap=fail)
    await _fill(bus, topic, slow, 5)
    slow.go.set()
    await slow.wait_for(lambda event: event.payload == 5, WITHIN)


async def test_a_gap_callback_can_be_a_coroutine_function(bus: Bus, topic: str) -> None:
    gaps: list[Gap] = []

    async def on_gap(gap: Gap) -> None:
        await asyncio.sleep(0)
        gaps.append(gap)

    slow = Slow()
    await bus.subscribe(topic, slow, delivery="queued", queue_size=1, on_gap=on_gap)
    await _fill(bus, topic, slow, 3)
    slow.go.set()
    await slow.wait_for(lambda event: event.payload == 3, WITHIN)
    assert gaps == [Gap("overflow", 2)]


async def test_cancel_drops_what_is_buffered_and_lets_the_running_call_end(
    bus: Bus, topic: str
) -> None:
    slow = Slow()
    subscription = await bus.subscribe(topic, slow, delivery="queued")
    await _fill(bus, topic, slow, 5)
    await subscription.cancel()
    before = bus.counters["delivered"]
    slow.go.set()
    await eventually(lambda: bus.counters["delivered"] == before + 1, timeout=WITHIN)
    assert slow.payloads == [0]
    assert bus.counters["dropped"] == 5
