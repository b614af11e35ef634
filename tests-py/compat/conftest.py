"""Fixtures of the contract tests: memory buses."""

from collections.abc import AsyncIterator

import pytest

from eventbus.compat.dataknobs import InMemoryEventBus


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
