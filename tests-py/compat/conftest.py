"""Fixtures of the contract tests: waiting for a condition with a deadline, a memory bus."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from eventbus.compat.dataknobs import InMemoryEventBus

Eventually = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
def eventually() -> Eventually:
    async def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true within 10 s"
            await asyncio.sleep(0)

    return wait


@pytest.fixture
async def bus() -> AsyncIterator[InMemoryEventBus]:
    bus = InMemoryEventBus()
    await bus.connect()
    yield bus
    await bus.close()


@pytest.fixture
async def queued() -> AsyncIterator[InMemoryEventBus]:
    bus = InMemoryEventBus(delivery="queued")
    await bus.connect()
    yield bus
    await bus.close()
