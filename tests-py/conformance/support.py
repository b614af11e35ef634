"""What the cases share: deadlines, and short ways to take a delivery or read a group's figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import pytest

from eventbus import Bus, Delivery, RetryPolicy
from eventbus.testing import eventually

T = TypeVar("T")

WITHIN = 10.0
"""Seconds until a thing that must happen has happened, on a slow server and machine too."""

QUIET = 0.1
"""Seconds during which a thing that must not happen does not."""

SHORT_LEASE = 0.2
"""Seconds of a lease that is meant to run out."""

AT_ONCE = RetryPolicy(max_attempts=3, max_deliveries=3, base=0.0)
"""Retries without delay, so that a test need not wait for the back-off."""


def needs(bus: Bus, capability: str) -> None:
    """Skip the test when the backend lacks a capability."""
    if not bus.capabilities[capability]:
        pytest.skip(f"the {bus.capabilities['name']} backend has no {capability}")


async def take(items: AsyncIterator[T]) -> T:
    """Return the next item, in time."""
    async with asyncio.timeout(WITHIN):
        return await anext(items)


async def take_all(items: AsyncIterator[T], count: int) -> list[T]:
    """Return the next items, in time."""
    return [await take(items) for _ in range(count)]


async def nothing_from(items: AsyncIterator[Any]) -> None:
    """Check that nothing comes for a while."""
    try:
        async with asyncio.timeout(QUIET):
            unexpected = await anext(items)
    except TimeoutError:
        return
    pytest.fail(f"unexpected: {unexpected!r}")


async def figures(bus: Bus, group: str) -> dict[str, Any]:
    """Return the figures of a group."""
    found = await bus.inspect()
    return next(one for one in found["groups"] if one["group"] == group)


async def figures_become(bus: Bus, group: str, **wanted: Any) -> None:
    """Wait until the figures of a group are these."""

    async def same() -> bool:
        found = await figures(bus, group)
        last.clear()
        last.update({key: found[key] for key in wanted})
        return last == wanted

    last: dict[str, Any] = {}
    try:
        await eventually(same, timeout=WITHIN)
    except TimeoutError:
        assert last == wanted


async def settled(deliveries: list[Delivery]) -> None:
    """Acknowledge deliveries."""
    for delivery in deliveries:
        await delivery.ack()


async def declared(bus: Bus, group: str) -> None:
    """Wait until a group exists."""

    async def exists() -> bool:
        return group in [one["group"] for one in (await bus.inspect())["groups"]]

    await eventually(exists, f"group {group}", timeout=WITHIN)
