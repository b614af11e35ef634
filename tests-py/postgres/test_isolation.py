"""Isolation levels above READ COMMITTED, of a caller's transaction and as a database's default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.support import sizes
from eventbus import Bus, LeaseLost, SerializationError
from postgres.conftest import Caller, Eventually, MakeBus
from servers.postgres import PostgresServer

LEVELS = ["repeatable read", "serializable"]


async def handle_one(bus: Bus) -> Any:
    """Handle the first delivery of the group and return its payload."""
    async for delivery in bus.deliveries("orders", group="g"):
        payload = delivery.event.payload
        await delivery.ack()
        return payload
    return None


async def publish_until_it_holds(bus: Bus, caller: Caller, level: str, payload: object) -> int:
    """Publish with a key in a transaction that is run again after a collision; return how often."""
    collisions = 0
    while True:
        try:
            async with caller.begun(level):
                await bus.publish("orders", payload, key="k", connection=caller.connection)
        except SerializationError:
            collisions += 1
        else:
            return collisions


@sizes(2, 200, "runs")
@pytest.mark.parametrize("level", LEVELS)
async def test_a_keyed_publish_by_an_old_snapshot_never_blocks_its_key(
    bus: Bus, caller: Caller, level: str, runs: int
) -> None:
    await bus.declare_group("g", "orders")
    for run in range(runs):
        await bus.publish("orders", "head", key="k")
        with pytest.raises(SerializationError) as refused:  # noqa: PT012
            async with caller.begun(level):
                await caller.value(f'select count(*) from "{caller.schema}".messages')
                assert await handle_one(bus) == "head"
                await bus.publish("orders", "next", key="k", connection=caller.connection)
        assert refused.value.sqlstate == "40001"
        assert refused.value.is_retryable
        assert getattr(refused.value.__context__, "sqlstate", None) == "40001"
        assert await publish_until_it_holds(bus, caller, level, run) == 0
        async with asyncio.timeout(10):
            assert await handle_one(bus) == run


@pytest.mark.parametrize("level", LEVELS)
async def test_the_sql_function_never_blocks_a_key_either(
    bus: Bus, caller: Caller, level: str
) -> None:
    await bus.declare_group("g", "orders")
    await bus.publish("orders", "head", key="k")
    publish = f"select \"{caller.schema}\".publish('orders', '\"next\"', key => 'k')"
    with pytest.raises(Exception, match="could not serialize") as refused:  # noqa: PT012
        async with caller.begun(level):
            await caller.value(f'select count(*) from "{caller.schema}".messages')
            assert await handle_one(bus) == "head"
            await caller.execute(publish)
    assert getattr(refused.value, "sqlstate", None) == "40001"
    async with caller.begun(level):
        await caller.execute(publish)
    async with asyncio.timeout(10):
        assert await handle_one(bus) == "next"


@sizes(40, 200, "runs")
@pytest.mark.parametrize("level", LEVELS)
async def test_keyed_publishes_of_old_snapshots_lose_nothing_under_load(
    bus: Bus, caller: Caller, level: str, runs: int, eventually: Eventually
) -> None:
    handled: list[Any] = []
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    for n in range(runs):
        await bus.publish("orders", f"own {n}", key="k")
        await publish_until_it_holds(bus, caller, level, f"joined {n}")
    await eventually(lambda: len(handled) == 2 * runs)
    joined = [payload for payload in handled if payload.startswith("joined")]
    assert joined == [f"joined {n}" for n in range(runs)]


@pytest.mark.parametrize("level", LEVELS)
async def test_an_old_snapshot_that_misses_a_new_group_is_told_to_try_again(
    bus: Bus, caller: Caller, level: str
) -> None:
    with pytest.raises(SerializationError):  # noqa: PT012
        async with caller.begun(level):
            await caller.value(f'select count(*) from "{caller.schema}".groups')
            await bus.declare_group("g", "orders")
            await bus.publish("orders", 1, connection=caller.connection)
    async with caller.begun(level):
        await bus.publish("orders", 2, connection=caller.connection)
    async with asyncio.timeout(10):
        assert await handle_one(bus) == 2


@pytest.mark.parametrize("level", LEVELS)
async def test_an_old_snapshot_never_publishes_twice_within_the_dedup_window(
    bus: Bus, caller: Caller, level: str
) -> None:
    await bus.declare_group("g", "orders")
    with pytest.raises(SerializationError):  # noqa: PT012
        async with caller.begun(level):
            await caller.value(f'select count(*) from "{caller.schema}".dedup')
            await bus.publish("orders", 1, dedup_id="d")
            await bus.publish("orders", 2, dedup_id="d", connection=caller.connection)
    async with caller.begun(level):
        await bus.publish("orders", 3, dedup_id="d", connection=caller.connection)
    assert (await bus.inspect())["groups"][0]["accepted"] == 1


@pytest.mark.parametrize("level", LEVELS)
async def test_a_settlement_in_a_strict_transaction_frees_the_key(
    bus: Bus, caller: Caller, level: str
) -> None:
    await bus.declare_group("g", "orders")
    for n in range(3):
        await bus.publish("orders", n, key="k")
    seen: list[Any] = []
    async for delivery in bus.deliveries("orders", group="g"):
        async with (
            caller.begun(level),
            delivery.transaction(connection=caller.connection) as tx,
        ):
            seen.append(delivery.event.payload)
            tx.put(f"seen/{delivery.event.payload}", True)
        if len(seen) == 3:
            break
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("level", LEVELS)
async def test_a_settlement_whose_key_got_more_meanwhile_is_told_to_try_again(
    bus: Bus, caller: Caller, level: str
) -> None:
    await bus.declare_group("g", "orders")
    await bus.publish("orders", "head", key="k")
    async for delivery in bus.deliveries("orders", group="g"):
        with pytest.raises((SerializationError, LeaseLost)) as refused:  # noqa: PT012
            async with (
                caller.begun(level),
                delivery.transaction(connection=caller.connection),
            ):
                await caller.value(f'select count(*) from "{caller.schema}".messages')
                await bus.publish("orders", "next", key="k")
        assert refused.type is SerializationError
        await delivery.ack()
        break
    async with asyncio.timeout(10):
        assert await handle_one(bus) == "next"


@pytest.fixture(params=LEVELS)
async def strict_bus(
    request: pytest.FixtureRequest, server: PostgresServer, make_bus: MakeBus, schema: str
) -> AsyncIterator[Bus]:
    """A bus on a database whose transactions begin in a strict isolation."""
    name = f"strict_{schema}"
    url = server.create_database(name)
    server.execute(
        f'alter database "{name}" set default_transaction_isolation to "{request.param}"'
    )
    yield await make_bus(url)
    server.terminate_all(name)


async def test_the_bus_works_where_transactions_begin_in_a_strict_isolation(
    strict_bus: Bus, eventually: Eventually
) -> None:
    bus = strict_bus
    handled: list[Any] = []
    heard: list[Any] = []
    await bus.subscribe("orders", lambda event: heard.append(event.payload))
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    for start in range(0, 400, 20):
        await asyncio.gather(
            *(bus.publish("orders", n, key=f"k{n % 3}") for n in range(start, start + 20))
        )
    await eventually(lambda: (len(handled), len(heard)) == (400, 400))
    for key in range(3):
        assert [n for n in handled if n % 3 == key] == [n for n in range(400) if n % 3 == key]
    await bus.wait_idle(10)
    assert (await bus.inspect())["groups"][0]["acked"] == 400
