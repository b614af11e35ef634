"""D1: a busy handler keeps its lease without the GIL; one that lost it is cancelled, once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import pytest

import eventbus
from eventbus import Bus, Delivery, Event, LeaseLost, RetryPolicy
from eventbus.testing import ManualBus, manual_bus

from .support import group_of, until

LEASE = 0.3


def _c_loop(seconds: float) -> None:
    """Hold the GIL in calls into C, each longer than a lease."""
    end = time.perf_counter() + seconds
    size = 1_000_000
    while time.perf_counter() < end:
        begin = time.perf_counter()
        sum(range(size))
        if time.perf_counter() - begin < 1.2 * LEASE:
            size *= 2


def _python_loop(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        hashlib.sha256(b"x" * 100).digest()


@pytest.mark.parametrize("busy", [_c_loop, _python_loop, time.sleep])
async def test_a_handler_that_blocks_the_loop_for_three_leases_runs_once(
    bus: Bus, busy: Callable[[float], None]
) -> None:
    runs: list[float] = []

    async def handler(event: Event) -> None:
        begin = time.perf_counter()
        busy(3 * LEASE)
        await asyncio.sleep(0)
        runs.append(time.perf_counter() - begin)

    await bus.consume("topic", handler, lease=LEASE, concurrency=2)
    await bus.publish("topic", 1)
    await until(lambda: runs)
    await bus.wait_idle()
    figures = await group_of(bus, "default")
    assert len(runs) == 1
    assert runs[0] > 2.5 * LEASE
    assert (figures["acked"], figures["expired_leases"], figures["in_flight"]) == (1, 0, 0)
    assert bus.counters["leases_lost"] == 0


async def _lose(bus: ManualBus) -> None:
    """Let the lease run out: the clock jumps, the keeper notices at its next turn."""
    await bus.advance(60)
    await until(lambda: bus.counters["leases_lost"] > 0)


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_handler_whose_lease_is_lost_is_cancelled_and_its_worker_goes_on(
    no_leaked_tasks: None, swallows: bool
) -> None:
    async with manual_bus() as bus:
        tokens: list[int] = []
        cancelled: list[Any] = []
        seen: list[Any] = []

        async def handler(event: Event, delivery: Delivery) -> None:
            tokens.append(delivery.fencing_token)
            if len(tokens) == 1:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    cancelled.append(event.payload)
                    if not swallows:
                        raise
                    return
            seen.append(event.payload)

        await bus.consume("topic", handler, lease=LEASE, concurrency=1)
        await bus.publish("topic", 1)
        await bus.publish("topic", 2)
        await until(lambda: tokens)
        await _lose(bus)
        await until(lambda: len(seen) == 2)
        await bus.wait_idle()
        figures = await group_of(bus, "default")
        assert cancelled == [1]
        assert sorted(seen) == [1, 2]
        assert tokens[0] < tokens[1]
        assert (figures["acked"], figures["dead"], figures["expired_leases"]) == (2, 0, 1)
        assert bus.counters["leases_lost"] == 1


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_lost_lease_leaves_no_cancellation_on_the_worker(
    no_leaked_tasks: None, swallows: bool
) -> None:
    """What a handler made of its cancellation must not turn the next one's failure into another."""
    async with manual_bus() as bus:
        begun: list[Any] = []
        errors: list[BaseException] = []
        requests: list[int] = []
        bus.on_handler_error = lambda name, error: errors.append(error)

        async def handler(event: Event) -> None:
            task = asyncio.current_task()
            assert task is not None
            begun.append(event.payload)
            if len(begun) == 1:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    if not swallows:
                        raise
                return
            # Acknowledgements are sent when a handler suspends.
            await asyncio.sleep(0)
            requests.append(task.cancelling())
            async with asyncio.TaskGroup() as group:
                group.create_task(_fails())

        await bus.consume(
            "topic", handler, lease=LEASE, concurrency=1, retry=RetryPolicy(max_attempts=1)
        )
        await bus.publish("topic", 1)
        await until(lambda: begun)
        await _lose(bus)
        await until(lambda: errors)
        assert requests == [0]
        assert isinstance(errors[0], ExceptionGroup)


async def _fails() -> None:
    raise ValueError("in a group")


async def test_a_stale_delivery_cannot_settle(no_leaked_tasks: None) -> None:
    async with (
        manual_bus() as bus,
        bus.deliveries("topic", lease=LEASE, prefetch=2) as first,
        bus.deliveries("topic", lease=LEASE, prefetch=2) as second,
    ):
        await bus.publish("topic", 1)
        stale = await anext(first)
        await bus.advance(60)
        fresh = await asyncio.wait_for(anext(second), 5)
        assert fresh.fencing_token > stale.fencing_token
        assert (fresh.attempt, fresh.crashes) == (1, 1)
        for settle in (stale.ack, stale.retry, stale.reject, stale.release):
            with pytest.raises(LeaseLost):
                await settle()
        with pytest.raises(LeaseLost):
            async with stale.transaction() as tx:
                tx.put("key", 1)
        assert await bus.read("key") is None
        await fresh.ack()
        figures = await group_of(bus, "default")
        assert (figures["acked"], figures["in_flight"], figures["ready"]) == (1, 0, 0)


async def test_a_handler_is_cancelled_when_max_lease_is_over(bus: Bus) -> None:
    ended: list[str] = []

    async def handler(event: Event) -> None:
        if not ended:
            try:
                await asyncio.sleep(5)
                ended.append("ran on")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
        else:
            ended.append("again")

    await bus.consume("topic", handler, lease=LEASE, max_lease=LEASE, concurrency=1)
    await bus.publish("topic", 1)
    await until(lambda: len(ended) == 2, 4.0)
    assert ended == ["cancelled", "again"]


async def test_a_delivery_held_beyond_max_lease_goes_to_another(bus: Bus) -> None:
    async with (
        bus.deliveries("topic", lease=LEASE, max_lease=LEASE, prefetch=1) as first,
        bus.deliveries("topic", lease=LEASE, max_lease=LEASE, prefetch=1) as second,
    ):
        await bus.publish("topic", 1)
        stale = await anext(first)
        fresh = await asyncio.wait_for(anext(second), 5)
        with pytest.raises(eventbus.LeaseLost):
            await stale.ack()
        await fresh.ack()
