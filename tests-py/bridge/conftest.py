"""Fixtures of the bridge tests: a connected memory bus, a watchdog against hanging."""

from __future__ import annotations

import faulthandler
from collections.abc import AsyncIterator, Iterator

import pytest

import eventbus


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print every thread and end the run when a quick test takes a minute."""
    if request.node.get_closest_marker("chaos") is None:
        faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
async def bus(no_leaked_tasks: None) -> AsyncIterator[eventbus.Bus]:
    async with eventbus.connect("memory://", drain_timeout=2.0) as bus:
        yield bus
