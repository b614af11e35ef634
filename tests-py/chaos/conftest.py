"""Fixtures of the fault tests: a private broker, a proxy before it, a folder for journals."""

from __future__ import annotations

import faulthandler
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from eventbus import Bus, connect
from servers.brokers import BROKERS, QUICK, Broker, brokers
from servers.proxy import FaultProxy

Connect = Callable[..., Any]


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print every thread and end the run when a quick test takes two minutes."""
    if request.node.get_closest_marker("chaos") is None:
        faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=brokers())
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A server that the test may break."""
    one = BROKERS[request.param]()
    try:
        yield one.start()
    finally:
        one.close()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[FaultProxy]:
    """A fault proxy before the broker."""
    with FaultProxy(broker.port) as one:
        # pytest shows it when the test fails.
        print(f"seed of the proxy: {one.seed}")  # noqa: T201
        yield one


@pytest.fixture
async def connected(broker: Broker) -> AsyncIterator[Connect]:
    """Return a function that makes a connected bus; a proxy's port may be given."""
    async with AsyncExitStack() as stack:

        async def make(port: int | None = None, url: str | None = None, **options: Any) -> Bus:
            bus = connect(url or broker.url(port), **{**QUICK, "drain_timeout": 2.0, **options})
            return await stack.enter_async_context(bus)

        yield make
