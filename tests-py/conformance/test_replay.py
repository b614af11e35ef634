"""Replay: what is kept comes first, then what is live, in order, without a hole or a repeat."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from conformance.conftest import MakeBus
from conformance.support import QUIET, WITHIN, needs, nothing_from, take, take_all
from eventbus import Bus, Delivery, Event, EventType, Gap
from eventbus.errors import InvalidArgumentError, UnsupportedError
from eventbus.testing import eventually
from eventbus.types import Since


@pytest.fixture
async def keeping(make_bus: MakeBus) -> Bus:
    """A connected bus that keeps broadcasts."""
    return await make_bus(retention=3600)


class Seen:
    """What a subscription was called with, payloads and gaps in order."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.items: list[Any] = []

    def event(self, event: Event) -> None:
        """Take an event."""
        self.items.append(event.payload)

    def gap(self, gap: Gap) -> None:
        """Take a gap."""
        self.items.append(gap.cause)

    async def become(self, wanted: list[Any]) -> None:
        """Wait until these were seen, and no more."""
        await eventually(lambda: len(self.items) >= len(wanted), timeout=WITHIN)
        await asyncio.sleep(QUIET)
        assert self.items == wanted


async def seen_since(bus: Bus, topic: str, since: Since, **options: Any) -> Seen:
    seen = Seen()
    await bus.subscribe(topic, seen.event, on_gap=seen.gap, since=since, **options)
    return seen


async def test_the_capability_follows_the_option(make_bus: MakeBus, topic: str) -> None:
    bus = await make_bus()
    assert bus.capabilities["replay"] is False
    with pytest.raises(UnsupportedError, match="since"):
        await bus.subscribe(topic, print, since="beginning")
    with pytest.raises(UnsupportedError, match="since"):
        async with bus.stream(topic, since="beginning"):
            pass
    assert bus.subscription_count == 0


async def test_a_bus_with_retention_can_replay(keeping: Bus) -> None:
    assert keeping.capabilities["replay"] is True


async def test_what_is_kept_comes_first_then_what_is_live(keeping: Bus, topic: str) -> None:
    await keeping.publish_many([(topic, n) for n in range(5)])
    live = Seen()
    await keeping.subscribe(topic, live.event)
    seen = await seen_since(keeping, topic, "beginning")
    await keeping.publish(topic, 5)
    await keeping.publish("other:" + topic, 6)
    await keeping.publish(topic, 7)
    await seen.become([0, 1, 2, 3, 4, 5, 7])
    await live.become([5, 7])


async def test_a_pattern_replays(keeping: Bus, topic: str) -> None:
    await keeping.publish_many([(f"{topic}:{n % 3}", n) for n in range(6)])
    seen = await seen_since(keeping, "x", "beginning", pattern=f"{topic}:[02]")
    await keeping.publish(f"{topic}:2", 6)
    await seen.become([0, 2, 3, 5, 6])


async def test_since_an_event(keeping: Bus, topic: str) -> None:
    events = [Event(EventType.CUSTOM, topic, n) for n in range(4)]
    for event in events:
        await keeping.publish(topic, event)
    by_text = await seen_since(keeping, topic, events[1].event_id)
    by_uuid = await seen_since(keeping, topic, UUID(events[2].event_id))
    await by_text.become([2, 3])
    await by_uuid.become([3])


async def test_since_an_event_with_an_id_of_its_own(keeping: Bus, topic: str) -> None:
    for n in range(3):
        await keeping.publish(topic, Event(EventType.CUSTOM, topic, n, event_id=f"№ {n}"))
    await (await seen_since(keeping, topic, "№ 1")).become([2])
    await (await seen_since(keeping, topic, "№ 9")).become(["retention", 0, 1, 2])


async def test_since_a_time(keeping: Bus, topic: str) -> None:
    await keeping.publish(topic, 0)
    await asyncio.sleep(0.05)
    between = datetime.now(UTC)
    await asyncio.sleep(0.05)
    await keeping.publish(topic, 1)
    later = await seen_since(keeping, topic, between)
    ever = await seen_since(keeping, topic, datetime(1, 1, 2, tzinfo=UTC))
    never = await seen_since(keeping, topic, datetime(9999, 1, 1, tzinfo=UTC))
    await keeping.publish(topic, 2)
    await later.become([1, 2])
    await ever.become([0, 1, 2])
    await never.become([2])


async def test_what_retention_cut_is_a_gap_first(make_bus: MakeBus, topic: str) -> None:
    bus = await make_bus(retention_max=3)
    events = [Event(EventType.CUSTOM, topic, n) for n in range(6)]
    for event in events:
        await bus.publish(topic, event)
    await (await seen_since(bus, topic, events[0].event_id)).become(["retention", 3, 4, 5])
    await (await seen_since(bus, topic, str(uuid4()))).become(["retention", 3, 4, 5])
    await (await seen_since(bus, topic, "beginning")).become([3, 4, 5])
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    await (await seen_since(bus, topic, hour_ago)).become(["retention", 3, 4, 5])
    await (await seen_since(bus, topic, events[3].event_id)).become([4, 5])


async def test_a_stream_replays(keeping: Bus, topic: str) -> None:
    await keeping.publish_many([(topic, n) for n in range(50)])
    async with keeping.stream(topic, since="beginning", buffer=4) as stream:
        assert [event.payload for event in await take_all(stream, 50)] == list(range(50))
        await keeping.publish(topic, 50)
        assert (await take(stream)).payload == 50
        await nothing_from(stream)


async def test_a_slow_handler_falls_behind_and_loses_nothing(keeping: Bus, topic: str) -> None:
    seen: list[int] = []
    gaps: list[Gap] = []

    async def slow(event: Event) -> None:
        if len(seen) % 50 == 0:
            await asyncio.sleep(0.005)
        seen.append(event.payload)

    await keeping.subscribe(topic, slow, since="beginning", queue_size=5, on_gap=gaps.append)
    for start in range(0, 1000, 100):
        await keeping.publish_many([(topic, n) for n in range(start, start + 100)])
    await eventually(lambda: len(seen) >= 1000, timeout=WITHIN)
    assert seen == list(range(1000))
    assert not gaps


async def test_many_join_while_many_publish(make_bus: MakeBus, topic: str) -> None:
    buses = [await make_bus(retention=3600) for _ in range(3)]
    each = 80

    async def flood(bus: Bus, name: int) -> None:
        for n in range(each):
            await bus.publish(f"{topic}:{name}", [name, n])
            if n % 10 == 0:
                await asyncio.sleep(0.001)

    everybody: list[Seen] = []

    async def join() -> None:
        for _ in range(5):
            for bus in buses:
                options = {"pattern": f"{topic}:*", "queue_size": 16}
                one = await seen_since(bus, "x", "beginning", **options)
                everybody.append(one)
            await asyncio.sleep(0.002)

    await asyncio.gather(*(flood(bus, name) for name, bus in enumerate(buses)), join())
    count = each * len(buses)
    await eventually(lambda: all(len(one.items) >= count for one in everybody), timeout=WITHIN * 2)
    first = everybody[0].items
    for name in range(len(buses)):
        assert [n for own, n in first if own == name] == list(range(each))
    assert all(one.items == first for one in everybody)


async def test_what_a_transaction_publishes_is_kept(keeping: Bus, topic: str, group: str) -> None:
    async with keeping.deliveries(topic, group=group) as deliveries:
        await keeping.publish(topic, "in")
        delivery: Delivery = await take(deliveries)
        async with delivery.transaction() as tx:
            tx.publish(topic + ":out", "out")

    async def fails() -> None:
        async with keeping.transaction() as tx:
            tx.publish(topic + ":out", "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    await (await seen_since(keeping, topic + ":out", "beginning")).become(["out"])


async def test_what_was_dropped_as_a_duplicate_is_kept_once(keeping: Bus, topic: str) -> None:
    for _ in range(3):
        await keeping.publish(topic, "once", dedup_id="d")
    await (await seen_since(keeping, topic, "beginning")).become(["once"])


@pytest.mark.parametrize(
    ("since", "error"),
    [
        (5, TypeError),
        (True, TypeError),
        (1.5, TypeError),
        (b"beginning", TypeError),
        (["beginning"], TypeError),
        (object(), TypeError),
        (timedelta(hours=1), TypeError),
        (datetime(2026, 1, 1).date(), TypeError),
        ("", InvalidArgumentError),
        ("\ud800", InvalidArgumentError),
        (datetime(2026, 1, 1), InvalidArgumentError),
    ],
    # Without the address of an object: two processes of one run must name a test alike.
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
async def test_a_bad_place_is_refused(
    keeping: Bus, topic: str, since: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="since"):
        await keeping.subscribe(topic, print, since=since)
    with pytest.raises(error, match="since"):
        async with keeping.stream(topic, since=since):
            pass
    assert keeping.subscription_count == 0


@pytest.mark.parametrize(
    "since", ["Beginning", "0", "$", "+", "'; drop table kept; --", "\0", "é" * 4000, "*"]
)
async def test_any_other_text_is_an_event_that_is_not_known(
    keeping: Bus, topic: str, since: str
) -> None:
    await keeping.publish(topic, 1)
    await (await seen_since(keeping, topic, since)).become(["retention", 1])


async def test_an_inline_replay_is_refused(keeping: Bus, topic: str) -> None:
    with pytest.raises(UnsupportedError, match="since"):
        await keeping.subscribe(topic, print, since="beginning", delivery="inline")


async def test_a_cancelled_subscription_takes_nothing_more(keeping: Bus, topic: str) -> None:
    await keeping.publish_many([(topic, n) for n in range(500)])
    seen: list[int] = []
    gate = asyncio.Event()

    async def handler(event: Event) -> None:
        seen.append(event.payload)
        await gate.wait()

    subscription = await keeping.subscribe(topic, handler, since="beginning", queue_size=10)
    await eventually(lambda: len(seen) == 1, timeout=WITHIN)
    await subscription.cancel()
    gate.set()
    await asyncio.sleep(QUIET)
    assert seen == [0]
    # Cancelled while it subscribes, it leaves nothing behind and the bus is as good as before.
    for delay in (0, 0.0005, 0.002):
        task = asyncio.create_task(keeping.subscribe(topic, handler, since="beginning"))
        await asyncio.sleep(delay)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await (await task).cancel()
    seen.clear()
    await (await seen_since(keeping, topic, "beginning")).become(list(range(500)))


async def test_wait_idle_waits_for_a_replay(keeping: Bus, topic: str) -> None:
    await keeping.publish_many([(topic, n) for n in range(200)])
    seen = await seen_since(keeping, topic, "beginning", queue_size=8)
    await keeping.wait_idle(WITHIN)
    assert seen.items == list(range(200))


async def test_another_process_keeps_too(make_bus: MakeBus, topic: str) -> None:
    keeping = await make_bus(retention=3600)
    needs(keeping, "durable")
    # It was not told to: what is kept is a setting of the bus, not of a process.
    other = await make_bus()
    await other.publish(topic, 1)
    await (await seen_since(keeping, topic, "beginning")).become([1])
    off = await make_bus(retention=0)
    assert off.capabilities["replay"] is False
    await other.publish(topic, 2)
    again = await make_bus(retention=3600)
    await other.publish(topic, 3)
    await (await seen_since(again, topic, "beginning")).become([3])
