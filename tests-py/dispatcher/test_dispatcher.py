"""The native dispatcher: events by name and by class, delivery, isolation, closing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from eventbus import RetryPolicy, connect
from eventbus.dispatcher import AbstractEvent, EventDispatcher, EventProducer
from eventbus.errors import (
    BusClosedError,
    EncodeError,
    InvalidArgumentError,
    NotConnectedError,
)
from eventbus.testing import eventually

from .conftest import MakeDispatcher


@dataclass(frozen=True)
class Started(AbstractEvent):
    name: ClassVar[str] = "started"

    what: str
    attempt: int = 1

    def serialize(self) -> tuple[Any, ...]:
        return (self.what, self.attempt)

    @classmethod
    def deserialize(cls, value: tuple[Any, ...]) -> Started:
        return cls(*value)


class Seen(list[tuple[Any, ...]]):
    async def __call__(self, *args: Any) -> None:
        self.append(args)

    async def count(self, number: int) -> None:
        await eventually(lambda: len(self) >= number, f"{number} calls", timeout=10)
        await asyncio.sleep(0.02)
        assert len(self) == number


async def test_an_event_by_name(make_dispatcher: MakeDispatcher) -> None:
    d, consumed, subscribed = await make_dispatcher(source="m-1"), Seen(), Seen()
    await d.consume("kernel_started", consumed, context="ctx")
    await d.subscribe("kernel_started", subscribed)
    await d.produce_event("kernel_started", ("k-1", (1, b"\0")))
    await consumed.count(1)
    await subscribed.count(1)
    assert consumed == [("ctx", "m-1", "kernel_started", "k-1", (1, b"\0"))]
    assert subscribed == [(None, "m-1", "kernel_started", "k-1", (1, b"\0"))]


async def test_a_typed_event(make_dispatcher: MakeDispatcher) -> None:
    d, seen, by_name = await make_dispatcher(), Seen(), Seen()
    handler = await d.consume(Started, seen, name="mine")
    await d.consume("started", by_name)
    await d.produce_event(Started("k-1", 2), source="agent")
    await seen.count(1)
    await by_name.count(1)
    assert seen == [(None, "agent", Started("k-1", 2))]
    assert handler.name == "mine"
    assert by_name[0][3:] == ("k-1", 2)


async def test_handlers_registered_before_the_start_are_there_before_the_first_event() -> None:
    seen = Seen()
    async with connect("memory://") as bus:
        first = EventDispatcher(bus)
        await first.consume("e", seen)
        await first.consume("f", seen)
        async with first:
            pass
        async with EventProducer(bus) as producer:
            for number in range(10):
                await producer.produce_event("ef"[number % 2], (number,))
        assert seen == []
        second = EventDispatcher(bus)
        await second.consume("e", seen)
        await second.consume("f", seen)
        async with second:
            await seen.count(10)
    assert [call[3] for call in seen] == list(range(10))


async def test_one_dispatcher_consumes_and_every_one_subscribes(
    make_dispatcher: MakeDispatcher,
) -> None:
    consumed, subscribed = Seen(), Seen()
    some = [await make_dispatcher() for _ in range(3)]
    for d in some:
        await d.consume("e", consumed)
        await d.subscribe("e", subscribed)
    await asyncio.gather(*(some[0].produce_event("e", (number,)) for number in range(100)))
    await consumed.count(100)
    await subscribed.count(300)


async def test_groups_get_a_copy_each(make_dispatcher: MakeDispatcher) -> None:
    one, two = await make_dispatcher(), await make_dispatcher(group="audit")
    first, second = Seen(), Seen()
    await one.consume("e", first)
    await two.consume("e", second)
    await one.produce_event("e")
    await first.count(1)
    await second.count(1)


async def test_a_dispatcher_takes_only_names_it_handles(make_dispatcher: MakeDispatcher) -> None:
    one, two, seen, other = await make_dispatcher(), await make_dispatcher(), Seen(), Seen()
    await one.consume("wanted", seen)
    await two.consume("other", other)
    for number in range(100):
        await two.produce_event("wanted", (number,))
    await seen.count(100)
    assert other == []


async def test_the_args_matcher_decides(make_dispatcher: MakeDispatcher) -> None:
    d, seen, every = await make_dispatcher(), Seen(), Seen()
    await d.consume("e", seen, args_matcher=lambda args: args[0] == "mine")
    await d.consume("e", every)
    for who in ("mine", "theirs", "mine"):
        await d.produce_event("e", (who,))
    await every.count(3)
    await seen.count(2)
    await eventually(lambda: d.figures()["handled"] == 3)


async def test_a_burst_is_coalesced(make_dispatcher: MakeDispatcher) -> None:
    d, seen = await make_dispatcher(concurrency=1), Seen()
    await d.consume("e", seen, coalescing={"max_wait": 0.15, "max_batch_size": 100})
    for number in range(10):
        await d.produce_event("e", (number,))
    await seen.count(1)
    assert seen[0][3] == 9
    await eventually(lambda: d.figures()["handled"] == 10)


@pytest.mark.parametrize(
    "bad", [{"max_wait": -1, "max_batch_size": 1}, {"max_wait": 1, "max_batch_size": 0}, {}]
)
async def test_bad_coalescing_options_are_refused(bad: Any) -> None:
    d = EventDispatcher("memory://")
    with pytest.raises(InvalidArgumentError):
        await d.consume("e", Seen(), coalescing=bad)


async def test_a_failed_event_is_retried_by_the_policy(make_dispatcher: MakeDispatcher) -> None:
    async def ignore(kind: Any, error: BaseException, tb: Any) -> None:
        pass

    policy = RetryPolicy(max_attempts=3, base=0.0)
    d = await make_dispatcher(retry=policy, consumer_exception_handler=ignore)
    seen = Seen()

    async def fails_twice(*args: Any) -> None:
        await seen(*args)
        if len(seen) < 3:
            raise LookupError

    await d.consume("e", fails_twice)
    await d.produce_event("e")
    await seen.count(3)
    await eventually(lambda: d.figures()["handled"] == 1)


async def test_without_a_policy_a_failed_event_is_handled(make_dispatcher: MakeDispatcher) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    d = await make_dispatcher()

    def fails(*args: Any) -> None:
        raise LookupError("x")

    await d.consume("e", fails)
    await d.produce_event("e")
    await eventually(lambda: d.figures()["handled"] == 1)
    assert [type(one["exception"]) for one in told] == [LookupError]


async def test_a_handler_that_cancels_itself_is_a_failure(make_dispatcher: MakeDispatcher) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    d = await make_dispatcher()

    async def cancels(*args: Any) -> None:
        raise asyncio.CancelledError

    await d.consume("e", cancels)
    await d.produce_event("e")
    await eventually(lambda: d.figures()["handled"] == 1)
    assert [type(one["exception"]) for one in told] == [asyncio.CancelledError]


async def test_close_inside_a_handler_ends_and_does_not_deliver_again(
    make_dispatcher: MakeDispatcher,
) -> None:
    d, done = await make_dispatcher(), asyncio.Event()

    async def closes(*args: Any) -> None:
        await d.close()
        done.set()

    await d.consume("e", closes)
    await d.produce_event("e")
    await asyncio.wait_for(done.wait(), 5)
    other, seen = await make_dispatcher(), Seen()
    await other.consume("e", seen)
    await asyncio.sleep(0.1)
    assert seen == []


async def test_unfinished_events_go_back_in_order(make_dispatcher: MakeDispatcher) -> None:
    d, keeper = await make_dispatcher(concurrency=4), await make_dispatcher()

    async def stuck(*args: Any) -> None:
        await asyncio.sleep(60)

    await d.consume("e", stuck)
    for number in range(20):
        await keeper.produce_event("e", (number,))
    await eventually(lambda: d.figures()["in_flight"] == 4)
    began = time.monotonic()
    await d.close()
    assert time.monotonic() - began < 1.2
    seen = Seen()
    await keeper.consume("e", seen)
    await seen.count(20)
    assert [call[3] for call in seen] == list(range(20))


async def test_a_stubborn_handler_does_not_hold_the_close(make_dispatcher: MakeDispatcher) -> None:
    d, go = await make_dispatcher(), asyncio.Event()

    async def stubborn(*args: Any) -> None:
        while not go.is_set():
            try:
                await asyncio.wait_for(go.wait(), 60)
            except asyncio.CancelledError:
                continue

    await d.subscribe("e", stubborn)
    await d.produce_event("e")
    await eventually(lambda: d.figures()["in_flight"] == 1)
    began = time.monotonic()
    await d.close()
    assert time.monotonic() - began < 1.5
    go.set()
    await eventually(lambda: d.figures()["in_flight"] == 0)


async def test_names_can_come_and_go_while_events_flow(make_dispatcher: MakeDispatcher) -> None:
    # What a claim brings when it is given up comes back with the end of its lease, if not at once.
    d, seen = await make_dispatcher(lease=1.0), Seen()
    handlers = [await d.consume(f"e{number}", seen) for number in range(10)]

    async def flow() -> None:
        for number in range(300):
            await d.produce_event(f"e{number % 10}", (number,))
            await asyncio.sleep(0)

    flowing = asyncio.create_task(flow())
    for number, handler in enumerate(handlers):
        d.unconsume(handler)
        await asyncio.sleep(0.002)
        await d.consume(f"e{number}", seen)
    await flowing
    await eventually(lambda: {call[3] for call in seen} == set(range(300)), timeout=10)


async def test_events_for_one_kind(make_dispatcher: MakeDispatcher) -> None:
    d, consumed, subscribed = await make_dispatcher(), Seen(), Seen()
    await d.consume("e", consumed)
    await d.subscribe("e", subscribed)
    await d.produce_event("e", ("c",), to="consumers")
    await d.produce_event("e", ("s",), to="subscribers")
    await consumed.count(1)
    await subscribed.count(1)
    assert (consumed[0][3], subscribed[0][3]) == ("c", "s")
    with pytest.raises(InvalidArgumentError, match="consumers"):
        await d.produce_event("e", to="everybody")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="@:"):
        await d.produce_event("@:e")


async def test_dedup_ids(make_dispatcher: MakeDispatcher) -> None:
    d, seen = await make_dispatcher(), Seen()
    await d.consume("e", seen)
    for _ in range(3):
        await d.produce_event("e", dedup_id="one")
    await seen.count(1)


async def test_a_subscriber_sees_nothing_from_before(make_dispatcher: MakeDispatcher) -> None:
    d, seen = await make_dispatcher(), Seen()
    await d.produce_event("e", ("early",))
    await d.subscribe("e", seen)
    await d.produce_event("e", ("late",))
    await seen.count(1)
    assert seen[0][3] == "late"


async def test_a_gap_is_told(make_dispatcher: MakeDispatcher) -> None:
    gaps: list[Any] = []
    d = await make_dispatcher(queue_size=4, on_gap=gaps.append, concurrency=1)
    go, seen = asyncio.Event(), Seen()

    async def slow(*args: Any) -> None:
        await go.wait()
        await seen(*args)

    await d.subscribe("e", slow)
    for number in range(50):
        await d.produce_event("e", (number,))
    go.set()
    await eventually(lambda: gaps)
    await eventually(lambda: seen and seen[-1][3] == 49)
    assert gaps[0].cause == "overflow"
    assert d.figures()["gaps"] == len(gaps)


async def test_a_prefix_is_no_pattern() -> None:
    async with (
        connect("memory://") as bus,
        EventDispatcher(bus, prefix="a*[x]") as odd,
        EventDispatcher(bus, prefix="abx") as other,
    ):
        seen, elsewhere = Seen(), Seen()
        await odd.subscribe("e", seen)
        await other.subscribe("e", elsewhere)
        await other.produce_event("e")
        await odd.produce_event("e")
        await seen.count(1)
        await elsewhere.count(1)


async def test_what_cannot_be_encoded_is_refused_where_it_is_produced() -> None:
    async with EventDispatcher("memory://") as d:
        await d.consume("e", Seen())
        with pytest.raises(EncodeError):
            await d.produce_event("e", (object(),))


async def test_life() -> None:
    d = EventDispatcher("memory://")
    with pytest.raises(NotConnectedError):
        await d.produce_event("e")
    await d.start()
    await d.start()
    await d.close()
    await d.close()
    with pytest.raises(NotConnectedError):
        await d.produce_event("e")
    with pytest.raises(BusClosedError):
        await d.start()
    never = EventDispatcher("memory://")
    await never.close()
    p = EventProducer("memory://")
    with pytest.raises(NotConnectedError):
        await p.produce_event("e")


@pytest.mark.parametrize(
    ("event", "args", "error"),
    [
        (7, (), TypeError),
        ("e", "text", TypeError),
        (Started("x"), (1,), TypeError),
    ],
)
async def test_bad_events_are_refused(event: Any, args: Any, error: type[Exception]) -> None:
    async with EventProducer("memory://") as p:
        with pytest.raises(error):
            await p.produce_event(event, args)


async def test_bad_registrations_are_refused() -> None:
    d = EventDispatcher("memory://")
    with pytest.raises(TypeError):
        await d.consume("e", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await d.consume(7, Seen())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        EventDispatcher("memory://", concurrency=0)
    with pytest.raises(InvalidArgumentError):
        EventDispatcher("memory://", prefix="a@b")


async def test_the_bus_may_close_first() -> None:
    bus = connect("memory://")
    await bus.connect()
    d = EventDispatcher(bus)
    await d.consume("e", Seen())
    await d.subscribe("e", Seen())
    await d.start()
    await bus.close()
    await d.close()


def generating(*args: Any) -> Any:
    yield args


async def generating_async(*args: Any) -> Any:
    yield args


def too_few(context: object, source: str) -> None: ...


def too_many(context: object, source: str, event: object, *, database: object) -> None: ...


@pytest.mark.parametrize("callback", [generating, generating_async, too_few, too_many])
@pytest.mark.parametrize("event", ["started", Started])
async def test_a_callback_that_could_not_be_called_is_refused(
    make_dispatcher: MakeDispatcher, event: Any, callback: Any
) -> None:
    d = await make_dispatcher()
    expected = "callback(context, source, name, *args)"
    if event is Started:
        expected = "callback(context, source, event)"
    for register in (d.consume, d.subscribe):
        with pytest.raises(TypeError) as refused:
            await register(event, callback)
        assert expected in str(refused.value)
    assert (len(d.consumers), len(d.subscribers)) == (0, 0)


async def test_a_callback_may_want_more_arguments_than_three_of_an_event_by_name(
    make_dispatcher: MakeDispatcher,
) -> None:
    d, seen = await make_dispatcher(), list[object]()

    def on_event(context: object, source: str, name: str, kernel: str) -> None:
        seen.append(kernel)

    await d.consume("started", on_event)
    await d.produce_event("started", ("k-1",))
    await eventually(lambda: seen == ["k-1"], timeout=10)
    with pytest.raises(TypeError, match="cannot be called as callback"):
        await d.consume(Started, on_event)
