"""Threads: plain functions that block, run beside the loop."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import AT_ONCE, QUIET, SHORT_LEASE, WITHIN, figures, figures_become
from eventbus import (
    Bus,
    ConfigError,
    Delivery,
    Event,
    Reject,
    Retry,
    RetryPolicy,
    current_delivery,
)
from eventbus.testing import eventually

ONCE = RetryPolicy(max_attempts=1)
colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@dataclass
class Order:
    id: int


class Gate:
    """A handler that blocks its thread until it is let go."""

    def __init__(self, then: Callable[[Event], object] | None = None) -> None:
        self.entered: list[Any] = []
        self.left: list[Any] = []
        self.open = threading.Event()
        self._then = then

    def __call__(self, event: Event) -> object:
        self.entered.append(event.payload)
        assert self.open.wait(WITHIN)
        try:
            return None if self._then is None else self._then(event)
        finally:
            self.left.append(event.payload)

    async def inside(self, count: int = 1) -> None:
        await eventually(lambda: len(self.entered) >= count, timeout=WITHIN)


def raising(error: BaseException) -> Callable[[Event], None]:
    def handle(event: Event) -> None:
        raise error

    return handle


async def test_a_blocking_function_in_a_thread_leaves_the_loop_free(
    bus: Bus, topic: str, group: str
) -> None:
    gate = Gate()
    await bus.consume(topic, gate, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await gate.inside()
    # The loop turns while the function blocks.
    await figures_become(bus, group, in_flight=1, acked=0)
    gate.open.set()
    await figures_become(bus, group, in_flight=0, acked=1)


async def test_a_function_in_a_thread_has_its_delivery_and_the_context_of_consume(
    bus: Bus, topic: str, group: str
) -> None:
    seen: list[Any] = []

    def handle(event: Event, delivery: Delivery) -> None:
        mine = current_delivery()
        thread = threading.current_thread()
        seen.append((event.payload, delivery.attempt, mine.message_id == delivery.message_id))
        seen.append((colour.get(), thread.name.startswith(f"eventbus-{group}-"), thread.daemon))
        colour.set("changed")

    token = colour.set("blue")
    await bus.consume(topic, handle, group=group, run_in="thread", concurrency=1)
    colour.reset(token)
    await bus.publish(topic, "x")
    await bus.publish(topic, "y")
    await eventually(lambda: len(seen) == 4, timeout=WITHIN)
    assert seen == [("x", 1, True), ("blue", True, True), ("y", 1, True), ("blue", True, True)]


async def test_a_function_in_a_thread_gets_the_payload_its_annotation_asks_for(
    bus: Bus, topic: str, group: str
) -> None:
    seen: list[Any] = []

    def handle(order: Order) -> None:
        seen.append((order, threading.current_thread() is threading.main_thread()))

    await bus.consume(topic, handle, group=group, run_in="thread")
    await bus.publish(topic, {"id": 7})
    await bus.publish(topic, "no order")
    await figures_become(bus, group, acked=1, dead=1, in_flight=0)
    assert seen == [(Order(7), False)]


async def test_what_a_function_in_a_thread_raises_settles_as_on_the_loop(
    bus: Bus, topic: str, group: str
) -> None:
    attempts: list[int] = []

    def handle(event: Event) -> None:
        if event.payload == "reject":
            raise Reject("no use")
        if event.payload == "fail":
            raise ValueError("broken")
        attempts.append(current_delivery().attempt)
        if len(attempts) < 3:
            raise Retry(after=0)

    await bus.consume(topic, handle, group=group, run_in="thread", retry=AT_ONCE)
    for payload in ("reject", "fail", "retry"):
        await bus.publish(topic, payload)
    await figures_become(bus, group, acked=1, dead=2, in_flight=0, ready=0, delayed=0)
    assert attempts == [1, 2, 3]
    letters = await bus.dead_letters(group).list()
    assert {one.reason for one in letters} == {"rejected", "failed"}
    failed = next(one.error for one in letters if one.reason == "failed")
    assert "ValueError: broken" in failed
    assert "in handle" in failed


@pytest.mark.parametrize("error", [StopIteration(1), asyncio.CancelledError()])
async def test_a_strange_exception_in_a_thread_fails_the_delivery_and_the_consumer_goes_on(
    bus: Bus, topic: str, group: str, error: BaseException
) -> None:
    seen: list[Any] = []

    def handle(event: Event) -> None:
        seen.append(event.payload)
        if event.payload == "bad":
            raise error

    await bus.consume(topic, handle, group=group, run_in="thread", concurrency=1, retry=ONCE)
    await bus.publish(topic, "bad")
    await bus.publish(topic, "good")
    await figures_become(bus, group, acked=1, dead=1, in_flight=0)
    assert seen == ["bad", "good"]


async def test_there_are_as_many_threads_as_the_concurrency_and_no_more(
    bus: Bus, topic: str, group: str
) -> None:
    gate, names = Gate(), set[str]()

    def handle(event: Event) -> object:
        names.add(threading.current_thread().name)
        return gate(event)

    await bus.consume(topic, handle, group=group, run_in="thread", concurrency=3)
    await bus.publish_many([(topic, number) for number in range(20)])
    await gate.inside(3)
    await asyncio.sleep(QUIET)
    assert len(gate.entered) == 3
    gate.open.set()
    await figures_become(bus, group, acked=20, in_flight=0)
    assert len(names) == 3


async def test_a_timed_out_thread_keeps_its_slot_and_its_key_and_never_counts_as_success(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1, key="k")
    await bus.publish(topic, 2, key="k")
    with caplog.at_level(logging.WARNING, "eventbus.consumer"):
        await bus.consume(
            topic, gate, group=group, run_in="thread", concurrency=2, timeout=0.05, retry=ONCE
        )
        await eventually(lambda: "handler timed out" in caplog.text, timeout=WITHIN)
    # Past its timeout, its lease and its key are still held: nobody else gets the next of the key.
    assert gate.entered == [1]
    assert (await figures(bus, group))["in_flight"] == 1
    assert group in caplog.text
    gate.open.set()
    await figures_become(bus, group, dead=1, acked=1, in_flight=0)
    [letter] = await bus.dead_letters(group).list()
    assert letter.event is not None
    assert (letter.event.payload, letter.reason) == (1, "failed")
    assert "ran longer than timeout=0.05 seconds" in letter.error
    assert gate.left == [1, 2]


@pytest.mark.parametrize("error", [Reject("late"), Retry(after=0), ValueError("late")])
async def test_what_a_timed_out_thread_raises_is_a_timeout(
    bus: Bus, topic: str, group: str, error: Exception
) -> None:
    gate = Gate(raising(error))
    await bus.consume(topic, gate, group=group, run_in="thread", timeout=0.05, retry=ONCE)
    await bus.publish(topic, 1)
    await gate.inside()
    await asyncio.sleep(QUIET)
    gate.open.set()
    await figures_become(bus, group, dead=1, acked=0, in_flight=0)
    [letter] = await bus.dead_letters(group).list()
    assert letter.reason == "failed"
    assert "TimeoutError" in letter.error


async def test_a_lease_is_renewed_while_a_thread_runs(bus: Bus, topic: str, group: str) -> None:
    gate = Gate()
    await bus.consume(topic, gate, group=group, run_in="thread", lease=SHORT_LEASE)
    await bus.publish(topic, 1)
    await gate.inside()
    await asyncio.sleep(4 * SHORT_LEASE)
    assert (await figures(bus, group))["in_flight"] == 1
    gate.open.set()
    await figures_become(bus, group, acked=1, in_flight=0)
    assert gate.entered == [1]


async def test_what_a_thread_returns_after_its_lease_was_lost_acknowledges_nothing(
    bus: Bus, topic: str, group: str
) -> None:
    gate = Gate()
    await bus.consume(
        topic, gate, group=group, run_in="thread", lease=0.1, max_lease=0.1, concurrency=2
    )
    await bus.publish(topic, 1)
    # The lease is not renewed past its limit: the event is handed out again beside the first run.
    await gate.inside(2)
    gate.open.set()
    await eventually(lambda: len(gate.left) >= 2, timeout=WITHIN)
    await figures_become(bus, group, in_flight=0, ready=0)
    found = await figures(bus, group)
    assert found["acked"] + found["dead"] == 1


async def test_stop_waits_for_a_thread_and_its_result_counts(
    bus: Bus, topic: str, group: str
) -> None:
    gate = Gate()
    consumer = await bus.consume(topic, gate, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await gate.inside()
    stopping = asyncio.create_task(consumer.stop(WITHIN))
    await asyncio.sleep(QUIET)
    assert not stopping.done()
    gate.open.set()
    await stopping
    assert gate.left == [1]
    await figures_become(bus, group, acked=1, ready=0, in_flight=0)


async def test_stop_gives_back_what_a_thread_does_not_finish_in_time(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    consumer = await bus.consume(topic, gate, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await gate.inside()
    async with asyncio.timeout(WITHIN):
        await consumer.stop(0.05)
    assert "cannot cancel a thread" in caplog.text
    await figures_become(bus, group, ready=1, in_flight=0, acked=0)
    gate.open.set()
    await eventually(lambda: gate.left == [1], timeout=WITHIN)
    await asyncio.sleep(QUIET)
    assert (await figures(bus, group))["ready"] == 1
    seen: list[tuple[int, int]] = []

    def handle(event: Event, delivery: Delivery) -> None:
        seen.append((delivery.attempt, delivery.crashes))

    await bus.consume(topic, handle, group=group, run_in="thread")
    await eventually(lambda: seen == [(1, 0)], timeout=WITHIN)


async def test_a_cancel_from_outside_fails_the_attempt_when_its_thread_has_ended(
    bus: Bus, topic: str, group: str
) -> None:
    gate = Gate()
    consumer = await bus.consume(
        topic, gate, group=group, run_in="thread", concurrency=2, retry=RetryPolicy(max_attempts=1)
    )
    await bus.publish(topic, 1)
    await gate.inside()
    for worker in list(consumer._workers):
        worker.cancel("abort this job")
    await asyncio.sleep(QUIET)
    assert (await figures(bus, group))["in_flight"] == 1
    gate.open.set()
    await figures_become(bus, group, dead=1, in_flight=0, acked=0)
    await bus.publish(topic, 2)
    await figures_become(bus, group, dead=1, in_flight=0, acked=1)


async def test_draining_is_bounded_beside_a_thread_that_never_ends(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, gate = await make_bus(), Gate()
    await bus.consume(topic, gate, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await gate.inside()
    async with asyncio.timeout(WITHIN):
        await bus.drain(0.1)
    gate.open.set()


async def test_the_threads_of_a_stopped_consumer_end(bus: Bus, topic: str, group: str) -> None:
    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if group in one.name]

    gate = Gate()
    gate.open.set()
    consumer = await bus.consume(topic, gate, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1)
    assert threads()
    await consumer.stop()
    await eventually(lambda: threads() == [], timeout=WITHIN)


async def test_a_function_in_a_thread_can_use_its_bus_on_the_loop(
    bus: Bus, topic: str, group: str
) -> None:
    loop, acknowledged = asyncio.get_running_loop(), threading.Event()

    def handle(event: Event, delivery: Delivery) -> None:
        asyncio.run_coroutine_threadsafe(bus.publish(topic + ":more", 2), loop).result(WITHIN)
        asyncio.run_coroutine_threadsafe(delivery.ack(), loop).result(WITHIN)
        acknowledged.set()

    await bus.declare_group(group + ":more", topic + ":more")
    await bus.consume(topic, handle, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await eventually(acknowledged.is_set, timeout=WITHIN)
    await figures_become(bus, group, acked=1, in_flight=0)
    await figures_become(bus, group + ":more", ready=1)


async def test_a_function_in_a_thread_can_close_its_bus(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, loop, ended = await make_bus(), asyncio.get_running_loop(), threading.Event()

    def handle(event: Event) -> None:
        # Nobody waits for this very call: it would be for ever.
        asyncio.run_coroutine_threadsafe(bus.close(), loop).result(WITHIN)
        ended.set()

    await bus.declare_group(group, topic)
    await bus.consume(topic, handle, group=group, run_in="thread")
    await bus.publish(topic, 1)
    await eventually(ended.is_set, timeout=WITHIN)
    assert bus.state == "closed"
    other = await make_bus()
    await figures_become(other, group, acked=1, ready=0, in_flight=0)


async def test_a_coroutine_function_in_a_thread_is_refused(
    bus: Bus, topic: str, group: str
) -> None:
    async def handle(event: Event) -> None: ...

    with pytest.raises(ConfigError, match=r"run_in='thread' is for plain functions.*handle"):
        await bus.consume(topic, handle, group=group, run_in="thread")
    with pytest.raises(ConfigError, match="run_in='process' must be 'loop' or 'thread'"):
        await bus.consume(topic, print, group=group, run_in="process")  # type: ignore[arg-type]
    assert group not in [one["group"] for one in (await bus.inspect())["groups"]]


async def test_a_coroutine_that_a_function_in_a_thread_returns_is_a_failure(
    bus: Bus, topic: str, group: str
) -> None:
    async def later(event: Event) -> None: ...

    def handle(event: Event) -> object:
        return later(event)

    await bus.consume(topic, handle, group=group, run_in="thread", retry=ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, acked=0)
    [letter] = await bus.dead_letters(group).list()
    assert "handle returned a coroutine in its thread" in letter.error


@pytest.mark.parametrize("batch", [None, 5])
async def test_a_handler_that_holds_the_loop_is_named_once(
    bus: Bus,
    topic: str,
    group: str,
    batch: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def block(event: Event) -> None:
        time.sleep(1.1)

    def lines() -> list[str]:
        found = [one.getMessage() for one in caplog.records if one.name == "eventbus.consumer"]
        return [line for line in found if "held the event loop" in line]

    await bus.consume(topic, block, group=group, batch=batch)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1)
    await eventually(lambda: len(lines()) == 1, timeout=WITHIN)
    [line] = lines()
    assert f"group={group}" in line
    assert "block seconds=1.1" in line
    assert "run_in='thread'" in line
    await bus.publish(topic, 2)
    await figures_become(bus, group, acked=2)
    assert len(lines()) == 1


async def test_a_step_of_a_coroutine_that_holds_the_loop_is_named_too(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def block(event: Event) -> None:
        await asyncio.sleep(0)
        time.sleep(1.1)  # noqa: ASYNC251 - the fault under test

    await bus.consume(topic, block, group=group)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1)
    await eventually(lambda: "held the event loop" in caplog.text, timeout=WITHIN)
