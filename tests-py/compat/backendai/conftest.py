"""Where the contract is tested: buses of any URL, and the original wire on a Redis."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from eventbus.compat.backendai import EventDispatcher
from eventbus.compat.backendai import events as era_b
from servers.shared import shared_postgres, shared_redis

from .support import Server

_schemas = itertools.count(1)


@dataclass(frozen=True)
class Where:
    """One column of the matrix.

    Attributes:
        name: Names it in the test ids.
        url: ``{unique}`` becomes a name of the test's own, ``{schema}`` a schema of its own,
            ``{redis}`` and ``{postgres}`` the servers of the run, ``{private}`` database 4 of the
            Redis of these tests: the original wire has the same keys for everybody.
        wire: Whether it is the original wire.
        options: Further options of every dispatcher and producer.
    """

    name: str
    url: str
    wire: bool = False
    options: dict[str, Any] = field(default_factory=dict)


# One form of memory: payloads are bytes here and broadcasts come through a stream, so that its
# options make no difference. The native dispatcher is tested over all of them.
WHERE = [
    Where("memory", "memory://{unique}"),
    Where("redis", "{redis}?prefix={unique}", options={"wire": "native"}),
    Where("postgres", "{postgres}?schema={schema}"),
    Where("wire", "{private}", wire=True),
]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    with Server(appendonly=True, appendfsync="no") as server:
        yield server


@pytest.fixture
def redis(redis_server: Server) -> Server:
    """The private server, empty."""
    redis_server.command("FLUSHALL")
    return redis_server


def address(where: Where, request: pytest.FixtureRequest, name: str) -> str:
    """Return the URL of a place for one test; what it needs is started."""
    found: dict[str, str] = {"unique": name, "schema": f"backendai_{os.getpid()}_{next(_schemas)}"}
    if "{redis}" in where.url:
        found["redis"] = shared_redis().url()
    if "{postgres}" in where.url:
        found["postgres"] = shared_postgres().url()
    if "{private}" in where.url:
        server: Server = request.getfixturevalue("redis")
        found["private"] = server.address
    return where.url.format_map(found)


@dataclass
class World:
    """One bus or server, and the dispatchers of both eras on it."""

    url: str
    wire: bool
    options: dict[str, Any] = field(default_factory=dict)
    made: list[Any] = field(default_factory=list)

    async def a(self, cls: type[Any] = EventDispatcher, **options: Any) -> Any:
        return self._keep(
            await cls.new(**{"bus": self.url, "drain_timeout": 0.2, **self.options, **options})
        )

    async def b(self, **options: Any) -> Any:
        return await self.a(era_b.EventDispatcher, **options)

    async def producer(self, **options: Any) -> Any:
        return self._keep(await era_b.EventProducer.new(bus=self.url, **self.options, **options))

    def _keep(self, one: Any) -> Any:
        self.made.append(one)
        return one


@pytest.fixture(params=WHERE, ids=lambda where: where.name)
async def world(
    request: pytest.FixtureRequest, unique: Callable[[str], str], no_leaked_tasks: None
) -> AsyncIterator[World]:
    where: Where = request.param
    name = unique("bus").replace(":", "-")
    found = World(address(where, request, name), where.wire, where.options)
    yield found
    for one in reversed(found.made):
        await one.close()


@pytest.fixture
async def wire(redis: Server, no_leaked_tasks: None) -> AsyncIterator[World]:
    """The original wire only."""
    found = World(redis.address, True)
    yield found
    for one in reversed(found.made):
        await one.close()
