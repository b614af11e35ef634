"""Wait idle: for tests that want everything handled."""

from __future__ import annotations

import asyncio

import pytest

from bridge.support import sizes
from conformance.support import AT_ONCE, WITHIN, figures_become
from eventbus import Bus, Event
from eventbus.testing import Recorder


async def test_it_waits_for_queued_subscriptions(bus: Bus, topic: str) -> None:
    seen: list[int] = []

    async def handle(event: Event) -> None:
        await asyncio.sleep(0.01)
        seen.append(event.payload)

    await bus.subscribe(topic, handle, delivery="queued")
    await bus.publish(topic, 1)
    await bus.publish(topic, 2)
    await bus.wait_idle(WITHIN)
    assert seen == [1, 2]


async def test_it_waits_for_consumers_and_what_they_publish(
    bus: Bus, topic: str, group: str
) -> None:
    last = Recorder()

    async def forward(event: Event) -> None:
        await asyncio.sleep(0.01)
        await bus.publish(topic + ":next", event.payload)

    await bus.consume(topic, forward, group=group)
    await bus.consume(topic + ":next", last, group=group)
    await bus.publish_many([(topic, number) for number in range(5)])
    await bus.wait_idle(WITHIN)
    assert sorted(last.payloads) == [0, 1, 2, 3, 4]


async def test_it_waits_for_retries_at_once(bus: Bus, topic: str, group: str) -> None:
    calls: list[int] = []

    def fail(_event: Event) -> None:
        calls.append(1)
        raise ValueError

    await bus.consume(topic, fail, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await bus.wait_idle(WITHIN)
    assert len(calls) == 3


async def test_it_waits_for_the_outbox(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    bus.publish_nowait(topic, 1)
    await bus.wait_idle(WITHIN)
    assert seen.payloads == [1]


async def test_a_group_without_consumer_and_delayed_events_do_not_count(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    await bus.consume(topic + ":b", Recorder(), group=group + ":b")
    await bus.publish(topic, 1)
    await bus.publish(topic + ":b", 1, delay=3600)
    await bus.wait_idle(WITHIN)


async def test_it_gives_up_after_its_timeout(bus: Bus, topic: str) -> None:
    go = asyncio.Event()
    seen = Recorder(lambda _event: go.wait())
    await bus.consume(topic, seen)
    await bus.publish(topic, 1)
    with pytest.raises(TimeoutError):
        await bus.wait_idle(0.05)
    go.set()
    await bus.wait_idle(WITHIN)


async def test_its_timeout_says_what_is_not_idle(bus: Bus, topic: str, group: str) -> None:
    release = asyncio.Event()

    async def held(_event: Event) -> None:
        await release.wait()

    try:
        await bus.consume(topic, held, group=group, concurrency=1)
        await bus.publish_many([(topic, 1), (topic, 2)])
        await figures_become(bus, group, in_flight=1, ready=1)
        with pytest.raises(TimeoutError, match=r"not idle within 0\.2 s") as caught:
            await bus.wait_idle(0.2)
        assert f"group {group!r} has " in str(caught.value)
        assert "ready and" in str(caught.value)
        assert "in flight" in str(caught.value)
        await bus.subscribe(f"{topic}:sub", held, delivery="queued")
        await bus.publish(f"{topic}:sub", 1)
        with pytest.raises(TimeoutError) as caught:
            await bus.wait_idle(0.2)
        assert f"1 handlers running: '{topic}:sub'" in str(caught.value)
        release.set()
        await bus.wait_idle(WITHIN)
        await bus.pause(group)
        await bus.publish(topic, 3)
        with pytest.raises(TimeoutError, match="1 ready and 0 in flight, paused"):
            await bus.wait_idle(0.2)
    finally:
        release.set()
        await bus.resume(group)


@sizes(3, 1_000, "runs")
async def test_it_waits_for_a_subscriber_that_publishes_again_and_again(
    bus: Bus, topic: str, runs: int
) -> None:
    seen: list[int] = []

    async def forward(event: Event) -> None:
        seen.append(event.payload)
        if event.payload:
            await bus.publish(topic, event.payload - 1)

    await bus.subscribe(topic, forward, delivery="queued")
    for _ in range(runs):
        seen.clear()
        await bus.publish(topic, 299)
        await bus.wait_idle(30)
        assert len(seen) == 300


@sizes(3, 200, "runs")
async def test_it_waits_while_a_group_and_a_subscription_take_turns(
    bus: Bus, topic: str, group: str, runs: int
) -> None:
    seen: list[int] = []

    async def forward(event: Event) -> None:
        seen.append(event.payload)
        if event.payload:
            other = "b" if event.topic.endswith("a") else "a"
            await bus.publish(topic + other, event.payload - 1)

    await bus.subscribe(topic + "a", forward, delivery="queued")
    await bus.consume(topic + "b", forward, group=group)
    for _ in range(runs):
        seen.clear()
        await bus.publish(topic + "a", 99)
        await bus.wait_idle(30)
        assert len(seen) == 100
