"""The servers, a manager, a client, and the backends of the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from conformance.conftest import backend, make_bus
from contrib.support import SERVERS, Serve
from eventbus import connect
from eventbus.background import BackgroundTaskManager

__all__ = ["backend", "make_bus"]


@pytest.fixture(params=SERVERS, ids=lambda one: one.__name__)
def serve(request: pytest.FixtureRequest) -> Serve:
    found: Serve = request.param
    return found


@pytest.fixture
async def manager(no_leaked_tasks: None) -> AsyncIterator[BackgroundTaskManager]:
    async with connect("memory://") as bus, BackgroundTaskManager(bus) as found:
        yield found


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found
