"""Two tenants on one server, each with the documented rights, that mean harm to each other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import redis

from chaos.load import soon
from chaos.redis_roles import FUNCTIONS, PASSWORD, acl
from eventbus import Bus, EventBusError, connect
from eventbus.migration import migrate
from servers.brokers import QUICK
from servers.postgres import PostgresServer
from servers.redis_server import RedisServer

OPTIONS: dict[str, Any] = {**QUICK, "drain_timeout": 2.0}
KEY = "{alice:0}:"

Heard = list[Any]


class Alice:
    """What belongs to the first tenant: a message that waits, a record, a subscription."""

    def __init__(self, bus: Bus) -> None:
        """Remember her bus."""
        self.bus = bus
        self.heard: Heard = []

    async def prepare(self) -> None:
        """Make it."""
        await self.bus.declare_group("jobs", "job")
        await self.bus.publish("job", "precious")
        async with self.bus.transaction() as tx:
            tx.put("record", "precious")
        await self.bus.subscribe("news", lambda event: self.heard.append(event.payload))

    async def is_intact(self) -> None:
        """Check that nothing of it changed, and that her bus still works."""
        [group] = [one for one in (await self.bus.inspect())["groups"] if one["group"] == "jobs"]
        assert (group["ready"], group["accepted"], group["paused"]) == (1, 1, False)
        record = await self.bus.read("record")
        assert record is not None
        assert (record.value, record.version) == ("precious", 1)
        await self.bus.publish("news", "own")
        assert await soon(lambda: "own" in self.heard, 5)
        assert self.heard == ["own"]
        self.heard.clear()
        async with self.bus.deliveries("job", group="jobs") as deliveries:
            delivery = await anext(deliveries)
            assert delivery.event.payload == "precious"
            await delivery.ack()


async def until_refused(bus: Bus, events: list[tuple[str, str]]) -> None:
    for _ in range(100):
        await bus.publish_many(events)


def refusal(connection: psycopg.Connection[Any], statement: str) -> type[Exception] | None:
    try:
        connection.execute(statement)
    except psycopg.Error as error:
        return type(error)
    return None


# Redis


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    users = [
        acl(name, FUNCTIONS["worker"].replace("{eventbus:0}", f"{{{name}:0}}"))
        for name in ("alice", "bob")
    ]
    with RedisServer(appendonly=True, users=users) as server:
        server.load_functions()
        yield server


@pytest.fixture
async def alice(guarded: RedisServer) -> AsyncIterator[Alice]:
    with guarded.client() as client:
        client.flushall()
    async with connect(
        guarded.url(), prefix="alice", username="alice", password=PASSWORD, **OPTIONS
    ) as bus:
        one = Alice(bus)
        await one.prepare()
        yield one


READS = [
    ("HGETALL", f"{KEY}g1:c"),
    ("GET", f"{KEY}v"),
    ("HGETALL", f"{KEY}r"),
    ("SUBSCRIBE", f"{KEY}b0:news"),
    ("PSUBSCRIBE", "*"),
    ("PSUBSCRIBE", f"{KEY}*"),
    ("SUBSCRIBE", "events:news"),
    ("MONITOR",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("DUMP", f"{KEY}r"),
    ("PUBSUB", "CHANNELS"),
    ("CLIENT", "LIST"),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
    ("SLOWLOG", "GET"),
    ("FCALL", "eventbus_1_read", 1, KEY, "read", "record"),
]
FORGERIES = [
    ("PUBLISH", f"{KEY}b0:news", "forged"),
    ("PUBLISH", "events:news", "forged"),
    ("HSET", f"{KEY}r", "record", "2:forged"),
    ("RPUSH", f"{KEY}l0", "0000000000000009"),
    ("FCALL", "eventbus_1_single", 1, KEY, "0", "p", "1", f"{KEY}b0:news", "m", "1", ""),
    # Her channel through a function on his own keys.
    ("FCALL", "eventbus_1_single", 1, "{bob:0}:", "0", "p", "1", f"{KEY}b0:news", "m", "2", "x"),
]
DELETIONS = [
    ("DEL", f"{KEY}r"),
    ("UNLINK", f"{KEY}g1:c"),
    ("HDEL", f"{KEY}r", "record"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("RENAME", f"{KEY}r", "{bob:0}:r"),
    ("EXPIRE", f"{KEY}r", "1"),
    ("FCALL", "eventbus_1_admin", 1, KEY, "delete", "jobs"),
]
STALLS = [
    ("FCALL", "eventbus_1_admin", 1, KEY, "pause", "jobs", "1"),
    ("PUBLISH", f"{KEY}wake:x", "1:0"),
    ("PUBLISH", f"{KEY}lost0", "x"),
    ("EVAL", "while true do end", 0),
    ("FUNCTION", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("CLIENT", "PAUSE", "100000"),
    ("CLIENT", "KILL", "TYPE", "pubsub"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("DEBUG", "SLEEP", "10"),
    ("SHUTDOWN", "NOSAVE"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("ACL", "SETUSER", "bob", "allkeys"),
    ("MULTI",),
    ("WAIT", "1", "0"),
    ("BLPOP", "{bob:0}:x", "0"),
]


@pytest.mark.parametrize(
    "attempts",
    [READS, FORGERIES, DELETIONS, STALLS],
    ids=["reads", "forgeries", "deletions", "stalls"],
)
async def test_redis_refuses_what_one_tenant_tries_on_another(
    attempts: list[tuple[Any, ...]], guarded: RedisServer, alice: Alice
) -> None:
    with guarded.client(username="bob", password=PASSWORD) as client:
        # What a function writes of it stands on his own keys.
        client.execute_command("SET", "{bob:0}:v", "0")
        for attempt in attempts:
            with pytest.raises(redis.RedisError) as caught:
                client.execute_command(*attempt)
            said = str(caught.value).lower()
            assert "no permissions" in said or "can't" in said or "key" in said, attempt
    await alice.is_intact()


async def test_redis_lets_no_bus_of_one_tenant_use_the_prefix_of_another(
    guarded: RedisServer, alice: Alice
) -> None:
    with pytest.raises(EventBusError):
        async with connect(
            guarded.url(), prefix="alice", username="bob", password=PASSWORD, **OPTIONS
        ):
            pass
    await alice.is_intact()


async def test_redis_tenants_publish_the_same_names_and_never_meet(
    guarded: RedisServer, alice: Alice
) -> None:
    async with connect(
        guarded.url(), prefix="bob", username="bob", password=PASSWORD, **OPTIONS
    ) as bob:
        heard: Heard = []
        await bob.subscribe("news", lambda event: heard.append(event.payload))
        await bob.declare_group("jobs", "job")
        for number in range(20):
            await bob.publish("news", number)
            await bob.publish("job", number)
        # What is sent where all prefixes meet is not heard on the native wire.
        with guarded.client() as client:
            client.publish("events:news", '{"type": "created", "topic": "news"}')
        assert await soon(lambda: len(heard) == 20, 5)
        await bob.purge("jobs")
        await bob.delete_group("jobs")
        await alice.is_intact()


async def test_known_limits_of_one_redis_for_two_tenants(
    guarded: RedisServer, alice: Alice
) -> None:
    """What no right separates: the memory, and what ``INFO`` tells. The page on Redis says so."""
    await alice.bus.declare_group("more", "more")
    with (
        guarded.client() as operator,
        guarded.client(username="bob", password=PASSWORD) as client,
    ):
        assert client.info("keyspace")["db0"]["keys"] > 0
        operator.config_set("maxmemory", operator.info("memory")["used_memory"] + 5_000_000)
        try:
            with contextlib.suppress(redis.exceptions.OutOfMemoryError):
                for number in range(100):
                    client.execute_command("HSET", "{bob:0}:fill", str(number), "x" * 100_000)
            large = [("more", "x" * 10_000)] * 50
            with pytest.raises(EventBusError, match="OOM"):
                await until_refused(alice.bus, large)
        finally:
            operator.config_set("maxmemory", 0)
    await alice.is_intact()


# Postgres


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    with PostgresServer(config={"fsync": "off"}) as server:
        # As the guide says: nobody makes anything outside his schema.
        server.execute("revoke create on schema public from public")
        yield server


@pytest.fixture
async def tenant(database: PostgresServer) -> AsyncIterator[Alice]:
    for name in ("alice", "bob"):
        database.execute(f"drop schema if exists {name} cascade")
        found = database.execute(f"select 1 from pg_roles where rolname = '{name}'")
        if not found:
            database.execute(f"create role {name} login")
        await migrate(database.url(), schema=name, grant_role=name)
    options: Any = {"schema": "alice", "migrate": False, **OPTIONS}
    async with connect(database.url(user="alice"), **options) as bus:
        one = Alice(bus)
        await one.prepare()
        yield one


REFUSED_BY_POSTGRES = {
    "reads": [
        "select * from alice.messages",
        "select * from alice.records",
        "select * from alice.large",
        "select alice.read_records('{record}')",
        "select query from pg_stat_activity where usename = 'alice' and query <> "
        "'<insufficient privilege>' limit (1 / 0)",
        "copy alice.messages to stdout",
        "select pg_read_file('PG_VERSION')",
    ],
    "forgeries": [
        "select alice.publish('news', '\"forged\"')",
        "insert into alice.records (key) values ('x')",
        "update alice.records set body = ''",
        "create function alice.publish(text) returns int language sql as 'select 1'",
        "set role alice",
        "alter role alice password 'x'",
    ],
    "deletions": [
        "delete from alice.messages",
        "truncate alice.messages",
        "drop schema alice cascade",
        "drop table alice.messages",
        "select alice.purge('jobs')",
        "alter table alice.messages disable trigger all",
    ],
    "stalls": [
        "do $$ begin lock table alice.messages in access exclusive mode; end $$",
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'alice'",
        "select pg_cancel_backend(pid) from pg_stat_activity where usename = 'alice'",
        "alter system set max_connections = 1",
        "select pg_reload_conf()",
        "update alice.migrations set version = 99",
        "update bob.migrations set version = 99",
        "vacuum (full) alice.messages",
        "create schema mallory",
    ],
}


@pytest.mark.parametrize("kind", list(REFUSED_BY_POSTGRES))
async def test_postgres_refuses_what_one_tenant_tries_on_another(
    kind: str, database: PostgresServer, tenant: Alice
) -> None:
    with psycopg.connect(database.url(user="bob"), autocommit=True) as bob:
        for attempt in REFUSED_BY_POSTGRES[kind]:
            if (
                attempt == "update bob.migrations set version = 99"
                and not database.execute(
                    "select not has_table_privilege('bob', 'bob.migrations', 'update')"
                )[0][0]
            ):
                continue
            if attempt.startswith("select query"):
                # Hidden: there is no such row.
                with contextlib.suppress(psycopg.errors.DivisionByZero):
                    bob.execute(attempt)
                continue
            assert refusal(bob, attempt) == psycopg.errors.InsufficientPrivilege, attempt
    await tenant.is_intact()


async def test_postgres_tenants_publish_the_same_names_and_never_meet(
    database: PostgresServer, tenant: Alice
) -> None:
    options: Any = {"schema": "bob", "migrate": False, **OPTIONS}
    async with connect(database.url(user="bob"), **options) as bob:
        await bob.declare_group("jobs", "job")
        for number in range(20):
            await bob.publish("news", number)
            await bob.publish("job", number)
        # What is sent where all schemas meet is not heard on the native wire.
        database.execute("select pg_notify('events_news', '{}'), pg_notify('events:*', '{}')")
        await bob.purge("jobs")
    with pytest.raises(EventBusError):
        async with connect(database.url(user="bob"), **{**options, "schema": "alice"}):
            pass
    await tenant.is_intact()


async def test_known_limits_of_one_database_for_two_tenants(
    database: PostgresServer, tenant: Alice
) -> None:
    """What no right separates; the page on security says so.

    Notifications (read and sent by whoever may connect; ``signing_key`` and
    ``broadcast_bodies="table"`` are against that) and advisory locks.
    """
    channel = "eventbus:alice"
    with psycopg.connect(database.url(user="bob"), autocommit=True) as bob:
        bob.execute(f'listen "{channel}"')
        await tenant.bus.publish("news", "own")
        [heard] = list(bob.notifies(timeout=5, stop_after=1))
        assert heard.channel == channel
        bob.execute("select pg_notify(%s, 'nonsense')", (channel,))
        bob.execute("select pg_advisory_lock(hashtext(%s), 0)", (channel,))
    assert await soon(lambda: tenant.heard == ["own"], 5)
    tenant.heard.clear()
    await tenant.is_intact()
