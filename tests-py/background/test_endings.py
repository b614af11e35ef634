"""However the function of a task ends, its state says so, and whoever watches is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventbus.background import BackgroundTaskManager, ProgressReporter, TaskState

from .conftest import MakeManager

LIMIT = 1 << 20  # bytes of a message, the default of every bus


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ValueError("no repr")


class Quit(BaseException):
    pass


async def long_error(reporter: ProgressReporter) -> str:
    raise LookupError("x" * 2 * LIMIT)


async def long_result(reporter: ProgressReporter) -> str:
    return "x" * 2 * LIMIT


async def odd_result(reporter: ProgressReporter) -> Any:
    return object()


async def deep_result(reporter: ProgressReporter) -> Any:
    found: list[Any] = []
    for _ in range(1000):
        found = [found]
    return found


async def surrogate_error(reporter: ProgressReporter) -> str:
    raise LookupError("\ud800 and \0")


async def generator_exit(reporter: ProgressReporter) -> str:
    raise GeneratorExit


async def other_base(reporter: ProgressReporter) -> str:
    raise Quit("now")


async def no_repr(reporter: ProgressReporter) -> str:
    raise Unspeakable


async def odd_progress(reporter: ProgressReporter) -> str:
    await reporter.update(2, "half")
    reporter.current_progress = object()  # type: ignore[assignment]
    return "done"


def not_async(reporter: ProgressReporter) -> Any:
    return "not awaitable"


ENDINGS = [
    (long_error, "LookupError('xxx", "bytes cut)"),
    (long_result, "the result of the task cannot be stored", "begins with xxx"),
    (odd_result, "the result of the task cannot be stored", "object"),
    (deep_result, "the result of the task cannot be stored", ""),
    (surrogate_error, "LookupError('\\ud800 and \\x00')", ""),
    (generator_exit, "GeneratorExit()", ""),
    (other_base, "Quit('now')", ""),
    (no_repr, "Unspeakable (its repr raised ValueError)", ""),
    (odd_progress, "the result of the task cannot be stored", "begins with done"),
    (not_async, "TypeError(", "str"),
]


async def states(manager: BackgroundTaskManager, task_id: object) -> list[TaskState]:
    async with asyncio.timeout(10):
        return [state async for state in manager.watch(str(task_id))]


@pytest.mark.parametrize(
    ("func", "begins", "has"), ENDINGS, ids=lambda one: getattr(one, "__name__", "")
)
async def test_an_end_that_cannot_be_stored_is_told_as_failed(
    make_manager: MakeManager,
    caplog: pytest.LogCaptureFixture,
    func: Any,
    begins: str,
    has: str,
) -> None:
    one, two = await make_manager(), await make_manager()
    task_id = await one.start(func, "odd")
    last = (await states(two, task_id))[-1]
    assert last.status == "failed"
    assert last.message is not None
    assert last.message.startswith(begins)
    assert has in last.message
    assert len(last.message.encode()) < 20_000
    assert last.name == "odd"
    assert str(task_id) in caplog.text
    if func is odd_progress:
        assert last.current == 2


@pytest.mark.parametrize("result", ["é" * 100_000, "\ud800 alone"], ids=["long", "surrogate"])
async def test_a_result_that_can_be_stored_is_kept_whole(
    make_manager: MakeManager, result: str
) -> None:
    manager = await make_manager()

    async def work(reporter: ProgressReporter) -> str:
        return result

    last = (await states(manager, await manager.start(work)))[-1]
    assert (last.status, last.message) == ("done", result)


async def test_a_task_that_is_cancelled_before_its_first_step_ends_as_cancelled(
    make_manager: MakeManager,
) -> None:
    one, two = await make_manager(lease=0.3), await make_manager()
    task_id = await one.start(long_result)
    for task in one.ongoing_tasks:
        task.cancel()
    assert (await states(two, task_id))[-1].status == "cancelled"
    late = await one.start(long_result)
    for task in one.ongoing_tasks:
        task.cancel()
    await one.shutdown()
    assert (await states(two, late))[-1].status == "cancelled"


async def test_a_report_that_is_under_way_at_the_end_does_not_hide_it(
    make_manager: MakeManager,
) -> None:
    manager = await make_manager()
    reports: list[asyncio.Task[None]] = []

    async def work(reporter: ProgressReporter) -> str:
        reports.extend(asyncio.create_task(reporter.update(1, f"m{n}")) for n in range(5))
        await asyncio.sleep(0)
        return "over"

    last = (await states(manager, await manager.start(work)))[-1]
    assert (last.status, last.message) == ("done", "over")
    await asyncio.gather(*reports, return_exceptions=True)


@pytest.mark.parametrize("ends", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_task_that_ends_the_process_is_told_as_failed_first(ends: BaseException) -> None:
    found: list[TaskState | None] = []

    async def program() -> None:
        from eventbus import connect

        async with connect("memory://") as bus, BackgroundTaskManager(bus) as manager:

            async def work(reporter: ProgressReporter) -> str:
                raise ends

            task_id = await manager.start(work)
            try:
                await asyncio.sleep(10)
            finally:
                found.append(await manager.read(task_id))

    with pytest.raises(type(ends)):
        asyncio.run(program())
    (state,) = found
    assert state is not None
    assert (state.status, state.message) == ("failed", repr(ends))
