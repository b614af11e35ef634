"""What is dropped, stopped or abandoned leaves nothing behind and keeps nothing for itself."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

import eventbus
from eventbus import Bus, Event

from .support import group_of, run_script, until


async def test_a_stopped_consumer_is_collected(bus: Bus) -> None:
    class Handler:
        async def __call__(self, event: Event) -> None:
            await asyncio.sleep(0)

    handler = Handler()
    consumer = await bus.consume("topic", handler, concurrency=4)
    await bus.publish("topic", 1)
    await bus.wait_idle()
    left = [weakref.ref(handler), weakref.ref(consumer)]
    await consumer.stop()
    del handler, consumer
    await asyncio.sleep(0)
    gc.collect()
    assert [one() for one in left] == [None, None]


async def test_a_cancelled_queued_subscription_is_collected(bus: Bus) -> None:
    class Handler:
        async def __call__(self, event: Event) -> None:
            await asyncio.sleep(0)

    handler = Handler()
    left = weakref.ref(handler)
    subscription = await bus.subscribe("topic", handler, delivery="queued")
    await bus.publish("topic", 1)
    await bus.wait_idle()
    await subscription.cancel()
    del handler, subscription
    await until(lambda: len(asyncio.all_tasks()) == 1)
    gc.collect()
    assert left() is None


def test_what_a_consumer_had_claimed_when_its_loop_ended_goes_to_the_next() -> None:
    bus = eventbus.connect("memory://")
    seen: list[int] = []

    async def abandoned() -> None:
        await bus.connect()
        begun: list[int] = []

        async def handler(event: Event) -> None:
            begun.append(event.payload)
            await asyncio.sleep(60)

        await bus.declare_group("default", "topic")
        await bus.publish_many([("topic", number) for number in range(8)])
        await bus.consume("topic", handler, concurrency=8)
        await until(lambda: begun)

    async def heir() -> None:
        await bus.consume("topic", lambda event: seen.append(event.payload))
        await until(lambda: len(seen) == 8, 3.0)
        assert (await group_of(bus, "default"))["acked"] == 8
        await bus.close()

    asyncio.run(abandoned())
    asyncio.run(heir())
    assert sorted(seen) == list(range(8))


async def test_forgotten_deliveries_release_what_was_not_handed_over(bus: Bus) -> None:
    await bus.declare_group("default", "topic")
    await bus.publish_many([("topic", number) for number in range(8)])

    async def first() -> Any:
        async for delivery in bus.deliveries("topic"):
            await delivery.ack()
            return delivery.event.payload
        return None

    assert await first() == 0
    gc.collect()
    figures = await group_of(bus, "default")
    assert (figures["ready"], figures["in_flight"], figures["acked"]) == (7, 0, 1)


async def test_a_forgotten_delivery_is_released(bus: Bus) -> None:
    await bus.declare_group("default", "topic")
    await bus.publish("topic", 1)
    async with bus.deliveries("topic", prefetch=1) as deliveries:
        first = await anext(deliveries)
        token = first.fencing_token
        del first
        gc.collect()
        second = await asyncio.wait_for(anext(deliveries), 5)
        assert second.fencing_token > token
        assert (second.attempt, second.crashes) == (1, 0)
        await second.ack()


async def test_deliveries_pending_when_the_bus_closes_end(bus: Bus) -> None:
    receive = asyncio.ensure_future(anext(bus.deliveries("topic")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await bus.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(receive, 2)


def test_deliveries_without_a_free_slot_wait_without_blocking_the_loop() -> None:
    run = run_script(
        """
        faulthandler.dump_traceback_later(3, exit=True)

        async def main():
            async with eventbus.connect("memory://") as bus:
                async with bus.deliveries("topic", prefetch=1) as deliveries:
                    await bus.publish("topic", 1)
                    await bus.publish("topic", 2)
                    first = await anext(deliveries)
                    second = asyncio.ensure_future(anext(deliveries))
                    for _ in range(10):
                        await asyncio.sleep(0)
                    assert not second.done()
                    await first.ack()
                    print((await asyncio.wait_for(second, 2)).event.payload)

        asyncio.run(main())
        """
    )
    assert (run.code, run.out, run.err) == (0, "2\n", "")
