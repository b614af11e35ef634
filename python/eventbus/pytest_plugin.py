"""Pytest fixtures: a memory bus, one on a manual clock, and a recording handler.

``eventbus`` is a connected memory bus in strict mode, closed after the test; ``eventbus_clock`` is
one on a clock that ``await eventbus_clock.advance(seconds)`` moves (``manual`` is its short name);
``eventbus_recorder`` is a handler that keeps what it is called with.

The buses are fixtures of pytest-asyncio and work in its auto and its strict mode: they are made by
``pytest_asyncio.fixture``, so that only the *tests* need the marker in strict mode. Without
pytest-asyncio (not installed, or ``-p no:asyncio``) the plugin loads, and a test that asks for one
of them fails with a message that says so. Switch the plugin off with ``-p no:eventbus``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from eventbus.bus import Bus
    from eventbus.testing import ManualBus, Recorder

_MISSING = (
    "fixture {name!r} needs pytest-asyncio, which is not active: pip install pytest-asyncio, and "
    "leave '-p no:asyncio' away"
)


async def _eventbus() -> AsyncIterator[Bus]:
    """A connected memory bus in strict mode, closed after the test."""
    from eventbus import connect

    async with connect("memory://", strict=True) as bus:
        yield bus


async def _eventbus_clock() -> AsyncIterator[ManualBus]:
    """A connected memory bus on a clock that its ``advance`` moves."""
    from eventbus.testing import manual_bus

    async with manual_bus() as bus:
        yield bus


async def _manual(eventbus_clock: ManualBus) -> ManualBus:
    """The bus of ``eventbus_clock``."""
    return eventbus_clock


_ASYNC_FIXTURES: dict[str, Callable[..., Any]] = {
    "eventbus": _eventbus,
    "eventbus_clock": _eventbus_clock,
    "manual": _manual,
}


@pytest.fixture
def eventbus_recorder() -> Recorder:
    """Return a handler that keeps what it is called with."""
    from eventbus.testing import Recorder

    return Recorder()


def pytest_configure(config: pytest.Config) -> None:
    """Register the asynchronous fixtures in the form that this run can serve."""
    make = _served if config.pluginmanager.hasplugin("asyncio") else _refused
    # A module, because pytest looks for the fixtures of any other object in its class.
    holder = ModuleType("eventbus_fixtures")
    for name, function in _ASYNC_FIXTURES.items():
        setattr(holder, name, make(name, function))
    config.pluginmanager.register(holder, "eventbus-fixtures")


def _served(name: str, function: Callable[..., Any]) -> Any:
    import pytest_asyncio

    return pytest_asyncio.fixture(function, name=name)


def _refused(name: str, function: Callable[..., Any]) -> Any:
    def refuse() -> None:
        pytest.fail(_MISSING.format(name=name), pytrace=False)

    refuse.__doc__ = function.__doc__
    return pytest.fixture(name=name)(refuse)
