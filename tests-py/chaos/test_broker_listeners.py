"""T8, T9: slow and many subscriptions: bounded memory, counted losses, one server session."""

from __future__ import annotations

import asyncio
import gc

import pytest

from bridge.support import descriptors, rss, sizes
from chaos.conftest import Connect
from chaos.load import Markers, soon
from eventbus import Event
from servers.brokers import Broker
from servers.checker import Seen, holes

PAYLOAD = "x" * 1_000


@sizes(20_000, 500_000)
async def test_a_slow_subscriber_holds_bounded_memory_and_knows_what_it_missed(
    count: int, broker: Broker, connected: Connect
) -> None:
    listener, publisher = await connected(queue_size=1_000), await connected()
    seen = Seen()
    go_on = asyncio.Event()

    async def slow(event: Event) -> None:
        seen.items.append(event.payload["n"])
        if not go_on.is_set():
            await asyncio.sleep(0.01)

    await listener.subscribe("flood", slow, on_gap=seen.gap)
    peaks: list[int] = []
    for begin in range(0, count, 1_000):
        items = [("flood", {"n": begin + n, "text": PAYLOAD}) for n in range(1_000)]
        for part in range(0, 1_000, 250):
            await publisher.publish_many(items[part : part + 250])
        if begin == count // 4:
            gc.collect()
            peaks.append(rss())
    peaks.append(rss())
    go_on.set()
    await publisher.publish("flood", {"n": count, "text": ""})
    assert await soon(lambda: seen.numbers[-1:] == [count], 20)
    found = holes(range(count + 1), seen.items)
    assert not found.silent
    assert not found.repeated
    assert {gap.cause for gap in seen.gaps} == {"overflow"}, "the server cut it off"
    assert found.announced == len(found.missed) > 0
    assert listener.counters["dropped"] == len(found.missed)
    assert peaks[1] - peaks[0] < 24 << 20, f"grew from {peaks[0] >> 20} to {peaks[1] >> 20} MiB"


async def test_a_slow_subscription_does_not_hold_the_others_up(connected: Connect) -> None:
    listener, publisher = await connected(queue_size=10_000), await connected()
    fast, blocked = Seen(), asyncio.Event()

    async def stuck(event: Event) -> None:
        await blocked.wait()

    await listener.subscribe("news", stuck)
    await listener.subscribe("news", fast.event)
    for number in range(200):
        await publisher.publish("news", number)
    await soon(lambda: len(fast.numbers) >= 200, 5)
    blocked.set()
    assert fast.numbers == list(range(200))


async def test_ten_thousand_subscriptions_are_one_session(
    broker: Broker, connected: Connect
) -> None:
    publisher = await connected()
    before = broker.sessions()
    listener = await connected()
    seen: set[str] = set()
    await listener.subscribe("first", print)
    with_one, files = broker.sessions(), descriptors()
    for begin in range(0, 10_000, 500):
        await asyncio.gather(
            *(
                listener.subscribe(f"topic:{number}", lambda event: seen.add(event.topic))
                for number in range(begin, begin + 500)
            )
        )
    assert broker.sessions() == with_one
    assert with_one - before <= 3
    # Sockets are closed by the connections' own tasks.
    assert await soon(lambda: descriptors() <= files, 5)
    wanted = {f"topic:{number}" for number in range(0, 10_000, 97)}
    await asyncio.gather(*(publisher.publish(topic, 1) for topic in wanted))
    assert await soon(lambda: seen == wanted, 10)
    # All of them come back after their one connection was lost.
    assert broker.cut_listeners() >= 1
    markers = Markers(listener, "first")
    await markers.start()
    await markers.alive(publisher, 15.0)
    seen.clear()
    await asyncio.gather(*(publisher.publish(topic, 1) for topic in wanted))
    assert await soon(lambda: seen == wanted, 10)


@sizes(200, 2_000)
async def test_what_is_published_right_after_subscribe_is_seen(
    count: int, connected: Connect
) -> None:
    listener, publisher = await connected(), await connected()
    for number in range(count):
        seen = Seen()
        subscription = await listener.subscribe(f"topic:{number}", seen.event)
        await publisher.publish(f"topic:{number}", number)
        assert await soon(lambda seen=seen: seen.items, 5, every=0.001)  # type: ignore[misc]
        await subscription.cancel()


@sizes(100, 5_000)
async def test_subscribing_and_cancelling_at_random_ends_alive(
    count: int, connected: Connect
) -> None:
    listener, publisher = await connected(), await connected()

    async def churn(lane: int) -> None:
        for number in range(count):
            one = await listener.subscribe(f"topic:{(lane * 7 + number) % 11}", print)
            if number % 3:
                await asyncio.sleep(0)
            await one.cancel()

    await asyncio.gather(*(churn(lane) for lane in range(8)))
    seen = Seen()
    for topic in range(11):
        await listener.subscribe(f"topic:{topic}", seen.event)
    for topic in range(11):
        await publisher.publish(f"topic:{topic}", topic)
    await soon(lambda: len(seen.items) >= 11, 5)
    assert sorted(seen.numbers) == list(range(11))


@pytest.mark.chaos
async def test_an_idle_subscription_stays_alive(connected: Connect) -> None:
    listener, publisher = await connected(heartbeat=10.0), await connected(heartbeat=10.0)
    markers = Markers(listener, "markers")
    await markers.start()
    await asyncio.sleep(120)
    assert await markers.alive(publisher) < 1.0
    assert not markers.gaps


@sizes(20, 300, "turns")
async def test_connecting_and_closing_leaks_nothing(
    turns: int, broker: Broker, connected: Connect
) -> None:
    idle = broker.sessions()

    async def turn() -> None:
        bus = await connected()
        await bus.subscribe("news", print)
        await bus.consume("work", print, group="group")
        await bus.close()

    for _ in range(5):
        await turn()
    files = descriptors()
    for _ in range(turns):
        await turn()
    # Sockets are closed by the connections' own tasks.
    assert await soon(lambda: descriptors() <= files, 5)
    await soon(lambda: broker.sessions() <= idle, 5)
    assert broker.sessions() == idle
