"""Stream: the iterator form of a subscription."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from conformance.support import WITHIN, nothing_from, take, take_all
from eventbus import Bus, BusClosedError, Gap
from eventbus.stream import Stream


async def test_a_stream_gives_what_is_published_after_it_began(bus: Bus, topic: str) -> None:
    await bus.publish(topic, "before")
    async with bus.stream(topic) as events:
        await bus.publish(topic, 1)
        await bus.publish(topic, 2)
        assert [event.payload for event in await take_all(events, 2)] == [1, 2]
        await nothing_from(events)


async def test_a_stream_takes_a_pattern(bus: Bus, topic: str) -> None:
    async with bus.stream(pattern=topic + ":*") as events:
        await bus.publish(topic, "not this")
        await bus.publish(topic + ":a", "this")
        assert (await take(events)).payload == "this"


async def test_without_a_block_it_begins_at_the_first_next(bus: Bus, topic: str) -> None:
    events = bus.stream(topic)
    await bus.publish(topic, "too early")
    first = asyncio.create_task(anext(events))
    async with asyncio.timeout(WITHIN):
        # A server takes a moment to confirm it; in process it has begun already.
        number = 0
        while not first.done():
            await asyncio.sleep(0)
            await bus.publish(topic, number)
            number += 1
        assert (await first).payload in range(1 if bus.capabilities["in_process"] else number)
    await events.aclose()


async def test_a_cancelled_next_loses_nothing(bus: Bus, topic: str) -> None:
    seen: list[int] = []
    async with bus.stream(topic) as events:
        for number in range(300):
            waiting = asyncio.create_task(anext(events))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            await bus.publish(topic, number)
            for _ in range(number % 3):
                await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                seen.append((await waiting).payload)
        while len(seen) < 300:
            seen.append((await take(events)).payload)
        await nothing_from(events)
    assert seen == list(range(300))


async def test_a_timeout_around_next_loses_nothing(bus: Bus, topic: str) -> None:
    async with bus.stream(topic) as events:
        for number in range(20):
            await nothing_from_quickly(events)
            await bus.publish(topic, number)
            assert (await take(events)).payload == number


async def nothing_from_quickly(events: object) -> None:
    """Wait a moment for nothing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(events)  # type: ignore[call-overload]


async def test_leaving_the_block_ends_it(bus: Bus, topic: str) -> None:
    async with bus.stream(topic) as events:
        pass
    await bus.publish(topic, 1)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    await events.aclose()


async def test_closing_it_ends_a_waiting_loop(bus: Bus, topic: str) -> None:
    seen: list[int] = []

    async def read(events: Stream) -> None:
        async for event in events:
            seen.append(event.payload)
            if event.payload == 2:
                await events.aclose()

    async with bus.stream(topic) as events:
        reader = asyncio.create_task(read(events))
        await asyncio.sleep(0)
        for number in range(5):
            await bus.publish(topic, number)
        await asyncio.wait_for(reader, WITHIN)
    assert seen == [0, 1, 2]


async def test_closing_it_from_outside_wakes_the_reader(bus: Bus, topic: str) -> None:
    events = bus.stream(topic)
    waiting = asyncio.create_task(anext(events, None))
    await asyncio.sleep(0)
    await events.aclose()
    assert await asyncio.wait_for(waiting, WITHIN) is None


async def test_closing_the_bus_ends_it_after_what_is_buffered(bus: Bus, topic: str) -> None:
    async with bus.stream(topic) as events:
        await bus.publish(topic, 1)
        await bus.publish(topic, 2)
        await bus.close()
        assert [event.payload async for event in events] == [1, 2]
    with pytest.raises(BusClosedError):
        await anext(bus.stream(topic))


async def test_overflow_is_told_by_a_gap(bus: Bus, topic: str) -> None:
    gaps: list[Gap] = []
    async with bus.stream(topic, buffer=3, on_gap=gaps.append) as events:
        for number in range(10):
            await bus.publish(topic, number)
        await bus.wait_idle(WITHIN)
        assert [event.payload for event in await take_all(events, 3)] == [7, 8, 9]
    assert gaps == [Gap("overflow", 7)]


async def test_streams_are_independent(bus: Bus, topic: str) -> None:
    async with bus.stream(topic) as one, bus.stream(topic) as two:
        await bus.publish(topic, 1)
        assert (await take(one)).payload == 1
        await one.aclose()
        await bus.publish(topic, 2)
        assert [event.payload for event in await take_all(two, 2)] == [1, 2]
