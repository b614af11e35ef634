"""A dispatcher lives, whatever a callback does and whatever ends its receiving tasks."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from eventbus.testing import eventually

from .conftest import MakeDispatcher


class Quit(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        LookupError("\ud800 and \0"),
        GeneratorExit(),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        Quit("now"),
        ExceptionGroup("two", [ValueError("a"), TypeError("b")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_callback_raises_the_next_event_is_handled(
    make_dispatcher: MakeDispatcher, error: BaseException
) -> None:
    told: list[BaseException] = []

    async def report(kind: type[BaseException], raised: BaseException, trace: Any) -> None:
        told.append(raised)

    d = await make_dispatcher(
        concurrency=1, consumer_exception_handler=report, subscriber_exception_handler=report
    )
    consumed: list[int] = []
    seen: list[int] = []

    async def consume(context: object, source: str, name: str, number: int) -> None:
        if number < 3:
            raise error
        consumed.append(number)

    def subscribe(context: object, source: str, name: str, number: int) -> None:
        if number < 3:
            raise error
        seen.append(number)

    await d.consume("e", consume)
    await d.subscribe("e", subscribe)
    for number in range(1, 5):
        await d.produce_event("e", (number,))
    await eventually(lambda: (consumed, seen) == ([3, 4], [3, 4]), timeout=10)
    await eventually(lambda: len(told) == 4, timeout=10)
    assert {type(one) for one in told} == {type(error)}
    await eventually(lambda: not d._engine._in_hand, timeout=10)


async def test_receiving_tasks_that_end_are_replaced_and_counted(
    make_dispatcher: MakeDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    d = await make_dispatcher()
    consumed: list[int] = []
    seen: list[int] = []
    await d.consume("e", lambda context, source, name, number: consumed.append(number))
    await d.subscribe("e", lambda context, source, name, number: seen.append(number))
    engine = d._engine
    before = set(engine._loops)
    for task in before:
        task.cancel()
    await eventually(lambda: len(engine._loops - before) == len(before), timeout=10)
    assert engine.counts["replaced"] == len(before)
    for number in range(3):
        await d.produce_event("e", (number,))
    await eventually(lambda: (sorted(consumed), sorted(seen)) == ([0, 1, 2], [0, 1, 2]), timeout=10)
    told = [one for one in caplog.records if one.name == "eventbus.supervisor"]
    assert len(told) == len(before)
    assert all(one.levelno >= logging.WARNING for one in told)
