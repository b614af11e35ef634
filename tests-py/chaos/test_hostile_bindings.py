"""Bindings that somebody wrote into the server: they match nothing, and no lease waits for them."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from chaos.load import soon
from eventbus import Bus, Event, connect
from servers.redis_server import RedisServer
from servers.shared import shared_postgres

GROUP = "group"
LEASE = 0.6
LONG = "[" * 200_000
"""300,000 of them held the runtime for 19 seconds, each time that the bindings were read."""
MAXIMAL = [f"{n:06}*" + "[*" * 124 for n in range(5_000)]
"""Patterns of 255 bytes with as many parts as fit."""

Spoil = Callable[[list[str]], None]


@dataclass
class Place:
    """A server, and how somebody writes patterns into the bindings of the group there."""

    url: str
    options: dict[str, Any]
    spoil: Spoil


_schemas = itertools.count(1)


@pytest.fixture(params=["redis", "postgres"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "redis":
        with RedisServer() as server:
            yield Place(server.url(), {}, lambda texts: into_redis(server, texts))
    else:
        schema = f"hostile_{os.getpid()}_{next(_schemas)}"
        url = shared_postgres().url()
        yield Place(url, {"schema": schema}, lambda texts: into_postgres(url, schema, texts))


def into_redis(server: RedisServer, texts: list[str]) -> None:
    with server.client() as client:
        [queues] = [key for key in client.scan_iter("*") if key.endswith(b":q")]
        [version] = [key for key in client.scan_iter("*") if key.endswith(b":v")]
        client.hset(queues, mapping={f"p{text}": 1_000 + n for n, text in enumerate(texts)})
        client.hset(queues, b"p\xff", 999)
        client.hset(queues, b"what is this", 998)
        client.incr(version)


def into_postgres(url: str, schema: str, texts: list[str]) -> None:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"set search_path to {schema}")
        cursor.executemany(
            "insert into bindings (group_id, binding, pattern, text)"
            " select id, %s, true, %s from groups",
            [(1_000 + n, text) for n, text in enumerate(texts)],
        )
        cursor.execute("update registry set version = version + 1")


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Bus]:
    async with connect(place.url, **place.options, drain_timeout=2.0) as bus:
        yield bus


async def test_bindings_that_nobody_could_have_declared_match_nothing_and_are_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    async with opened(place) as bus:
        await bus.declare_group(GROUP, "work")
        place.spoil([LONG, "?" * 256])
        # Publishers, consumers and operators, of this process and of one that comes anew.
        async with opened(place) as later:
            for one in (bus, later):
                await one.publish("work", 1)
                await one.publish("?" * 200, 2)
            await later.consume("work", lambda event: seen.append(event.payload), group=GROUP)
            assert await soon(lambda: seen == [1, 1], 10)
            for one in (bus, later):
                warnings = (await one.health())["warnings"]
                assert len([text for text in warnings if "that is not used here" in text]) == 1
            assert (await later.inspect())["groups"][0]["ready"] == 0
    told = [one for one in caplog.records if "binding that is not used here" in one.getMessage()]
    assert 1 <= len(told) <= 2  # once per bus at most


async def test_leases_are_renewed_while_many_maximal_bindings_are_read(place: Place) -> None:
    done: list[Any] = []
    began = asyncio.Event()

    async def handle(event: Event) -> None:
        began.set()
        await asyncio.sleep(4 * LEASE)
        done.append(event.payload)

    async with opened(place) as bus:
        await bus.consume("work", handle, group=GROUP, lease=LEASE, concurrency=4)
        for number in range(4):
            await bus.publish("work", number)
        await began.wait()
        place.spoil([LONG, *MAXIMAL])
        # Each is read anew by whoever publishes, claims or declares next.
        for number in range(10):
            await bus.declare_group(f"other{number}", "elsewhere")
            await bus.publish("nobody", number)
        assert await soon(lambda: sorted(done) == [0, 1, 2, 3], 20)
        assert bus.counters["leases_lost"] == 0
    assert sorted(done) == [0, 1, 2, 3]
