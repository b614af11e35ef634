"""A server that answers without end: the connection is dropped before the process grows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from typing import Any

import pytest

from eventbus import Bus, ConnectError, EventBusError, connect
from servers.hostile import hostile, postgres_login, redis_login
from servers.redis_server import RedisServer
from servers.shared import shared_postgres, shared_redis

OPTIONS: dict[str, Any] = {"connect_timeout": 5.0, "op_timeout": 5.0}
# What stands in the buffers of both sockets, which the client has not read.
IN_SOCKETS = 16 << 20
BEFORE = 64 << 10

REDIS_ATTACKS = {
    "bulk": (b"$5368709120\r\n", b"x"),
    "line": (b"+", b"x"),
    "error": (b"-ERR ", b"x"),
    "array": (b"*1000000000\r\n", b":1\r\n"),
    "nested": (b"*1\r\n", b"*1\r\n"),
    "map": (b"%999999999\r\n", b":1\r\n"),
    "push": (b">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$4000000000\r\n", b"x"),
    "verbatim": (b"=3000000000\r\ntxt:", b"x"),
    "negative": (b"!-5\r\n", b"x"),
    "garbage": (b"HTTP/1.1 200 OK\r\n\r\n", b"<html>"),
}
POSTGRES_ATTACKS = {
    "length": (b"S\x20\x00\x00\x00", b"x"),
    "error": (b"E\x7f\xff\xff\xff", b"x"),
    "settings": (b"", b"S\0\0\0\x0ckey\0val\0"),
    "notices": (b"", b"N\0\0\0\x0cSWARNING\0"),
    "rows": (b"D\x7f\xff\xff\xff\0\1", b"x"),
    "short": (b"Z\0\0\0\1", b"x"),
}


def url(kind: str, port: int) -> str:
    if kind == "redis":
        return f"redis://127.0.0.1:{port}/0"
    return f"postgresql://user@127.0.0.1:{port}/db?sslmode=disable"


def cases() -> list[Any]:
    # Notices after the login are read and forgotten, for as long as the time-out allows.
    return [
        pytest.param(kind, name, when, id=f"{kind}-{name}-{when}")
        for kind, attacks in (("redis", REDIS_ATTACKS), ("postgres", POSTGRES_ATTACKS))
        for name in attacks
        for when in ("before", "after")
        if (kind, name, when) != ("postgres", "notices", "after")
    ]


async def attempt(bus: Bus) -> ConnectError:
    with pytest.raises(ConnectError) as caught:
        async with asyncio.timeout(20):
            await bus.connect()
    return caught.value


@pytest.mark.parametrize(("kind", "name", "when"), cases())
async def test_an_answer_without_end_ends_the_connection(kind: str, name: str, when: str) -> None:
    login = {"redis": redis_login, "postgres": postgres_login}[kind]
    attack, endless = {"redis": REDIS_ATTACKS, "postgres": POSTGRES_ATTACKS}[kind][name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with hostile(
        attack or endless, endless, login if when == "after" else None, most=400 << 20
    ) as server:
        error = await attempt(connect(url(kind, server.port), **OPTIONS))
    # The settings that a server may tell after the login are the widest.
    most = IN_SOCKETS + (BEFORE if when == "before" else 80 << 20)
    assert max(server.sent) <= most, str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10, f"grew by {grown} KiB"


@pytest.mark.parametrize(
    ("kind", "attack", "says"),
    [
        ("redis", b"$5368709120\r\n", "larger than the limit of 65536 bytes"),
        ("postgres", b"S\x20\x00\x00\x00", "more than the limit of 65536"),
    ],
)
async def test_the_error_names_the_server_and_the_limit(
    kind: str, attack: bytes, says: str
) -> None:
    async with hostile(attack, b"x") as server:
        error = await attempt(connect(url(kind, server.port), **OPTIONS))
    assert says in str(error)
    assert f"127.0.0.1:{server.port}" in str(error)


async def test_a_server_that_turns_hostile_is_left_told_once_and_tried_again_with_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bus that works meets a hostile server at its next connections."""
    with RedisServer(appendonly=True) as server:
        proxy: list[int] = [server.port]
        attacks = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal attacks
            if proxy[0] == 0:
                attacks += 1
                try:
                    await reader.read(10)
                    writer.write(b"$5368709120\r\n" + b"x" * 100_000)
                    await writer.drain()
                    await reader.read()
                except ConnectionError:
                    pass
                finally:
                    writer.close()
                return
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", proxy[0])
            opened.append(inner_writer)

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                try:
                    while data := await source.read(65_536):
                        sink.write(data)
                        await sink.drain()
                except ConnectionError:
                    pass
                finally:
                    sink.close()

            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

        opened: list[asyncio.StreamWriter] = []
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with caplog.at_level(logging.WARNING, logger="eventbus"):
            async with connect(f"redis://127.0.0.1:{port}/0", heartbeat=0.2, **OPTIONS) as bus:
                await bus.publish("t", 1)
                proxy[0] = 0
                for writer in opened:
                    writer.close()
                with pytest.raises(EventBusError):
                    await bus.publish("t", 2)
                health = await bus.health()
                assert not health["ok"]
                assert "limit of 65536 bytes" in health["last_error"]
                assert [one for one in health["warnings"] if "was given up" in one]
                # Two connections: at once, and then with growing pauses of about a second.
                assert 2 <= attacks <= 60
                await bus.health()
                proxy[0] = server.port
                # Up to a pause between two attempts goes by.
                for _ in range(5):
                    with contextlib.suppress(EventBusError):
                        await bus.publish("t", 3)
                        break
                await bus.publish("t", 4)
                assert (await bus.health())["malformed"] >= 2
        told = [one for one in caplog.records if "was given up" in one.getMessage()]
        assert len(told) == 1
        listener.close()
        await listener.wait_closed()


async def test_what_is_asked_for_may_be_large() -> None:
    """The limit follows the question: many large records and dead letters still come."""
    for server in (shared_redis(), shared_postgres()):
        own: Any = {"prefix": "large"} if "redis" in server.url() else {"schema": "large"}
        async with connect(server.url(), **own, op_timeout=60.0) as bus:
            text = "x" * 1_000_000
            for number in range(80):
                async with bus.transaction() as tx:
                    tx.put(f"large{number:02}", text)
            found = await bus.scan("large", limit=100)
            assert [len(record.value) for record in found] == [len(text)] * 80
            for number in range(80):
                async with bus.transaction() as tx:
                    tx.delete(f"large{number:02}")
