"""Handlers on every path: their task, their context, their exceptions, calls back into the bus."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import eventbus
from eventbus import Bus, Event, RetryPolicy

from .support import group_of, until

PATHS = ["inline", "queued", "consume"]
Handler = Callable[[Event], Any]
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def start(bus: Bus, path: str, handler: Handler, **options: Any) -> Any:
    """Let a handler receive the topic by one of the three paths."""
    if path == "consume":
        return await bus.consume("topic", handler, **{"concurrency": 1, **options})
    return await bus.subscribe("topic", handler, delivery=path)


async def settle(bus: Bus) -> None:
    """Wait until every handler has run."""
    await bus.wait_idle(10.0)


@pytest.mark.parametrize("path", PATHS)
async def test_timeouts_work_inside_handlers(bus: Bus, path: str) -> None:
    ended: list[str] = []

    async def handler(event: Event) -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            ended.append("timeout")
        try:
            await asyncio.wait_for(asyncio.sleep(60), 0.001)
        except TimeoutError:
            ended.append("wait_for")
        with pytest.raises(ExceptionGroup):
            await _group_that_fails()
        ended.append("group")

    await start(bus, path, handler)
    await bus.publish("topic", 1)
    await until(lambda: len(ended) == 3)
    await settle(bus)
    assert ended == ["timeout", "wait_for", "group"]
    assert bus.counters["failed"] == 0


async def _group_that_fails() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_raises())
        await asyncio.sleep(60)


async def _raises() -> None:
    raise ValueError("in a group")


@pytest.mark.parametrize("path", PATHS)
async def test_the_current_task_is_the_publishers_or_the_workers_own(bus: Bus, path: str) -> None:
    tasks: list[Any] = []

    async def handler(event: Event) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    await start(bus, path, handler)
    await bus.publish("topic", 1)
    await until(lambda: len(tasks) == 2)
    assert tasks[0] is tasks[1]
    assert tasks[0] is not None
    assert (tasks[0] is asyncio.current_task()) == (path == "inline")
    await settle(bus)


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_context_variables_reach_handlers_and_stay_there(
    bus: Bus, path: str, suspends: bool
) -> None:
    seen: list[str] = []

    async def handler(event: Event) -> None:
        seen.append(variable.get())
        variable.set("by the handler")
        if suspends:
            await asyncio.sleep(0)
        child = asyncio.create_task(_read())
        assert await child == "by the handler"
        assert variable.get() == "by the handler"

    variable.set("subscriber")
    await start(bus, path, handler)
    variable.set("publisher")
    for number in range(3):
        await bus.publish("topic", number)
        if path == "inline":
            # The publisher's own context: what a plain call would leave behind.
            variable.set("publisher")
    await until(lambda: len(seen) == 3)
    await settle(bus)
    assert seen == ["publisher" if path == "inline" else "subscriber"] * 3
    assert variable.get() == "publisher"


async def _read() -> str:
    return variable.get()


def _boom(event: Event) -> None:
    raise ValueError("boom")  # the line that must be shown


async def _async_boom(event: Event) -> None:
    await asyncio.sleep(0)
    _boom(event)


@pytest.mark.parametrize("handler", [_boom, _async_boom])
@pytest.mark.parametrize("path", PATHS)
async def test_the_traceback_shows_the_users_file_and_line(
    bus: Bus, path: str, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = []
    bus.on_handler_error = lambda name, error: errors.append(error)
    await start(bus, path, handler, retry=RetryPolicy(max_attempts=1))
    with caplog.at_level(logging.ERROR, "eventbus"):
        await bus.publish("topic", 1)
        await until(lambda: errors)
        await settle(bus)
    (error,) = errors
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert last.filename == __file__
    assert last.line == 'raise ValueError("boom")  # the line that must be shown'
    assert "the line that must be shown" in caplog.text
    if path == "consume":
        (letter,) = await bus.dead_letters("default").list()
        assert __file__ in letter.error
        assert "boom" in letter.error


@pytest.mark.parametrize("depth", [1, 50])
@pytest.mark.parametrize("suspends", [False, True])
async def test_a_handler_publishes_to_its_own_topic_fifty_deep(
    bus: Bus, depth: int, suspends: bool
) -> None:
    order: list[int] = []

    async def handler(event: Event) -> None:
        order.append(event.payload)
        if suspends:
            await asyncio.sleep(0)
        if event.payload < depth:
            await bus.publish("topic", event.payload + 1)
        order.append(-event.payload)

    await bus.subscribe("topic", handler)
    await bus.publish("topic", 1)
    assert order == [*range(1, depth + 1), *range(-depth, 0)]


async def test_endless_recursion_is_a_recursion_error_of_the_handler(bus: Bus) -> None:
    errors: list[BaseException] = []
    bus.on_handler_error = lambda name, error: errors.append(error)

    async def handler(event: Event) -> None:
        await bus.publish("topic", event.payload + 1)

    await bus.subscribe("topic", handler)
    logging.getLogger("eventbus.handlers").disabled = True
    try:
        await bus.publish("topic", 1)
    finally:
        logging.getLogger("eventbus.handlers").disabled = False
    assert isinstance(errors[0], RecursionError)
    await bus.publish("other", 1)


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("path", ["inline", "queued"])
async def test_a_handler_ends_its_own_subscription(bus: Bus, path: str, suspends: bool) -> None:
    seen: list[Any] = []
    later: list[Any] = []

    async def handler(event: Event) -> None:
        seen.append(event.payload)
        await subscription.cancel()
        if suspends:
            await asyncio.sleep(0)
        seen.append("end")

    subscription = await bus.subscribe("topic", handler, delivery=path)
    await bus.subscribe("topic", lambda event: later.append(event.payload))
    for number in range(3):
        await bus.publish("topic", number)
    await until(lambda: len(seen) == 2)
    await settle(bus)
    assert seen == [0, "end"]
    assert later == [0, 1, 2]
    assert bus.subscription_count == 1


async def test_a_handler_that_subscribes_and_cancels_others_while_publishing(bus: Bus) -> None:
    seen: list[str] = []

    async def first(event: Event) -> None:
        seen.append("first")
        await second.cancel()
        await bus.subscribe("topic", lambda event: seen.append("new"))

    await bus.subscribe("topic", first)
    second = await bus.subscribe("topic", lambda event: seen.append("second"))
    await bus.publish("topic", 1)
    assert seen == ["first"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_handler_that_swallows_its_cancellation_leaves_its_path_working(
    bus: Bus, path: str
) -> None:
    seen: list[Any] = []
    running: list[asyncio.Task[Any]] = []

    async def handler(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append(task)
        if event.payload == 0:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                task.uncancel()
        seen.append(event.payload)

    await start(bus, path, handler)
    publish = asyncio.create_task(bus.publish("topic", 0))
    await until(lambda: running)
    running[0].cancel()
    await publish
    await bus.publish("topic", 1)
    await until(lambda: len(seen) == 2)
    await settle(bus)
    assert seen == [0, 1]


@pytest.mark.parametrize("path", PATHS)
async def test_a_cancelled_error_of_the_handlers_own_is_a_failure_like_another(
    bus: Bus, path: str
) -> None:
    errors: list[BaseException] = []
    bus.on_handler_error = lambda name, error: errors.append(error)

    async def handler(event: Event) -> None:
        if event.payload == 0:
            inner = asyncio.ensure_future(asyncio.sleep(60))
            await asyncio.sleep(0)
            inner.cancel()
            await inner

    await start(bus, path, handler, retry=RetryPolicy(max_attempts=1))
    await bus.publish("topic", 0)
    await bus.publish("topic", 1)
    await until(lambda: errors and bus.counters["delivered"] == 1)
    await settle(bus)
    assert isinstance(errors[0], asyncio.CancelledError)
    assert bus.counters["failed"] == 1


class _Stop(SystemExit):
    """Not an Exception: it must get out."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, _Stop])
@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_interrupts_in_handlers_get_out_of_the_loop(
    path: str, suspends: bool, error: type[BaseException]
) -> None:
    async def main() -> None:
        async with eventbus.connect("memory://", drain_timeout=1.0) as bus:

            async def handler(event: Event) -> None:
                if suspends:
                    await asyncio.sleep(0)
                raise error

            await start(bus, path, handler)
            await bus.publish("topic", 1)
            await asyncio.sleep(60)

    with pytest.raises(error):
        asyncio.run(main())
    gc.collect()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", ["function", "callable", "partial", "lambda", "method"])
async def test_every_shape_of_handler_is_awaited(bus: Bus, path: str, shape: str) -> None:
    seen: list[Any] = []

    async def collect(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.payload)

    class Shaped:
        async def __call__(self, event: Event) -> None:
            await collect(event)

        async def method(self, event: Event) -> None:
            await collect(event)

        def plain(self, extra: int, event: Event) -> Awaitable[None]:
            return collect(event)

    handler: Any = {
        "function": collect,
        "callable": Shaped(),
        "partial": functools.partial(Shaped().plain, 1),
        "lambda": lambda event: collect(event) if event else None,
        "method": Shaped().method,
    }[shape]
    await start(bus, path, handler)
    await bus.publish("topic", 1)
    await until(lambda: seen)
    await settle(bus)
    assert seen == [1]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("url", ["memory://", "memory://collected"])
def test_a_bus_whose_handler_refers_to_it_is_collected(url: str, published: bool) -> None:
    async def main() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        bus = eventbus.connect(url)
        await bus.connect()

        async def handler(event: Event) -> Bus:
            return bus

        await bus.subscribe("topic", handler)
        await bus.subscribe("t*", handler, "t*")
        if published:
            await bus.publish("topic", 1)
        return weakref.ref(bus), weakref.ref(handler)

    left = asyncio.run(main())
    gc.collect()
    assert [one() for one in left] == [None, None]


def test_two_buses_of_one_name_are_collected_and_their_live_handler_is_not_harmed() -> None:
    loop = asyncio.new_event_loop()
    buses = [eventbus.connect("memory://collected-twice") for _ in range(2)]
    for bus in buses:
        loop.run_until_complete(bus.connect())
    count = [0]

    def make(bus: Bus) -> Callable[[Event], int]:
        def handler(event: Event) -> int:
            assert bus is not None
            count[0] += 1
            return count[0]

        return handler

    kept = make(buses[0])
    loop.run_until_complete(buses[0].subscribe("topic", kept))
    loop.run_until_complete(buses[1].subscribe("topic", make(buses[1])))
    gc.collect()
    loop.run_until_complete(buses[1].publish("topic", 1))
    assert count == [2]
    left = [weakref.ref(bus) for bus in buses]
    del buses, bus
    gc.collect()
    # One of them is held by the handler that is kept, which must be whole.
    assert kept(Event(type=eventbus.EventType.CUSTOM, topic="topic", payload=1)) == 3
    del kept
    gc.collect()
    loop.close()
    assert [one() for one in left] == [None, None]


async def test_closing_the_bus_inside_a_consume_handler_does_not_wait_for_it() -> None:
    closed = asyncio.Event()
    bus = eventbus.connect("memory://", drain_timeout=30.0)
    await bus.connect()

    async def handler(event: Event) -> None:
        await bus.close()
        closed.set()

    await bus.consume("topic", handler, concurrency=2)
    await bus.publish("topic", 1)
    await asyncio.wait_for(closed.wait(), 5)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert bus.state == "closed"


@pytest.mark.parametrize("path", ["inline", "queued"])
async def test_closing_the_bus_inside_a_handler_does_not_wait_for_it(path: str) -> None:
    closed = asyncio.Event()
    bus = eventbus.connect("memory://", drain_timeout=30.0)
    await bus.connect()

    async def handler(event: Event) -> None:
        await bus.close()
        closed.set()

    await bus.subscribe("topic", handler, delivery=path)
    await bus.publish("topic", 1)
    await asyncio.wait_for(closed.wait(), 5)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert bus.state == "closed"


async def test_a_consumer_keeps_consuming_when_idle_workers_are_cancelled(bus: Bus) -> None:
    seen: list[Any] = []
    before = asyncio.all_tasks()
    await bus.consume("topic", lambda event: seen.append(event.payload), concurrency=4)
    for _ in range(3):
        await asyncio.sleep(0)
    workers = sorted(
        (
            task
            for task in asyncio.all_tasks() - before
            if not task.get_name().endswith(("leases", "sentinel"))
        ),
        key=lambda task: task.get_name(),
    )
    assert len(workers) == 4
    for number, worker in enumerate(workers[:3]):
        worker.cancel()
        await bus.publish("topic", number)
        await until(lambda count=number + 1: len(seen) == count, 5.0)
    assert (await group_of(bus, "default"))["acked"] == 3


async def test_a_cancelled_follower_hands_its_nudge_on(bus: Bus) -> None:
    seen: list[Any] = []
    turn = asyncio.Event()
    cancelled: list[bool] = []

    async def handler(event: Event) -> None:
        if event.payload == 0:
            # The others wait; this nudges one of them, which is cancelled before it runs.
            for task in workers[1:3]:
                asyncio.get_running_loop().call_soon(task.cancel)
            await turn.wait()
        seen.append(event.payload)

    before = asyncio.all_tasks()
    await bus.consume("topic", handler, concurrency=4)
    for _ in range(3):
        await asyncio.sleep(0)
    workers = sorted(
        (
            task
            for task in asyncio.all_tasks() - before
            if not task.get_name().endswith(("leases", "sentinel"))
        ),
        key=lambda task: task.get_name(),
    )
    await bus.publish("topic", 0)
    await asyncio.sleep(0)
    await bus.publish("topic", 1)
    await until(lambda: seen == [1], 5.0)
    turn.set()
    await settle(bus)
    assert sorted(seen) == [0, 1]
    assert not cancelled


async def test_a_batch_whose_events_cannot_be_converted_fails_and_the_consumer_goes_on(
    bus: Bus,
) -> None:
    import dataclasses

    @dataclasses.dataclass
    class Order:
        number: int

    seen: list[Any] = []

    async def handler(orders: list[Order]) -> None:
        seen.extend(orders)

    errors: list[BaseException] = []
    bus.on_handler_error = lambda name, error: errors.append(error)
    await bus.consume("topic", handler, batch=4, retry=RetryPolicy(max_attempts=1))
    await bus.publish("topic", "not an order")
    await bus.publish("topic", {"number": 1})
    await until(lambda: len(seen) + len(errors) >= 2, 5.0)
    figures = await group_of(bus, "default")
    assert figures["in_flight"] == 0


async def test_a_batch_handlers_own_cancelled_error_does_not_end_the_consumer(bus: Bus) -> None:
    seen: list[int] = []

    async def handler(events: list[Event]) -> None:
        seen.append(len(events))
        if len(seen) == 1:
            raise asyncio.CancelledError

    await bus.consume("topic", handler, batch=4, retry=RetryPolicy(max_attempts=1))
    await bus.publish("topic", 1)
    await until(lambda: len(seen) == 1)
    await bus.publish("topic", 2)
    await until(lambda: len(seen) == 2, 5.0)


async def test_an_idle_batch_consumer_stops_at_once(bus: Bus) -> None:
    consumer = await bus.consume("topic", lambda events: None, batch=4)
    await asyncio.sleep(0)
    await asyncio.wait_for(consumer.stop(), 5)
