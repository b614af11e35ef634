"""Rule B47 for ends that cannot be told as they are: the task is failed, and the stream ends."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from eventbus.compat.backendai.background import (
    BackgroundTaskManager,
    ProgressReporter,
    sse_events,
)
from eventbus.testing import eventually

from .test_background import Setup, collect, setup

__all__ = ["setup"]


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ValueError("no repr")


class NoText:
    def __str__(self) -> str:
        raise ValueError("no text")


async def long_error(reporter: ProgressReporter) -> str:
    raise LookupError("x" * (2 << 20))


async def surrogate_error(reporter: ProgressReporter) -> str:
    raise LookupError("\ud800")


async def surrogate_text(reporter: ProgressReporter) -> str:
    class Odd(Exception):
        def __repr__(self) -> str:
            return "odd \ud800"

    raise Odd


async def odd_result(reporter: ProgressReporter) -> Any:
    return NoText()


async def generator_exit(reporter: ProgressReporter) -> str:
    raise GeneratorExit


async def no_repr(reporter: ProgressReporter) -> str:
    raise Unspeakable


ENDINGS = [
    (long_error, "LookupError('xxx"),
    (surrogate_error, "LookupError('\\ud800')"),
    (surrogate_text, "odd \\ud800"),
    (odd_result, "the result of the task cannot be stored"),
    (generator_exit, "GeneratorExit()"),
    (no_repr, "Unspeakable (its repr raised ValueError)"),
]


@pytest.mark.parametrize(("func", "begins"), ENDINGS, ids=lambda one: getattr(one, "__name__", ""))
async def test_b47_an_end_that_cannot_be_told_is_failed(
    setup: Setup, func: Any, begins: str
) -> None:
    go = asyncio.Event()

    async def work(reporter: ProgressReporter) -> Any:
        await go.wait()
        return await func(reporter)

    task_id = await setup.manager.start(work)
    streams = [asyncio.create_task(collect(sse_events(setup.watcher, task_id))) for _ in range(2)]
    await eventually(lambda: len(setup.watcher._when_closed) == 2)
    go.set()
    for events in await asyncio.gather(*streams):
        assert [name for name, _, _ in events] == [f"{setup.family}_failed", "server_close"]
        assert events[0][1]["message"].startswith(begins)
    state = await setup.state(task_id)
    assert state["status"] == "failed"
    assert state["msg"].startswith(begins)
    assert len(state["msg"]) < 20_000


async def test_b47_a_task_cancelled_before_its_first_step_ends_as_cancelled(setup: Setup) -> None:
    manager = BackgroundTaskManager(setup.manager.dispatcher, lease=0.3)
    early = await manager.start(long_error)
    for task in manager.ongoing_tasks:
        task.cancel()
    await eventually(lambda: setup.told)
    assert (await setup.state(early))["status"] == "cancelled"
    late = await manager.start(long_error)
    for task in manager.ongoing_tasks:
        task.cancel()
    await manager.shutdown()
    assert (await setup.state(late))["status"] == "cancelled"
    await eventually(lambda: len(setup.told) == 2)
    assert [name for name, *_ in setup.told] == [f"{setup.family}_cancelled"] * 2


async def test_b47_an_end_that_fails_to_be_stored_is_stored_by_a_later_sweep(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = BackgroundTaskManager(setup.manager.dispatcher, lease=0.6)
    refused: list[uuid.UUID | str] = []
    end = manager._journal.end

    async def refuse_twice(task_id: uuid.UUID, status: str, message: str) -> None:
        if len(refused) < 2:
            refused.append(task_id)
            raise TimeoutError("Too much delayed for retries")
        await end(task_id, status, message)

    monkeypatch.setattr(manager._journal, "end", refuse_twice)

    async def work(reporter: ProgressReporter) -> str:
        return "at last"

    task_id = await manager.start(work)
    await eventually(lambda: setup.told)
    assert (await setup.state(task_id))["msg"] == "at last"
    assert setup.told[0][:3] == (f"{setup.family}_done", str(task_id), "at last")
    assert refused == [task_id, task_id]
    await manager.shutdown()
