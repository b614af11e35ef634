"""A server that lost its data: what is accepted after somebody noticed is kept, without a sweep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chaos.load import Load, group_of, soon
from eventbus import Bus, NotFoundError, QueueFull, connect
from servers.brokers import QUICK
from servers.checker import judge
from servers.fleet import Fleet
from servers.redis_server import RedisServer
from servers.worker import Orders

# A sweep would hide what is not declared again at once.
OPTIONS = {**QUICK, "sweep": 60.0, "op_timeout": 15.0, "drain_timeout": 2.0}
Connect = Callable[[], Awaitable[Bus]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


@pytest.fixture
async def connected(server: RedisServer) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def make() -> Bus:
            return await stack.enter_async_context(connect(server.url(), **OPTIONS))

        yield make


def flush(server: RedisServer) -> None:
    """Lose everything, while connections stay."""
    with server.client() as client:
        client.flushall()


def restart(server: RedisServer) -> None:
    """Lose everything, with all connections."""
    server.restart(kill=True)


@pytest.mark.parametrize("lose", [flush, restart])
async def test_under_load_everything_accepted_after_the_loss_is_handled(
    lose: Callable[[RedisServer], None], server: RedisServer, connected: Connect, tmp_path: Path
) -> None:
    publisher = await connected()
    work = Orders("work", "group", lease=2.0, options=OPTIONS)
    loop = asyncio.get_running_loop()
    with Fleet(server.url(), tmp_path, work, 2) as fleet:
        load = Load(publisher, "work", tmp_path, pause=0.0)
        loading = asyncio.create_task(load.run(lanes=8))
        for _ in range(3):
            before = load.published
            assert await soon(lambda before=before: load.published > before + 200, 20)  # type: ignore[misc]
            await loop.run_in_executor(None, lose, server)
            first = load.published
            assert await soon(lambda first=first: load.published > first + 200, 20)  # type: ignore[misc]
        # Only what was published after the last loss must be there.
        load.stop()
        await loading
        kept = {number for number in judge(tmp_path).ok if number >= first}
        assert len(kept) > 100

        def missing() -> set[int]:
            return kept - set(judge(tmp_path).done)

        assert await soon(lambda: not missing(), 10, every=0.1), (sorted(missing()), fleet.logs())
    warnings = (await publisher.health())["warnings"]
    assert any("lost its data" in one for one in warnings), warnings


@pytest.mark.parametrize("lose", [flush, restart])
async def test_an_idle_consumer_gets_the_first_event_after_the_loss_at_once(
    lose: Callable[[RedisServer], None], server: RedisServer, connected: Connect
) -> None:
    publisher, consumer = await connected(), await connected()
    done: list[Any] = []
    for group in ("one", "two"):
        await consumer.consume(
            "work", lambda event, group=group: done.append((group, event.payload)), group=group
        )
    await publisher.publish("work", 0)
    assert await soon(lambda: len(done) == 2, 5)
    await asyncio.get_running_loop().run_in_executor(None, lose, server)
    for number in range(1, 6):
        await publisher.publish("work", number)
    wanted = {(group, number) for group in ("one", "two") for number in range(6)}
    assert await soon(lambda: set(done) == wanted, 10), done


async def test_the_consuming_process_itself_publishes_into_its_group(
    server: RedisServer, connected: Connect
) -> None:
    bus = await connected()
    done: list[int] = []
    await bus.consume("work", lambda event: done.append(event.payload), group="group")
    for number in range(5):
        flush(server)
        await bus.publish("work", number)
        assert await soon(lambda number=number: number in done, 5), number  # type: ignore[misc]


async def test_a_publisher_that_connects_after_the_loss_reaches_idle_consumers(
    server: RedisServer, connected: Connect
) -> None:
    consumer = await connected()
    done: list[int] = []
    await consumer.consume("work", lambda event: done.append(event.payload), group="group")
    flush(server)
    publisher = await connected()
    await publisher.publish("work", 1)
    assert await soon(lambda: done == [1], 5)


async def test_a_binding_that_the_publisher_never_saw_comes_back_before_it_publishes(
    server: RedisServer, connected: Connect
) -> None:
    publisher, consumer = await connected(), await connected()
    await publisher.publish("other", 0)
    done: list[int] = []
    await consumer.consume("work", lambda event: done.append(event.payload), group="group")
    flush(server)
    await publisher.publish("work", 1)
    assert await soon(lambda: done == [1], 5)


async def test_a_publisher_without_consumers_brings_back_what_it_knew(
    server: RedisServer, connected: Connect
) -> None:
    publisher = await connected()
    async with connect(server.url(), **OPTIONS) as gone:
        await gone.declare_group("group", pattern="work:*", max_length=3)
    await publisher.publish("work:a", 0)
    flush(server)
    for number in range(3):
        await publisher.publish("work:b", number)
    figures = await group_of(publisher, "group")
    assert (figures["ready"], figures["bindings"]) == (3, ["work:*"])
    with pytest.raises(QueueFull):
        await publisher.publish("work:b", 3)


async def test_a_deleted_group_does_not_come_back(server: RedisServer, connected: Connect) -> None:
    publisher, consumer = await connected(), await connected()
    await consumer.declare_group("kept", "work")
    await consumer.declare_group("deleted", "work")
    await publisher.publish("work", 0)
    await consumer.delete_group("deleted")
    await publisher.publish("work", 1)
    flush(server)
    await publisher.publish("work", 2)
    assert [one["group"] for one in (await publisher.inspect())["groups"]] == ["kept"]


async def test_a_group_deleted_elsewhere_is_still_told_to_its_consumer(
    server: RedisServer, connected: Connect
) -> None:
    operator, consumer = await connected(), await connected()
    async with consumer.deliveries("work", group="group") as deliveries:
        waiting = asyncio.ensure_future(anext(deliveries))
        await operator.publish("work", 1)
        await (await waiting).ack()
        waiting = asyncio.ensure_future(anext(deliveries))
        await operator.delete_group("group")
        with pytest.raises(NotFoundError):
            async with asyncio.timeout(10):
                await waiting


async def test_a_bus_that_only_broadcasts_goes_on_without_a_pause(
    server: RedisServer, connected: Connect
) -> None:
    publisher, listener = await connected(), await connected()
    seen: list[int] = []
    await listener.subscribe("news", lambda event: seen.append(event.payload))
    await publisher.publish("news", 0)
    flush(server)
    await publisher.publish("news", 1)
    assert await soon(lambda: seen == [0, 1], 5)
    assert (await publisher.health())["warnings"] == []


async def test_many_processes_that_notice_at_once_do_not_wait_for_each_other(
    server: RedisServer, connected: Connect
) -> None:
    buses = [await connected() for _ in range(8)]
    done: list[set[int]] = [set() for _ in buses]
    for number, bus in enumerate(buses):
        await bus.consume(
            "work", lambda event, number=number: done[number].add(event.payload), group=f"g{number}"
        )
    flush(server)
    await asyncio.gather(*(bus.publish("work", number) for number, bus in enumerate(buses)))
    everything = set(range(len(buses)))
    assert await soon(lambda: all(one == everything for one in done), 10), done
