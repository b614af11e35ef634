"""Retry: what follows a handler that raises."""

from __future__ import annotations

import time
from typing import Any

import pytest

from conformance.support import AT_ONCE, WITHIN, figures, figures_become, take
from eventbus import Bus, Delivery, Event, Reject, Retry, RetryPolicy
from eventbus.testing import eventually


async def test_a_failure_is_tried_again_until_it_works(bus: Bus, topic: str, group: str) -> None:
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt < 3:
            raise ValueError("not yet")

    await bus.consume(topic, handle, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1, retried=2, dead=0, in_flight=0)
    assert attempts == [1, 2, 3]


async def test_the_last_failure_is_a_dead_letter_with_its_traceback(
    bus: Bus, topic: str, group: str
) -> None:
    calls: list[int] = []
    told: list[tuple[str, BaseException]] = []
    bus.on_handler_error = lambda name, error: told.append((name, error))

    def handle(_event: Event) -> None:
        calls.append(1)
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    await bus.consume(topic, handle, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, in_flight=0, ready=0)
    assert len(calls) == 3
    assert [(name, str(error)) for name, error in told] == [(group, "outer")] * 3
    (letter,) = await bus.dead_letters(group).list()
    assert (letter.reason, letter.attempts, letter.crashes) == ("failed", 3, 0)
    for part in ("Traceback", "KeyError: 'inner'", "ValueError: outer", __file__):
        assert part in letter.error
    assert len(letter.error.encode()) <= 16 * 1024


async def test_the_back_off_is_jittered_below_its_bound(bus: Bus, topic: str, group: str) -> None:
    times: list[float] = []

    def handle(_event: Event) -> None:
        times.append(time.monotonic())
        raise ValueError

    policy = RetryPolicy(max_attempts=3, base=0.1, cap=0.1)
    await bus.consume(topic, handle, group=group, retry=policy)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1)
    assert times[-1] - times[0] < 0.2 + WITHIN / 2


async def test_retry_says_when(bus: Bus, topic: str, group: str) -> None:
    times: list[float] = []

    def handle(_event: Event) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Retry(after=0.15, reason="busy")

    # The back-off of the policy would be minutes: the handler's own word counts.
    policy = RetryPolicy(base=600.0, cap=600.0)
    await bus.consume(topic, handle, group=group, retry=policy)
    await bus.publish(topic, 1)
    await eventually(lambda: len(times) == 2, timeout=WITHIN)
    assert times[1] - times[0] >= 0.14
    await figures_become(bus, group, acked=1, retried=1)


async def test_retry_counts_as_an_attempt(bus: Bus, topic: str, group: str) -> None:
    def handle(_event: Event) -> None:
        raise Retry(after=0, reason="busy")

    await bus.consume(topic, handle, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1)
    (letter,) = await bus.dead_letters(group).list()
    assert (letter.reason, letter.attempts, letter.error) == ("failed", 3, "busy")


@pytest.mark.parametrize("after", ["soon", -1, float("nan"), 1e12])
async def test_a_retry_that_cannot_be_used_is_a_failure_and_the_worker_goes_on(
    bus: Bus, topic: str, group: str, after: Any
) -> None:
    def handle(event: Event) -> None:
        if event.payload == "bad":
            raise Retry(after=after)

    told: list[str] = []
    bus.on_handler_error = lambda _group, error: told.append(str(error))
    await bus.consume(topic, handle, group=group, concurrency=1, retry=AT_ONCE)
    await bus.publish(topic, "bad")
    await bus.publish(topic, "good")
    await figures_become(bus, group, dead=1, acked=1, in_flight=0)
    assert told
    assert all("after" in text for text in told)


async def test_reject_is_a_dead_letter_at_once(bus: Bus, topic: str, group: str) -> None:
    calls: list[int] = []

    async def handle(_event: Event) -> None:
        calls.append(1)
        raise Reject("no such customer")

    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, in_flight=0)
    (letter,) = await bus.dead_letters(group).list()
    assert (letter.reason, letter.error, letter.attempts) == ("rejected", "no such customer", 0)
    assert len(calls) == 1


async def test_a_payload_that_does_not_fit_is_rejected_with_the_reason(
    bus: Bus, topic: str, group: str
) -> None:
    from dataclasses import dataclass

    @dataclass
    class Order:
        number: int

    seen: list[Order] = []

    def handle(order: Order) -> None:
        seen.append(order)

    handle.__annotations__["order"] = Order
    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, {"number": 1})
    await bus.publish(topic, {"number": "one"})
    await figures_become(bus, group, dead=1, acked=1)
    assert seen == [Order(1)]
    (letter,) = await bus.dead_letters(group).list()
    assert letter.reason == "rejected"
    assert "Expected `int`, got `str` - at `$.number`" in letter.error


async def test_a_delivery_can_be_retried_by_hand(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, retry=AT_ONCE) as deliveries:
        await bus.publish(topic, 1)
        for attempt in (1, 2, 3):
            delivery = await take(deliveries)
            assert delivery.attempt == attempt
            await delivery.retry(after=0, reason=f"try {attempt}")
        await figures_become(bus, group, dead=1, in_flight=0)
    (letter,) = await bus.dead_letters(group).list()
    assert letter.error == "try 3"
    assert (await figures(bus, group))["retried"] == 2
