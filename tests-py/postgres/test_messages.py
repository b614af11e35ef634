"""Messages found by their event, however Postgres came to have them."""

from __future__ import annotations

import asyncio

import pytest

from eventbus import Bus, Event, EventType
from eventbus.testing import eventually
from postgres.conftest import Caller
from servers.postgres import PostgresServer


class Undo(Exception):
    """Raised by a test to roll back."""


async def test_what_a_caller_s_transaction_published_is_found_once_it_is_committed(
    bus: Bus, caller: Caller
) -> None:
    await bus.declare_group("g", "orders")
    event = Event(EventType.CREATED, "orders", {"n": 1})
    async with caller.transaction():
        await bus.publish("orders", event, connection=caller.connection)
        await bus.publish("orders", 2, event_id="two", key="k", connection=caller.connection)
        await bus.publish_many([("orders", event)], connection=caller.connection)
        assert await bus.message(event) == []
        assert await bus.cancel_message("two") == 0
    await caller.settle()
    assert [info.state for info in await bus.message(event)] == ["ready", "ready"]
    assert await bus.cancel_message(event) == 2
    assert await bus.cancel_message("two") == 1


async def test_what_a_caller_s_transaction_rolled_back_is_nowhere(bus: Bus, caller: Caller) -> None:
    await bus.declare_group("g", "orders")
    event = Event(EventType.CREATED, "orders", {"n": 1})
    with pytest.raises(Undo):  # noqa: PT012
        async with caller.transaction():
            await bus.publish("orders", event, connection=caller.connection)
            raise Undo
    await caller.settle()
    assert await bus.message(event) == []
    await bus.publish("orders", event)
    assert await bus.cancel_message(event) == 1


async def test_the_id_that_the_sql_function_returns_is_the_event_s(
    bus: Bus, server: PostgresServer, schema: str
) -> None:
    await bus.declare_group("g", "orders")
    [(found,)] = server.execute(
        f"select {schema}.publish('orders', '{{}}', delay => interval '1 hour')"
    )
    (info,) = await bus.message(found)
    assert (info.state, info.message_id) == ("delayed", str(found))
    assert await bus.promote_message(str(found)) == 1
    async with bus.deliveries("orders", group="g") as deliveries:
        delivery = await anext(deliveries)
        assert delivery.event.event_id == str(found)
        await delivery.ack()


async def test_a_look_at_one_event_reads_its_copies_and_not_the_queue(
    bus: Bus, server: PostgresServer, schema: str
) -> None:
    await bus.declare_group("g", "work")
    for _ in range(20):
        await bus.publish_many([("work", number) for number in range(500)])
    event = Event(EventType.CUSTOM, "work", {"n": 1})
    for _ in range(3):
        await bus.publish("work", event)
    # From now on the server knows that a whole table of this size is quickly read.
    server.execute(f"vacuum analyze {schema}.messages")

    def read() -> int:
        [(figure,)] = server.execute(
            "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint"
            " from pg_stat_all_tables where schemaname = %s and relname = 'messages'",
            schema,
        )
        return int(figure)

    async def settled() -> int:
        """Return the figure once the sessions have reported, which idle ones do each second."""
        last = -1
        while last != (now := read()):
            last = now
            await asyncio.sleep(1.5)
        return last

    before = await settled()
    for _ in range(5):
        assert len(await bus.message(event)) == 3
        assert await bus.message("unknown") == []
    assert await bus.promote_message(event) == 0
    assert await bus.cancel_message(event) == 3
    assert await settled() - before <= 1_000


async def test_a_cancel_waits_for_a_transaction_that_settles_the_message_and_finds_none(
    bus: Bus, caller: Caller
) -> None:
    await bus.declare_group("g", "orders")
    event = Event(EventType.CREATED, "orders", {"n": 1})
    await bus.publish("orders", event, key="k")
    await bus.publish("orders", "next", key="k")
    async with bus.deliveries("orders", group="g", prefetch=1) as deliveries:
        delivery = await anext(deliveries)
        async with caller.transaction():
            async with delivery.transaction(connection=caller.connection):
                pass
            cancelling = asyncio.ensure_future(bus.cancel_message(event))
            await asyncio.sleep(0)
        await caller.settle()
        assert await cancelling == 0
        following = await anext(deliveries)
        assert following.event.payload == "next"
        await following.ack()

    async def idle() -> bool:
        [group] = (await bus.inspect())["groups"]
        return (group["acked"], group["removed"]) == (2, 0)

    await eventually(idle)
