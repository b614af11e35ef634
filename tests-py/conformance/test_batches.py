"""Batches: handlers that get lists, and what becomes of each event of one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from conformance.support import AT_ONCE, WITHIN, figures, figures_become
from eventbus import BatchError, Bus, Event, Reject, Retry, RetryPolicy
from eventbus.testing import eventually


@dataclass
class Row:
    id: int


ONCE = RetryPolicy(max_attempts=1)


async def publish_three(bus: Bus, topic: str, group: str) -> None:
    """Have three events ready before a consumer comes."""
    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, name) for name in ("a", "b", "c")])


async def dead(bus: Bus, group: str) -> dict[Any, tuple[str, str]]:
    """Return reason and error of each dead letter by payload."""
    letters = await bus.dead_letters(group).list()
    return {one.event.payload: (one.reason, one.error) for one in letters if one.event is not None}


async def test_a_batch_handler_settles_its_events_one_by_one_with_a_list_of_outcomes(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)
    outcomes: dict[str, list[object]] = {
        "a": [None],
        "b": [Reject("broken"), None],
        "c": [Retry(after=0), ValueError("once more"), True],
    }
    seen: list[list[Any]] = []

    async def handle(events: list[Event]) -> list[object]:
        seen.append([event.payload for event in events])
        return [outcomes[event.payload].pop(0) for event in events]

    await bus.consume(topic, handle, group=group, batch=10, retry=AT_ONCE)
    await figures_become(bus, group, acked=2, dead=1, ready=0, in_flight=0)
    assert sorted(name for batch in seen for name in batch) == ["a", "b", "c", "c", "c"]
    assert await dead(bus, group) == {"b": ("rejected", "broken")}
    assert bus.counters["delivered"] == 2


async def test_a_batch_error_fails_the_events_it_names_and_acknowledges_the_others(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)

    def handle(events: list[Event]) -> None:
        found = {event.payload: index for index, event in enumerate(events)}
        raise BatchError({found["b"]: KeyError("no b"), found["c"]: Reject("no c")})

    await bus.consume(topic, handle, group=group, batch=10, retry=ONCE)
    await figures_become(bus, group, acked=1, dead=2, in_flight=0)
    letters = await dead(bus, group)
    assert letters["c"] == ("rejected", "no c")
    assert letters["b"][0] == "failed"
    assert "KeyError: 'no b'" in letters["b"][1]


async def test_a_batch_error_without_entries_acknowledges_all(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)

    def handle(events: list[Event]) -> None:
        raise BatchError({})

    await bus.consume(topic, handle, group=group, batch=10)
    await figures_become(bus, group, acked=3, dead=0, in_flight=0)


async def test_what_gather_returned_can_be_the_outcomes(bus: Bus, topic: str, group: str) -> None:
    await publish_three(bus, topic, group)

    async def one(event: Event) -> None:
        await asyncio.sleep(0)
        if event.payload == "a":
            raise asyncio.CancelledError
        if event.payload == "b":
            raise Reject("b")

    async def handle(events: list[Event]) -> list[BaseException | None]:
        return await asyncio.gather(*map(one, events), return_exceptions=True)

    await bus.consume(topic, handle, group=group, batch=10, retry=ONCE)
    await figures_become(bus, group, acked=1, dead=2, in_flight=0)
    assert (await dead(bus, group))["a"][0] == "failed"


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        ([None, None], "returned 2 outcomes for 3 events"),
        ((), "returned 0 outcomes for 3 events"),
        ([None, True, False], "returned False for event 2"),
        ([1, 2, 3], "returned 1 for event 0"),
        ([None, None, SystemExit(1)], "returned SystemExit(1) for event 2"),
        (BatchError({3: ValueError()}), "names the indexes [3], but the batch had 3 events"),
        (BatchError({-1: ValueError()}), "names the indexes [-1]"),
    ],
    ids=["short", "empty", "false", "numbers", "exit", "beyond", "negative"],
)
async def test_outcomes_that_do_not_fit_fail_the_whole_batch(
    bus: Bus, topic: str, group: str, outcome: object, text: str
) -> None:
    await publish_three(bus, topic, group)

    def handle(events: list[Event]) -> object:
        if isinstance(outcome, BatchError):
            raise outcome
        return outcome

    await bus.consume(topic, handle, group=group, batch=10, retry=ONCE)
    await figures_become(bus, group, acked=0, dead=3, in_flight=0)
    for reason, error in (await dead(bus, group)).values():
        assert reason == "failed"
        assert text in error


async def test_indexes_count_in_the_list_that_the_handler_was_given(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    payloads: list[Any] = [{"id": 0}, "no dict", {"id": 2}]
    await bus.publish_many([(topic, payload) for payload in payloads])

    async def handle(rows: list[Row]) -> None:
        raise BatchError({len(rows) - 1: Reject("the last of those that fit")})

    await bus.consume(topic, handle, group=group, batch=10)
    await figures_become(bus, group, acked=1, dead=2, in_flight=0)
    letters = {one.error.partition(":")[0] for one in await bus.dead_letters(group).list()}
    assert letters == {"payload does not fit Row", "the last of those that fit"}


async def test_any_other_return_value_acknowledges_the_batch(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)
    await bus.consume(topic, len, group=group, batch=10)
    await figures_become(bus, group, acked=3, dead=0, in_flight=0)
    assert bus.counters["delivered"] == 3


async def test_a_batch_in_a_thread_settles_its_events_one_by_one(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)

    def handle(events: list[Event]) -> list[object]:
        return [Reject("b") if event.payload == "b" else None for event in events]

    await bus.consume(topic, handle, group=group, batch=10, run_in="thread")
    await figures_become(bus, group, acked=2, dead=1, in_flight=0)


async def test_a_batch_that_swallows_its_timeout_is_not_acknowledged(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)

    async def handle(events: list[Event]) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    await bus.consume(topic, handle, group=group, batch=10, timeout=0.02, retry=ONCE)
    await figures_become(bus, group, acked=0, dead=3, in_flight=0)
    for _, error in (await dead(bus, group)).values():
        assert "handle ran longer than timeout=0.02 seconds" in error


async def test_an_event_that_its_handler_failed_leaves_the_next_batch_alone(
    bus: Bus, topic: str, group: str
) -> None:
    await publish_three(bus, topic, group)
    handled: list[Any] = []

    async def handle(events: list[Event]) -> list[BaseException | None]:
        handled.extend(event.payload for event in events)
        return [ValueError("bad") for _ in events]

    await bus.consume(topic, handle, group=group, batch=10, retry=ONCE)
    await eventually(lambda: len(handled) == 3, timeout=WITHIN)
    await bus.publish(topic, "d")
    await eventually(lambda: handled[3:] == ["d"], timeout=WITHIN)
    await figures_become(bus, group, dead=4, in_flight=0)
    assert (await figures(bus, group))["acked"] == 0


@pytest.mark.parametrize("errors", [{"0": ValueError()}, {True: ValueError()}, {0: "text"}])
def test_a_batch_error_takes_indexes_and_exceptions(errors: Any) -> None:
    with pytest.raises(TypeError, match="BatchError needs"):
        BatchError(errors)
