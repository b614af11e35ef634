"""Rules B44-B48 and B64: background tasks, their hash, their events, their stream."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai.background import (
    BackgroundTaskManager,
    ProgressReporter,
    sse_events,
)
from eventbus.compat.backendai.types import BackgroundTaskEventArgs
from eventbus.errors import NotFoundError
from eventbus.testing import eventually

from .conftest import World
from .support import Seen, Server


class Setup:
    """A manager of one era, a dispatcher to watch with, and what was told."""

    def __init__(self, era: str, world: World, watcher: Any, announcer: Any) -> None:
        self.era = era
        self.family = "task" if era == "A" else "bgtask"
        self.world = world
        self.watcher = watcher
        self.manager = BackgroundTaskManager(announcer)
        self.redis = announcer.redis_producer
        self.told: list[tuple[Any, ...]] = []
        if era == "A":
            for name in ("updated", "done", "failed", "cancelled"):
                watcher.subscribe(f"task_{name}", None, self._on_a)
        else:
            for cls in (
                era_b.BgtaskUpdatedEvent,
                era_b.BgtaskDoneEvent,
                era_b.BgtaskFailedEvent,
                era_b.BgtaskCancelledEvent,
            ):
                watcher.subscribe(cls, None, self._on_b)

    def _on_a(self, context: Any, agent: str, name: str, args: dict[str, Any]) -> None:
        values = (args["message"], args["current_progress"], args["total_progress"])
        self.told.append((name, args["task_id"], *values))

    def _on_b(self, context: Any, source: str, event: Any) -> None:
        current = getattr(event, "current_progress", None)
        total = getattr(event, "total_progress", None)
        self.told.append((event.name, str(event.task_id), event.message, current, total))

    async def state(self, task_id: uuid.UUID) -> dict[str, str]:
        found: dict[str, str] = await self.redis.hgetall(f"bgtask.{task_id}")
        return found


@pytest.fixture(params=["A", "B"])
async def setup(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Setup]:
    if request.param == "A":
        d = await world.a()
        found = Setup("A", world, await world.a(), d)
    else:
        found = Setup("B", world, await world.b(), await world.producer())
    yield found
    await found.manager.shutdown()


async def steps(reporter: ProgressReporter) -> str:
    reporter.total_progress = 3
    for number in range(3):
        await reporter.update(1, f"step {number}")
    return "all done"


async def collect(events: AsyncIterator[Any]) -> list[tuple[str, Any, Any]]:
    found = []
    async with asyncio.timeout(10):
        async for event, data, retry in events:
            found.append((event, json.loads(data), retry))
    return found


async def test_b44_scheduled_tasks_are_refused_before_anything_is_stored(setup: Setup) -> None:
    async def never(reporter: Any) -> None:
        raise AssertionError

    with pytest.raises(NotImplementedError):
        await setup.manager.start(never, sched=object())
    assert not setup.manager.ongoing_tasks
    task_id = await setup.manager.start(steps, "named", sched=None)
    assert isinstance(task_id, uuid.UUID)


async def test_b45_the_surface(setup: Setup) -> None:
    reporters: list[ProgressReporter] = []

    async def work(reporter: ProgressReporter) -> None:
        reporters.append(reporter)
        reporter.total_progress = 2.5
        await reporter.update(0.5)
        await reporter.update(increment=1, message="m")
        await asyncio.sleep(60)

    task_id = await setup.manager.start(work)
    await eventually(lambda: len(setup.told) == 2)
    (task,) = setup.manager.ongoing_tasks
    assert isinstance(task, asyncio.Task)
    assert reporters[0].task_id == task_id
    assert (reporters[0].current_progress, reporters[0].total_progress) == (1.5, 2.5)
    await setup.manager.shutdown()
    assert not setup.manager.ongoing_tasks
    assert (await setup.state(task_id))["status"] == "cancelled"
    await eventually(lambda: len(setup.told) == 3)
    prefix = setup.family
    assert [one[0] for one in setup.told] == [f"{prefix}_updated"] * 2 + [f"{prefix}_cancelled"]


def test_b45_event_arguments_are_immutable() -> None:
    args = BackgroundTaskEventArgs("id")
    assert (args.message, args.current_progress, args.total_progress) == (None, None, None)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        args.message = "x"  # type: ignore[misc]


async def test_b45_a_reporter_of_ones_own(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.subscribe("task_updated", None, seen)
    task_id = uuid.uuid4()
    reporter = ProgressReporter(d, task_id, 1, 4)
    await reporter.update(1, "x")
    await seen.count(1)
    assert seen[0][3] == {
        "task_id": str(task_id),
        "message": "x",
        "current_progress": 2,
        "total_progress": 4,
    }


async def test_b46_the_hash(setup: Setup) -> None:
    go = asyncio.Event()

    async def work(reporter: ProgressReporter) -> None:
        await go.wait()
        reporter.total_progress = 2
        await reporter.update(1, None)
        await go.wait()

    before = time.time()
    task_id = await setup.manager.start(work)
    state = await setup.state(task_id)
    assert set(state) == {"status", "current", "total", "msg", "started_at", "last_update"}
    assert [state[key] for key in ("status", "current", "total", "msg")] == [
        "started",
        "0",
        "0",
        "",
    ]
    assert before <= float(state["started_at"]) <= time.time()
    go.set()
    await eventually(lambda: len(setup.told) == 2)
    state = await setup.state(task_id)
    assert [state[key] for key in ("status", "current", "total", "msg")] == ["done", "1", "2", ""]
    assert float(state["last_update"]) >= float(state["started_at"])


async def test_b46_the_hash_ends_by_itself_after_a_day(wire: World, redis: Server) -> None:
    manager = BackgroundTaskManager(await wire.a())
    task_id = await manager.start(steps)
    reply = redis.command("TTL", f"bgtask.{task_id}")
    assert 86_390 <= int(reply[1:]) <= 86_400
    await manager.shutdown()


async def test_b47_ends(setup: Setup) -> None:
    async def fails(reporter: ProgressReporter) -> None:
        raise LookupError("no image")

    async def silent(reporter: ProgressReporter) -> None:
        pass

    done = await setup.manager.start(steps)
    failed = await setup.manager.start(fails)
    empty = await setup.manager.start(silent)
    await eventually(lambda: len(setup.told) == 6)
    for task_id, status, message in (
        (done, "done", "all done"),
        (failed, "failed", "LookupError('no image')"),
        (empty, "done", ""),
    ):
        state = await setup.state(task_id)
        assert (state["status"], state["msg"]) == (status, message)
        told = [one for one in setup.told if one[1] == str(task_id)][-1]
        assert told == (f"{setup.family}_{status}", str(task_id), message, None, None)


async def test_b47_whoever_gets_an_event_finds_that_state(setup: Setup) -> None:
    checks: list[tuple[float, float]] = []

    async def check(current: float, task_id: str) -> None:
        state = await setup.state(uuid.UUID(task_id))
        checks.append((current, float(state["current"])))

    async def on_a(context: Any, agent: str, name: str, args: dict[str, Any]) -> None:
        await check(args["current_progress"], args["task_id"])

    async def on_b(context: Any, source: str, event: Any) -> None:
        await check(event.current_progress, str(event.task_id))

    if setup.era == "A":
        setup.watcher.subscribe("task_updated", None, on_a)
    else:
        setup.watcher.subscribe(era_b.BgtaskUpdatedEvent, None, on_b)
    await setup.manager.start(steps)
    await eventually(lambda: len(checks) == 3)
    assert all(stored >= told for told, stored in checks)


async def test_b47_updates_carry_the_values_of_their_call(setup: Setup) -> None:
    async def work(reporter: ProgressReporter) -> None:
        reporter.total_progress = 10
        await asyncio.gather(*(reporter.update(1, f"m{number}") for number in range(10)))

    await setup.manager.start(work)
    await eventually(lambda: len(setup.told) == 11)
    assert [one[2:4] for one in setup.told[:10]] == [(f"m{n}", n + 1) for n in range(10)]


async def test_b48_a_live_stream(setup: Setup) -> None:
    go = asyncio.Event()

    async def work(reporter: ProgressReporter) -> str:
        await go.wait()
        return await steps(reporter)

    task_id = await setup.manager.start(work)
    collecting = asyncio.create_task(collect(sse_events(setup.watcher, task_id)))
    await asyncio.sleep(0.1)
    go.set()
    text, family = str(task_id), setup.family
    assert await collecting == [
        *(
            (
                f"{family}_updated",
                {
                    "task_id": text,
                    "message": f"step {number}",
                    "current_progress": number + 1,
                    "total_progress": 3,
                },
                5,
            )
            for number in range(3)
        ),
        (f"{family}_done", {"task_id": text, "message": "all done"}, 5),
        ("server_close", {}, None),
    ]


async def test_b48_a_late_stream(setup: Setup) -> None:
    task_id = await setup.manager.start(steps)
    await eventually(lambda: len(setup.told) == 4)
    expected = {
        "task_id": str(task_id),
        "status": "done",
        "current_progress": "3",
        "total_progress": "3",
        "message": "all done",
    }
    name = f"{setup.family}_done"
    found = await collect(sse_events(setup.watcher, task_id))
    assert found == [(name, expected, 5), ("server_close", {}, None)]
    numbers = {**expected, "current_progress": 3, "total_progress": 3}
    found = await collect(sse_events(setup.watcher, task_id, numeric=True))
    assert found[0] == (name, numbers, 5)


async def test_b48_unknown_tasks_are_not_found(setup: Setup) -> None:
    with pytest.raises(NotFoundError):
        await collect(sse_events(setup.watcher, uuid.uuid4()))


async def test_b48_a_closed_dispatcher_ends_streams_without_server_close(setup: Setup) -> None:
    async def work(reporter: ProgressReporter) -> None:
        await asyncio.sleep(60)

    task_id = await setup.manager.start(work)
    collecting = asyncio.create_task(collect(sse_events(setup.watcher, task_id)))
    await asyncio.sleep(0.1)
    await setup.watcher.close()
    assert await collecting == []


async def test_b48_leaving_frees_everything_at_once(setup: Setup) -> None:
    async def work(reporter: ProgressReporter) -> None:
        await asyncio.sleep(60)

    names = list(setup.watcher.subscribers)
    before = {name: len(setup.watcher.subscribers[name]) for name in names}
    task_id = await setup.manager.start(work)
    collecting = asyncio.create_task(collect(sse_events(setup.watcher, task_id)))
    await asyncio.sleep(0.1)
    collecting.cancel()
    await asyncio.wait([collecting])
    await asyncio.sleep(0)
    assert {name: len(setup.watcher.subscribers[name]) for name in names} == before
    assert not setup.watcher._when_closed
    assert not setup.watcher._when_gap


async def test_b64_the_end_between_registering_and_reading_is_not_missed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def work(reporter: ProgressReporter) -> str:
        await go.wait()
        return "end"

    task_id = await setup.manager.start(work)
    redis = setup.watcher.connection.redis
    read = redis.hgetall

    async def slow(key: str, **options: Any) -> Any:
        found = await read(key, **options)
        # The task ends after its state was read and before the stream goes on.
        go.set()
        await eventually(lambda: len(setup.told) == 1)
        return found

    monkeypatch.setattr(redis, "hgetall", slow)
    found = await collect(sse_events(setup.watcher, task_id))
    assert [one[0] for one in found] == [f"{setup.family}_done", "server_close"]


async def test_b64_shutdown_cancels_all_at_once(setup: Setup) -> None:
    async def work(reporter: ProgressReporter) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)

    tasks = [await setup.manager.start(work) for _ in range(10)]
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await setup.manager.shutdown()
    assert time.monotonic() - began < 1.5
    for task_id in tasks:
        state = await setup.state(task_id)
        assert (state["status"], state["msg"]) == ("cancelled", "")


async def test_b64_the_close_data_is_text(setup: Setup) -> None:
    task_id = await setup.manager.start(steps)
    events = [one async for one in sse_events(setup.watcher, task_id)]
    assert events[-1] == ("server_close", "{}", None)
    assert events[-1][1] == "{}"


async def test_tasks_of_a_dead_manager_are_marked_failed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(reporter: ProgressReporter) -> None:
        await asyncio.sleep(60)

    lease = 0.6
    dead = BackgroundTaskManager(setup.manager.dispatcher, lease=lease)
    task_id = await dead.start(work)
    other = BackgroundTaskManager(setup.manager.dispatcher, lease=lease)
    # It dies: no sign of life, and no word of its task.
    assert dead._sweeper is not None
    dead._supervisor.stop()
    dead._sweeper.cancel()
    began = time.monotonic()
    await eventually(lambda: setup.told, timeout=lease + 5)
    assert time.monotonic() - began < lease + 5
    assert setup.told[-1][0] == f"{setup.family}_failed"
    assert (await setup.state(task_id))["status"] == "failed"
    await asyncio.sleep(lease)
    assert len(setup.told) == 1
    await dead.shutdown()
    assert (await setup.state(task_id))["status"] == "failed"
    await other.shutdown()
