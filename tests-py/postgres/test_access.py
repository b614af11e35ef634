"""How a bus reaches its server: TLS with each kind of certificate, logins, limits, time-outs."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from eventbus import Bus, ConfigError, ConnectError, connect
from postgres.conftest import Eventually, MakeBus
from servers.certificates import Certificates, certificates
from servers.postgres import PostgresServer

SECRET = "S3CR3T-xyz"
OPTIONS: dict[str, Any] = {"connect_timeout": 5.0}

CASES: list[tuple[str, dict[str, Any], str | None]] = [
    ("good", {"sslmode": "verify-full"}, None),
    ("good", {"sslmode": "verify-ca"}, None),
    ("good", {"sslmode": "require"}, None),
    # A TLS option alone asks for TLS on this machine too.
    ("good", {}, None),
    ("good", {"tls_server_name": "localhost"}, None),
    ("good", {"tls_server_name": "other.example"}, "name|certificate"),
    ("wrong-host", {"sslmode": "require"}, "name|certificate"),
    ("wrong-host", {"sslmode": "verify-ca"}, "name|certificate"),
    ("wrong-host", {"tls_server_name": "db.example"}, None),
    ("expired", {"sslmode": "require"}, "expired"),
    ("self-signed", {"sslmode": "require"}, "certificate|issuer|authority"),
    ("self-signed", {"insecure_skip_verify": True}, None),
    ("expired", {"insecure_skip_verify": True}, None),
    ("wrong-host", {"insecure_skip_verify": True}, None),
]


@pytest.fixture(scope="module")
def made() -> Certificates:
    return certificates()


@pytest.fixture(scope="module")
def secured(made: Certificates) -> Iterator[dict[str, PostgresServer]]:
    """One server per kind of certificate, started when first asked for."""

    class Servers(dict[str, PostgresServer]):
        def __missing__(self, kind: str) -> PostgresServer:
            self[kind] = PostgresServer(tls=made, certificate=kind).start()
            return self[kind]

    servers = Servers()
    yield servers
    for server in servers.values():
        server.close()


async def works(bus: Bus) -> None:
    """Check that every connection of a bus works."""
    seen: list[Any] = []
    async with bus, asyncio.timeout(15):
        stream = bus.stream("news")
        async with stream:
            await bus.publish("news", 1)
            seen.append((await anext(stream)).payload)
        await bus.read("record")
    assert seen == [1]


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    CASES,
    ids=lambda value: "-".join(value) or "none" if isinstance(value, dict) else str(value),
)
async def test_a_certificate_is_verified_unless_switched_off_by_name(
    kind: str,
    options: dict[str, Any],
    problem: str | None,
    made: Certificates,
    secured: dict[str, PostgresServer],
) -> None:
    bus = connect(secured[kind].url(), tls_ca=str(made.ca), **OPTIONS, **options)
    if problem is None:
        await works(bus)
        return
    with pytest.raises(ConnectError, match=f"(?i){problem}"):
        await bus.connect()


async def test_libpq_s_names_of_the_files_are_the_same_options(
    made: Certificates, secured: dict[str, PostgresServer]
) -> None:
    url = secured["good"].url(sslmode="verify-full", sslrootcert=str(made.ca))
    await works(connect(url, **OPTIONS))


async def test_an_authority_that_did_not_sign_is_not_trusted(
    made: Certificates, secured: dict[str, PostgresServer]
) -> None:
    for trusted in ({"tls_ca": str(made.other_ca)}, {}):
        bus = connect(secured["good"].url(), sslmode="require", **OPTIONS, **trusted)
        with pytest.raises(ConnectError, match=r"(?i)certificate|issuer"):
            await bus.connect()


async def test_require_without_an_authority_names_the_remedy(
    secured: dict[str, PostgresServer],
) -> None:
    bus = connect(secured["self-signed"].url(), sslmode="require", **OPTIONS)
    with pytest.raises(ConnectError, match="tls_ca"):
        await bus.connect()


async def test_switching_verification_off_is_warned_of(
    secured: dict[str, PostgresServer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        await works(connect(secured["self-signed"].url(), insecure_skip_verify=True, **OPTIONS))
    assert "insecure_skip_verify" in caplog.text


async def test_a_client_certificate_is_shown_when_asked_for(made: Certificates) -> None:
    with PostgresServer(tls=made, client_certificates=True) as server:
        ca = {"tls_ca": str(made.ca)}
        own = {"tls_cert": str(made.client.cert), "tls_key": str(made.client.key)}
        libpq = {"sslcert": str(made.client.cert), "sslkey": str(made.client.key)}
        foreign = {
            "tls_cert": str(made.foreign_client.cert),
            "tls_key": str(made.foreign_client.key),
        }
        await works(connect(server.url(), **ca, **own, **OPTIONS))
        await works(connect(server.url(), **ca, **libpq, **OPTIONS))
        bad: dict[str, Any]
        for bad in ({}, foreign):
            bus = connect(server.url(), **ca, **bad, **OPTIONS)
            with pytest.raises(ConnectError):
                await bus.connect()


async def test_plain_and_tls_do_not_meet(
    server: PostgresServer, secured: dict[str, PostgresServer]
) -> None:
    for url in (secured["good"].url(sslmode="disable"), server.url(sslmode="require")):
        with pytest.raises(ConnectError):
            await connect(url, **OPTIONS).connect()


@pytest.mark.parametrize(
    "options",
    [{"tls_ca": "/no/such/file"}, {"tls_cert": "/no/such/file"}, {"tls_ca": __file__}],
    ids=str,
)
async def test_a_wrong_tls_file_is_a_configuration_error_that_names_it(
    options: dict[str, Any], secured: dict[str, PostgresServer]
) -> None:
    async def attempt() -> None:
        await connect(secured["good"].url(), **OPTIONS, **options).connect()

    with pytest.raises(ConfigError) as caught:
        await attempt()
    [(name, value)] = options.items()
    assert name in str(caught.value) or value in str(caught.value)


# Logins


async def test_a_password_logs_in_and_is_never_told(caplog: pytest.LogCaptureFixture) -> None:
    with PostgresServer(password=SECRET) as server:
        await works(connect(server.url(), **OPTIONS))
        plain = server.url().replace(f":{SECRET}", "")
        await works(connect(plain, password=lambda: SECRET, **OPTIONS))
        with caplog.at_level(logging.DEBUG):
            for wrong in (f"not-{SECRET}", None):
                bus = connect(plain, password=wrong, **OPTIONS)
                with pytest.raises(ConnectError, match=r"(?i)password") as refused:
                    await bus.connect()
                assert SECRET not in f"{refused.value!r} {bus!r} {refused.value.__cause__!r}"
        assert SECRET not in caplog.text


async def test_user_database_and_schema_are_used(
    server: PostgresServer, schema: str, make_bus: MakeBus
) -> None:
    server.create_database(schema)
    bus = await make_bus(server.url(), database=schema)
    await bus.declare_group("g", "t")
    found = server.execute(f"select name from {schema}.groups", database=schema)
    assert found == [("g",)]
    for option, value in (("database", "nowhere"), ("user", "nobody")):
        with pytest.raises(ConnectError, match=value):
            await connect(
                server.url().replace("postgres@", "").replace("/postgres", ""),
                **{"user": "postgres", "database": "postgres", option: value},
            ).connect()


async def test_a_socket_reaches_the_server(server: PostgresServer, make_bus: MakeBus) -> None:
    bus = await make_bus("postgresql://", host=str(server.folder), port=server.port)
    assert (await bus.health())["ok"]


# Limits and time-outs


def sessions(server: PostgresServer) -> int:
    found = server.execute(
        "select count(*) from pg_stat_activity where application_name = 'eventbus'"
    )
    return int(found[0][0])


@pytest.mark.parametrize("size", [1, 3])
async def test_a_pool_opens_no_more_connections_than_it_may(
    server: PostgresServer, make_bus: MakeBus, size: int, eventually: Eventually
) -> None:
    await eventually(lambda: sessions(server) == 0)
    bus = await make_bus(pool_size=size)
    for _ in range(5):
        work = [bus.read(f"r{n}") for n in range(40)]
        work += [bus.publish("t", n) for n in range(40)]
        await asyncio.gather(*work)
    # One listens and one commits.
    assert sessions(server) == size + 2


async def test_a_silent_server_is_given_up(unused: int) -> None:
    bus = connect(f"postgresql://127.0.0.1:{unused}", connect_timeout=0.3)
    with pytest.raises(ConnectError, match="no connection within 300ms"):
        await bus.connect()


@pytest.fixture
def unused() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_operations_on_a_server_that_stands_still_are_given_up() -> None:
    with PostgresServer() as server:
        bus = connect(server.url(), op_timeout=0.4, heartbeat=60.0, drain_timeout=0.1)
        await bus.connect()
        await bus.publish("t", 1)
        server.pause()
        try:
            for call in (bus.publish("t", 2), bus.read("r"), bus.inspect()):
                with pytest.raises(ConnectError, match=r"400 ?ms|0\.4 ?s"):
                    await call
        finally:
            server.resume()
        await bus.publish("t", 3)
        await bus.close()


async def test_a_heartbeat_notices_a_server_that_stands_still(eventually: Eventually) -> None:
    with PostgresServer() as server:
        quick = {"heartbeat": 0.2, "connect_timeout": 0.5, "drain_timeout": 0.1}
        bus = connect(server.url(), op_timeout=5.0, **quick)
        await bus.connect()
        gaps: list[Any] = []
        await bus.subscribe("t", lambda _: None, on_gap=gaps.append)
        server.pause()
        try:
            await eventually(lambda: bus._health()["state"] == "connecting")
        finally:
            server.resume()
        await eventually(lambda: bus._health()["state"] == "live")
        await eventually(lambda: gaps)
        assert (await bus.health())["reconnects"] == 1
        await bus.close()


async def test_a_sweep_finds_what_no_wake_up_told(
    server: PostgresServer, schema: str, make_bus: MakeBus, eventually: Eventually
) -> None:
    bus = await make_bus(sweep=0.2)
    handled: list[Any] = []
    await bus.consume("t", lambda event: handled.append(event.payload), group="g", lease=0.5)
    await bus.publish("t", 1)
    await eventually(lambda: handled)
    # As if a worker that took it had died, and nobody told.
    await bus.declare_group("h", "t")
    await bus.publish("t", 2)
    await eventually(lambda: len(handled) == 2)
    server.execute(f"update {schema}.messages set state = 3, due_at = 0, token = 1")
    others: list[Any] = []
    await bus.consume("t", lambda event: others.append(event.payload), group="h")
    await eventually(lambda: others)


async def until(read: Callable[[], Awaitable[list[Any]]], length: int) -> None:
    """Wait until a list is so long."""
    for _ in range(200):
        found = await read()
        if len(found) == length:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still {len(found)} after 10 s")


async def test_retention_options_are_used(
    server: PostgresServer, schema: str, make_bus: MakeBus, eventually: Eventually
) -> None:
    bus = await make_bus(dedup_window=0.2, max_dead=2, max_tombstones=1, sweep=0.1)
    await bus.declare_group("g", "t")
    await bus.publish("t", 1, dedup_id="d")
    await bus.publish("t", 2, dedup_id="d")
    await asyncio.sleep(0.3)
    await bus.publish("t", 3, dedup_id="d")
    assert (await bus.inspect())["groups"][0]["ready"] == 2
    deliveries = bus.deliveries("t", group="g")
    for n in range(3):
        await bus.publish("t", n)
    async with deliveries, asyncio.timeout(10):
        for _ in range(5):
            await (await anext(deliveries)).reject("no")
        await until(lambda: bus.dead_letters("g").list(), 2)
    async with bus.transaction() as tx:
        for n in range(5):
            tx.put(f"r{n}", n)
    async with bus.transaction() as tx:
        for n in range(5):
            tx.delete(f"r{n}")
    await eventually(lambda: server.execute(f"select count(*) from {schema}.records") == [(1,)])


async def test_dead_letters_are_forgotten_after_their_time(make_bus: MakeBus) -> None:
    bus = await make_bus(dead_retention=0.2, sweep=0.1)
    await bus.declare_group("g", "t")
    await bus.publish("t", 1)
    async with bus.deliveries("t", group="g") as deliveries, asyncio.timeout(10):
        await (await anext(deliveries)).reject("no")
        await until(lambda: bus.dead_letters("g").list(), 0)
