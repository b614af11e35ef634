"""Subscribe: who is called, with what, in which order, and until when."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import uuid
from typing import Any

import pytest

from conformance.support import WITHIN, needs
from eventbus import Bus, Event, EventType
from eventbus.testing import Recorder, eventually


def _handlers(seen: list[Any]) -> dict[str, Any]:
    async def coroutine(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.payload)

    def function(event: Event) -> None:
        seen.append(event.payload)

    class Handler:
        async def __call__(self, event: Event) -> None:
            await coroutine(event)

        async def method(self, event: Event) -> None:
            await coroutine(event)

    async def two(_first: int, event: Event) -> None:
        await coroutine(event)

    return {
        "async def": coroutine,
        "function": function,
        "lambda that returns a coroutine": lambda event, call=coroutine: call(event),
        "callable object": Handler(),
        "method": Handler().method,
        "partial": functools.partial(two, 1),
        "builtin": lambda event: seen.append(event.payload),
    }


@pytest.mark.parametrize("kind", _handlers([]))
async def test_every_kind_of_callable_is_called_and_awaited(
    bus: Bus, topic: str, kind: str
) -> None:
    seen: list[Any] = []
    await bus.subscribe(topic, _handlers(seen)[kind])
    await bus.publish(topic, 1)
    await eventually(lambda: seen == [1], timeout=WITHIN)


async def test_every_subscriber_gets_every_event(bus: Bus, topic: str) -> None:
    recorders = [Recorder() for _ in range(3)]
    for recorder in recorders:
        await bus.subscribe(topic, recorder)
    await bus.publish(topic, 1)
    await bus.publish(topic, 2)
    for recorder in recorders:
        await recorder.wait_for(2, WITHIN)
        assert recorder.payloads == [1, 2]


async def test_only_what_is_published_afterwards_is_seen(bus: Bus, topic: str) -> None:
    await bus.publish(topic, "before")
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.publish(topic, "after")
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == ["after"]


async def test_only_the_very_topic_is_seen(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    for other in (topic + ":x", topic[:-1], topic.upper(), "x" + topic):
        await bus.publish(other, other)
    await bus.publish(topic, "it")
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == ["it"]


async def test_the_subscription_says_what_it_is(bus: Bus, topic: str) -> None:
    seen = Recorder()
    subscription = await bus.subscribe(topic, seen, pattern=topic + "*")
    assert uuid.UUID(subscription.subscription_id)
    assert subscription.topic == topic
    assert subscription.pattern == topic + "*"
    assert subscription.handler is seen
    assert subscription.created_at.utcoffset() is not None
    assert bus.subscription_count == 1


async def test_a_cancelled_subscription_sees_nothing_more(bus: Bus, topic: str) -> None:
    seen, other = Recorder(), Recorder()
    subscription = await bus.subscribe(topic, seen)
    await bus.subscribe(topic, other)
    await bus.publish(topic, 1)
    await seen.wait_for(1, WITHIN)
    await subscription.cancel()
    await subscription.cancel()
    await bus.publish(topic, 2)
    await other.wait_for(2, WITHIN)
    assert seen.payloads == [1]
    assert bus.subscription_count == 1


async def test_a_failing_handler_disturbs_nobody_and_is_reported(bus: Bus, topic: str) -> None:
    def fail(_event: Event) -> None:
        raise ValueError("mine")

    async def fail_later(_event: Event) -> None:
        await asyncio.sleep(0)
        raise KeyError("later")

    reported: list[tuple[str, BaseException]] = []
    bus.on_handler_error = lambda name, error: reported.append((name, error))
    first, last = Recorder(), Recorder()
    await bus.subscribe(topic, first)
    one = await bus.subscribe(topic, fail)
    two = await bus.subscribe(topic, fail_later)
    await bus.subscribe(topic, last)
    await bus.publish(topic, 1)
    await bus.publish(topic, 2)
    await first.wait_for(2, WITHIN)
    await last.wait_for(2, WITHIN)
    await eventually(lambda: len(reported) == 4, timeout=WITHIN)
    names = {name for name, _ in reported}
    assert names == {one.subscription_id, two.subscription_id}
    await eventually(lambda: bus.counters["failed"] == 4, timeout=WITHIN)


async def test_a_handler_that_raises_cancelled_by_itself_is_only_failed(
    bus: Bus, topic: str
) -> None:
    async def fail(_event: Event) -> None:
        raise asyncio.CancelledError

    seen = Recorder()
    await bus.subscribe(topic, fail)
    await bus.subscribe(topic, seen)
    await bus.publish(topic, 1)
    await bus.publish(topic, 2)
    await seen.wait_for(2, WITHIN)


async def test_a_handler_can_publish(bus: Bus, topic: str) -> None:
    seen = Recorder()

    async def forward(event: Event) -> None:
        if event.payload < 3:
            await bus.publish(topic, event.payload + 1)

    await bus.subscribe(topic, seen)
    await bus.subscribe(topic, forward)
    await bus.publish(topic, 0)
    await seen.wait_for(4, WITHIN)
    assert seen.payloads == [0, 1, 2, 3]


async def test_a_handler_can_subscribe_and_cancel(bus: Bus, topic: str) -> None:
    late, seen = Recorder(), Recorder()

    async def once(event: Event) -> None:
        seen(event)
        await subscription.cancel()
        await bus.subscribe(topic, late)

    subscription = await bus.subscribe(topic, once)
    await bus.publish(topic, 1)
    await seen.wait_for(1, WITHIN)
    await eventually(lambda: bus.subscription_count == 1, timeout=WITHIN)
    await bus.publish(topic, 2)
    await late.wait_for(lambda event: event.payload == 2, WITHIN)
    assert seen.payloads == [1]


async def test_a_handler_can_close_the_bus(bus: Bus, topic: str) -> None:
    async def close(_event: Event) -> None:
        await bus.close()

    await bus.subscribe(topic, close)
    async with asyncio.timeout(WITHIN):
        await bus.publish(topic, 1)
        await eventually(lambda: bus.state == "closed", timeout=WITHIN)


async def test_context_variables_of_a_handler_do_not_leak_into_the_next_event(
    bus: Bus, topic: str
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    found: list[str] = []

    async def handler(event: Event) -> None:
        found.append(variable.get())
        variable.set(str(event.payload))
        await asyncio.sleep(0)
        assert variable.get() == str(event.payload)

    variable.set("subscriber")
    await bus.subscribe(topic, handler, delivery="queued")
    variable.set("publisher")
    await bus.publish(topic, 1)
    await bus.publish(topic, 2)
    await eventually(lambda: len(found) == 2, timeout=WITHIN)
    assert found == ["subscriber", "subscriber"]


async def test_asyncio_timeout_works_in_a_handler(bus: Bus, topic: str) -> None:
    ended: list[str] = []

    async def handler(_event: Event) -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append("timeout")

    await bus.subscribe(topic, handler)
    await bus.publish(topic, 1)
    await eventually(lambda: ended == ["timeout"], timeout=WITHIN)


async def test_inline_handlers_have_run_in_order_when_publish_returns(bus: Bus, topic: str) -> None:
    needs(bus, "in_process")
    order: list[Any] = []

    async def slow(event: Event) -> None:
        await asyncio.sleep(0.001)
        order.append(("slow", event, asyncio.current_task()))

    await bus.subscribe(topic, slow, delivery="inline")
    await bus.subscribe(
        topic,
        lambda event: order.append(("fast", event, asyncio.current_task())),
        delivery="inline",
    )
    sent = Event(EventType.CREATED, topic, {"a": 1})
    await bus.publish(topic, sent)
    assert [name for name, *_ in order] == ["slow", "fast"]
    assert all(event is sent for _, event, _ in order)
    assert {task for *_, task in order} == {asyncio.current_task()}


async def test_cancelling_a_publish_cancels_its_inline_handler(bus: Bus, topic: str) -> None:
    needs(bus, "in_process")
    states: list[str] = []

    async def handler(_event: Event) -> None:
        states.append("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            states.append("cancelled")
            raise

    await bus.subscribe(topic, handler, delivery="inline")
    task = asyncio.create_task(bus.publish(topic, 1))
    await eventually(lambda: states == ["started"], timeout=WITHIN)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert states == ["started", "cancelled"]
