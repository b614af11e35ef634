"""A role that may only connect against a bus: reading along, forging, silencing, flooding.

Notifications have no permissions: whoever connects to the database hears and sends them.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from eventbus import Bus, OperationTimeout, SerializationError, connect
from eventbus.migration import migrate
from eventbus.testing import eventually
from postgres.conftest import Caller, MakeBus
from servers.postgres import PostgresServer

KEY = "the key of this bus, 32 bytes...."
WITHIN = 10.0
FLOOD = 2000


class Attacker:
    """A connection of a role that has no right but to connect."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], schema: str) -> None:
        self.connection = connection
        self.channel = f"eventbus:{schema}"

    async def notify(self, *texts: str) -> None:
        """Send notifications, each in a transaction of its own."""
        for text in texts:
            await self.connection.execute("select pg_notify(%s, %s)", (self.channel, text))

    async def flood(self, count: int, *texts: str) -> None:
        """Send each text so many times, numbered, each in a transaction of its own."""
        for n in range(count):
            await self.notify(*(text.replace("#", str(n)) for text in texts))

    async def overheard(self) -> str:
        """Return the next notification of broadcasts."""
        async for notice in self.connection.notifies(timeout=WITHIN):
            if notice.payload.startswith("b"):
                return notice.payload
        raise AssertionError("nothing was heard")


@asynccontextmanager
async def counting(schema: str) -> AsyncIterator[tuple[PostgresServer, str]]:
    """Start a server with a bus, a role ``nobody``, and a URL by which calls of functions count."""
    with PostgresServer() as server:
        server.execute("create role counted login superuser")
        server.execute("alter role counted set track_functions = 'all'")
        server.execute("create role nobody login")
        await migrate(server.url(), schema=schema)
        yield server, server.url(user="counted")


@pytest.fixture
async def attacker(server: PostgresServer, schema: str) -> AsyncIterator[Attacker]:
    """Listens to the channel of the bus."""
    server.execute(f"create role {schema}_nobody login")
    url = server.url(user=f"{schema}_nobody")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f'listen "eventbus:{schema}"')
        yield Attacker(connection, schema)


async def hearing(bus: Bus) -> list[Any]:
    """Return the payloads of all that a bus hears from now on."""
    heard: list[Any] = []
    await bus.subscribe("*", lambda event: heard.append(event.payload), pattern="*")
    return heard


def packed(text: str) -> bytes:
    """Return what a notification carries."""
    return base64.b64decode(text.partition(":")[2])


def head(text: str) -> list[str]:
    """Return producer, parcel and part of a notification, and its signature if it has one."""
    return text[1:].partition(":")[0].split(".")


def forged(text: str, was: bytes, now: bytes, **fields: str) -> str:
    """Return a notification with another content, and another stamp."""
    producer, parcel, part, *rest = head(text)
    stamp = [
        fields.get("producer", producer),
        fields.get("parcel", parcel),
        fields.get("part", part),
        *rest,
    ]
    body = base64.b64encode(packed(text).replace(was, now)).decode()
    return f"b{'.'.join(stamp)}:{body}"


# Without a key


@pytest.mark.parametrize("known", [False, True], ids=["first heard", "heard before"])
async def test_a_forged_stamp_silences_no_producer(
    make_bus: MakeBus, attacker: Attacker, known: bool
) -> None:
    receiver, publisher = await make_bus(), await make_bus()
    heard = await hearing(receiver)
    await publisher.publish("t", "first")
    text = await attacker.overheard()
    producer, parcel, part = head(text)
    if known:
        await eventually(lambda: heard == ["first"], timeout=WITHIN)
    for number in (2**64 - 1, *range(int(parcel), int(parcel) + 50)):
        for at in range(int(part), int(part) + 3):
            await attacker.notify(f"b{producer}.{number}.{at}:")
    for n in range(20):
        await publisher.publish("t", n)
    await eventually(lambda: heard == ["first", *range(20)], timeout=WITHIN)


async def test_a_notification_that_is_sent_again_is_heard_once(
    make_bus: MakeBus, attacker: Attacker
) -> None:
    receiver, publisher = await make_bus(), await make_bus()
    heard = await hearing(receiver)
    await publisher.publish("t", 1)
    text = await attacker.overheard()
    await attacker.notify(*[text] * 10)
    await publisher.publish("t", 2)
    await eventually(lambda: 2 in heard, timeout=WITHIN)
    assert heard == [1, 2]


# With a key


async def test_a_role_that_connects_forges_nothing_where_there_is_a_key(
    make_bus: MakeBus, attacker: Attacker
) -> None:
    receiver = await make_bus(signing_key=KEY)
    publisher = await make_bus(signing_key=KEY)
    heard = await hearing(receiver)
    await publisher.publish("t", "true")
    text = await attacker.overheard()
    assert len(head(text)) == 4
    unsigned = ".".join(head(text)[:3])
    attacks = [
        # Another content, with the signature that was heard.
        forged(text, b"true", b"fake"),
        # Another stamp: the same again, and a later one.
        forged(text, b"", b"", part="7"),
        forged(text, b"", b"", parcel=str(2**63)),
        forged(text, b"", b"", producer="0" * 32),
        # Without a signature, or with one of its own making.
        f"b{unsigned}:{base64.b64encode(packed(text)).decode()}",
        f"b{unsigned}.AAAAAAAAAAAAAAAAAAAAAAAAAAA:{base64.b64encode(packed(text)).decode()}",
        f"b{head(text)[0]}.{2**63}.0:",
    ]
    await attacker.notify(*attacks)
    # The very same again is old.
    await attacker.notify(text)
    await publisher.publish("t", "later")
    await eventually(lambda: "later" in heard, timeout=WITHIN)
    assert heard == ["true", "later"]
    assert receiver.counters["unsigned"] == len(attacks)


async def test_a_signed_broadcast_is_not_moved_to_another_topic(
    server: PostgresServer, schema: str, make_bus: MakeBus
) -> None:
    bus = await make_bus(signing_key=KEY, retention_max=100)
    handled: list[Any] = []
    await bus.declare_group("g", ["drafts", "payments"])
    await bus.publish("drafts", "pay 100")
    await bus.publish("payments", "pay 1")
    moved = "set topic = 'payments' where topic = 'drafts'"
    server.execute(f"update {schema}.messages {moved}")
    server.execute(f"update {schema}.kept {moved}")
    async with bus.stream("payments", since="beginning") as stream:
        assert (await anext(stream)).payload == "pay 1"
    await bus.consume(
        ["drafts", "payments"], lambda event: handled.append(event.payload), group="g"
    )
    await eventually(lambda: handled == ["pay 1"], timeout=WITHIN)
    letters = bus.dead_letters("g")

    async def is_dead() -> bool:
        return [one.reason for one in await letters.list()] == ["unsigned"]

    await eventually(is_dead, timeout=WITHIN)
    assert (await letters.list())[0].event is None
    assert bus.counters["unsigned"] == 2


async def test_what_joins_a_transaction_of_the_caller_is_signed(
    make_bus: MakeBus, caller: Caller
) -> None:
    bus = await make_bus(signing_key=KEY)
    publisher = await make_bus(signing_key=KEY)
    heard = await hearing(bus)
    handled: list[Any] = []
    await bus.consume("t", lambda event: handled.append(event.payload), group="g")
    async with caller.transaction():
        await publisher.publish("t", 1, connection=caller.connection)
        await publisher.publish_many([("t", 2), ("t", 3)], connection=caller.connection)
        async with publisher.transaction(connection=caller.connection) as tx:
            tx.publish("t", "x" * 20_000)
    await caller.settle()
    for found in (heard, handled):
        await eventually(lambda found=found: len(found) == 4, timeout=WITHIN)
    assert bus.counters["unsigned"] == 0


# What the SQL function publishes


@pytest.mark.parametrize("accepted", [None, "sql"])
async def test_what_sql_publishes_is_accepted_where_it_is_asked_for(
    server: PostgresServer, schema: str, make_bus: MakeBus, accepted: str | None
) -> None:
    options: dict[str, Any] = {"accept_unsigned": accepted} if accepted else {}
    bus = await make_bus(signing_key=KEY, retention_max=100, sweep=60.0, **options)
    handled: list[Any] = []
    live = await hearing(bus)
    await bus.consume("t", lambda event: handled.append(event.payload), group="g")
    async with bus.stream("t", since="beginning") as stream:
        server.execute(f"select {schema}.publish('t', '\"from sql\"')")
        if accepted:
            assert (await anext(stream)).payload == "from sql"
        await bus.publish("t", "signed")
        assert (await anext(stream)).payload == "signed"
    await eventually(lambda: "signed" in live and "signed" in handled, timeout=WITHIN)
    # A notification may be anybody's, whoever says that he is SQL.
    assert live == ["signed"]
    assert handled == (["from sql", "signed"] if accepted else ["signed"])
    letters = await bus.dead_letters("g").list()
    assert [letter.reason for letter in letters] == ([] if accepted else ["unsigned"])


# Bodies in a table


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
async def test_a_role_that_connects_reads_no_topic_and_no_body_of_a_bus_with_a_table(
    server: PostgresServer, schema: str, make_bus: MakeBus, attacker: Attacker, key: str | None
) -> None:
    receiver = await make_bus(broadcast_bodies="table", signing_key=key)
    # It is a setting of the bus: this one was told nothing, and that one had another before.
    publisher = await make_bus(signing_key=key)
    heard = await hearing(receiver)
    bodies: list[Any] = ["secret", *range(40), "secret" * 2000]
    await publisher.publish("secret:topic", bodies[0])
    await publisher.publish_many([("secret:topic", body) for body in bodies[1:]])
    if key is None:
        server.execute(f"select {schema}.publish('secret:topic', '\"secret\"')")
        bodies.append("secret")
    await eventually(lambda: len(heard) == len(bodies), timeout=WITHIN)
    assert heard == bodies
    await publisher.publish("end", "end")
    notices = attacker.connection.notifies(timeout=1.0)
    texts = [notice.payload async for notice in notices]
    assert texts
    assert not any(b"secret" in packed(text) or "secret" in text for text in texts)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await attacker.connection.execute(f"select * from {schema}.large")
    # And back.
    await make_bus(broadcast_bodies="inline", signing_key=key)
    await publisher.publish("secret:topic", "seen")
    assert b"secret:topic" in packed(await attacker.overheard())
    await eventually(lambda: heard[-1] == "seen", timeout=WITHIN)


async def test_a_publisher_that_hears_of_nothing_learns_that_bodies_go_to_a_table(
    make_bus: MakeBus, attacker: Attacker, caller: Caller
) -> None:
    # It only publishes, so it listens to nothing.
    joining, publisher = await make_bus(), await make_bus()
    receiver = await make_bus(broadcast_bodies="table")
    heard = await hearing(receiver)
    await publisher.publish("t", "secret 1")
    with pytest.raises(SerializationError, match="table"):
        async with caller.transaction():
            await joining.publish("t", "secret 2", connection=caller.connection)

    async def joined() -> bool:
        try:
            async with caller.transaction():
                await joining.publish("t", "secret 3", connection=caller.connection)
        except SerializationError:
            return False
        return True

    await eventually(joined, timeout=WITHIN)
    await caller.settle()
    await eventually(lambda: heard == ["secret 1", "secret 3"], timeout=WITHIN)
    notices = attacker.connection.notifies(timeout=1.0)
    texts = [notice.payload async for notice in notices if notice.payload.startswith("b")]
    assert len(texts) == 2
    assert not any(b"secret" in packed(text) for text in texts)


async def test_nothing_is_stored_for_nobody(
    server: PostgresServer, schema: str, make_bus: MakeBus
) -> None:
    bus = await make_bus(broadcast_bodies="table")
    for n in range(5):
        await bus.publish("t", n)
    assert server.execute(f"select count(*) from {schema}.large") == [(0,)]


# Locks


async def test_a_known_limit_who_connects_stops_publishes_by_a_lock_at_a_bounded_cost(
    schema: str,
) -> None:
    async with counting(schema) as (server, url):
        options = {"schema": schema, "sweep": 60.0}
        async with connect(url, op_timeout=2.0, **options) as bus:
            [(version,)] = server.execute(f"select version from {schema}.registry")
            lock = "hashtext(%s), %s"
            held = (f"eventbus:{schema}", version)
            with psycopg.connect(server.url(user="nobody"), autocommit=True) as nobody:
                nobody.execute(f"select pg_advisory_lock({lock})", held)
                with pytest.raises(OperationTimeout):
                    await bus.publish("t", 1)
            # His session has ended.
            await bus.publish("t", 2)
        [(calls,)] = server.execute(
            "select calls from pg_stat_user_functions "
            "where schemaname = %s and funcname = 'routes'",
            schema,
        )
        assert calls < 2 / 0.02 + 20


# Floods


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
async def test_a_flood_of_forged_notifications_costs_a_bounded_number_of_calls(
    schema: str, attacker: Attacker, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with counting(schema) as (server, url):
        options = {"schema": schema, "sweep": 60.0}
        async with connect(url, signing_key=key, retention_max=10, **options) as bus:
            heard = await hearing(bus)
            await bus.subscribe("kept", lambda event: None, since="beginning")
            await bus.consume("never", lambda event: None, group="g")
            group = server.execute(f"select id from {schema}.groups")[0][0]

            def calls() -> dict[str, int]:
                found = server.execute(
                    "select funcname, calls from pg_stat_user_functions where schemaname = %s",
                    schema,
                )
                return {name: int(count) for name, count in found}

            other = await psycopg.AsyncConnection.connect(
                server.url(user="nobody"), autocommit=True
            )
            async with other:
                flooding = Attacker(other, schema)
                hint = base64.b64encode(b"\0\0\4kept\0\0\0\0").decode()
                texts = [f"w{group},#", "r#", f"b{1:032x}.#.0:{hint}", "t#", "?#"]
                begin = time.monotonic()
                await flooding.flood(FLOOD, *texts)
            await bus.publish("t", "through")
            await eventually(lambda: "through" in heard, timeout=60.0)
            await eventually(lambda: calls().get("routes", 0) > 1, timeout=WITHIN)
        # Closed sessions have told their figures.
        after = calls()
        elapsed = time.monotonic() - begin
        for name, burst, rate in [("routes", 20, 10), ("claim", 100, 50), ("read_kept", 100, 50)]:
            assert after[name] <= burst + rate * elapsed + 10, (name, elapsed, after)
    assert len(caplog.records) < 20
