"""Whatever happens to a handler: its delivery ends, and the consumer goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from conformance.support import AT_ONCE, WITHIN, figures, figures_become, settled, take
from eventbus import Bus, DeadLetter, Delivery, Event, EventType, Reject, Retry, RetryPolicy
from eventbus.testing import eventually

LATER = RetryPolicy(max_attempts=5, base=600.0, cap=600.0)
"""One attempt, as far as a test can see."""


class Interrupted(BaseException):
    """Neither an exit nor an interrupt, but no ``Exception``."""


async def handled(bus: Bus, topic: str, payloads: list[Any], seen: list[Any]) -> None:
    """Publish events and wait until the last was handled."""
    for payload in payloads:
        await bus.publish(topic, payload)
    await eventually(lambda: payloads[-1] in seen, timeout=WITHIN)


@pytest.mark.parametrize("batch", [None, 1])
async def test_a_worker_survives_that_its_handlers_are_cancelled(
    bus: Bus, topic: str, group: str, batch: int | None
) -> None:
    running: dict[Any, asyncio.Task[Any]] = {}
    seen: list[Any] = []

    async def handle(got: Any) -> None:
        event = got[0] if batch else got
        if str(event.payload).startswith("abort"):
            task = asyncio.current_task()
            assert task is not None
            running[event.payload] = task
            await asyncio.Event().wait()
        seen.append(event.payload)

    options: dict[str, Any] = {} if batch is None else {"batch": batch}
    await bus.consume(topic, handle, group=group, concurrency=2, retry=LATER, **options)
    for number in range(6):
        name = f"abort-{number}"
        await bus.publish(topic, name)
        await eventually(lambda name=name: name in running, timeout=WITHIN)
        running[name].cancel()
    await handled(bus, topic, ["a", "b", "c"], seen)
    await eventually(lambda: len(seen) == 3, timeout=WITHIN)
    # Each abort counts as a failed attempt, to be tried again later.
    await figures_become(bus, group, acked=3, delayed=6, in_flight=0, ready=0, dead=0)
    assert (await bus.health())["ok"]
    assert bus.counters["workers_replaced"] == 0


async def test_a_job_that_is_aborted_again_and_again_becomes_a_dead_letter(
    bus: Bus, topic: str, group: str
) -> None:
    async def handle(_event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.Event().wait()

    await bus.consume(topic, handle, group=group, concurrency=1, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, in_flight=0, ready=0)
    (letter,) = await bus.dead_letters(group).list()
    assert (letter.reason, letter.attempts, letter.crashes) == ("failed", 3, 0)
    assert "CancelledError" in letter.error


async def test_a_handler_that_swallows_its_cancellation_has_handled_the_event(
    bus: Bus, topic: str, group: str
) -> None:
    seen: list[Any] = []
    counts: list[int] = []

    async def handle(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        counts.append(task.cancelling())
        if event.payload == "swallow":
            asyncio.get_running_loop().call_soon(task.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        seen.append(event.payload)

    await bus.consume(topic, handle, group=group, concurrency=1, retry=LATER)
    await handled(bus, topic, ["swallow", "next"], seen)
    await figures_become(bus, group, acked=2, in_flight=0, delayed=0, dead=0)
    # The next handler of this worker does not find itself cancelled.
    assert counts == [0, 0]


async def test_a_late_cancel_of_an_idle_worker_ends_nothing(
    bus: Bus, topic: str, group: str
) -> None:
    tasks: set[asyncio.Task[Any]] = set()
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await asyncio.sleep(0)
        seen.append(event.payload)

    consumer = await bus.consume(topic, handle, group=group, concurrency=2)
    for turn in range(5):
        await handled(bus, topic, [turn], seen)
        await eventually(lambda: consumer.idle, timeout=WITHIN)
        for task in tasks:
            task.cancel()
    await handled(bus, topic, [10, 11], seen)
    await figures_become(bus, group, acked=7, in_flight=0, delayed=0, dead=0)
    assert bus.counters["workers_replaced"] == 0


async def test_the_end_of_the_loop_gives_deliveries_back(
    make_bus: Callable[..., Any], topic: str, group: str
) -> None:
    """What `asyncio.run` does at its end: all tasks are cancelled."""
    bus: Bus = await make_bus()
    started = asyncio.Event()

    async def handle(_event: Event) -> None:
        started.set()
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    consumer = await bus.consume(topic, handle, group=group, concurrency=2)
    subscription = await bus.subscribe(topic, lambda _event: None)
    await bus.publish(topic, 1)
    await asyncio.wait_for(started.wait(), WITHIN)
    tasks = asyncio.all_tasks() - before
    for task in tasks:
        task.cancel()
    done, pending = await asyncio.wait(tasks, timeout=WITHIN)
    assert not pending
    assert done == tasks
    await figures_become(bus, group, ready=1, in_flight=0, delayed=0)
    assert bus.counters["workers_replaced"] == 0
    await consumer.stop()
    await subscription.cancel()
    other: Bus = await make_bus()
    async with other.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        assert (delivery.attempt, delivery.crashes) == (1, 0)
        await settled([delivery])


async def test_a_subscriber_survives_that_its_handlers_are_cancelled(
    make_bus: Callable[..., Any], topic: str
) -> None:
    bus: Bus = await make_bus()
    if bus.capabilities["in_process"]:
        # Inline ones run in the publisher's task, which is the publisher's to cancel.
        bus = await make_bus(delivery="queued")
    seen: list[Any] = []
    failed: list[BaseException] = []
    bus.on_handler_error = lambda _name, error: failed.append(error)

    async def handle(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        if event.payload == "abort":
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.Event().wait()
        seen.append(event.payload)

    subscription = await bus.subscribe(topic, handle)
    for _ in range(3):
        await bus.publish(topic, "abort")
    await handled(bus, topic, ["a", "b"], seen)
    assert [type(error) for error in failed] == [asyncio.CancelledError] * 3
    assert (bus.counters["failed"], bus.counters["delivered"]) == (3, 2)
    assert bus.counters["workers_replaced"] == 0
    await subscription.cancel()


UNSTORABLE = "a \ud800 b \0 c"
STORED = r"a \ud800 b \x00 c"


def raise_value(_delivery: Delivery) -> None:
    raise ValueError(UNSTORABLE)


def raise_group(_delivery: Delivery) -> None:
    raise ExceptionGroup(UNSTORABLE, [ValueError(UNSTORABLE)])


def raise_reject(_delivery: Delivery) -> None:
    raise Reject(UNSTORABLE)


def raise_retry(_delivery: Delivery) -> None:
    raise Retry(after=0.0, reason=UNSTORABLE)


async def call_reject(delivery: Delivery) -> None:
    await delivery.reject(UNSTORABLE)


async def call_retry(delivery: Delivery) -> None:
    await delivery.retry(after=0.0, reason=UNSTORABLE)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (raise_value, "failed"),
        (raise_group, "failed"),
        (raise_reject, "rejected"),
        (raise_retry, "failed"),
        (call_reject, "rejected"),
        (call_retry, "failed"),
    ],
)
async def test_a_text_that_no_store_takes_is_escaped(
    bus: Bus, topic: str, group: str, handler: Callable[[Delivery], Any], reason: str
) -> None:
    seen: list[Any] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.event.payload == "bad":
            result = handler(delivery)
            if result is not None:
                await result
        else:
            seen.append(delivery.event.payload)

    await bus.consume(topic, handle, group=group, concurrency=1, retry=AT_ONCE)
    await handled(bus, topic, ["bad", "good"], seen)
    await figures_become(bus, group, dead=1, acked=1, in_flight=0, ready=0, delayed=0)
    (letter,) = await bus.dead_letters(group).list()
    assert letter.reason == reason
    assert STORED in letter.error
    assert bus.counters["workers_replaced"] == 0


class Unspeakable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoText:
    """An object whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [
        Unspeakable(),
        Reject(NoText()),  # type: ignore[arg-type]
        Retry(after=0.0, reason=NoText()),  # type: ignore[arg-type]
        Retry(after="soon"),  # type: ignore[arg-type]
        Retry(after=-1.0),
        GeneratorExit("mine"),
        StopIteration("mine"),
        StopAsyncIteration("mine"),
        asyncio.CancelledError("mine"),
        Interrupted("mine"),
        BaseExceptionGroup("mine", [SystemExit(3)]),
        RecursionError("mine"),
        MemoryError("mine"),
    ],
    ids=lambda error: f"{type(error).__name__}",
)
@pytest.mark.parametrize("batch", [None, 1])
async def test_whatever_a_handler_raises_is_a_failed_attempt(
    bus: Bus, topic: str, group: str, error: BaseException, batch: int | None
) -> None:
    seen: list[Any] = []

    def handle(got: Any) -> None:
        event = got[0] if batch else got
        if event.payload == "bad":
            raise error
        seen.append(event.payload)

    options: dict[str, Any] = {} if batch is None else {"batch": batch}
    await bus.consume(topic, handle, group=group, concurrency=1, retry=AT_ONCE, **options)
    await handled(bus, topic, ["bad", "good"], seen)
    await figures_become(bus, group, dead=1, acked=1, in_flight=0, ready=0, delayed=0)
    assert bus.counters["workers_replaced"] == 0


async def test_a_long_error_keeps_its_end(bus: Bus, topic: str, group: str) -> None:
    def handle(_event: Event) -> None:
        raise ValueError("é" * 20_000 + " the end")

    await bus.consume(topic, handle, group=group, retry=RetryPolicy(max_attempts=1))
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1)
    (letter,) = await bus.dead_letters(group).list()
    assert len(letter.error.encode()) <= 16 * 1024
    assert letter.error.startswith("Traceback")
    assert letter.error.rstrip().endswith("the end")


async def test_a_dead_letter_is_logged_and_told(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[DeadLetter] = []
    bus.on_dead_letter = told.append

    def handle(event: Event) -> None:
        if event.payload == "reject":
            raise Reject("not\nmine")
        raise ValueError("boom")

    policy = RetryPolicy(max_attempts=2, base=0.0)
    await bus.consume(topic, handle, group=group, concurrency=1, retry=policy)
    events = [
        Event(type=EventType.CUSTOM, topic=topic, payload=what) for what in ("fail", "reject")
    ]
    for event in events:
        await bus.publish(topic, event)
    await eventually(lambda: len(told) == 2, timeout=WITHIN)
    by_reason = {letter.reason: letter for letter in told}
    failed, rejected = by_reason["failed"], by_reason["rejected"]
    assert (failed.event_id, failed.attempt) == (events[0].event_id, 2)
    assert (rejected.event_id, rejected.attempt) == (events[1].event_id, 1)
    for letter in told:
        assert (letter.group, letter.topic) == (group, topic)
        assert letter in [
            DeadLetter(**{**shape(stored), "died_at": letter.died_at})
            for stored in await bus.dead_letters(group).list()
        ]
    lines = [record for record in caplog.records if record.name == "eventbus.deliveries"]
    assert all(record.levelname == "WARNING" for record in lines)
    texts = [record.getMessage() for record in lines]
    (attempt,) = [text for text in texts if text.startswith("attempt failed")]
    for part in (group, topic, events[0].event_id, "attempt=1", "ValueError: boom", "next=20"):
        assert part in attempt
    dead = sorted(text for text in texts if text.startswith("dead letter"))
    assert len(dead) == 2
    for text, letter in zip(
        sorted(dead, key=lambda text: "reason=rejected" in text), (failed, rejected), strict=True
    ):
        for part in (group, topic, letter.event_id, f"attempt={letter.attempt}"):
            assert part in text
        assert f"reason={letter.reason}" in text
        assert "\n" not in text


def shape(letter: DeadLetter) -> dict[str, Any]:
    """Return the fields of a dead letter."""
    return {name: getattr(letter, name) for name in DeadLetter.__dataclass_fields__}


async def test_what_no_handler_decided_is_logged_and_told_once(
    make_bus: Callable[..., Any], topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[DeadLetter] = []
    for _ in range(2):
        bus: Bus = await make_bus()
        bus.on_dead_letter = told.append
        await bus.consume(topic, lambda _event: None, group=group)
    await bus.pause(group)
    event = Event(type=EventType.CUSTOM, topic=topic, payload=1)
    await bus.publish(topic, event, expires_after=0.01)
    await eventually(lambda: told, timeout=WITHIN)
    await figures_become(bus, group, dead=1, ready=0)
    (letter,) = told
    assert (letter.reason, letter.event_id, letter.attempt) == ("expired", event.event_id, 0)
    (text,) = [text for text in caplog.messages if text.startswith("dead letter")]
    for part in (group, topic, event.event_id, "reason=expired"):
        assert part in text


async def test_an_iterator_tells_what_no_handler_decided(bus: Bus, topic: str, group: str) -> None:
    told: list[DeadLetter] = []
    bus.on_dead_letter = told.append
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.pause(group)
        await bus.publish(topic, 1, expires_after=0.01)
        waiting = asyncio.ensure_future(anext(deliveries))
        await eventually(lambda: told, timeout=WITHIN)
        await bus.resume(group)
        await bus.publish(topic, 2)
        delivery = await asyncio.wait_for(waiting, WITHIN)
        assert delivery.event.payload == 2
        await delivery.reject("no")
    assert [letter.reason for letter in told] == ["expired", "rejected"]


async def test_a_broken_dead_letter_hook_stops_nothing(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def broken(_letter: DeadLetter) -> None:
        raise RuntimeError("broken hook")

    async def wrong(_letter: DeadLetter) -> None:
        pass

    def handle(event: Event) -> None:
        if event.payload == "bad":
            raise Reject("no")
        seen.append(event.payload)

    await bus.consume(topic, handle, group=group, concurrency=1)
    for hook in (broken, wrong):
        bus.on_dead_letter = hook
        seen.clear()
        await handled(bus, topic, ["bad", "good"], seen)
    assert "broken hook" in caplog.text
    assert "must be a plain function" in caplog.text
    await figures_become(bus, group, dead=2, acked=2)


async def test_a_worker_that_ends_for_no_reason_is_replaced(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def handle(event: Event) -> None:
        if event.payload == "bad":
            raise ValueError
        seen.append(event.payload)

    consumer = await bus.consume(topic, handle, group=group, concurrency=2, retry=AT_ONCE)
    settle = consumer._failed

    async def broken(*_arguments: Any) -> None:
        consumer._failed = settle  # type: ignore[method-assign]
        raise AssertionError("a bug of ours")

    consumer._failed = broken  # type: ignore[method-assign]
    await bus.publish(topic, "bad")
    await figures_become(bus, group, dead=1, in_flight=0, ready=0)
    await handled(bus, topic, ["a", "b"], seen)
    assert bus.counters["workers_replaced"] == 1
    health = await bus.health()
    assert health["ok"]
    assert any("replaced" in warning for warning in health["warnings"])
    (record,) = [record for record in caplog.records if record.name == "eventbus.supervisor"]
    assert record.exc_info
    assert "a bug of ours" in str(record.exc_info[1])
    assert group in record.getMessage()


async def test_the_watch_over_leases_is_replaced_too(bus: Bus, topic: str, group: str) -> None:
    consumer = await bus.consume(topic, lambda _event: None, group=group, concurrency=1)
    watcher = consumer._watcher
    for _ in range(3):
        await asyncio.sleep(0.01)
        watcher.cancel()
    assert watcher is consumer._watcher
    cancel_lost = consumer._cancel_lost

    def broken(*_arguments: Any) -> None:
        consumer._cancel_lost = cancel_lost  # type: ignore[method-assign]
        raise AssertionError("a bug of ours")

    consumer._cancel_lost = broken  # type: ignore[method-assign]
    await bus.pause(group)
    await bus.publish(topic, 1, expires_after=0.01)
    await eventually(lambda: consumer._watcher is not watcher, timeout=WITHIN)
    assert bus.counters["workers_replaced"] == 1


async def test_health_tells_of_a_consumer_without_workers(
    make_bus: Callable[..., Any], topic: str, group: str
) -> None:
    bus: Bus = await make_bus()
    other: Bus = await make_bus()
    await bus.consume(topic, lambda _event: None, group=group)
    assert (await bus.health())["ok"]
    await other.delete_group(group)

    async def is_told() -> bool:
        health = await bus.health()
        return not health["ok"] and any(
            group in warning and "no worker" in warning for warning in health["warnings"]
        )

    await eventually(is_told, timeout=WITHIN)
    assert (await figures_or_none(bus, group)) is None


async def figures_or_none(bus: Bus, group: str) -> dict[str, Any] | None:
    """Return the figures of a group, or ``None`` when it is gone."""
    try:
        return await figures(bus, group)
    except StopIteration:
        return None
    except RuntimeError:
        return None
