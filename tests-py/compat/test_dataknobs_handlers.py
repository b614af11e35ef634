"""DataKnobs contract D24, D25, D28 to D30, D71, D72, D77: handlers, their errors, their order."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from eventbus.compat.dataknobs import Event, EventType, InMemoryEventBus, Subscription


def made(number: int = 0) -> Event:
    return Event(EventType.CREATED, "t", {"n": number})


def errors_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.levelno == logging.ERROR]


class Both:
    """Records which event was seen, through every kind of callable."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Event]] = []

    async def coroutine_method(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.seen.append(("done", event))

    def method(self, event: Event) -> str:
        self.seen.append(("done", event))
        return "a result is ignored"

    @staticmethod
    async def static(into: list[tuple[str, Event]], event: Event) -> None:
        await asyncio.sleep(0)
        into.append(("done", event))


class AsyncCallable:
    def __init__(self, into: list[tuple[str, Event]]) -> None:
        self.into = into

    async def __call__(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.into.append(("done", event))


class SyncCallable:
    __slots__ = ("into",)

    def __init__(self, into: list[tuple[str, Event]]) -> None:
        self.into = into

    def __call__(self, event: Event) -> None:
        self.into.append(("done", event))


def _kinds(own: Both) -> dict[str, Callable[[Event], Any]]:
    async def coroutine_function(event: Event) -> None:
        await asyncio.sleep(0)
        own.seen.append(("done", event))

    async def never_suspends(event: Event) -> None:
        own.seen.append(("done", event))

    def function(event: Event) -> None:
        own.seen.append(("done", event))

    def returns_a_coroutine(event: Event) -> Any:
        return own.coroutine_method(event)

    def unannotated(event):  # type: ignore[no-untyped-def]
        own.seen.append(("done", event))

    def many(*args: Any, **kwargs: Any) -> None:
        assert kwargs == {}
        (event,) = args
        own.seen.append(("done", event))

    return {
        "async def": coroutine_function,
        "async def, never suspends": never_suspends,
        "def": function,
        "def without annotations": unannotated,
        "*args": many,
        "lambda": lambda event: own.seen.append(("done", event)),
        "lambda to a coroutine": lambda event: Both.static(own.seen, event),
        "function to a coroutine": returns_a_coroutine,
        "bound method": own.method,
        "bound coroutine method": own.coroutine_method,
        "partial": functools.partial(SyncCallable.__call__, SyncCallable(own.seen)),
        "partial of async def": functools.partial(Both.static, own.seen),
        "async callable object": AsyncCallable(own.seen),
        "callable object": SyncCallable(own.seen),
    }


KINDS = list(_kinds(Both()))


# D24


@pytest.mark.parametrize("kind", KINDS)
async def test_d24_every_kind_of_handler_runs_to_its_end(bus: InMemoryEventBus, kind: str) -> None:
    own = Both()
    handler = _kinds(own)[kind]
    subscription = await bus.subscribe("t", handler)
    assert subscription.handler == handler
    event = made()
    await bus.publish("t", event)
    assert own.seen == [("done", event)]
    assert own.seen[0][1] is event
    assert bus.counters["delivered"] == 1
    assert bus.counters["failed"] == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_d24_every_kind_of_handler_runs_queued(
    queued: InMemoryEventBus, eventually: Any, kind: str
) -> None:
    own = Both()
    await queued.subscribe("t", _kinds(own)[kind])
    event = made()
    await queued.publish("t", event)
    await eventually(lambda: own.seen)
    assert own.seen[0][1] is event


async def test_d24_a_builtin_is_a_handler(bus: InMemoryEventBus) -> None:
    seen: list[Event] = []
    event = made()
    await bus.subscribe("t", seen.append)
    await bus.publish("t", event)
    assert seen == [event]


async def test_d24_a_class_is_a_handler(bus: InMemoryEventBus) -> None:
    made_of: list[Event] = []

    class Record:
        def __init__(self, event: Event) -> None:
            made_of.append(event)

    await bus.subscribe("t", Record)
    event = made()
    await bus.publish("t", event)
    assert made_of == [event]


async def test_d24_a_publish_that_is_returned_is_awaited(bus: InMemoryEventBus) -> None:
    seen: list[Event] = []
    await bus.subscribe("t", lambda event: bus.publish("other", event))
    await bus.subscribe("other", seen.append)
    event = made()
    await bus.publish("t", event)
    assert seen == [event]


async def test_d24_a_returned_future_or_task_is_not_awaited(bus: InMemoryEventBus) -> None:
    release = asyncio.Event()
    future = asyncio.get_running_loop().create_future()
    tasks: list[asyncio.Task[Any]] = []

    def starts_a_task(event: Event) -> asyncio.Task[Any]:
        tasks.append(asyncio.ensure_future(release.wait()))
        return tasks[0]

    await bus.subscribe("t", lambda event: future)
    await bus.subscribe("t", starts_a_task)
    await bus.publish("t", made())
    assert not future.done()
    assert not tasks[0].done()
    release.set()
    await tasks[0]
    future.cancel()


async def test_d24_the_event_is_the_only_argument(bus: InMemoryEventBus) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    await bus.subscribe("t", lambda *args, **kwargs: calls.append((args, kwargs)))
    event = made()
    await bus.publish("t", event)
    assert calls == [((event,), {})]


@pytest.mark.parametrize("base", [Mock, AsyncMock])
async def test_d24_a_mock_is_a_handler(bus: InMemoryEventBus, base: type[Mock]) -> None:
    children = 0

    class Bounded(base):  # type: ignore[misc, valid-type]
        def _get_child_mock(self, /, **options: Any) -> Any:
            # A mock has every attribute, and each of those too: following one never ends.
            nonlocal children
            children += 1
            assert children < 100
            return type(self)(**options)

    handler = Bounded(return_value=None)
    await bus.subscribe("t", handler)
    event = made()
    await bus.publish("t", event)
    handler.assert_called_once_with(event)


# D25


@pytest.mark.parametrize("kind", ["def", "async def", "after a suspension"])
@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d25_a_handler_error_is_logged_and_stops_nothing(
    caplog: pytest.LogCaptureFixture, eventually: Any, kind: str, delivery: str
) -> None:
    def plain(event: Event) -> None:
        raise LookupError("from the handler")

    async def coroutine(event: Event) -> None:
        if kind != "async def":
            await asyncio.sleep(0)
        raise LookupError("from the handler")

    async with InMemoryEventBus(delivery=delivery) as bus:
        before: list[Event] = []
        after: list[Event] = []
        await bus.subscribe("t", before.append)
        failing = await bus.subscribe("t", plain if kind == "def" else coroutine)
        await bus.subscribe("t", after.append)
        events = [made(number) for number in range(3)]
        for event in events:
            assert await bus.publish("t", event) is None  # type: ignore[func-returns-value]
        await eventually(lambda: bus.counters["failed"] == 3 and len(after) == 3)
        assert before == after == events
    errors = errors_of(caplog)
    text = f"Error in event handler for subscription {failing.subscription_id}"
    assert [one.getMessage() for one in errors] == [text] * 3
    for one in errors:
        assert one.name.split(".")[0] == "eventbus"
        assert one.exc_info is not None
        assert isinstance(one.exc_info[1], LookupError)
    assert "Traceback" in caplog.text
    assert "in plain" in caplog.text or "in coroutine" in caplog.text


async def test_d25_a_wrong_number_of_parameters_is_a_handler_error(
    bus: InMemoryEventBus, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.subscribe("t", lambda: None)  # type: ignore[misc, arg-type]
    await bus.publish("t", made())
    assert len(errors_of(caplog)) == 1
    assert "TypeError" in caplog.text


async def test_d25_a_timeout_inside_a_handler_is_its_own_error(
    bus: InMemoryEventBus, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(event: Event) -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    seen: list[Event] = []
    await bus.subscribe("t", slow)
    await bus.subscribe("t", seen.append)
    await bus.publish("t", made())
    assert len(seen) == 1
    assert "TimeoutError" in caplog.text


@pytest.mark.parametrize("exit_error", [KeyboardInterrupt, SystemExit])
def test_d72_exit_of_the_interpreter_propagates(exit_error: type[BaseException]) -> None:
    seen: list[Event] = []

    async def leaves(event: Event) -> None:
        raise exit_error

    async def main() -> None:
        bus = InMemoryEventBus()
        await bus.connect()
        await bus.subscribe("t", leaves)
        await bus.subscribe("t", seen.append)
        await bus.publish("t", made())

    with pytest.raises(exit_error):
        asyncio.run(main())
    assert seen == []


# D28


async def test_d28_once_per_subscription_whatever_else_matches(bus: InMemoryEventBus) -> None:
    exact: list[Event] = []
    patterns: list[Event] = []
    await bus.subscribe("a:b", exact.append)
    for pattern in ("a:*", "*", "a:?"):
        await bus.subscribe(pattern, patterns.append, pattern=pattern)
    await bus.publish("a:b", made())
    assert len(exact) == 1
    assert len(patterns) == 3


async def test_d28_the_same_handler_twice_runs_twice(bus: InMemoryEventBus) -> None:
    seen: list[Event] = []
    first = await bus.subscribe("t", seen.append)
    second = await bus.subscribe("t", seen.append)
    assert first.subscription_id != second.subscription_id
    await bus.publish("t", made())
    assert len(seen) == 2
    await first.cancel()
    await bus.publish("t", made())
    assert len(seen) == 3


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d28_an_event_published_twice_is_delivered_twice(
    delivery: str, eventually: Any
) -> None:
    async with InMemoryEventBus(delivery=delivery) as bus:
        seen: list[Event] = []
        await bus.subscribe("t", seen.append)
        event = made()
        await bus.publish("t", event)
        await bus.publish("t", event)
        await asyncio.gather(bus.publish("t", event), bus.publish("t", event))
        await bus.publish_many([("t", event), ("t", event)])
        await eventually(lambda: len(seen) == 6)
        assert all(one is event for one in seen)


# D29


async def test_d29_order_and_one_at_a_time(queued: InMemoryEventBus, eventually: Any) -> None:
    running = 0
    seen: list[int] = []

    async def handler(event: Event) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        seen.append(event.payload["n"])
        running -= 1

    await queued.subscribe("t", handler)
    for number in range(500):
        await queued.publish("t", made(number))
    await eventually(lambda: len(seen) == 500)
    assert seen == list(range(500))


async def test_d29_a_slow_or_failing_handler_holds_up_nobody_else(
    queued: InMemoryEventBus, eventually: Any
) -> None:
    release = asyncio.Event()
    slow_seen: list[Event] = []
    fast_seen: list[Event] = []

    async def slow(event: Event) -> None:
        await release.wait()
        slow_seen.append(event)

    def failing(event: Event) -> None:
        raise ValueError("always")

    await queued.subscribe("t", slow)
    await queued.subscribe("t", failing)
    await queued.subscribe("t", fast_seen.append)
    for number in range(100):
        await queued.publish("t", made(number))
    await eventually(lambda: len(fast_seen) == 100 and queued.counters["failed"] == 100)
    assert slow_seen == []
    release.set()
    await eventually(lambda: len(slow_seen) == 100)


async def test_d29_the_handler_runs_in_one_long_lived_task_of_its_loop(
    queued: InMemoryEventBus, eventually: Any
) -> None:
    tasks: list[Any] = []
    loops: list[Any] = []

    async def handler(event: Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        tasks.append(asyncio.current_task())
        loops.append(asyncio.get_running_loop())

    await queued.subscribe("t", handler)
    for number in range(3):
        await queued.publish("t", made(number))
    await eventually(lambda: len(tasks) == 3)
    assert len(set(tasks)) == 1
    assert tasks[0] is not asyncio.current_task()
    assert set(loops) == {asyncio.get_running_loop()}


# D30


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d30_a_handler_may_publish(delivery: str, eventually: Any) -> None:
    async with InMemoryEventBus(delivery=delivery) as bus:
        seen: list[str] = []

        async def first(event: Event) -> None:
            seen.append("first")
            await bus.publish("second", event)
            seen.append("first ends")

        await bus.subscribe("first", first)
        await bus.subscribe("second", lambda event: seen.append("second"))
        await bus.publish("first", made())
        await eventually(lambda: len(seen) == 3)
        if delivery == "inline":
            assert seen == ["first", "second", "first ends"]


async def test_d30_a_handler_may_publish_on_its_own_topic(bus: InMemoryEventBus) -> None:
    seen: list[int] = []

    async def countdown(event: Event) -> None:
        seen.append(event.payload["n"])
        if event.payload["n"]:
            await bus.publish("t", made(event.payload["n"] - 1))

    await bus.subscribe("t", countdown)
    await bus.publish("t", made(50))
    assert seen == list(range(50, -1, -1))


async def test_d30_what_a_handler_subscribes_sees_later_events_only(bus: InMemoryEventBus) -> None:
    late: list[int] = []
    subscribed = False

    async def subscribes(event: Event) -> None:
        nonlocal subscribed
        if not subscribed:
            subscribed = True
            await bus.subscribe("t", lambda event: late.append(event.payload["n"]))

    await bus.subscribe("t", subscribes)
    await bus.publish("t", made(1))
    assert late == []
    await bus.publish("t", made(2))
    assert late == [2]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d30_a_handler_may_cancel_itself(delivery: str, eventually: Any) -> None:
    async with InMemoryEventBus(delivery=delivery) as bus:
        seen: list[str] = []
        others: list[Event] = []

        async def once(event: Event) -> None:
            seen.append("begins")
            await subscription.cancel()
            await asyncio.sleep(0)
            seen.append("ends")

        subscription = await bus.subscribe("t", once)
        await bus.subscribe("t", others.append)
        for number in range(3):
            await bus.publish("t", made(number))
        await eventually(lambda: len(others) == 3 and len(seen) == 2)
        assert seen == ["begins", "ends"]
        assert bus.subscription_count == 1


async def test_d30_no_call_starts_after_a_handler_cancelled_another(bus: InMemoryEventBus) -> None:
    seen: list[Event] = []
    to_cancel: list[Subscription] = []

    async def cancels(event: Event) -> None:
        await to_cancel[0].cancel()

    await bus.subscribe("t", cancels)
    to_cancel.append(await bus.subscribe("t", seen.append))
    await bus.publish("t", made())
    assert seen == []


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d30_a_handler_may_close(delivery: str, eventually: Any) -> None:
    bus = InMemoryEventBus(delivery=delivery)
    await bus.connect()
    seen: list[str] = []

    async def closes(event: Event) -> None:
        seen.append("begins")
        await asyncio.wait_for(bus.close(), 5)
        await asyncio.sleep(0)
        seen.append("ends")

    await bus.subscribe("t", closes)
    await bus.publish("t", made())
    await eventually(lambda: len(seen) == 2)
    assert bus.subscription_count == 0
    assert bus._connected is False
    await bus.publish("t", made())
    assert seen == ["begins", "ends"]


async def test_d30_cancel_drops_what_is_queued_and_lets_the_running_call_end(
    queued: InMemoryEventBus, eventually: Any
) -> None:
    release = asyncio.Event()
    seen: list[str] = []

    async def slow(event: Event) -> None:
        seen.append(f"begins {event.payload['n']}")
        await release.wait()
        seen.append(f"ends {event.payload['n']}")

    subscription = await queued.subscribe("t", slow)
    for number in range(3):
        await queued.publish("t", made(number))
    await eventually(lambda: seen)
    await subscription.cancel()
    assert queued.counters["dropped"] == 2
    await queued.publish("t", made(3))
    release.set()
    await eventually(lambda: len(seen) == 2)
    marker: list[Event] = []
    await queued.subscribe("t", marker.append)
    await queued.publish("t", made(4))
    await eventually(lambda: marker)
    assert seen == ["begins 0", "ends 0"]


async def test_d30_cancel_lets_an_inline_call_end(bus: InMemoryEventBus) -> None:
    release, begun = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def slow(event: Event) -> None:
        begun.set()
        await release.wait()
        seen.append("ends")

    subscription = await bus.subscribe("t", slow)
    publish = asyncio.create_task(bus.publish("t", made()))
    await begun.wait()
    await subscription.cancel()
    release.set()
    await publish
    assert seen == ["ends"]


# D71


async def test_d71_handlers_run_in_order_of_subscription(bus: InMemoryEventBus) -> None:
    seen: list[int] = []
    subscriptions = []
    for number in range(60):
        pattern = [None, "a:*", "*", "?:b"][number % 4]

        def record(event: Event, number: int = number) -> None:
            seen.append(number)

        subscriptions.append(await bus.subscribe("a:b", record, pattern))
    await bus.publish("a:b", made())
    assert seen == list(range(60))
    for subscription in subscriptions[::3]:
        await subscription.cancel()
    await bus.subscribe("a:b", lambda event: seen.append(60))
    seen.clear()
    await bus.publish("a:b", made())
    assert seen == [number for number in range(60) if number % 3] + [60]


# D72


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d72_a_cancelled_error_of_a_handlers_own_stops_nothing(
    caplog: pytest.LogCaptureFixture, eventually: Any, suspends: bool, delivery: str
) -> None:
    async def raises(event: Event) -> None:
        if suspends:
            await asyncio.sleep(0)
        raise asyncio.CancelledError

    async with InMemoryEventBus(delivery=delivery) as bus:
        seen: list[Event] = []
        failing = await bus.subscribe("t", raises)
        await bus.subscribe("t", seen.append)
        await bus.publish("t", made(1))
        await bus.publish("t", made(2))
        await eventually(lambda: len(seen) == 2 and bus.counters["failed"] == 2)
    texts = [one.getMessage() for one in errors_of(caplog)]
    assert texts == [f"Error in event handler for subscription {failing.subscription_id}"] * 2


async def test_d72_awaiting_a_cancelled_task_is_a_handler_error(
    bus: InMemoryEventBus, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(event: Event) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        inner.cancel()
        await inner

    seen: list[Event] = []
    await bus.subscribe("t", handler)
    await bus.subscribe("t", seen.append)
    await bus.publish("t", made())
    assert len(seen) == 1
    assert len(errors_of(caplog)) == 1


# D77


async def test_d77_hook_for_handler_errors_and_counters(bus: InMemoryEventBus) -> None:
    told: list[tuple[str, BaseException]] = []
    bus.on_handler_error = lambda name, error: told.append((name, error))
    error = ValueError("x")

    def fails(event: Event) -> None:
        raise error

    failing = await bus.subscribe("t", fails)
    await bus.subscribe("t", lambda event: None)
    await bus.publish("t", made())
    assert told == [(failing.subscription_id, error)]
    assert {"delivered", "failed", "dropped", "malformed"} <= bus.counters.keys()
    assert bus.counters["delivered"] == bus.counters["failed"] == 1
    assert bus.counters["dropped"] == bus.counters["malformed"] == 0


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d77_a_failing_hook_reaches_nobody(
    caplog: pytest.LogCaptureFixture, eventually: Any, delivery: str
) -> None:
    def hook(name: str, error: BaseException) -> None:
        raise ZeroDivisionError

    def fails(event: Event) -> None:
        raise ValueError

    async with InMemoryEventBus(delivery=delivery) as bus:
        bus.on_handler_error = hook
        seen: list[Event] = []
        await bus.subscribe("t", fails)
        await bus.subscribe("t", seen.append)
        await bus.publish("t", made(1))
        await bus.publish("t", made(2))
        await eventually(lambda: len(seen) == 2 and bus.counters["failed"] == 2)
    assert "ZeroDivisionError" in caplog.text


async def test_a_handler_that_cannot_be_called_is_taken_as_in_the_original_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def nothing() -> None: ...

    async def generator(event: Event) -> Any:
        yield event

    seen: list[Event] = []
    async with InMemoryEventBus() as bus:
        for handler in (nothing, generator, seen.append):
            await bus.subscribe("t", handler)
        assert "cannot be called as handler(event): " in caplog.text
        assert "is an async generator function" in caplog.text
        await bus.publish("t", made())
    assert len(seen) == 1
    assert len(errors_of(caplog)) == 1
