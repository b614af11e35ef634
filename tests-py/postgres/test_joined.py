"""Publishing, settling and writing records in a transaction of the caller's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import asyncpg
import psycopg
import pytest

from eventbus import (
    Bus,
    ConfigError,
    Delivery,
    Event,
    LeaseLost,
    NotConnectedError,
    NoTransactionError,
    QueueFull,
    RetryPolicy,
    UnsupportedError,
    VersionConflict,
    connect,
)
from postgres.conftest import Caller, Eventually, MakeBus
from servers.postgres import PostgresServer
from servers.process import binary
from servers.shared import shared_redis


class Undo(Exception):
    """Raised by a test to roll back."""


@pytest.fixture
async def heard(bus: Bus) -> list[Any]:
    """Payloads of all broadcasts."""
    payloads: list[Any] = []
    await bus.subscribe("*", lambda event: payloads.append(event.payload), pattern="*")
    return payloads


@pytest.fixture
async def handled(bus: Bus) -> list[Any]:
    """Payloads that a group handled; it would not look by itself within a test."""
    payloads: list[Any] = []
    await bus.consume("orders", lambda event: payloads.append(event.payload), group="g")
    return payloads


# Publish


async def test_a_publish_takes_effect_with_the_caller_s_commit(
    make_bus: MakeBus, caller: Caller, eventually: Eventually
) -> None:
    # Nothing is looked for without a wake-up.
    bus = await make_bus(sweep=3600.0)
    heard: list[Any] = []
    handled: list[Any] = []
    await bus.subscribe("orders", lambda event: heard.append(event.payload))
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    async with caller.transaction():
        await bus.publish("orders", {"id": 1}, connection=caller.connection)
        await asyncio.sleep(0.2)
        assert (heard, handled) == ([], [])
    await eventually(lambda: heard and handled)
    assert (heard, handled) == ([{"id": 1}], [{"id": 1}])


async def test_a_publish_vanishes_with_the_caller_s_rollback(
    bus: Bus, caller: Caller, heard: list[Any], handled: list[Any], eventually: Eventually
) -> None:
    with pytest.raises(Undo):  # noqa: PT012
        async with caller.transaction():
            await bus.publish("orders", 1, connection=caller.connection)
            raise Undo
    await caller.settle()
    await bus.publish("orders", 2)
    await eventually(lambda: heard and handled)
    assert (heard, handled) == ([2], [2])
    figures = await bus.inspect()
    assert [group["accepted"] for group in figures["groups"]] == [1]


async def test_a_savepoint_undoes_its_publishes_only(
    bus: Bus, caller: Caller, handled: list[Any], eventually: Eventually
) -> None:
    async with caller.transaction():
        await bus.publish("orders", 1, connection=caller.connection)
        with pytest.raises(Undo):  # noqa: PT012
            async with caller.transaction():
                await bus.publish("orders", 2, connection=caller.connection)
                raise Undo
        await bus.publish("orders", 3, connection=caller.connection)
    await eventually(lambda: len(handled) == 2)
    assert sorted(handled) == [1, 3]


async def test_psycopg_begins_a_transaction_with_the_publish(
    bus: Bus, server: PostgresServer, handled: list[Any], eventually: Eventually
) -> None:
    async with await psycopg.AsyncConnection.connect(server.url()) as connection:
        await bus.publish("orders", 1, connection=connection)
        await connection.rollback()
        await bus.publish("orders", 2, connection=connection)
        await connection.commit()
    await eventually(lambda: handled == [2])


async def test_without_a_transaction_nothing_is_published(
    bus: Bus, server: PostgresServer, handled: list[Any], eventually: Eventually
) -> None:
    autocommit = await psycopg.AsyncConnection.connect(server.url(), autocommit=True)
    blocking = psycopg.connect(server.url(), autocommit=True)
    plain = await asyncpg.connect(server.url())
    for connection in (autocommit, blocking, plain):
        with pytest.raises(NoTransactionError, match=r"take effect at once.*transaction\(\)"):
            await bus.publish("orders", "never", connection=connection)
        with pytest.raises(NoTransactionError):
            await bus.publish_many([("orders", "never")], connection=connection)
        tx = bus.transaction(connection=connection)
        tx.publish("orders", "never")
        with pytest.raises(NoTransactionError):
            await tx.commit()
        async with bus.transaction(connection=connection) as tx:
            tx.publish("orders", "in a block")
    await eventually(lambda: handled == ["in a block"] * 3)
    await autocommit.close()
    blocking.close()
    await plain.close()


async def test_a_blocking_connection_of_psycopg_is_taken(
    bus: Bus, server: PostgresServer, handled: list[Any], eventually: Eventually
) -> None:
    with psycopg.connect(server.url(), row_factory=psycopg.rows.dict_row) as connection:
        await bus.publish("orders", "never", connection=connection)
        connection.rollback()
        await bus.publish("orders", 1, connection=connection)
        connection.commit()
        async with bus.transaction(connection=connection) as tx:
            tx.publish("orders", 2)
        with pytest.raises(Undo):  # noqa: PT012
            async with bus.transaction(connection=connection) as tx:
                tx.publish("orders", "undone")
                raise Undo
    await eventually(lambda: sorted(handled) == [1, 2])


async def test_many_are_published_in_order_and_equal_ones_each(
    bus: Bus, caller: Caller, heard: list[Any], eventually: Eventually
) -> None:
    await bus.declare_group("g", "orders")
    event = Event.from_dict({"type": "custom", "topic": "orders", "payload": "same"})
    async with caller.transaction():
        await bus.publish_many([("orders", n) for n in range(50)], connection=caller.connection)
        await bus.publish_many([("orders", event)] * 3, connection=caller.connection)
    await eventually(lambda: len(heard) == 53)
    assert heard == [*range(50), "same", "same", "same"]
    figures = await bus.inspect()
    assert [group["ready"] for group in figures["groups"]] == [53]


async def test_large_events_are_heard_whole(
    bus: Bus, caller: Caller, heard: list[Any], handled: list[Any], eventually: Eventually
) -> None:
    large = {"text": "ü" * 200_000, "bytes": bytes(range(256)) * 100}
    async with caller.transaction():
        await bus.publish("orders", large, connection=caller.connection)
    await eventually(lambda: heard and handled)
    assert (heard, handled) == ([large], [large])


async def test_every_option_means_what_it_says(bus: Bus, caller: Caller) -> None:
    await bus.declare_group("g", "orders")
    connection = caller.connection
    async with caller.transaction():
        await bus.publish("orders", "later", delay=3600, connection=connection)
        await bus.publish("orders", "low", priority=-5, connection=connection)
        await bus.publish("orders", "high", priority=9, key="k", connection=connection)
        for _ in range(2):
            await bus.publish("orders", "once", dedup_id="d", connection=connection)
            await bus.publish("orders", "alone", unique="u", connection=connection)
        await bus.publish(
            "orders",
            "signed",
            source="me",
            correlation_id="c",
            metadata={"a": 1},
            connection=connection,
        )
    figures = (await bus.inspect())["groups"][0]
    assert (figures["ready"], figures["delayed"]) == (5, 1)
    seen = []
    async with bus.deliveries("orders", group="g") as deliveries:
        async for delivery in deliveries:
            seen.append(delivery)
            await delivery.ack()
            if len(seen) == 5:
                break
    assert [one.event.payload for one in seen] == ["high", "once", "alone", "signed", "low"]
    assert seen[0].key == "k"
    event = seen[3].event
    assert (event.source, event.correlation_id, event.metadata) == ("me", "c", {"a": 1})


async def test_a_group_declared_meanwhile_gets_its_copy(
    bus: Bus, make_bus: MakeBus, caller: Caller
) -> None:
    other = await make_bus()
    async with caller.transaction():
        await bus.publish("orders", 1, connection=caller.connection)
        declaring = asyncio.create_task(other.declare_group("late", "orders"))
        # The declaration waits for this transaction, so it must not be awaited in it.
        await asyncio.sleep(0.1)
        await bus.publish("other", 1, connection=caller.connection)
    await declaring
    await caller.value("select 1")
    await caller.settle()
    async with caller.transaction():
        await bus.publish("orders", 2, connection=caller.connection)
    async with other.deliveries("orders", group="late") as deliveries:
        delivery = await anext(deliveries)
        assert delivery.event.payload == 2
        await delivery.ack()


async def test_a_full_group_refuses_and_the_transaction_goes_on(bus: Bus, caller: Caller) -> None:
    await bus.declare_group("small", "orders", max_length=1)
    async with caller.transaction():
        await bus.publish("orders", 1, connection=caller.connection)
        with pytest.raises(QueueFull, match="small") as refused:
            await bus.publish("orders", 2, connection=caller.connection)
        assert refused.value.limit == 1
    figures = await bus.inspect()
    assert [group["ready"] for group in figures["groups"]] == [1]


# What is no connection to this bus


@pytest.mark.parametrize("url", ["memory://", "redis"])
async def test_other_buses_join_no_transaction(url: str, caller: Caller) -> None:
    async with connect(shared_redis().url() if url == "redis" else url) as bus:
        for call in (
            lambda: bus.publish("t", 1, connection=caller.connection),
            lambda: bus.publish_many([("t", 1)], connection=caller.connection),
        ):
            with pytest.raises(UnsupportedError, match="postgresql://"):
                await call()
        with pytest.raises(UnsupportedError, match="postgresql://"):
            bus.transaction(connection=caller.connection)


async def test_other_kinds_of_connections_are_refused_with_what_is_accepted(
    bus: Bus, server: PostgresServer
) -> None:
    pool = asyncpg.create_pool(server.url())
    with psycopg.connect(server.url()) as blocking:
        for wrong, said in [
            (blocking.cursor(), "SQL function publish()"),
            (pool, "out of the pool"),
            (object(), "builtins.object"),
            ("postgresql://", "builtins.str"),
        ]:
            with pytest.raises(TypeError, match=r"an asyncpg .*AsyncSession") as no:
                await bus.publish("t", 1, connection=wrong)
            assert said in str(no.value)
            with pytest.raises(TypeError, match="asyncpg"):
                bus.transaction(connection=wrong)
        with pytest.raises(TypeError, match="publish_nowait"):
            bus.publish_nowait("t", 1, connection=blocking)  # type: ignore[call-arg]


async def test_a_connection_out_of_a_pool_is_taken(
    bus: Bus, server: PostgresServer, handled: list[Any], eventually: Eventually
) -> None:
    async with (
        asyncpg.create_pool(server.url(), min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        await bus.publish("orders", 1, connection=connection)
    await eventually(lambda: handled)


async def test_rows_and_cursors_of_the_caller_s_choice_do_not_matter(
    bus: Bus, server: PostgresServer, handled: list[Any], eventually: Eventually
) -> None:
    async with await psycopg.AsyncConnection.connect(
        server.url(), row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.AsyncRawCursor
    ) as connection:
        await bus.publish("orders", 1, connection=connection)
    await eventually(lambda: handled)


async def test_a_connection_that_leads_elsewhere_is_refused(
    bus: Bus, make_bus: MakeBus, schema: str, server: PostgresServer
) -> None:
    empty, other = f"{schema}_empty", f"{schema}_other"
    server.create_database(empty)
    server.create_database(other)
    await make_bus(server.url(other))
    for database, said in [(empty, "no tables of a bus"), (other, "another bus")]:
        connection = await asyncpg.connect(server.url(database))
        with pytest.raises(ConfigError, match=said) as refused:
            async with connection.transaction():
                await bus.publish("orders", 1, connection=connection)
        assert "'postgres'" in str(refused.value) or '"postgres"' in str(refused.value)
        await connection.close()


async def test_a_role_without_rights_is_named(
    bus: Bus, schema: str, server: PostgresServer
) -> None:
    server.execute(f"create role {schema}_nobody login")
    connection = await asyncpg.connect(server.url(user=f"{schema}_nobody"))
    with pytest.raises(ConfigError, match="may not use schema"):
        async with connection.transaction():
            await bus.publish("orders", 1, connection=connection)
    await connection.close()


async def test_the_bus_must_be_connected(server: PostgresServer, caller: Caller) -> None:
    bus = connect(server.url())
    with pytest.raises(NotConnectedError):
        await bus.publish("orders", 1, connection=caller.connection)


async def test_errors_of_the_transaction_itself_are_the_driver_s(bus: Bus, caller: Caller) -> None:
    failed: tuple[type[Exception], ...] = (
        asyncpg.InFailedSQLTransactionError,
        psycopg.errors.InFailedSqlTransaction,
    )
    with pytest.raises(failed):  # noqa: PT012
        async with caller.transaction():
            with pytest.raises((asyncpg.DivisionByZeroError, psycopg.errors.DivisionByZero)):
                await caller.execute("select 1 / 0")
            await bus.publish("orders", 1, connection=caller.connection)


# Transactions


@pytest.fixture
async def table(server: PostgresServer, schema: str) -> str:
    """A table of the user's."""
    server.execute(f"create table {schema}_effects (id integer)")
    return f"{schema}_effects"


def effects(server: PostgresServer, table: str) -> list[int]:
    return [row[0] for row in server.execute(f"select id from {table} order by id")]


async def test_records_and_publishes_join_the_caller_s_work(
    bus: Bus,
    caller: Caller,
    table: str,
    server: PostgresServer,
    handled: list[Any],
    eventually: Eventually,
) -> None:
    async with bus.transaction(connection=caller.connection) as tx:
        await caller.execute(f"insert into {table} values (1)")
        tx.put("r", {"n": 1}, if_version=0)
        tx.publish("orders", 1)
        assert await bus.read("r") is None
    assert tx.versions == {"r": 1}
    await eventually(lambda: handled)
    record = await bus.read("r")
    assert record is not None
    assert record.value == {"n": 1}
    with pytest.raises(VersionConflict) as refused:  # noqa: PT012
        async with bus.transaction(connection=caller.connection) as tx:
            await caller.execute(f"insert into {table} values (2)")
            tx.put("r", 2, if_version=7)
    assert (refused.value.key, refused.value.expected, refused.value.actual) == ("r", 7, 1)
    with pytest.raises(Undo):  # noqa: PT012
        async with bus.transaction(connection=caller.connection) as tx:
            await caller.execute(f"insert into {table} values (3)")
            tx.delete("r")
            raise Undo
    assert effects(server, table) == [1]
    assert (await bus.read("r")) == record


async def test_a_transaction_is_a_savepoint_inside_the_caller_s(
    bus: Bus, caller: Caller, table: str, server: PostgresServer
) -> None:
    with pytest.raises(Undo):  # noqa: PT012
        async with caller.transaction():
            async with bus.transaction(connection=caller.connection) as tx:
                await caller.execute(f"insert into {table} values (1)")
                tx.put("r", 1)
            raise Undo
    assert effects(server, table) == []
    assert await bus.read("r") is None


async def test_a_handler_s_effect_and_its_acknowledgement_are_one(
    bus: Bus, caller: Caller, table: str, server: PostgresServer, eventually: Eventually
) -> None:
    done: list[Any] = []
    failures = iter([True, False])

    async def handle(event: Event, delivery: Delivery) -> None:
        async with delivery.transaction(connection=caller.connection) as tx:
            await caller.execute(f"insert into {table} values ({event.payload})")
            tx.publish("done", event.payload)
            if next(failures, False):
                raise Undo

    await bus.subscribe("done", lambda event: done.append(event.payload))
    await bus.consume(
        "orders", handle, group="g", concurrency=1, retry=RetryPolicy(base=0.01, cap=0.01)
    )
    for n in range(3):
        await bus.publish("orders", n)
    await eventually(lambda: len(done) == 3)
    await bus.wait_idle()
    assert effects(server, table) == [0, 1, 2]
    assert sorted(done) == [0, 1, 2]
    group = (await bus.inspect())["groups"][0]
    assert (group["acked"], group["retried"], group["dead"], group["in_flight"]) == (3, 1, 0, 0)


async def test_a_connection_lost_before_the_commit_leaves_the_delivery(
    bus: Bus, caller: Caller, table: str, server: PostgresServer
) -> None:
    await bus.declare_group("g", "orders")
    await bus.publish("orders", 1)
    pid = await caller.value("select pg_backend_pid()")
    await caller.settle()
    async with bus.deliveries("orders", group="g") as deliveries:
        delivery = await anext(deliveries)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error)):  # noqa: PT012
            async with delivery.transaction(connection=caller.connection) as tx:
                await caller.execute(f"insert into {table} values (1)")
                tx.put("r", 1)
                server.execute("select pg_terminate_backend(%s)", pid)
        assert not delivery.settled
        assert effects(server, table) == []
        assert await bus.read("r") is None
        await delivery.ack()


DYING = """
import asyncio, os, signal, sys
import asyncpg, psycopg
from eventbus import connect

async def main(url, schema, table, driver, when):
    if driver == "asyncpg":
        connection = await asyncpg.connect(url)
    else:
        connection = await psycopg.AsyncConnection.connect(url)
    async with connect(url, schema=schema) as bus:
        delivery = await anext(bus.deliveries("orders", group="g", lease=1.0))
        async with delivery.transaction(connection=connection) as tx:
            await connection.execute(f"insert into {table} values (1)")
            tx.publish("done", delivery.event.payload)
            if when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_worker_killed_around_the_commit_loses_and_repeats_nothing(
    make_bus: MakeBus, schema: str, table: str, server: PostgresServer, driver: str, when: str
) -> None:
    bus = await make_bus(sweep=0.1)
    await bus.declare_group("g", "orders")
    await bus.declare_group("audit", "done")
    await bus.publish("orders", "x")
    words = [sys.executable, "-c", DYING, server.url(), schema, table, driver, when]
    killed = await asyncio.to_thread(subprocess.run, words, check=False)
    assert killed.returncode == -9
    done = int(when == "after")
    assert effects(server, table) == [1] * done
    deliveries = bus.deliveries("orders", group="g")
    if done:
        with pytest.raises(TimeoutError):
            # Its lease of a second would have run out by then.
            await asyncio.wait_for(anext(deliveries), 2.0)
    else:
        again = await asyncio.wait_for(anext(deliveries), 10.0)
        assert (again.event.payload, again.crashes) == ("x", 1)
        await again.ack()
    await deliveries.aclose()
    groups = {group["group"]: group for group in (await bus.inspect())["groups"]}
    assert (groups["g"]["acked"], groups["audit"]["ready"]) == (1, done)


async def test_a_stale_worker_s_work_is_undone(
    bus: Bus, make_bus: MakeBus, caller: Caller, table: str, server: PostgresServer, schema: str
) -> None:
    await bus.declare_group("g", "orders")
    await bus.publish("orders", 1)
    slow = await make_bus(sweep=0.1)
    # No renewal within the lease, and no cancellation: as if its process had stood still.
    deliveries = slow.deliveries("orders", group="g", lease=3600.0)
    stale = await anext(deliveries)
    server.execute(f"update {schema}.messages set due_at = 0 where state = 3")
    async with bus.deliveries("orders", group="g") as others:
        fresh = await anext(others)
        with pytest.raises(LeaseLost):  # noqa: PT012
            async with stale.transaction(connection=caller.connection) as tx:
                await caller.execute(f"insert into {table} values (1)")
                tx.publish("orders", "never")
        assert effects(server, table) == []
        async with fresh.transaction(connection=caller.connection):
            await caller.execute(f"insert into {table} values (2)")
    assert effects(server, table) == [2]
    figures = (await bus.inspect())["groups"][0]
    assert (figures["acked"], figures["ready"], figures["in_flight"]) == (1, 0, 0)
    await deliveries.aclose()


# SQL


def psql(server: PostgresServer, schema: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary("psql"), "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", server.url()],
        input=script.replace("eventbus.", f"{schema}."),
        capture_output=True,
        text=True,
        check=False,
    )


async def test_psql_publishes_in_its_transaction(
    bus: Bus,
    schema: str,
    server: PostgresServer,
    heard: list[Any],
    handled: list[Any],
    eventually: Eventually,
) -> None:
    script = """
        begin;
        select eventbus.publish('orders', '{"id": 1}');
        rollback;
        begin;
        select eventbus.publish('orders', '{"id": 2}', key => 'k', source => 'psql');
        commit;
        select eventbus.publish('orders', jsonb_build_object('text', repeat('ü', 20000)));
    """
    done = await asyncio.to_thread(psql, server, schema, script)
    assert done.returncode == 0, done.stderr
    await eventually(lambda: len(heard) == 2 and len(handled) == 2)
    wanted = [{"id": 2}, {"text": "ü" * 20_000}]
    assert (heard, sorted(handled, key=len)) == (wanted, wanted)


async def test_psql_wakes_consumers_at_once(
    make_bus: MakeBus, schema: str, server: PostgresServer, eventually: Eventually
) -> None:
    bus = await make_bus(sweep=3600.0)
    handled: list[Any] = []
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    done = await asyncio.to_thread(psql, server, schema, "select eventbus.publish('orders', '1')")
    assert done.returncode == 0, done.stderr
    await eventually(lambda: handled)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("publish('', '1')", "invalid topic"),
        ("publish(null, '1')", "invalid topic"),
        ("publish(E'a\\nb', '1')", "invalid topic"),
        ("publish(U&'a\\0085', '1')", "invalid topic"),
        ("publish(repeat('ü', 128), '1')", "invalid topic"),
        ("publish('t', '1', key => '')", "invalid key"),
        ("publish('t', '1', key => repeat('k', 256))", "invalid key"),
        ("publish('t', '1', dedup_id => '')", "invalid dedup_id"),
        ("publish('t', '1', unique_key => '')", "invalid unique_key"),
        ("publish('t', '1', priority => 40000)", "invalid priority"),
        ("publish('t', '1', event_type => 'nope')", "invalid event_type"),
        ("publish('t', '{')", "invalid input syntax"),
    ],
)
async def test_psql_is_refused_by_name(
    bus: Bus, schema: str, server: PostgresServer, call: str, said: str
) -> None:
    done = await asyncio.to_thread(psql, server, schema, f"select eventbus.{call}")
    assert done.returncode != 0
    assert said in done.stderr


@dataclass
class Order:
    number: int


async def test_objects_of_data_classes_are_published_as_they_are_elsewhere(
    bus: Bus, caller: Caller, heard: list[Any], eventually: Eventually
) -> None:
    async with caller.transaction():
        await bus.publish("orders", Order(7), connection=caller.connection)
        await bus.publish_many([("orders", [Order(8)])], connection=caller.connection)
    await eventually(lambda: len(heard) == 2)
    assert heard == [{"number": 7}, [{"number": 8}]]
