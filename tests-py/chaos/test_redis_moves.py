"""The address moves to another server while the old one lives: every connection follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chaos.load import Markers, drained, soon
from eventbus import Bus, ConnectError, Event, connect
from eventbus.testing import eventually
from servers.brokers import QUICK
from servers.proxy import FaultProxy
from servers.redis_server import RedisServer

OPTIONS = {**QUICK, "op_timeout": 15.0, "drain_timeout": 2.0}
PASSWORD = "S3CR3T-xyz"


class Pair:
    """A server, its replica, and a proxy that leads to one of them."""

    def __init__(self, **options: Any) -> None:
        self.old = RedisServer(appendonly=True, **options)
        follow = {"replicaof": f"127.0.0.1 {self.old.port}", "repl-diskless-sync-delay": 0}
        self.new = RedisServer(appendonly=True, config=follow, **options)

    def start(self) -> None:
        """Start both and wait until the replica follows."""
        self.old.start()
        self.new.start()
        self.proxy = FaultProxy(self.old.port)

    async def followed(self) -> None:
        """Wait until the replica has what the server has."""

        def is_up() -> bool:
            with self.new.client() as client:
                return bool(client.info("replication").get("master_link_status") == "up")

        await eventually(is_up, timeout=10.0)
        with self.old.client() as client:
            assert client.wait(1, 5000) == 1

    def promote(self) -> None:
        """Make the replica a server of its own; the old one lives on as what it was."""
        with self.new.client() as client:
            client.replicaof("NO", "ONE")

    def cut(self, kind: str) -> None:
        """End the connections of a kind at the old server: ``normal`` or ``pubsub``."""
        with self.old.client() as client:
            assert client.client_kill_filter(_type=kind, skipme=True) >= 1

    def close(self) -> None:
        """End everything."""
        self.proxy.close()
        self.new.close()
        self.old.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    one = Pair()
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture
async def buses(pair: Pair) -> AsyncIterator[tuple[Bus, Bus]]:
    """Yield a bus at the address that moves, and one at the server that it moves to."""
    async with AsyncExitStack() as stack:
        await pair.followed()
        moved = connect(f"redis://127.0.0.1:{pair.proxy.port}/0", **OPTIONS)
        await stack.enter_async_context(moved)
        await moved.declare_group("group", "work")
        await pair.followed()
        pair.promote()
        yield moved, await stack.enter_async_context(connect(pair.new.url(), **OPTIONS))


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_when_the_address_moves_all_connections_follow_and_subscribers_are_told(
    kind: str, pair: Pair, buses: tuple[Bus, Bus]
) -> None:
    moved, there = buses
    mine, others = Markers(moved, "news"), Markers(there, "news")
    await mine.start()
    await others.start()
    await mine.alive(moved)
    pair.proxy.retarget(pair.new.port)
    pair.cut(kind)
    # Both ways: what is published at the new server is heard, and what is published goes there.
    await mine.alive(there, 10.0)
    await others.alive(moved, 10.0)
    assert {gap.cause for gap in mine.gaps} == {"reconnect"}
    assert others.gaps == []
    assert await soon(lambda: pair.old.clients() == [], 5), "a connection stayed behind"
    with pair.new.client() as client:
        run_id = client.info("server")["run_id"]
    health = await moved.health()
    assert health["ok"]
    assert run_id in health["last_error"], "the cause is named"


async def test_a_consumer_follows_to_the_new_server(pair: Pair, buses: tuple[Bus, Bus]) -> None:
    moved, there = buses
    done: list[int] = []
    await moved.consume("work", lambda event: done.append(event.payload), group="group")
    await moved.publish("work", 0)
    assert await soon(lambda: done == [0], 5)
    pair.proxy.retarget(pair.new.port)
    # The one that wakes consumers is remade, the one that claims is not broken by anybody.
    pair.cut("pubsub")
    for number in range(1, 21):
        await there.publish("work", number)
    assert await soon(lambda: set(range(1, 21)) <= set(done), 10), done
    await drained(there, "group", 10)


async def test_a_replica_is_refused_until_it_is_promoted(pair: Pair) -> None:
    await pair.followed()
    with pytest.raises(ConnectError, match="replica"):
        await connect(pair.new.url(), **OPTIONS).connect()
    async with connect(f"redis://127.0.0.1:{pair.proxy.port}/0", **OPTIONS) as bus:
        markers = Markers(bus, "news")
        await markers.start()
        pair.proxy.retarget(pair.new.port)
        pair.cut("pubsub")

        async def refused() -> bool:
            return "replica" in (await bus.health())["last_error"]

        await eventually(refused, timeout=10.0)
        assert not pair.new.clients("pubsub"), "it listens at a replica"
        pair.promote()
        async with connect(pair.new.url(), **OPTIONS) as there:
            await markers.alive(there, 15.0)
    assert markers.gaps


async def test_an_address_of_two_servers_does_not_make_connections_chase_each_other(
    pair: Pair, buses: tuple[Bus, Bus]
) -> None:
    moved, _ = buses
    for _ in range(10):
        for server in (pair.new, pair.old):
            pair.proxy.retarget(server.port)
            await asyncio.sleep(0.1)
            with server.client() as client:
                client.client_kill_filter(_type="pubsub")
    made = pair.proxy.count("open")
    assert made < 100, "no pause between attempts"
    pair.proxy.retarget(pair.new.port)
    with pair.old.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub")
    markers = Markers(moved, "news")
    await markers.start()
    await markers.alive(moved, 10.0)
    assert await soon(lambda: pair.old.clients() == [], 10)


async def test_without_the_right_to_ask_the_server_the_bus_says_so() -> None:
    rights = "~* &* +@all -info"
    with RedisServer(appendonly=True, users=[f"app on >{PASSWORD} {rights}"]) as server:
        seen: list[Event] = []
        async with connect(server.url(user=f"app:{PASSWORD}"), **OPTIONS) as bus:
            await bus.subscribe("news", seen.append)
            await bus.publish("news", 1)
            assert await soon(lambda: seen, 5)
            warnings = (await bus.health())["warnings"]
    assert any("identity of the server unknown" in one for one in warnings), warnings


async def test_a_group_that_the_new_server_never_got_is_declared_there(
    pair: Pair, buses: tuple[Bus, Bus]
) -> None:
    moved, there = buses
    done: list[int] = []
    # The replica does not follow any more.
    await moved.consume("late", lambda event: done.append(event.payload), group="late")
    assert [one["group"] for one in (await there.inspect())["groups"]] == ["group"]
    pair.proxy.retarget(pair.new.port)
    pair.cut("normal")

    async def declared() -> bool:
        return len((await there.inspect())["groups"]) == 2

    await eventually(declared, timeout=10.0)
    await there.publish("late", 1)
    assert await soon(lambda: done == [1], 10)
