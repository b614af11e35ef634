"""Closing a bus that is in use: intake stops, what runs may finish, nothing starts behind it."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

import eventbus
from eventbus import BusClosedError, Event

from .support import group_of, until


async def draining() -> tuple[eventbus.Bus, asyncio.Task[None], asyncio.Event]:
    """Return a bus that is draining: a handler holds it until the event is set."""
    bus = eventbus.connect("memory://", drain_timeout=10.0)
    await bus.connect()
    turn, begun = asyncio.Event(), asyncio.Event()

    async def handler(event: Event) -> None:
        begun.set()
        await turn.wait()

    await bus.consume("slow", handler, group="slow")
    await bus.publish("slow", 1)
    await begun.wait()
    closing = asyncio.create_task(bus.close())
    await until(lambda: bus.state == "draining")
    return bus, closing, turn


@pytest.mark.parametrize("what", ["subscribe", "queued", "consume", "stream", "deliveries"])
async def test_a_draining_bus_takes_no_new_receivers(what: str) -> None:
    bus, closing, turn = await draining()
    work: Any = {
        "subscribe": lambda: bus.subscribe("topic", print),
        "queued": lambda: bus.subscribe("topic", print, delivery="queued"),
        "consume": lambda: bus.consume("topic", print),
        "stream": lambda: anext(bus.stream("topic")),
        "deliveries": lambda: anext(bus.deliveries("topic")),
    }[what]
    try:
        with pytest.raises((BusClosedError, StopAsyncIteration)):
            await asyncio.wait_for(work(), 2)
    finally:
        turn.set()
        await closing
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_draining_bus_still_serves_the_handlers_that_run() -> None:
    bus, closing, turn = await draining()
    await bus.publish("topic", 1)
    async with bus.transaction() as tx:
        tx.put("key", 1)
        tx.publish("topic", 2)
    record = await bus.read("key")
    assert record is not None
    assert record.version == 1
    turn.set()
    await closing
    with pytest.raises(BusClosedError):
        await bus.publish("topic", 3)


async def test_a_bus_is_closed_twice_at_once_and_again_after_a_cancelled_close() -> None:
    bus, closing, turn = await draining()
    again = asyncio.create_task(bus.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    turn.set()
    await again
    await bus.close()
    assert bus.state == "closed"
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def _publish_for_ever(bus: eventbus.Bus) -> None:
    while True:
        await bus.publish("topic", 1)
        await asyncio.sleep(0)


async def test_a_bus_is_closed_from_another_thread_while_it_is_busy() -> None:
    bus = eventbus.connect("memory://", drain_timeout=1.0)
    await bus.connect()
    seen: list[int] = []

    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.payload)

    await bus.subscribe("topic", handler, delivery="queued")
    await bus.consume("topic", handler)
    receive = asyncio.ensure_future(anext(bus.stream("other")))
    ended = asyncio.ensure_future(anext(bus.stream("topic")))
    await asyncio.sleep(0)
    # Buffered before the close begins, so it is still handed out.
    await bus.publish("topic", 1)
    closing = asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(bus.close()))
    with pytest.raises(BusClosedError):
        await _publish_for_ever(bus)
    await closing
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(receive, 5)
    await asyncio.wait([ended])
    assert ended.exception() is None
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_collecting_one_bus_of_a_name_leaves_the_others_subscribed() -> None:
    seen: list[str] = []
    async with eventbus.connect("memory://collected-one") as kept:
        await kept.subscribe("topic", lambda event: seen.append("inline"))
        await kept.subscribe("topic", lambda event: seen.append("queued"), delivery="queued")
        other = eventbus.connect("memory://collected-one")
        await other.connect()
        await other.close()
        del other
        gc.collect()
        await kept.publish("topic", 1)
        await kept.wait_idle()
    assert seen == ["inline", "queued"]


def test_buses_are_made_and_closed_by_many_threads_at_once() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        async def main() -> None:
            for _ in range(30):
                async with (
                    eventbus.connect("memory://many") as bus,
                    bus.stream("topic") as stream,
                ):
                    await bus.subscribe("topic", lambda event: None, delivery="queued")
                    await bus.publish("topic", 1)
                    await anext(stream)

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - told in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_a_buffered_publish_cut_off_by_the_end_of_its_loop_is_not_stored_twice() -> None:
    bus = eventbus.connect("memory://")

    async def first() -> None:
        await bus.connect()
        await bus.declare_group("group", "topic")
        begun = asyncio.Event()

        async def handler(event: Event) -> None:
            begun.set()
            await asyncio.sleep(60)

        subscription = await bus.subscribe("topic", handler)
        bus.publish_nowait("topic", 1)
        await begun.wait()
        await subscription.cancel()

    async def second() -> int:
        await bus.flush()
        accepted = (await group_of(bus, "group"))["accepted"]
        await bus.close()
        return int(accepted)

    asyncio.run(first())
    assert asyncio.run(second()) == 1
