"""Handlers of every kind: what ``subscribe`` and ``consume`` take, and what they refuse."""

# Every misuse below must be found by mypy and by pyright.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypedDict, assert_type

import msgspec
import pydantic

from eventbus import (
    BatchError,
    Bus,
    Consumer,
    Delivery,
    Event,
    Gap,
    Reject,
    Retry,
    RetryPolicy,
    Subscription,
    connect,
)
from eventbus.batches import BatchOutcome


@dataclass
class Order:
    id: int
    total: float = 0.0


class Shipment(TypedDict):
    order: int


class Refund(msgspec.Struct):
    order: int


class Complaint(pydantic.BaseModel):
    text: str


async def on_event(event: Event) -> None:
    assert_type(event.topic, str)


def on_event_plainly(event: Event) -> str:
    return event.event_id


async def on_order(order: Order) -> None:
    assert_type(order.total, float)


def on_shipment(shipment: Shipment) -> None: ...


async def on_refund(refund: Refund) -> None: ...


def on_complaint(complaint: Complaint) -> int:
    return len(complaint.text)


async def on_delivery(delivery: Delivery) -> None:
    if delivery.attempt > 3:
        raise Reject("tried often enough")
    raise Retry(after=timedelta(seconds=1))


async def on_both(order: Order, delivery: Delivery) -> None: ...


def on_both_by_name(event: Event, *, delivery: Delivery) -> None: ...


async def on_batch(events: Sequence[Event]) -> None: ...


def on_batch_one_by_one(events: list[Order]) -> list[BatchOutcome]:
    if not events:
        raise BatchError({0: ValueError("empty"), 1: Reject("no")})
    return [None, True, Retry(after=1), Reject("no"), KeyError("no")]


def on_batch_with_gathered(events: list[Event]) -> list[Reject | None]:
    return [Reject("no") for _ in events]


def wrong_outcomes() -> list[BatchOutcome]:
    return ["done"]  # type: ignore[list-item]


def wrong_batch_error() -> BatchError:
    return BatchError({"0": ValueError()})  # type: ignore[dict-item]


def with_prefix(prefix: str, event: Event) -> None: ...


def without_argument() -> None: ...


class Audit:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.seen.append(event)

    async def on_event(self, event: Event) -> None:
        self.seen.append(event)


def on_gap(gap: Gap) -> None:
    assert_type(gap.count, int | None)


async def subscribing(bus: Bus) -> None:
    subscription = await bus.subscribe("orders:created", on_event)
    assert_type(subscription, Subscription)
    assert_type(await subscription.cancel(), None)
    got: list[Event] = []
    topics: list[str] = []
    audit = Audit()
    await bus.subscribe("a", on_event_plainly)
    await bus.subscribe("a", on_order)
    await bus.subscribe("a", on_shipment)
    await bus.subscribe("a", on_refund)
    await bus.subscribe("a", on_complaint)
    await bus.subscribe("a", got.append)
    await bus.subscribe("a", audit)
    await bus.subscribe("a", audit.on_event)
    await bus.subscribe("a", partial(with_prefix, "x"))
    await bus.subscribe("a", lambda event: topics.append(event.topic))
    await bus.subscribe("a", print, "a:*")
    assert_type(await bus.subscribe(handler=on_order, pattern="a:*"), Subscription)
    await bus.subscribe(
        "a", on_event, on_gap=on_gap, delivery="queued", queue_size=10, overflow="drop_newest"
    )

    await bus.subscribe("a", without_argument)  # type: ignore[arg-type]
    await bus.subscribe("a", on_both)  # type: ignore[arg-type]
    await bus.subscribe("a", "on_event")  # type: ignore[call-overload]
    await bus.subscribe(7, on_event)  # type: ignore[call-overload]
    await bus.subscribe("a", on_event, delivery="inlined")  # type: ignore[call-overload]
    await bus.subscribe("a", on_event, overflow="drop")  # type: ignore[call-overload]
    await bus.subscribe("a", on_event, on_gap=without_argument)  # type: ignore[arg-type]


async def consuming(bus: Bus) -> None:
    consumer = await bus.consume("orders:created", on_event)
    assert_type(consumer, Consumer)
    assert_type(consumer.idle, bool)
    assert_type(await consumer.stop(5.0), None)
    await bus.consume("a", on_event_plainly, group="b", concurrency=4)
    await bus.consume(["a", "b"], on_order, timeout=timedelta(minutes=1))
    await bus.consume(None, on_delivery, pattern="a:*", lease=timedelta(seconds=5))
    await bus.consume("a", on_both, retry=RetryPolicy(max_attempts=3, base=0.5))
    await bus.consume("a", on_both_by_name, max_lease=60)
    await bus.consume("a", on_batch, batch=100, max_length=10_000)
    await bus.consume("a", on_batch_one_by_one, batch=100, run_in="thread", timeout=5)
    await bus.consume("a", on_batch_with_gathered, batch=100, run_in="loop")
    await bus.consume("a", lambda event: None)
    assert_type(await bus.consume(handler=on_order, pattern="a:*", group="b"), Consumer)

    await bus.consume("a", without_argument)  # type: ignore[arg-type]
    await bus.consume("a", on_event, lease="5s")  # type: ignore[call-overload]
    await bus.consume("a", on_event, run_in="process")  # type: ignore[call-overload]
    await bus.consume("a", on_event, retry=3)  # type: ignore[call-overload]
    await bus.consume(on_event)  # type: ignore[call-overload]


async def hooks(bus: Bus) -> None:
    def failed(name: str, error: BaseException) -> None: ...

    bus.on_handler_error = failed
    bus.on_state_change = print
    bus.on_handler_error = None
    bus.on_handler_error = without_argument  # type: ignore[assignment]


async def main() -> None:
    async with connect("memory://", strict=True) as bus:
        assert_type(bus, Bus)
        await subscribing(bus)
        await consuming(bus)
        await hooks(bus)


def options() -> None:
    connect(
        "memory://", queue_size=5, overflow="close", drain_timeout=timedelta(seconds=3), max_dead=10
    )
    connect("memory://", queue_size="5")  # type: ignore[arg-type]
    connect("memory://", size=5)  # type: ignore[call-arg]
    wanted: dict[str, Any] = {"strict": True}
    connect("memory://", **wanted)
