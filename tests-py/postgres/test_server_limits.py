"""Limits that an operator sets, connections that run out, and a schema that is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from eventbus import Bus, ConnectError, EventBusError, Gap
from eventbus.cli import main
from postgres.conftest import Eventually, MakeBus
from servers.postgres import PostgresServer

Limited = Callable[[str], str]


@pytest.fixture
def limited(server: PostgresServer, schema: str) -> Limited:
    """Return a function that makes a database with a setting, and returns its address."""

    def make(setting: str) -> str:
        name = f"limited_{schema}"
        url = server.create_database(name)
        server.execute(f'alter database "{name}" set {setting}')
        return url

    return make


@pytest.mark.parametrize("setting", ["lock_timeout to '100ms'", "statement_timeout to '100ms'"])
async def test_a_publish_that_waits_longer_than_a_limit_is_sent_again(
    make_bus: MakeBus, limited: Limited, schema: str, setting: str
) -> None:
    url = limited(setting)
    bus = await make_bus(url)
    await bus.declare_group("g", "orders")
    async with await psycopg.AsyncConnection.connect(url) as other:
        await bus.publish("orders", 1, key="k", connection=other)
        waiting = asyncio.create_task(bus.publish("orders", 2, key="k"))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        await other.commit()
        await waiting
    assert (await bus.inspect())["groups"][0]["accepted"] == 2


@pytest.mark.parametrize("setting", ["lock_timeout to '100ms'", "statement_timeout to '100ms'"])
async def test_a_publish_that_a_limit_ends_each_time_is_worth_another_try(
    make_bus: MakeBus, limited: Limited, setting: str
) -> None:
    url = limited(setting)
    bus = await make_bus(url, op_timeout=1.0)
    await bus.declare_group("g", "orders")
    async with await psycopg.AsyncConnection.connect(url) as other:
        await bus.publish("orders", 1, key="k", connection=other)
        # Which of the two it is depends on who is first: the server's limit or that of the call.
        with pytest.raises(ConnectError, match=r"timeout|no answer within") as refused:
            await bus.publish("orders", 2, key="k")
        assert refused.value.is_retryable
        await other.commit()
    await bus.publish("orders", 3, key="k")


async def test_idle_sessions_that_the_server_ends_cost_nothing(
    make_bus: MakeBus, limited: Limited, eventually: Eventually
) -> None:
    bus = await make_bus(limited("idle_session_timeout to '200ms'"))
    heard: list[Any] = []
    handled: list[Any] = []
    gaps: list[Gap] = []
    await bus.subscribe("orders", lambda event: heard.append(event.payload), on_gap=gaps.append)
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    for n in range(4):
        # The limit is what this test waits for.
        await asyncio.sleep(0.4)
        await bus.publish("orders", n)
    await eventually(lambda: (heard, handled) == ([0, 1, 2, 3], [0, 1, 2, 3]))
    assert gaps == []


async def test_a_server_without_free_connections_is_named_as_the_cause(
    make_bus: MakeBus, server: PostgresServer, schema: str
) -> None:
    server.execute(f'create role "{schema}" login superuser')
    # The limit of a role holds for superusers too once they are none.
    bus = await make_bus(server.url(user=schema), op_timeout=2.0)
    await bus.declare_group("g", "orders")
    server.execute(f'alter role "{schema}" connection limit 0 nosuperuser')
    server.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", schema
    )
    with pytest.raises(ConnectError, match="53300"):  # noqa: PT012 - the first may be under way
        while True:
            await bus.publish("orders", 1)
    server.execute(f'alter role "{schema}" connection limit -1 superuser')
    await bus.publish("orders", 2)


async def test_the_schema_is_made_where_strings_have_escapes(
    make_bus: MakeBus, limited: Limited, schema: str
) -> None:
    url = limited("standard_conforming_strings to off")
    bus = await make_bus(url)
    await bus.declare_group("g", "orders")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute(f"select \"{schema}\".publish('orders', '{{\"id\": 7}}')".encode())
        with pytest.raises(psycopg.Error, match="control characters"):
            await other.execute(f"select \"{schema}\".publish(E'or\\x01ders', '1')".encode())
    async with bus.deliveries("orders", group="g") as deliveries:
        assert (await anext(deliveries)).event.payload == {"id": 7}


async def test_a_schema_dropped_under_a_bus_shows_and_comes_back(
    make_bus: MakeBus,
    server: PostgresServer,
    schema: str,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus: Bus = await make_bus(sweep=0.2, op_timeout=2.0)
    heard: list[Any] = []
    handled: list[Any] = []
    await bus.subscribe("orders", lambda event: heard.append(event.payload))
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    await bus.consume("bills:*", handled.append, pattern="bills:*", group="h")
    await bus.publish("orders", 1)
    await eventually(lambda: (heard, handled) == ([1], [1]))
    server.execute(f'drop schema "{schema}" cascade')
    with pytest.raises(EventBusError, match="eventbus migrate") as refused:
        await bus.publish("orders", "never")
    assert refused.value.is_retryable
    health = await bus.health()
    assert not health["ok"]
    assert any("eventbus migrate" in warning for warning in health["warnings"])
    migrated = await asyncio.to_thread(main, ["migrate", f"{server.url()}?schema={schema}"])
    assert migrated == 0

    def groups() -> list[str]:
        found = server.execute(f'select name from "{schema}".groups')
        return [name for (name,) in found]

    await eventually(lambda: sorted(groups()) == ["g", "h"])
    await bus.publish("orders", 2)
    await eventually(lambda: (heard, handled) == ([1, 2], [1, 2]))
    assert (await bus.health())["ok"]
    async with await psycopg.AsyncConnection.connect(server.url()) as other:
        await bus.publish("orders", 3, connection=other)
        await other.commit()
    await eventually(lambda: (heard, handled) == ([1, 2, 3], [1, 2, 3]))


async def test_the_health_shows_a_dropped_schema_without_any_call(
    make_bus: MakeBus, server: PostgresServer, schema: str, eventually: Eventually
) -> None:
    bus = await make_bus(sweep=0.1)
    assert (await bus.health())["ok"]
    server.execute(f'drop schema "{schema}" cascade')
    await eventually(lambda: bus._health()["state"] == "connecting")
