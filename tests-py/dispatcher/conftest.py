"""The backends of the conformance suite, and dispatchers on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from conformance.conftest import MakeBus, backend, make_bus
from eventbus.dispatcher import EventDispatcher

__all__ = ["backend", "make_bus", "make_dispatcher"]

MakeDispatcher = Callable[..., Awaitable[EventDispatcher]]


@pytest.fixture
async def make_dispatcher(
    make_bus: MakeBus, unique: Callable[[str], str]
) -> AsyncIterator[MakeDispatcher]:
    """Return a function that makes a started dispatcher; all of one test share a backend."""
    made: list[EventDispatcher] = []
    prefix = unique("events").replace(":", "-")

    async def make(**options: Any) -> EventDispatcher:
        given = {"prefix": prefix, "group": prefix, "drain_timeout": 0.2, **options}
        dispatcher = EventDispatcher(await make_bus(), **given)
        made.append(dispatcher)
        await dispatcher.start()
        return dispatcher

    yield make
    for one in made:
        await one.close()
