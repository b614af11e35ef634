"""Behind a pooler: of sessions as without; of transactions, where LISTEN is dead, by polling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from eventbus import connect
from postgres.conftest import Eventually, MakeBus
from servers.pgbouncer import PgBouncer
from servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def poolers() -> Iterator[dict[str, PgBouncer]]:
    """A pooler per mode, started when first asked for."""
    from servers.shared import shared_postgres

    class Poolers(dict[str, PgBouncer]):
        def __missing__(self, mode: str) -> PgBouncer:
            # Session pooling gives each client a connection of its own.
            size = 20 if mode == "session" else 4
            self[mode] = PgBouncer(shared_postgres(), mode=mode, pool_size=size).start()
            return self[mode]

    found = Poolers()
    yield found
    for pooler in found.values():
        pooler.close()


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_everything_works_through_a_pooler(
    poolers: dict[str, PgBouncer], make_bus: MakeBus, mode: str, eventually: Eventually
) -> None:
    bus = await make_bus(poolers[mode].url())
    heard: list[Any] = []
    wide: list[Any] = []
    handled: list[Any] = []
    await bus.subscribe("orders", lambda event: heard.append(event.payload))
    await bus.subscribe("*", lambda event: wide.append(event.payload), pattern="*")
    await bus.consume("orders", lambda event: handled.append(event.payload), group="g")
    for n in range(20):
        await bus.publish("orders", n)
    await bus.publish("orders", "x" * 20_000)
    await bus.publish_many([("orders", n) for n in range(20, 40)])
    wanted = [*range(20), "x" * 20_000, *range(20, 40)]
    await eventually(lambda: (len(heard), len(wide), len(handled)) == (41, 41, 41))
    assert (heard, wide) == (wanted, wanted)
    assert sorted(handled, key=str) == sorted(wanted, key=str)
    async with bus.transaction() as tx:
        tx.put("r", 1, if_version=0)
        tx.publish("done", 1)
    record = await bus.read("r")
    assert record is not None
    await eventually(lambda: wide[-1] == 1)
    await bus.publish("orders", "k", key="k", delay=0.05, dedup_id="d")
    await eventually(lambda: handled[-1] == "k")


async def test_a_transaction_pooler_is_noticed_and_told(
    poolers: dict[str, PgBouncer], make_bus: MakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        bus = await make_bus(poolers["transaction"].url())
    told = [one for one in caplog.records if "transaction pooler" in one.getMessage()]
    assert len(told) == 1
    health = await bus.health()
    assert (health["ok"], health["connection"]) == (True, "degraded")
    assert any("transaction pooler" in warning for warning in health["warnings"])


async def test_a_session_pooler_needs_no_warning(
    poolers: dict[str, PgBouncer], make_bus: MakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        bus = await make_bus(poolers["session"].url())
    assert "pooler" not in caplog.text
    assert (await bus.health())["connection"] == "live"


async def test_direct_and_pooled_buses_hear_each_other(
    poolers: dict[str, PgBouncer],
    make_bus: MakeBus,
    schema: str,
    server: PostgresServer,
    eventually: Eventually,
) -> None:
    direct = await make_bus()
    pooled = await make_bus(poolers["transaction"].url())
    at_direct: list[Any] = []
    at_pooled: list[Any] = []
    handled: list[Any] = []
    # The direct one has published before, by a registry that kept nothing.
    await direct.publish("t", "before")
    await direct.subscribe("t", lambda event: at_direct.append(event.payload))
    await pooled.subscribe("t", lambda event: at_pooled.append(event.payload))
    await direct.publish("t", "direct")
    await pooled.consume("t", lambda event: handled.append(event.payload), group="g")
    await pooled.publish("t", "pooled")
    connection = await asyncpg.connect(server.url())
    await connection.execute(f"select {schema}.publish('t', '\"sql\"')")
    async with connection.transaction():
        await direct.publish("t", "joined", connection=connection)
    await connection.close()
    wanted = ["direct", "pooled", "sql", "joined"]
    await eventually(lambda: len(at_direct) == 4 and len(at_pooled) == 4 and len(handled) == 3)
    assert (at_direct, at_pooled) == (wanted, wanted)
    assert sorted(handled) == sorted(wanted[1:])


async def test_what_is_published_right_after_subscribing_is_heard(
    poolers: dict[str, PgBouncer], make_bus: MakeBus, eventually: Eventually
) -> None:
    direct = await make_bus()
    pooled = await make_bus(poolers["transaction"].url())
    lists: list[list[Any]] = [[] for _ in range(10)]
    for n, heard in enumerate(lists):
        await pooled.subscribe(f"t{n}", lambda event, heard=heard: heard.append(event.payload))
        await direct.publish(f"t{n}", n)
    await eventually(lambda: all(lists))
    assert lists == [[n] for n in range(10)]


async def test_a_replay_through_a_transaction_pooler_goes_live(
    poolers: dict[str, PgBouncer], make_bus: MakeBus, eventually: Eventually
) -> None:
    direct = await make_bus(retention=3600)
    # Without notifications only looking often makes it live, not the sweep.
    pooled = await make_bus(poolers["transaction"].url(), retention=3600, sweep=60.0)
    heard: list[Any] = []
    for number in range(20):
        await direct.publish("t", number)
    await pooled.subscribe("t", lambda event: heard.append(event.payload), since="beginning")
    for number in range(20, 40):
        await (direct if number % 2 else pooled).publish("t", number)
    await eventually(lambda: len(heard) >= 40)
    assert sorted(heard) == list(range(40))
    assert heard[:20] == list(range(20))


async def test_a_caller_s_connection_through_the_pooler_joins(
    poolers: dict[str, PgBouncer], make_bus: MakeBus, eventually: Eventually
) -> None:
    url = poolers["transaction"].url()
    bus = await make_bus(url)
    handled: list[Any] = []
    await bus.consume("t", lambda event: handled.append(event.payload), group="g")
    # As asyncpg asks for behind such a pooler.
    connection = await asyncpg.connect(url, statement_cache_size=0)
    async with connection.transaction():
        await bus.publish("t", 1, connection=connection)
    await connection.close()
    await eventually(lambda: handled)


async def test_many_workers_share_a_few_connections(
    poolers: dict[str, PgBouncer], schema: str, make_bus: MakeBus, eventually: Eventually
) -> None:
    url = poolers["transaction"].url()
    buses = [await make_bus(url, pool_size=2) for _ in range(5)]
    handled: list[int] = []
    for bus in buses:
        await bus.consume("t", lambda event: handled.append(event.payload), group="g")
    await asyncio.gather(*(buses[n % 5].publish("t", n) for n in range(200)))
    await eventually(lambda: len(handled) >= 200)
    assert sorted(handled) == list(range(200))
    async with connect(url, schema=schema) as late:
        assert (await late.inspect())["groups"][0]["acked"] == 200
