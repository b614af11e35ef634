"""The backends of the conformance suite, and managers on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from conformance.conftest import MakeBus, backend, make_bus
from eventbus.background import BackgroundTaskManager

__all__ = ["backend", "make_bus", "make_manager"]

MakeManager = Callable[..., Awaitable[BackgroundTaskManager]]


@pytest.fixture
async def make_manager(
    make_bus: MakeBus, unique: Callable[[str], str]
) -> AsyncIterator[MakeManager]:
    """Return a function that makes a started manager on a bus of its own; all share a backend."""
    made: list[BackgroundTaskManager] = []
    prefix = unique("background").replace(":", "-")

    async def make(**options: Any) -> BackgroundTaskManager:
        manager = BackgroundTaskManager(await make_bus(), prefix=prefix, **options)
        made.append(manager)
        await manager.start_up()
        return manager

    yield make
    for one in made:
        await one.shutdown()
