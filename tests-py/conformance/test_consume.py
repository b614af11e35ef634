"""Consume: how handlers of a group are called, and what their end means."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import AT_ONCE, WITHIN, figures, figures_become
from eventbus import Bus, Delivery, Event, Reject, RetryPolicy, current_delivery
from eventbus.testing import Recorder, eventually


async def test_a_handler_that_returns_acknowledges(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    consumer = await bus.consume(topic, seen, group=group)
    assert (consumer.group, consumer.handler) == (group, seen)
    await bus.publish(topic, 1)
    await seen.wait_for(1, WITHIN)
    await figures_become(bus, group, ready=0, in_flight=0, acked=1)


async def test_what_was_published_before_a_consumer_came_is_handled(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    for number in range(5):
        await bus.publish(topic, number)
    seen = Recorder()
    await bus.consume(topic, seen, group=group, concurrency=1)
    await seen.wait_for(5, WITHIN)
    assert seen.payloads == [0, 1, 2, 3, 4]


async def test_a_plain_function_and_a_coroutine_function_both_handle(
    bus: Bus, topic: str, group: str
) -> None:
    seen: list[Any] = []

    async def later(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.payload)

    await bus.consume(topic, lambda event: seen.append(event.payload), group=group)
    await bus.consume(topic, later, group=group + ":b")
    await bus.publish(topic, 1)
    await eventually(lambda: seen == [1, 1], timeout=WITHIN)


async def test_several_topics_and_a_pattern_feed_one_consumer(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.consume([topic, topic + "2"], seen, pattern=f"{topic}:*", group=group)
    await bus.publish(topic, 1)
    await bus.publish(topic + "2", 2)
    await bus.publish(topic + ":x", 3)
    await bus.publish(topic + "3", 4)
    await seen.wait_for(3, WITHIN)
    await bus.wait_idle(WITHIN)
    assert sorted(seen.payloads) == [1, 2, 3]


async def test_consumers_of_a_group_share_its_events(make_bus: MakeBus, topic: str) -> None:
    one, two = await make_bus(), await make_bus()
    seen: list[int] = []
    began = {"one": asyncio.Event(), "two": asyncio.Event()}

    def handler(name: str) -> Any:
        async def handle(event: Event) -> None:
            began[name].set()
            # Neither gets on before the other one has got something too.
            for other in began.values():
                await other.wait()
            seen.append(event.payload)

        return handle

    await one.consume(topic, handler("one"), concurrency=2)
    await two.consume(topic, handler("two"), concurrency=2)
    await one.publish_many([(topic, number) for number in range(50)])
    await eventually(lambda: len(seen) >= 50, timeout=WITHIN)
    await one.wait_idle(WITHIN)
    assert sorted(seen) == list(range(50))


async def test_a_consumer_takes_only_what_it_handles(make_bus: MakeBus, topic: str) -> None:
    one, two = await make_bus(), await make_bus()
    first, second = Recorder(), Recorder()
    await one.consume(topic + ":a", first)
    await two.consume(topic + ":b", second)
    for number in range(5):
        await one.publish(topic + ":a", f"a{number}")
        await one.publish(topic + ":b", f"b{number}")
    await first.wait_for(5, WITHIN)
    await second.wait_for(5, WITHIN)
    assert {text[0] for text in first.payloads} == {"a"}
    assert {text[0] for text in second.payloads} == {"b"}


async def test_at_most_concurrency_handlers_run(bus: Bus, topic: str, group: str) -> None:
    running, most, done = 0, 0, 0

    async def handle(_event: Event) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        done += 1

    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, number) for number in range(30)])
    await bus.consume(topic, handle, group=group, concurrency=3)
    await eventually(lambda: done == 30, timeout=WITHIN)
    assert most == 3


async def test_a_batch_handler_gets_lists(bus: Bus, topic: str, group: str) -> None:
    batches: list[list[Any]] = []
    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, number) for number in range(25)])
    await bus.consume(
        topic,
        lambda events: batches.append([event.payload for event in events]),
        group=group,
        batch=10,
    )
    await figures_become(bus, group, ready=0, in_flight=0, acked=25)
    assert [number for batch in batches for number in batch] == list(range(25))
    assert max(map(len, batches)) == 10


async def test_a_batch_that_fails_is_tried_again_as_a_whole(
    bus: Bus, topic: str, group: str
) -> None:
    batches: list[list[Any]] = []

    async def handle(events: list[Event]) -> None:
        batches.append([event.payload for event in events])
        if len(batches) == 1:
            raise ValueError("once")

    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, number) for number in range(3)])
    await bus.consume(topic, handle, group=group, batch=10, retry=AT_ONCE)
    await figures_become(bus, group, ready=0, in_flight=0, acked=3, retried=3)
    assert sorted(number for batch in batches[1:] for number in batch) == [0, 1, 2]


async def test_a_batch_handler_has_the_timeout_too(bus: Bus, topic: str, group: str) -> None:
    async def hang(_events: list[Event]) -> None:
        await asyncio.Event().wait()

    once = RetryPolicy(max_attempts=1)
    await bus.consume(topic, hang, group=group, batch=5, timeout=0.02, retry=once)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, in_flight=0)


async def test_an_idle_batch_consumer_stops_at_once(bus: Bus, topic: str, group: str) -> None:
    consumer = await bus.consume(topic, lambda _events: None, group=group, batch=5)
    await bus.publish(topic, 1)
    await figures_become(bus, group, acked=1, in_flight=0)
    await asyncio.wait_for(consumer.stop(), WITHIN)


async def test_a_handler_that_takes_too_long_is_cancelled_and_tried_again(
    bus: Bus, topic: str, group: str
) -> None:
    ends: list[str] = []

    async def handle(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append(event.payload)
            raise

    await bus.consume(topic, handle, group=group, timeout=0.02, retry=AT_ONCE)
    await bus.publish(topic, "x")
    await figures_become(bus, group, dead=1, in_flight=0)
    assert ends == ["x"] * 3
    (letter,) = await bus.dead_letters(group).list()
    assert "TimeoutError" in letter.error


async def test_a_handler_can_ask_for_its_delivery(bus: Bus, topic: str, group: str) -> None:
    found: list[Any] = []

    async def both(event: Event, delivery: Delivery) -> None:
        found.append((event.payload, delivery.event.payload, delivery.attempt, delivery.topic))

    async def only(delivery: Delivery) -> None:
        found.append((delivery.group, delivery.event.payload))
        await delivery.ack()
        assert delivery.settled

    await bus.consume(topic, both, group=group)
    await bus.consume(topic, only, group=group + ":b")
    await bus.publish(topic, 1)
    await eventually(lambda: len(found) == 2, timeout=WITHIN)
    assert set(found) == {(1, 1, 1, topic), (group + ":b", 1)}
    await figures_become(bus, group + ":b", acked=1, in_flight=0)


async def test_current_delivery_is_the_one_being_handled(bus: Bus, topic: str, group: str) -> None:
    found: list[bool] = []

    async def handle(event: Event) -> None:
        await asyncio.sleep(0.001)
        found.append(current_delivery().event is event)

    with pytest.raises(LookupError, match="not a consume handler"):
        current_delivery()
    await bus.consume(topic, handle, group=group)
    await bus.publish_many([(topic, number) for number in range(10)])
    await eventually(lambda: len(found) == 10, timeout=WITHIN)
    assert all(found)
    with pytest.raises(LookupError):
        current_delivery()


async def test_a_handler_that_settled_by_itself_is_not_settled_again(
    bus: Bus, topic: str, group: str
) -> None:
    async def reject_and_return(delivery: Delivery) -> None:
        await delivery.reject("by hand")

    async def ack_and_raise(delivery: Delivery) -> None:
        await delivery.ack()
        raise ValueError("afterwards")

    await bus.consume(topic, reject_and_return, group=group)
    await bus.consume(topic, ack_and_raise, group=group + ":b", retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, acked=0, in_flight=0)
    await figures_become(bus, group + ":b", dead=0, acked=1, retried=0, in_flight=0)


async def test_context_variables_of_a_handler_do_not_leak_into_the_next_event(
    bus: Bus, topic: str, group: str
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    found: list[str] = []

    async def handle(event: Event) -> None:
        found.append(variable.get())
        variable.set(str(event.payload))
        await asyncio.sleep(0)
        assert variable.get() == str(event.payload)

    variable.set("consumer")
    await bus.consume(topic, handle, group=group, concurrency=1)
    variable.set("publisher")
    await bus.publish_many([(topic, 1), (topic, 2), (topic, 3)])
    await eventually(lambda: len(found) == 3, timeout=WITHIN)
    assert found == ["consumer"] * 3


async def test_a_handler_can_publish_and_consume_more(bus: Bus, topic: str, group: str) -> None:
    late = Recorder()

    async def handle(event: Event) -> None:
        await bus.consume(topic + ":late", late, group=group + ":late")
        await bus.publish(topic + ":late", event.payload)

    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, 1)
    await late.wait_for(1, WITHIN)


async def test_a_handler_can_stop_its_own_consumer(bus: Bus, topic: str, group: str) -> None:
    handled: list[int] = []

    async def handle(event: Event) -> None:
        handled.append(event.payload)
        await consumer.stop()

    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, number) for number in range(5)])
    consumer = await bus.consume(topic, handle, group=group, concurrency=1)
    await figures_become(bus, group, acked=1, in_flight=0, ready=4, retried=0)
    assert handled == [0]


async def test_a_handler_can_close_the_bus(make_bus: MakeBus, topic: str, group: str) -> None:
    bus, other = await make_bus(), await make_bus()

    async def handle(_event: Event) -> None:
        await bus.close()

    await other.declare_group(group, topic)
    await other.publish_many([(topic, number) for number in range(5)])
    await bus.consume(topic, handle, group=group, concurrency=1)
    await eventually(lambda: bus.state == "closed", timeout=WITHIN)
    await figures_become(other, group, acked=1, in_flight=0, ready=4)


async def test_stop_lets_running_handlers_end_and_gives_the_rest_back_uncounted(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    started, go = asyncio.Barrier(3), asyncio.Event()

    async def handle(_event: Event) -> None:
        await started.wait()
        await go.wait()

    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, number) for number in range(10)])
    consumer = await bus.consume(topic, handle, group=group, concurrency=2)
    async with asyncio.timeout(WITHIN):
        await started.wait()
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.sleep(0.05)
    await figures_become(bus, group, in_flight=2, ready=8)
    go.set()
    await asyncio.wait_for(stopping, WITHIN)
    assert (await figures(bus, group))["acked"] == 2
    attempts: list[tuple[int, int]] = []
    await other.consume(
        topic,
        lambda delivery: attempts.append((delivery.attempt, delivery.crashes)),
        group=group,
    )
    await consumer.stop()


async def test_stop_cancels_late_handlers_and_releases_uncounted(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder(lambda _event: asyncio.Event().wait())
    await bus.declare_group(group, topic)
    await bus.publish_many([(topic, 0), (topic, 1)])
    consumer = await bus.consume(topic, seen, group=group, concurrency=1)
    await seen.wait_for(1, WITHIN)
    await asyncio.wait_for(consumer.stop(0.02), WITHIN)
    found = await figures(bus, group)
    assert (found["ready"], found["in_flight"], found["retried"]) == (2, 0, 0)
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        delivery = await asyncio.wait_for(anext(deliveries), WITHIN)
        assert (delivery.event.payload, delivery.attempt, delivery.crashes) == (0, 1, 0)
        await delivery.ack()


async def test_reject_in_one_handler_leaves_the_neighbours_alone(
    bus: Bus, topic: str, group: str
) -> None:
    async def handle(event: Event) -> None:
        if event.payload % 2:
            raise Reject(f"odd: {event.payload}")

    await bus.consume(topic, handle, group=group)
    await bus.publish_many([(topic, number) for number in range(10)])
    await figures_become(bus, group, acked=5, dead=5, ready=0, in_flight=0)
