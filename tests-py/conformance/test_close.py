"""Close and drain: what ends, what is given back, and what is refused afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, figures, figures_become
from eventbus import Bus, BusClosedError, Consumer, Event, NotConnectedError
from eventbus.testing import Recorder, eventually

CALLS: dict[str, Any] = {
    "publish": lambda bus: bus.publish("t", 1),
    "publish_many": lambda bus: bus.publish_many([("t", 1)]),
    "subscribe": lambda bus: bus.subscribe("t", print),
    "stream": lambda bus: anext(bus.stream("t")),
    "consume": lambda bus: bus.consume("t", print),
    "deliveries": lambda bus: anext(bus.deliveries("t")),
    "declare_group": lambda bus: bus.declare_group("g", "t"),
    "unbind": lambda bus: bus.unbind("g", "t"),
    "purge": lambda bus: bus.purge("g"),
    "pause": lambda bus: bus.pause("g"),
    "delete_group": lambda bus: bus.delete_group("g"),
    "read": lambda bus: bus.read("k"),
    "scan": lambda bus: bus.scan("k"),
    "inspect": lambda bus: bus.inspect(),
    "dead_letters": lambda bus: bus.dead_letters("g").list(),
    "message": lambda bus: bus.message("00000000-0000-0000-0000-000000000000"),
    "cancel_message": lambda bus: bus.cancel_message("00000000-0000-0000-0000-000000000000"),
    "transaction": lambda bus: _commit(bus=bus),
}


async def _commit(bus: Bus) -> None:
    async with bus.transaction() as tx:
        tx.put("k", 1)


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_is_refused_after_close(bus: Bus, call: str) -> None:
    await bus.close()
    with pytest.raises(BusClosedError, match="closed"):
        await CALLS[call](bus)


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_is_refused_before_connect(make_bus: MakeBus, call: str) -> None:
    template = await make_bus()
    bus = type(template)()
    with pytest.raises(NotConnectedError, match="connect"):
        await CALLS[call](bus)


async def test_close_and_drain_are_idempotent(bus: Bus) -> None:
    states: list[str] = []
    bus.on_state_change = states.append
    await bus.drain(1)
    await bus.drain()
    await bus.close()
    await bus.close()
    assert bus.state == "closed"
    assert states == ["draining", "closed"]
    assert bool(bus)


async def test_concurrent_closes_end_together(bus: Bus, topic: str) -> None:
    await bus.consume(topic, Recorder())
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(bus.close() for _ in range(5)))
    assert bus.state == "closed"


async def test_close_ends_subscriptions(make_bus: MakeBus, topic: str) -> None:
    bus, other = await make_bus(), await make_bus()
    seen = Recorder()
    subscription = await bus.subscribe(topic, seen)
    await bus.close()
    await other.publish(topic, 1)
    assert bus.subscription_count == 0
    await subscription.cancel()
    assert seen.events == []


async def test_a_closed_bus_opens_again_without_its_old_subscriptions(bus: Bus, topic: str) -> None:
    old, new = Recorder(), Recorder()
    await bus.subscribe(topic, old)
    await bus.close()
    await bus.connect()
    await bus.subscribe(topic, new)
    await bus.publish(topic, 1)
    await new.wait_for(1, WITHIN)
    assert old.events == []


async def test_drain_handles_what_queued_subscriptions_have_buffered(bus: Bus, topic: str) -> None:
    seen: list[int] = []

    async def handle(event: Event) -> None:
        await asyncio.sleep(0.001)
        seen.append(event.payload)

    await bus.subscribe(topic, handle, delivery="queued")
    for number in range(10):
        await bus.publish(topic, number)
    await bus.drain(WITHIN)
    assert seen == list(range(10))


async def test_drain_publishes_what_publish_nowait_took(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await other.declare_group(group, topic)
    for number in range(5):
        bus.publish_nowait(topic, number)
    await bus.close()
    assert (await figures(other, group))["ready"] == 5


async def test_drain_waits_for_handlers_and_then_releases_the_late_ones(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    ends: list[str] = []

    async def handle(event: Event) -> None:
        try:
            if event.payload == "short":
                await asyncio.sleep(0.05)
            else:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        ends.append("done")

    seen = Recorder(handle)
    await bus.consume(topic, seen, group=group, concurrency=2)
    await bus.publish(topic, "short")
    await bus.publish(topic, "long")
    await bus.publish(topic, "waiting")
    await seen.wait_for(2, WITHIN)
    await bus.drain(0.3)
    assert ends == ["done", "cancelled", "cancelled"] or ends == ["done", "cancelled"]
    await figures_become(other, group, acked=1, in_flight=0, retried=0, dead=0, ready=2)


async def test_leaving_the_block_drains(make_bus: MakeBus, topic: str, group: str) -> None:
    bus, other = await make_bus(), await make_bus()
    seen = Recorder(lambda _event: asyncio.sleep(0.02))
    async with bus:
        await bus.consume(topic, seen, group=group)
        await bus.publish(topic, 1)
        await seen.wait_for(1, WITHIN)
    assert bus.state == "closed"
    assert (await figures(other, group))["acked"] == 1


async def test_a_handler_that_publishes_while_draining_is_served(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await other.declare_group(group + ":next", topic + ":next")
    go = asyncio.Event()

    async def handle(event: Event) -> None:
        await go.wait()
        await bus.publish(topic + ":next", event.payload)

    seen = Recorder(handle)
    await bus.consume(topic, seen, group=group)
    await bus.publish(topic, 1)
    await seen.wait_for(1, WITHIN)
    closing = asyncio.create_task(bus.drain(WITHIN))
    await asyncio.sleep(0)
    go.set()
    await closing
    assert (await figures(other, group + ":next"))["ready"] == 1
    assert (await figures(other, group))["acked"] == 1


async def test_a_close_waits_for_what_is_being_published(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await other.declare_group(group, topic)
    publishing = [asyncio.create_task(bus.publish(topic, number)) for number in range(200)]
    await asyncio.sleep(0)
    async with asyncio.timeout(WITHIN):
        await bus.close()
        await asyncio.gather(*publishing)
    assert (await figures(other, group))["ready"] == 200


async def _through_wait_for(close: Awaitable[None]) -> None:
    await asyncio.wait_for(close, WITHIN)


async def _through_a_task(close: Coroutine[Any, Any, None]) -> None:
    await asyncio.create_task(close)


async def _through_a_group(close: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(close)


WAYS = {
    "wait_for": _through_wait_for,
    "a task": _through_a_task,
    "a group of tasks": _through_a_group,
    "gather": asyncio.gather,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_subscriber_that_closes_through_another_task_ends_and_is_not_waited_for(
    bus: Bus, topic: str, way: str
) -> None:
    ends: list[str] = []

    async def handle(event: Event) -> None:
        try:
            await WAYS[way](bus.close())
            await asyncio.sleep(0)
            ends.append("returned")
        except BaseException as error:
            ends.append(type(error).__name__)
            raise

    await bus.subscribe(topic, handle, delivery="queued")
    await bus.publish(topic, 1)
    # `close` would wait for the handler, up to 25 seconds, and then cancel it.
    await eventually(lambda: ends, WITHIN / 2)
    assert ends == ["returned"]
    assert bus.state == "closed"


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("way", WAYS)
async def test_a_consumer_that_closes_through_another_task_ends_and_is_acknowledged(
    make_bus: MakeBus, topic: str, group: str, way: str, batch: int | None
) -> None:
    bus, other = await make_bus(), await make_bus()
    ends: list[str] = []

    async def handle(event: Event | list[Event]) -> None:
        try:
            await WAYS[way](bus.close())
            await asyncio.sleep(0)
            ends.append("returned")
        except BaseException as error:
            ends.append(type(error).__name__)
            raise

    await bus.consume(topic, handle, group=group, batch=batch)
    await bus.publish(topic, 1)
    await eventually(lambda: ends, WITHIN / 2)
    assert ends == ["returned"]
    await figures_become(other, group, acked=1, in_flight=0, ready=0)


async def test_a_handler_that_stops_its_consumer_through_wait_for_ends(
    bus: Bus, topic: str, group: str
) -> None:
    ends: list[str] = []
    consumers: list[Consumer] = []

    async def handle(event: Event) -> None:
        await asyncio.wait_for(consumers[0].stop(), WITHIN)
        ends.append("returned")

    consumers.append(await bus.consume(topic, handle, group=group))
    await bus.publish(topic, 1)
    await eventually(lambda: ends, WITHIN / 2)
    await figures_become(bus, group, acked=1, in_flight=0, ready=0)


async def test_a_task_that_an_ended_handler_left_behind_waits_for_running_handlers(
    bus: Bus, topic: str
) -> None:
    go, closing = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    seen: list[int] = []

    async def close_later() -> None:
        await go.wait()
        closing.set()
        await bus.close()

    async def starts(event: Event) -> None:
        tasks.append(asyncio.create_task(close_later()))

    async def slow(event: Event) -> None:
        go.set()
        await closing.wait()
        await asyncio.sleep(0.05)
        seen.append(event.payload)

    await bus.subscribe(topic, starts, delivery="queued")
    await bus.subscribe(topic, slow, delivery="queued")
    await bus.publish(topic, 1)
    await eventually(lambda: tasks, WITHIN)
    await asyncio.wait_for(tasks[0], WITHIN)
    assert seen == [1]
