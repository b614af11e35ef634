"""Rule B67: the shapes of call sites that must run with their import changed."""

from __future__ import annotations

import asyncio
import uuid
from contextvars import ContextVar
from typing import Any

from eventbus.compat.backendai import agent as era_a_agent
from eventbus.compat.backendai.background import BackgroundTaskManager
from eventbus.compat.backendai.events import AgentStartedEvent, SessionEnqueuedEvent
from eventbus.testing import eventually

from .conftest import World
from .support import Seen

KERNEL = str(uuid.uuid4())


async def test_b67_1_eighteen_registrations_with_awaits_between(world: World) -> None:
    d, seen = await world.a(), Seen()
    app = object()
    for number in range(9):
        d.subscribe(f"kernel_{number}", app, seen.later)
        await asyncio.sleep(0)
        d.consume(f"instance_{number}", app, seen.later)
        await asyncio.sleep(0.001)
    for number in range(9):
        await d.produce_event(f"kernel_{number}")
        await d.produce_event(f"instance_{number}")
    await seen.count(18)
    assert all(call[0] is app for call in seen)


async def test_b67_2_one_handler_for_many_names(world: World) -> None:
    d, seen = await world.a(), Seen()

    async def on_kernel(
        app: Any,
        agent_id: str,
        event_name: str,
        kernel_id: str,
        creation_id: str | None = None,
        reason: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        seen(event_name, kernel_id, creation_id, reason, exit_code)

    for name in ("kernel_started", "kernel_pulling", "kernel_log"):
        d.subscribe(name, None, on_kernel)
    await d.produce_event("kernel_started", (KERNEL, "c"), agent_id="i-a")
    await d.produce_event("kernel_pulling", (KERNEL, "c", "image"), agent_id="i-a")
    await d.produce_event("kernel_log", (KERNEL,), agent_id="i-a")
    await seen.count(3)
    assert seen == [
        ("kernel_started", KERNEL, "c", None, None),
        ("kernel_pulling", KERNEL, "c", "image", None),
        ("kernel_log", KERNEL, None, None, None),
    ]


async def test_b67_3_an_optional_tail(world: World) -> None:
    d, seen = await world.a(), Seen()

    async def on_end(
        app: Any, agent_id: str, event_name: str, kernel_id: str, reason: str, exit_code: Any = None
    ) -> None:
        seen(reason, exit_code)

    d.consume("kernel_terminated", None, on_end)
    await d.produce_event("kernel_terminated", (KERNEL, "user", None))
    await d.produce_event("kernel_terminated", (KERNEL, "idle"))
    await seen.count(2)
    assert seen == [("user", None), ("idle", None)]


variable: ContextVar[int] = ContextVar("variable")


async def test_b67_4_a_bound_method_that_is_removed_later(world: World) -> None:
    d, seen = await world.a(), Seen()

    class Checker:
        async def _check(self, context: Any, agent_id: str, event_name: str) -> None:
            variable.set(1)
            seen(variable.get())

    h = d.consume("do_idle_check", None, Checker()._check)
    await d.produce_event("do_idle_check")
    await seen.count(1)
    d.unconsume("do_idle_check", h)
    await d.produce_event("do_idle_check")
    await seen.count(1)


async def test_b67_5_one_method_for_four_names(world: World) -> None:
    d, seen = await world.a(), Seen()

    class Scheduler:
        async def schedule(
            self, ctx: Any, agent_id: str, event_name: str, *args: Any, **kwargs: Any
        ) -> None:
            seen(event_name, *args)

    scheduler = Scheduler()
    names = ("session_enqueued", "session_terminated", "instance_started", "do_schedule")
    for name in names:
        d.consume(name, None, scheduler.schedule)
    await d.produce_event("session_enqueued", ("s", "c"))
    await d.produce_event("session_terminated", ("s", "r"))
    await d.produce_event("instance_started", ("revived",), agent_id="i-a")
    await d.produce_event("do_schedule")
    await seen.count(4)
    assert [call[0] for call in seen] == list(names)


async def test_b67_6_and_7_producing_without_args_and_for_an_agent(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.consume("timer", None, seen)
    d.consume("instance_terminated", None, seen)
    await d.produce_event("timer")
    await d.produce_event("instance_terminated", ("agent-lost",), agent_id="i-9")
    await seen.count(2)
    assert seen[0][1:] == ("manager", "timer")
    assert seen[1][1:] == ("i-9", "instance_terminated", "agent-lost")


async def test_b67_8_an_error_monitor(world: World) -> None:
    d, seen = await world.a(), Seen()

    async def on_error(
        app: Any,
        agent_id: str,
        event_name: str,
        message: str,
        traceback: str | None = None,
        user: Any = None,
        context_env: Any = None,
        severity: Any = None,
    ) -> None:
        seen(message, traceback, user, context_env, severity)

    d.consume("agent_error", None, on_error)
    await d.produce_event("agent_error", ("m", "tb"), agent_id="i-a")
    await d.produce_event("agent_error", ("m", "tb", "u", {"k": 1}, "critical"), agent_id="i-a")
    await seen.count(2)
    assert seen == [("m", "tb", None, None, None), ("m", "tb", "u", {"k": 1}, "critical")]


async def test_b67_9_an_agents_heartbeat(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.consume("instance_heartbeat", None, seen)
    await asyncio.sleep(0.05)

    class Agent(era_a_agent.AgentEventProducer):
        async def heartbeat(self, info: dict[str, Any]) -> None:
            try:
                await self.produce_event("instance_heartbeat", info)
            except asyncio.TimeoutError:  # noqa: UP041 - as call sites write it
                seen("timeout")

    config = {
        "agent": {"id": "i-3"},
        "debug": {"log-heartbeats": False},
        "redis": {"addr": None, "password": None},
    }
    agent = await Agent.new(config, bus=world.url, **world.options)
    world.made.append(agent)
    await agent.heartbeat({"images": b"\x82\x53\x4e", "ip": "10.0.0.1"})
    await seen.count(1)
    assert seen[0][1:] == (
        "i-3",
        "instance_heartbeat",
        {"images": b"\x82\x53\x4e", "ip": "10.0.0.1"},
    )


async def test_b67_10_a_nested_function_as_background_task(world: World) -> None:
    d = await world.a()
    manager = BackgroundTaskManager(d)

    async def rescan() -> Any:
        images = ["a", "b"]

        async def _rescan(reporter: Any) -> None:
            reporter.total_progress = len(images)
            for image in images:
                await reporter.update(1, message=image)

        return await manager.start(_rescan)

    task_id = await rescan()

    async def done() -> bool:
        state = await d.redis_producer.hgetall(f"bgtask.{task_id}")
        return state["status"] == "done"

    await eventually(done)
    await manager.shutdown()


async def test_b67_11_coalescing_options_by_position(world: World) -> None:
    evd, p, seen = await world.b(), await world.producer(), Seen()
    opts = {"max_wait": 0.05, "max_batch_size": 32}
    evd.consume(SessionEnqueuedEvent, None, seen, opts, name="x.enq")
    evd.consume(AgentStartedEvent, None, seen)
    await p.produce_event(SessionEnqueuedEvent(uuid.uuid4(), "c"))
    await p.produce_event(AgentStartedEvent("self-started"), source="i-a")
    await seen.count(2)
    assert {type(call[2]) for call in seen} == {SessionEnqueuedEvent, AgentStartedEvent}


async def test_b67_12_producing_inside_a_handler(world: World) -> None:
    d, seen = await world.a(), Seen()

    async def chain(ctx: Any, agent_id: str, event_name: str, left: int) -> None:
        seen(event_name, left)
        if left:
            await d.produce_event("same", (left - 1,))
            await d.produce_event("other", (0,))

    d.consume("same", None, chain)
    d.consume("other", None, chain)
    await d.produce_event("same", (2,))
    await seen.count(5)
    assert sorted(seen) == [("other", 0), ("other", 0), ("same", 0), ("same", 1), ("same", 2)]
