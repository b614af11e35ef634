"""Background tasks: state, progress, watching from another manager, managers that die."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import pytest

from eventbus import connect
from eventbus.background import (
    BackgroundTaskManager,
    ProgressReporter,
    ServerSentEvent,
    TaskState,
    sse_events,
)
from eventbus.errors import InvalidArgumentError, NotConnectedError, NotFoundError
from eventbus.testing import eventually

from .conftest import MakeManager


async def steps(reporter: ProgressReporter) -> str:
    reporter.total_progress = 3
    for number in range(3):
        await reporter.update(1, f"step {number}")
        await asyncio.sleep(0.01)
    return "all done"


async def forever(reporter: ProgressReporter) -> None:
    await asyncio.sleep(1000)


async def states(manager: BackgroundTaskManager, task_id: uuid.UUID) -> list[TaskState]:
    async with asyncio.timeout(10):
        return [state async for state in manager.watch(task_id)]


async def ended(
    manager: BackgroundTaskManager, task_id: uuid.UUID, timeout: float = 10
) -> TaskState:
    found: list[TaskState] = []

    async def final() -> bool:
        state = await manager.read(task_id)
        if state is not None and state.is_final:
            found.append(state)
        return bool(found)

    await eventually(final, timeout=timeout)
    return found[-1]


async def test_every_change_is_seen_by_another_manager(make_manager: MakeManager) -> None:
    one, two = await make_manager(), await make_manager()
    task_id = await one.start(steps, "rescan")
    seen = await states(two, task_id)
    assert [state.version for state in seen] == sorted({state.version for state in seen})
    last = seen[-1]
    assert (last.status, last.message, last.current, last.total) == ("done", "all done", 3, 3)
    assert (last.name, last.task_id) == ("rescan", str(task_id))
    assert await two.read(task_id) == last
    assert await states(two, task_id) == [last]


async def test_start_returns_when_the_state_is_stored(make_manager: MakeManager) -> None:
    manager = await make_manager()
    task_id = await manager.start(forever)
    state = await manager.read(task_id)
    assert state is not None
    assert (state.status, state.current, state.total, state.version) == ("started", 0, 0, 1)
    assert abs(state.started_at - time.time()) < 60
    assert len(manager.ongoing_tasks) == 1


async def test_a_failure_is_the_final_message(make_manager: MakeManager) -> None:
    manager = await make_manager()

    async def fails(reporter: ProgressReporter) -> None:
        await reporter.update(0.5)
        raise LookupError("no image")

    state = await ended(manager, await manager.start(fails))
    assert (state.status, state.message, state.current) == (
        "failed",
        "LookupError('no image')",
        0.5,
    )


async def test_shutdown_cancels(make_manager: MakeManager) -> None:
    one, two = await make_manager(), await make_manager()
    tasks = [await one.start(forever) for _ in range(5)]
    await asyncio.sleep(0)
    await one.shutdown()
    await one.shutdown()
    for task_id in tasks:
        state = await two.read(task_id)
        assert state is not None
        assert (state.status, state.message) == ("cancelled", "")
    with pytest.raises(NotConnectedError):
        await one.start(steps)


async def test_updates_are_stored_in_the_order_of_their_calls(make_manager: MakeManager) -> None:
    manager, go = await make_manager(), asyncio.Event()

    async def work(reporter: ProgressReporter) -> None:
        await go.wait()
        await asyncio.gather(*(reporter.update(1, f"m{number}") for number in range(20)))

    task_id = await manager.start(work)
    watching = asyncio.create_task(states(manager, task_id))
    await asyncio.sleep(0.05)
    go.set()
    seen = await watching
    assert [state.current for state in seen] == [*range(21), 20]
    assert [state.message for state in seen[1:21]] == [f"m{number}" for number in range(20)]


async def test_unknown_tasks(make_manager: MakeManager) -> None:
    manager = await make_manager()
    assert await manager.read(uuid.uuid4()) is None
    with pytest.raises(NotFoundError):
        await states(manager, uuid.uuid4())
    assert not manager._watchers


async def test_the_state_expires(make_manager: MakeManager) -> None:
    manager = await make_manager(keep=0.3)
    task_id = await manager.start(steps)
    await ended(manager, task_id)

    async def gone() -> bool:
        return await manager.read(task_id) is None

    await eventually(gone)


async def test_the_end_between_registering_and_reading_is_not_missed(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, go = await make_manager(), asyncio.Event()

    async def work(reporter: ProgressReporter) -> str:
        await go.wait()
        return "end"

    task_id = await manager.start(work)
    read = manager.read

    async def slow(key: Any) -> TaskState | None:
        found = await read(key)
        go.set()
        await eventually(lambda: not manager.ongoing_tasks)
        return found

    monkeypatch.setattr(manager, "read", slow)
    seen = await states(manager, task_id)
    assert [state.status for state in seen] == ["started", "done"]


async def test_a_slow_reader_gets_the_end(make_manager: MakeManager) -> None:
    manager = await make_manager()

    async def work(reporter: ProgressReporter) -> None:
        for _ in range(1500):
            await reporter.update(1)

    task_id = await manager.start(work)
    watching = manager.watch(task_id)
    await anext(watching)
    await ended(manager, task_id, timeout=30)
    seen = [state async for state in watching]
    assert seen[-1].status == "done"
    assert seen[-1].current == 1500


async def test_leaving_frees_the_watcher(make_manager: MakeManager) -> None:
    manager = await make_manager()
    task_id = await manager.start(forever)
    watching = asyncio.create_task(states(manager, task_id))
    await eventually(lambda: manager._watchers)
    watching.cancel()
    await asyncio.wait([watching])
    assert not manager._watchers


async def test_shutdown_ends_streams_without_server_close(make_manager: MakeManager) -> None:
    one, two = await make_manager(), await make_manager()
    task_id = await one.start(forever)

    async def collect() -> list[ServerSentEvent]:
        return [event async for event in sse_events(two, task_id)]

    collecting = asyncio.create_task(collect())
    await eventually(lambda: two._watchers)
    await asyncio.sleep(0.05)
    await two.shutdown()
    assert [event.event for event in await collecting] == ["task_updated"]


async def test_server_sent_events(make_manager: MakeManager) -> None:
    manager = await make_manager()
    task_id = await manager.start(steps)
    seen = [event async for event in sse_events(manager, task_id)]
    assert [event.event for event in seen[-2:]] == ["task_done", "server_close"]
    assert seen[-1] == ("server_close", "{}", None)
    for event in seen[:-1]:
        data = json.loads(event.data)
        assert data["task_id"] == str(task_id)
        assert {"message", "current_progress", "total_progress"} <= set(data)
        assert event.retry == 5
    assert seen[-2].id == "5"
    text = seen[-2].encode().decode()
    assert text.startswith("event: task_done\ndata: {")
    assert text.endswith("\nid: 5\nretry: 5\n\n")


async def test_last_event_id_does_not_repeat_a_state(make_manager: MakeManager) -> None:
    manager = await make_manager()
    task_id = await manager.start(forever)
    for last, expected in (("1", 0), ("0", 1), (None, 1), ("junk", 1)):
        events = sse_events(manager, task_id, last_event_id=last)
        try:
            async with asyncio.timeout(0.1):
                await anext(events)
                found = 1
        except TimeoutError:
            found = 0
        assert found == expected, last
        await events.aclose()  # type: ignore[attr-defined]


async def test_tasks_of_a_dead_manager_are_marked_failed_by_another(
    make_manager: MakeManager,
) -> None:
    lease = 0.6
    dead, other, third = [await make_manager(lease=lease) for _ in range(3)]
    cancelled = asyncio.Event()

    async def work(reporter: ProgressReporter) -> None:
        try:
            while True:
                await asyncio.sleep(0.5)
                await reporter.update(1)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task_id = await dead.start(work)
    watching = asyncio.create_task(states(other, task_id))
    await asyncio.sleep(0.05)
    assert dead._supervisor is not None
    dead._supervisor.stop()
    for helper in dead._helpers.values():
        helper.cancel()
    began = time.monotonic()
    seen = await watching
    assert time.monotonic() - began < lease + 5
    assert (seen[-1].status, seen[-1].message) == ("failed", "the manager that ran the task died")
    # It was not dead but slow: its next word is refused, and the task is stopped.
    await asyncio.wait_for(cancelled.wait(), 5)
    await eventually(lambda: not dead.ongoing_tasks)
    state = await third.read(task_id)
    assert state == seen[-1]


async def test_records_that_others_forged_do_not_keep_lost_tasks_from_ending() -> None:
    lost = uuid.UUID(int=2**128 - 1)  # looked at last
    forged = {f"background/running/{number}": value for number, value in enumerate([1, {}, None])}
    forged["background/running/a"] = {"owner": "dead"}
    forged["background/task/a"] = {"status": "evil"}
    forged["background/running/b"] = {"owner": "dead"}
    forged["background/task/b"] = TaskState(task_id="b").to_dict() | {"status": "evil"}
    forged["background/running/c"] = {(2**61 - 1) * (n + 64) for n in range(100)}  # undecodable
    forged[f"background/running/{lost}"] = {"owner": "dead"}
    forged[f"background/task/{lost}"] = TaskState(task_id=str(lost)).to_dict()
    async with connect("memory://") as bus:
        async with bus.transaction() as tx:
            for key, value in forged.items():
                tx.put(key, value)
        async with BackgroundTaskManager(bus, lease=0.3) as manager:
            assert (await ended(manager, lost)).status == "failed"


async def test_a_living_manager_keeps_its_tasks(make_manager: MakeManager) -> None:
    one, two = await make_manager(lease=0.4), await make_manager(lease=0.4)
    task_id = await one.start(forever)
    await asyncio.sleep(1.2)
    state = await two.read(task_id)
    assert state is not None
    assert state.status == "started"


async def test_bad_arguments() -> None:
    async with connect("memory://") as bus:
        with pytest.raises(InvalidArgumentError):
            BackgroundTaskManager(bus, lease=0)
        async with BackgroundTaskManager(bus) as manager:
            with pytest.raises(TypeError):
                await manager.start("no function")  # type: ignore[arg-type]
        with pytest.raises(NotConnectedError):
            await states(manager, uuid.uuid4())
