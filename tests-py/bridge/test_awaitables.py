"""Publish and receive are awaitables of our own: asyncio must not notice the difference."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import eventbus
from eventbus import Bus, Event

from .support import until

WAYS: dict[str, Callable[[Awaitable[Any]], Awaitable[Any]]] = {
    "await": lambda work: work,
    "create_task": asyncio.create_task,  # type: ignore[arg-type]
    "ensure_future": asyncio.ensure_future,
    "gather": asyncio.gather,
    "wait_for": lambda work: asyncio.wait_for(work, 5),
    "shield": asyncio.shield,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["inline", "suspending", "group", "options", "many", "commit"])
async def test_every_way_to_await_a_publish_publishes_once_and_gives_none(
    bus: Bus, way: str, kind: str
) -> None:
    seen: list[Any] = []

    async def handler(event: Event) -> None:
        if kind == "suspending":
            await asyncio.sleep(0)
        seen.append(event.payload)

    await bus.subscribe("topic", handler)
    if kind == "group":
        await bus.declare_group("group", "topic")
    work: Awaitable[Any]
    if kind == "options":
        work = bus.publish("topic", 1, correlation_id="c")
    elif kind == "many":
        work = bus.publish_many([("topic", 1)])
    elif kind == "commit":
        transaction = bus.transaction()
        transaction.publish("topic", 1)
        work = transaction.commit()
    else:
        work = bus.publish("topic", 1)
    assert seen == []
    result = await WAYS[way](work)
    assert result == ([None] if way == "gather" else None)
    assert seen == [1]


async def test_a_task_group_awaits_publishes(bus: Bus) -> None:
    seen: list[Any] = []
    await bus.subscribe("topic", lambda event: seen.append(event.payload))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bus.publish("topic", number)) for number in range(10)]
    assert seen == list(range(10))
    assert [task.result() for task in tasks] == [None] * 10


async def test_a_task_of_a_publish_can_be_printed_while_it_runs(bus: Bus) -> None:
    texts: list[str] = []

    async def handler(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        texts.append(repr(task))
        task.get_stack()
        await asyncio.sleep(0)

    await bus.subscribe("topic", handler)
    task = asyncio.create_task(bus.publish("topic", 1), name="printed")
    texts.append(repr(task))
    await task
    assert len(texts) == 2
    assert all("printed" in text for text in texts)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bus: bus.publish(7, 1), TypeError),
        (lambda bus: bus.publish("", 1), eventbus.TopicError),
        (lambda bus: bus.publish("a\nb", 1), eventbus.TopicError),
        (lambda bus: bus.publish("topic", 1, delay=-1), ValueError),
        (lambda bus: bus.publish("topic", 1, priority=1 << 20), ValueError),
        (lambda bus: bus.publish("queued", object()), eventbus.EncodeError),
        (lambda bus: bus.publish_many([("topic",)]), (TypeError, ValueError)),
        (lambda bus: bus.publish_many(7), TypeError),
        (lambda bus: bus.subscribe("", print), eventbus.TopicError),
        (lambda bus: bus.subscribe("topic", 7), TypeError),
        (lambda bus: bus.consume("", print), eventbus.TopicError),
    ],
)
async def test_bad_arguments_raise_at_the_first_await_not_at_the_call(
    bus: Bus, call: Callable[[Bus], Awaitable[Any]], error: Any
) -> None:
    await bus.declare_group("group", "queued")
    work = call(bus)
    with pytest.raises(error):
        await work


async def test_a_closed_bus_refuses_at_the_await(bus: Bus) -> None:
    work = bus.publish("topic", 1)
    await bus.close()
    with pytest.raises(eventbus.BusClosedError):
        await work


@pytest.mark.parametrize("kind", ["plain", "many", "group", "failed"])
async def test_awaiting_twice_is_a_runtime_error(bus: Bus, kind: str) -> None:
    seen: list[Any] = []
    await bus.subscribe("topic", lambda event: seen.append(event.payload))
    if kind == "group":
        await bus.declare_group("group", "topic")
    if kind == "many":
        work = bus.publish_many([("topic", 1)])
    elif kind == "failed":
        work = bus.publish("", 1)
        with pytest.raises(eventbus.TopicError):
            await work
    else:
        work = bus.publish("topic", 1)
    if kind != "failed":
        await work
        assert seen == [1]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="already awaited"):
            await work
    assert seen == ([] if kind == "failed" else [1])


async def test_two_tasks_awaiting_one_publish_fail_without_harm(bus: Bus) -> None:
    turn = asyncio.Event()
    await bus.subscribe("topic", lambda event: turn.wait())
    work = bus.publish("topic", 1)
    first = asyncio.create_task(work)
    await asyncio.sleep(0)
    second = asyncio.create_task(work)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    turn.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert any(isinstance(result, RuntimeError) for result in results) or results == [None, None]
    await bus.publish("other", 1)


async def test_what_is_not_awaited_has_no_effect(bus: Bus) -> None:
    seen: list[Any] = []
    await bus.subscribe("topic", lambda event: seen.append(event.payload))
    await bus.declare_group("group", "topic")
    before = (await bus.inspect())["groups"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(100):
            bus.publish("topic", 1)
            bus.publish_many([("topic", 1)])
            bus.publish("topic", 1, priority=3)
        gc.collect()
    assert [one.category for one in caught] == [RuntimeWarning] * 300
    assert seen == []
    assert (await bus.inspect())["groups"] == before


async def test_a_shielded_publish_goes_on_when_its_waiter_is_cancelled(bus: Bus) -> None:
    turn, done = asyncio.Event(), asyncio.Event()

    async def handler(event: Event) -> None:
        await turn.wait()
        done.set()

    await bus.subscribe("topic", handler)
    inner = asyncio.ensure_future(bus.publish("topic", 1))
    outer = asyncio.ensure_future(asyncio.shield(inner))
    await asyncio.sleep(0)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    turn.set()
    await inner
    assert done.is_set()


async def test_a_publish_is_closed_and_thrown_into_like_a_coroutine(bus: Bus) -> None:
    left: list[str] = []

    async def handler(event: Event) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except GeneratorExit:
            left.append("closed")
            raise
        except KeyError:
            left.append("thrown")

    await bus.subscribe("topic", handler)
    work: Any = bus.publish("topic", 1)
    work.send(None)
    work.close()
    assert left == ["closed"]
    with pytest.raises(RuntimeError, match="already awaited"):
        work.send(None)
    work = bus.publish("topic", 2)
    work.send(None)
    with pytest.raises(StopIteration):
        work.throw(KeyError("k"))
    assert left == ["closed", "thrown"]
    work = bus.publish("topic", 3)
    with pytest.raises(ValueError, match="early"):
        work.throw(ValueError("early"))
    work = bus.publish("topic", 4)
    work.close()
    assert left == ["closed", "thrown"]


async def test_a_handler_that_swallows_a_cancellation_ends_like_a_coroutine(bus: Bus) -> None:
    after: list[int] = []

    async def stubborn(event: Event) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    await bus.subscribe("topic", stubborn)
    await bus.subscribe("topic", lambda event: after.append(event.payload))
    task = asyncio.create_task(bus.publish("topic", 1))
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert after == [1]


@pytest.mark.parametrize("kind", ["stream", "deliveries"])
async def test_a_cancelled_receive_leaves_the_event_for_the_next(bus: Bus, kind: str) -> None:
    source: Any = getattr(bus, kind)("topic")
    async with contextlib.aclosing(source):
        receive = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)
        await bus.publish("topic", 1)
        receive.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receive
        item = await asyncio.wait_for(anext(source), 5)
        if kind == "deliveries":
            await item.ack()
            assert item.event.payload == 1
        else:
            assert item.payload == 1


async def test_a_receive_pending_when_the_bus_closes_ends(bus: Bus) -> None:
    stream = bus.stream("topic")
    receive = asyncio.ensure_future(anext(stream))
    await until(lambda: not receive.done())
    await asyncio.sleep(0)
    await bus.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(receive, 5)
