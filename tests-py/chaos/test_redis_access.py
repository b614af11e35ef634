"""Who may connect: users and rights, TLS with each kind of certificate; no password is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.load import drained, soon
from eventbus import Bus, ConfigError, ConnectError, Event, EventBusError, connect
from servers.brokers import QUICK
from servers.certificates import Certificates, certificates
from servers.redis_server import RedisServer

PASSWORD = "S3CR3T-xyz"
OPTIONS = {**QUICK, "drain_timeout": 2.0, "connect_timeout": 2.0}


def recipes() -> dict[str, str]:
    """Return the rights that the documentation gives to each role."""
    guide = Path(__file__).parents[2] / "docs/backends/redis.md"
    _, _, rest = guide.read_text().partition("<!-- recipes -->\n```\n")
    lines = rest.partition("```")[0].splitlines()
    return dict(tuple(line.split(maxsplit=1)) for line in lines)


RECIPES = recipes()


def recipe(role: str) -> str:
    """Return the ACL line of a role."""
    return f"{role} on >{PASSWORD} {RECIPES[role]}"


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    users = [recipe(role) for role in RECIPES]
    with RedisServer(appendonly=True, users=users) as server:
        server.load_functions()
        yield server


async def as_user(server: RedisServer, name: str) -> Bus:
    bus = connect(server.url(), username=name, password=PASSWORD, **OPTIONS)
    await bus.connect()
    return bus


def denied(server: RedisServer) -> list[str]:
    """Return what the server refused since the last call, as ``user: command``."""
    with server.client() as client:
        entries = client.acl_log()
        client.acl_log_reset()
    return [f"{entry['username']}: {entry['object']}" for entry in entries]


async def test_a_worker_by_the_recipe_can_do_everything_that_workers_do(
    guarded: RedisServer,
) -> None:
    denied(guarded)
    bus = await as_user(guarded, "worker")
    done: list[Any] = []
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        done.append(event.payload)
        if event.payload == "fails":
            raise ValueError("no")

    await bus.subscribe("work", lambda event: seen.append(event.payload))
    await bus.subscribe("pattern", print, "wor*")
    await bus.consume("work", handle, group="group")
    await bus.publish("work", 1, key="key", dedup_id="once")
    await bus.publish_many([("work", 2), ("work", 3)])
    await bus.publish("work", 4, delay=0.05)
    assert await soon(lambda: sorted(done) == [1, 2, 3, 4] and seen == [1, 2, 3], 5)
    await drained(bus, "group", 5)
    async with bus.transaction() as tx:
        tx.put("record", 1)
        tx.publish("work", 5)
    assert await bus.read("record") is not None
    assert await bus.scan("rec")
    await bus.inspect()
    await bus.dead_letters("group").list()
    assert (await bus.health())["ok"]
    await bus.close()
    # CONFIG may be refused, nothing else.
    assert not [one for one in denied(guarded) if "config" not in one.lower()]


async def test_a_publisher_by_the_recipe_publishes_and_no_more(guarded: RedisServer) -> None:
    worker, bus = await as_user(guarded, "worker"), await as_user(guarded, "publisher")
    await worker.declare_group("papers", "paper")
    seen: list[Any] = []
    await worker.subscribe("paper", lambda event: seen.append(event.payload))
    await bus.publish("paper", 1)
    assert await soon(lambda: seen == [1], 5)
    figures = next(one for one in (await worker.inspect())["groups"] if one["group"] == "papers")
    assert figures["ready"] == 1
    with pytest.raises(EventBusError):
        async with asyncio.timeout(10):
            await bus.subscribe("paper", print)
    await bus.close()
    await worker.delete_group("papers")
    await worker.close()


@pytest.mark.parametrize("user", [("nobody", PASSWORD), ("worker", "wrong-" + PASSWORD)])
async def test_an_unknown_user_or_a_wrong_password_is_refused_at_once(
    user: tuple[str, str], guarded: RedisServer
) -> None:
    bus = connect(guarded.url(), username=user[0], password=user[1], **OPTIONS)
    with pytest.raises((ConnectError, ConfigError)) as caught:
        async with asyncio.timeout(5):
            await bus.connect()
    assert "WRONGPASS" in str(caught.value) or "password" in str(caught.value).lower()
    assert PASSWORD not in str(caught.value)


async def test_no_password_is_told_by_repr_errors_or_logs(
    guarded: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    for url, more in [
        (guarded.url(user=f"worker:{PASSWORD}"), {}),
        (guarded.url(user=f"nobody:{PASSWORD}"), {}),
        (guarded.url(), {"username": "worker", "password": PASSWORD}),
        (f"redis://worker:{PASSWORD}@127.0.0.1:1/0", {}),
        (f"redis://worker:{PASSWORD}@127.0.0.1:notaport/0", {}),
        (f"redis://worker:{PASSWORD}@127.0.0.1/0?nonsense={PASSWORD}", {}),
        (f"rediss://worker:{PASSWORD}@127.0.0.1:{guarded.port}/0", {}),
    ]:
        try:
            bus = connect(url, **{**OPTIONS, "connect_timeout": 0.5}, **more)
            texts.append(repr(bus))
            await bus.connect()
            texts += [repr(bus), str(await bus.health()), str(await bus.inspect())]
            await bus.close()
        except EventBusError as error:
            chain: BaseException | None = error
            while chain is not None:
                texts += [str(chain), repr(chain)]
                chain = chain.__cause__ or chain.__context__
    told = [text for text in [*texts, caplog.text] if PASSWORD in text]
    assert not told


TLS_CASES: list[tuple[str, dict[str, Any], str | None]] = [
    ("good", {}, None),
    ("good", {"tls_server_name": "localhost"}, None),
    ("good", {"tls_server_name": "other.example"}, "name|certificate"),
    ("wrong-host", {}, "name|certificate"),
    ("wrong-host", {"tls_server_name": "db.example"}, None),
    ("expired", {}, "expired"),
    ("self-signed", {}, "certificate|issuer|authority"),
    ("self-signed", {"insecure_skip_verify": True}, None),
    ("expired", {"insecure_skip_verify": True}, None),
    ("wrong-host", {"insecure_skip_verify": True}, None),
]


async def works(bus: Bus) -> None:
    """Check that both connections of a bus work."""
    seen: list[Any] = []
    async with bus:
        await bus.subscribe("news", lambda event: seen.append(event.payload))
        await bus.publish("news", 1)
        assert await soon(lambda: seen == [1], 5)


@pytest.fixture(scope="module")
def made() -> Certificates:
    return certificates()


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    TLS_CASES,
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
async def test_a_certificate_is_verified_unless_switched_off_by_name(
    kind: str, options: dict[str, Any], problem: str | None, made: Certificates
) -> None:
    with RedisServer(tls=made, certificate=kind) as server:
        bus = connect(server.url(), tls_ca=str(made.ca), **{**OPTIONS, **options})
        if problem is None:
            await works(bus)
            return
        with pytest.raises(ConnectError, match=f"(?i){problem}"):
            async with asyncio.timeout(6):
                await bus.connect()


async def test_an_authority_that_did_not_sign_is_not_trusted(made: Certificates) -> None:
    with RedisServer(tls=made) as server:
        for trusted in ({"tls_ca": str(made.other_ca)}, {}):
            bus = connect(server.url(), **OPTIONS, **trusted)
            with pytest.raises(ConnectError, match=r"(?i)certificate|issuer"):
                await bus.connect()


async def test_switching_verification_off_is_warned_of(made: Certificates) -> None:
    with RedisServer(tls=made, certificate="self-signed") as server:
        async with connect(server.url(), insecure_skip_verify=True, **OPTIONS) as bus:
            warnings = (await bus.health())["warnings"]
    assert any("insecure_skip_verify" in warning for warning in warnings), warnings


async def test_a_client_certificate_is_shown_when_asked_for(made: Certificates) -> None:
    with RedisServer(tls=made, client_certificates=True) as server:
        ca = {"tls_ca": str(made.ca)}
        own = {"tls_cert": str(made.client.cert), "tls_key": str(made.client.key)}
        foreign = {
            "tls_cert": str(made.foreign_client.cert),
            "tls_key": str(made.foreign_client.key),
        }
        await works(connect(server.url(), **ca, **own, **OPTIONS))
        for bad in ({}, foreign):
            bus = connect(server.url(), **ca, **bad, **OPTIONS)
            with pytest.raises(ConnectError):
                async with asyncio.timeout(6):
                    await bus.connect()


async def test_plain_and_tls_do_not_meet_and_say_so_in_time(made: Certificates) -> None:
    with RedisServer(tls=made) as secret, RedisServer() as plain:
        for url in (
            secret.url().replace("rediss", "redis"),
            plain.url().replace("redis:", "rediss:"),
        ):
            with pytest.raises(ConnectError):
                async with asyncio.timeout(6):
                    await connect(url, **OPTIONS).connect()


@pytest.mark.parametrize(
    "options",
    [
        {"tls_ca": "/no/such/file"},
        {"tls_cert": "/no/such/file"},
        {"tls_ca": __file__},
    ],
    ids=str,
)
async def test_a_wrong_tls_file_is_a_configuration_error_that_names_it(
    options: dict[str, Any], made: Certificates
) -> None:
    with RedisServer(tls=made) as server:

        async def attempt() -> None:
            await connect(server.url(), **OPTIONS, **options).connect()

        with pytest.raises((ConfigError, ConnectError)) as caught:
            await attempt()
        [(name, value)] = options.items()
        assert name in str(caught.value) or value in str(caught.value)
