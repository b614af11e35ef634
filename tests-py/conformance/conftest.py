"""The backends that the suite runs over, and buses on them."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from eventbus import Bus, connect
from servers.shared import shared_postgres, shared_redis

MakeBus = Callable[..., Awaitable[Bus]]

_schemas = itertools.count(1)


@dataclass(frozen=True)
class Backend:
    """One column of the matrix.

    Attributes:
        name: Names it in the test ids.
        url: What ``connect`` gets; ``{unique}`` becomes a name of the test's own, so that all buses
            of one test share a backend and no two tests do, ``{redis}`` and ``{postgres}`` the
            addresses of the servers of the run, ``{schema}`` a schema of the test's own.
        options: Further options of every bus.
    """

    name: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)


BACKENDS = [
    Backend("memory", "memory://{unique}"),
    Backend("memory-queued", "memory://{unique}", {"delivery": "queued"}),
    Backend("memory-strict", "memory://{unique}", {"strict": True}),
    Backend("redis", "{redis}?prefix={unique}"),
    Backend("postgres", "{postgres}?schema={schema}"),
]


LoopFactory = Callable[[], asyncio.AbstractEventLoop]

ON_UVLOOP = {"test_close", "test_consume", "test_deliveries", "test_publish", "test_stream"}
"""The files that run on uvloop too, over the first backend: those where loops could differ."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Return the loops that a test runs on."""
    del config
    loops: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop}
    if item.path.stem in ON_UVLOOP:
        try:
            import uvloop
        except ImportError:
            return loops
        loops["uvloop"] = uvloop.new_event_loop
    return loops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep uvloop to one backend: the product of both would be long and say little more."""

    def wanted(item: pytest.Item) -> bool:
        call = getattr(item, "callspec", None)
        if call is None or "uvloop" not in item.name:
            return True
        return call.params.get("backend", BACKENDS[0]) is BACKENDS[0]

    items[:] = [item for item in items if wanted(item)]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    found: Backend = request.param
    return found


@asynccontextmanager
async def buses(address: str, **defaults: Any) -> AsyncIterator[MakeBus]:
    """Give a function that makes a connected bus; at the end all of them are drained."""
    made: list[Bus] = []

    async def make(url: str | None = None, **options: Any) -> Bus:
        bus = connect(url or address, **{**defaults, **options})
        made.append(bus)
        await bus.connect()
        return bus

    yield make
    for bus in made:
        await bus.drain(2.0)


@pytest.fixture
async def make_bus(
    backend: Backend, unique: Callable[[str], str], no_leaked_tasks: None
) -> AsyncIterator[MakeBus]:
    """Return a function that makes a connected bus; all of one test share the backend."""
    name = unique("bus").replace(":", "-")
    redis = shared_redis().url() if "{redis}" in backend.url else ""
    postgres = shared_postgres().url() if "{postgres}" in backend.url else ""
    # A schema's name is short and plain.
    schema = f"test_{os.getpid()}_{next(_schemas)}"
    url = backend.url.format(unique=name, redis=redis, postgres=postgres, schema=schema)
    async with buses(url, **backend.options) as make:
        yield make


@pytest.fixture
async def bus(make_bus: MakeBus) -> Bus:
    """A connected bus."""
    return await make_bus()


@pytest.fixture
def topic(unique: Callable[[str], str]) -> str:
    """A topic of the test's own."""
    return unique("topic")


@pytest.fixture
def group(unique: Callable[[str], str]) -> str:
    """A group of the test's own."""
    return unique("group")
