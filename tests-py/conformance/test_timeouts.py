"""Timeouts: a call that took too long has failed, whatever it makes of that."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from conformance.support import AT_ONCE, WITHIN, figures_become
from eventbus import Bus, ConfigError, Event, Reject, RetryPolicy
from eventbus.testing import Recorder, eventually

ONCE = RetryPolicy(max_attempts=1)


async def hang(event: Event) -> None:
    await asyncio.Event().wait()


async def swallow(event: Event) -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "done"
    return "woken"


async def swallow_twice(event: Event) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        # It cleans up before it returns.
        await asyncio.sleep(0.01)


async def hold_the_loop(event: Event) -> None:
    time.sleep(0.1)  # noqa: ASYNC251 - the fault under test


@pytest.mark.parametrize("handler", [hang, swallow, swallow_twice, hold_the_loop])
async def test_an_attempt_that_timed_out_is_never_acknowledged(
    bus: Bus, topic: str, group: str, handler: Callable[[Event], Any]
) -> None:
    await bus.consume(topic, handler, group=group, timeout=0.03, retry=ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, acked=0, in_flight=0)
    [letter] = await bus.dead_letters(group).list()
    assert letter.reason == "failed"
    assert f"TimeoutError: {handler.__name__} ran longer than timeout=0.03 seconds" in letter.error


async def test_after_a_timeout_the_worker_handles_the_next_event(
    bus: Bus, topic: str, group: str
) -> None:
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        seen.append(event.payload)
        if event.payload == "slow":
            await swallow(event)

    await bus.consume(topic, handle, group=group, timeout=0.05, concurrency=1, retry=ONCE)
    await bus.publish(topic, "slow")
    await bus.publish(topic, "fast")
    await figures_become(bus, group, dead=1, acked=1, in_flight=0)
    assert seen == ["slow", "fast"]


async def test_a_timeout_of_the_handlers_own_is_its_failure(
    bus: Bus, topic: str, group: str
) -> None:
    async def handle(event: Event) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(WITHIN)
        except TimeoutError:
            raise Reject("the other side is slow") from None

    await bus.consume(topic, handle, group=group, timeout=WITHIN)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1)
    [letter] = await bus.dead_letters(group).list()
    assert (letter.reason, letter.error) == ("rejected", "the other side is slow")


def plain(event: Event) -> None: ...


class Plain:
    def __call__(self, event: Event) -> None: ...

    def method(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        plain,
        lambda event: None,
        functools.partial(plain),
        Plain(),
        Plain().method,
        [].append,
        Recorder(),
    ],
)
async def test_a_timeout_for_a_plain_function_on_the_loop_is_refused_with_the_remedy(
    bus: Bus, topic: str, group: str, handler: Callable[[Event], Any]
) -> None:
    with pytest.raises(ConfigError, match=r"timeout=3 cannot end .*run_in='thread'"):
        await bus.consume(topic, handler, group=group, timeout=3)
    assert group not in [one["group"] for one in (await bus.inspect())["groups"]]


class Async:
    async def __call__(self, event: Event) -> None: ...

    async def method(self, event: Event) -> None: ...


@functools.wraps(hang)
def wrapped(event: Event) -> Any:
    return Async()(event)


async def two(_first: int, event: Event) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [Async(), Async().method, wrapped, functools.partial(two, 1), AsyncMock(return_value=None)],
    ids=["object", "method", "wrapped", "partial", "mock"],
)
async def test_every_kind_of_coroutine_function_has_a_timeout(
    bus: Bus, topic: str, group: str, handler: Callable[[Event], Any]
) -> None:
    await bus.consume(topic, handler, group=group, timeout=WITHIN, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1)


async def test_a_recorder_of_a_coroutine_function_has_a_timeout(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder(hang)
    await bus.consume(topic, seen, group=group, timeout=0.02, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await eventually(lambda: len(seen) == 3, timeout=WITHIN)
    await figures_become(bus, group, dead=1)
