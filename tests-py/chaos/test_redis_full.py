"""T11: a Redis without memory or disk refuses by a typed error, still settles, and recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from chaos.load import drained, group_of, soon
from eventbus import Bus, Event, EventBusError, connect
from servers.brokers import QUICK
from servers.redis_server import RedisServer

GROUP = "group"
TOPIC = "work"
TEXT = "x" * 10_000


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(**request.param) as one:
        yield one


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    async with connect(server.url(), **QUICK, drain_timeout=2.0) as one:
        await one.declare_group(GROUP, TOPIC)
        yield one


SMALL = {"config": {"maxmemory": "20mb", "maxmemory-policy": "noeviction"}}


async def publish_until_refused(bus: Bus, most: int = 10_000) -> tuple[int, EventBusError]:
    """Publish until the server refuses; returns how many it took, and the error."""
    for number in range(most):
        try:
            await bus.publish(TOPIC, {"n": number, "text": TEXT})
        except EventBusError as error:
            return number, error
    raise AssertionError(f"took all {most}")


@pytest.mark.parametrize("server", [SMALL], indirect=True, ids=["20mb"])
async def test_a_full_memory_refuses_publishes_and_settling_drains_it(
    server: RedisServer, bus: Bus
) -> None:
    taken, error = await publish_until_refused(bus)
    assert error.is_retryable
    assert not error.outcome_unknown
    assert "memory" in str(error).lower()
    assert taken > 100
    assert (await group_of(bus, GROUP))["accepted"] == taken
    # Nothing is freed by others: the consumer itself must be able to claim and settle.
    done: list[int] = []

    async def handle(event: Event) -> None:
        done.append(event.payload["n"])

    await bus.consume(TOPIC, handle, group=GROUP)
    figures = await drained(bus, GROUP, 20)
    assert sorted(done) == list(range(taken))
    assert figures["acked"] == taken
    await bus.publish(TOPIC, {"n": taken, "text": TEXT})
    assert await soon(lambda: len(done) == taken + 1, 5)


@pytest.mark.parametrize("server", [SMALL], indirect=True, ids=["20mb"])
async def test_on_a_full_server_failed_deliveries_are_retried_and_buried(
    server: RedisServer, bus: Bus
) -> None:
    from eventbus import RetryPolicy

    taken, _ = await publish_until_refused(bus)
    calls = 0

    async def handle(event: Event) -> None:
        nonlocal calls
        calls += 1
        if event.payload["n"] % 50 == 0:
            raise ValueError("no")

    retry = RetryPolicy(max_attempts=2, base=0.0)
    await bus.consume(TOPIC, handle, group=GROUP, retry=retry)
    figures = await drained(bus, GROUP, 20)
    buried = len(range(0, taken, 50))
    assert figures["dead"] == buried
    assert figures["acked"] == taken - buried
    assert calls == taken + buried


@pytest.mark.parametrize("server", [SMALL], indirect=True, ids=["20mb"])
async def test_a_refused_publish_stores_and_broadcasts_nothing(
    server: RedisServer, bus: Bus
) -> None:
    seen: list[int] = []
    await bus.subscribe(TOPIC, lambda event: seen.append(event.payload["n"]))
    taken, _ = await publish_until_refused(bus)
    with pytest.raises(EventBusError):
        await bus.publish_many([(TOPIC, {"n": -number, "text": TEXT}) for number in range(1, 50)])
    assert await soon(lambda: len(seen) >= taken, 5)
    await asyncio.sleep(0.2)
    assert seen == list(range(taken))
    assert (await group_of(bus, GROUP))["accepted"] == taken


EVERYSEC = {"appendonly": True, "appendfsync": "everysec"}


@pytest.mark.parametrize("server", [EVERYSEC], indirect=True, ids=["everysec"])
async def test_a_full_disk_refuses_by_a_typed_error_until_there_is_room(
    server: RedisServer, bus: Bus
) -> None:
    await bus.publish(TOPIC, {"n": 0, "text": TEXT})
    server.fill_disk(room=4_096)
    taken, error = await publish_until_refused(bus, most=2_000)
    assert error.is_retryable
    assert "MISCONF" in str(error) or "disk" in str(error).lower()
    server.free_disk()
    accepted = False
    for _ in range(100):
        try:
            await bus.publish(TOPIC, {"n": -1, "text": TEXT})
        except EventBusError as again:
            assert again.is_retryable  # noqa: PT017
            await asyncio.sleep(0.1)
            continue
        accepted = True
        break
    assert accepted
    assert (await group_of(bus, GROUP))["accepted"] == taken + 2


ALWAYS = {"appendonly": True, "appendfsync": "always"}


@pytest.mark.parametrize("server", [ALWAYS], indirect=True, ids=["always"])
async def test_a_disk_that_is_full_under_fsync_always_loses_nothing_that_was_accepted(
    server: RedisServer, bus: Bus
) -> None:
    for number in range(100, 110):
        await bus.publish(TOPIC, {"n": number, "text": TEXT})
    server.fill_disk(room=50_000)
    # This Redis ends itself rather than lie.
    taken, error = await publish_until_refused(bus)
    assert error.is_retryable
    assert not server.running
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, server.start)
    done: list[int] = []

    async def handle(event: Event) -> None:
        done.append(event.payload["n"])

    await bus.consume(TOPIC, handle, group=GROUP)
    await drained(bus, GROUP, 10)
    # What was refused last may have been written: nobody could tell.
    assert sorted(set(done) - {taken}) == [*range(taken), *range(100, 110)]
    assert len(done) == len(set(done))


@pytest.mark.parametrize(
    ("server", "word"),
    [
        pytest.param({}, "append", id="no-persistence"),
        pytest.param(
            {**ALWAYS, "config": {"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"}},
            "evict",
            id="eviction",
        ),
    ],
    indirect=["server"],
)
async def test_a_server_that_may_lose_data_is_warned_of(
    server: RedisServer, bus: Bus, word: str
) -> None:
    health = await bus.health()
    assert health["ok"]
    assert any(word in warning.lower() for warning in health["warnings"]), health["warnings"]


@pytest.mark.parametrize("server", [ALWAYS], indirect=True, ids=["always"])
async def test_a_sound_server_gets_no_warning(server: RedisServer, bus: Bus) -> None:
    assert (await bus.health())["warnings"] == []


@pytest.mark.parametrize("server", [EVERYSEC], indirect=True, ids=["everysec"])
async def test_a_flushed_server_is_used_again(server: RedisServer, bus: Bus) -> None:
    done: list[int] = []

    async def handle(event: Event) -> None:
        done.append(event.payload)

    await bus.consume(TOPIC, handle, group=GROUP)
    await bus.publish(TOPIC, 1)
    assert await soon(lambda: done == [1], 5)
    with server.client() as client:
        client.flushall()
    began = server.processor_seconds()
    # The group is declared again by its consumer, and what is published after that arrives.
    accepted = [1]
    for number in range(2, 200):
        await bus.publish(TOPIC, number)
        accepted.append(number)
        await asyncio.sleep(0.02)
        if number in done:
            break
    assert len(done) > 1, "the consumer never came back"
    assert server.processor_seconds() - began < 1.0, "a hot loop"
    await bus.publish(TOPIC, 1_000)
    assert await soon(lambda: 1_000 in done, 5)
