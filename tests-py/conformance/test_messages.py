"""Messages: a publisher looks up, cancels, promotes and reschedules what it published, by event."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import datetime as dt
import pickle
import uuid
from collections.abc import Awaitable, Callable

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, figures, figures_become, nothing_from, take, take_all
from eventbus import Bus, Event, EventType, NotFoundError, connect
from eventbus.errors import InvalidArgumentError
from eventbus.testing import eventually
from servers.shared import shared_redis


def _event(topic: str, payload: object = 1) -> Event:
    return Event(EventType.CUSTOM, topic, payload)  # type: ignore[arg-type]


def _in_an_hour() -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)


async def test_an_event_is_found_in_every_state(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    event = _event(topic)
    assert await bus.message(event) == []
    await bus.publish(topic, event, priority=4)
    (info,) = await bus.message(event)
    assert (info.group, info.message_id, info.topic) == (group, event.event_id, topic)
    assert (info.state, info.priority, info.attempts) == ("ready", 4, 0)
    later = _in_an_hour()
    assert await bus.reschedule_message(event, later) == 1
    (info,) = await bus.message(event.event_id)
    assert (info.state, info.at) == ("delayed", later)
    assert await bus.promote_message(uuid.UUID(event.event_id)) == 1
    assert await bus.promote_message(event) == 0
    async with bus.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        (info,) = await bus.message(event)
        assert info.state == "active"
        assert info.at > dt.datetime.now(dt.UTC)
        assert delivery.message_id == info.message_id
        await delivery.ack()
    assert await bus.message(event) == []
    assert await bus.message(str(uuid.uuid4())) == []


async def test_a_waiting_event_can_be_cancelled_an_active_one_not(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    event = _event(topic)
    await bus.publish(topic, event)
    async with bus.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        assert await bus.cancel_message(event) == 0
        assert await bus.reschedule_message(event, _in_an_hour()) == 0
        await delivery.release()
        await deliveries.aclose()
    assert await bus.cancel_message(event) == 1
    assert await bus.cancel_message(event) == 0
    found = await figures(bus, group)
    assert (found["ready"], found["removed"]) == (0, 1)


Publish = Callable[[Bus, str, str], Awaitable[None]]


async def _publish_plainly(bus: Bus, topic: str, event_id: str) -> None:
    await bus.publish(topic, {"n": 1}, event_id=event_id)


async def _publish_with_every_option(bus: Bus, topic: str, event_id: str) -> None:
    await bus.publish(
        topic,
        {"n": 1},
        event_id=event_id,
        key="k",
        priority=7,
        dedup_id="d",
        unique="u",
        expires_after=3600,
        correlation_id="c",
        source="s",
        metadata={"m": 1},
    )


async def _publish_with_a_delay(bus: Bus, topic: str, event_id: str) -> None:
    await bus.publish(topic, 1, event_id=event_id, delay=3600)


async def _publish_at_a_time(bus: Bus, topic: str, event_id: str) -> None:
    await bus.publish(topic, 1, event_id=event_id, at=_in_an_hour())


async def _publish_an_event_of_that_id(bus: Bus, topic: str, event_id: str) -> None:
    await bus.publish(topic, Event(EventType.CREATED, topic, {"n": 1}, event_id=event_id))


async def _publish_many(bus: Bus, topic: str, event_id: str) -> None:
    event = Event(EventType.CREATED, topic, {"n": 1}, event_id=event_id)
    await bus.publish_many([(topic, "before"), (topic, event), (topic, "after")])


async def _publish_nowait(bus: Bus, topic: str, event_id: str) -> None:
    bus.publish_nowait(topic, 1, event_id=event_id)
    await bus.flush()


async def _publish_in_a_transaction(bus: Bus, topic: str, event_id: str) -> None:
    async with bus.transaction() as tx:
        tx.publish(topic, 1, event_id=event_id)
        tx.put(topic, 1)
        assert await bus.cancel_message(event_id) == 0


async def _publish_with_an_acknowledgement(bus: Bus, topic: str, event_id: str) -> None:
    await bus.declare_group("before " + topic, "before " + topic)
    await bus.publish("before " + topic, 0)
    async with bus.deliveries("before " + topic, group="before " + topic) as deliveries:
        delivery = await take(deliveries)
        async with delivery.transaction() as tx:
            tx.publish(topic, 1, event_id=event_id, delay=3600)


WAYS: list[Publish] = [
    _publish_plainly,
    _publish_with_every_option,
    _publish_with_a_delay,
    _publish_at_a_time,
    _publish_an_event_of_that_id,
    _publish_many,
    _publish_nowait,
    _publish_in_a_transaction,
    _publish_with_an_acknowledgement,
]


@pytest.mark.parametrize("event_id", ["uuid", "order 7 – ü"])
@pytest.mark.parametrize("publish", WAYS, ids=lambda way: way.__name__.removeprefix("_"))
async def test_whatever_way_an_event_was_published_it_is_found_by_its_id(
    bus: Bus, topic: str, group: str, publish: Publish, event_id: str
) -> None:
    event_id = str(uuid.uuid4()) if event_id == "uuid" else event_id
    groups = [group, group + " b"]
    for name in groups:
        await bus.declare_group(name, topic, pattern=topic + "*")
    await publish(bus, topic, event_id)
    found = await bus.message(event_id)
    assert [info.group for info in found] == [group, group, group + " b", group + " b"]
    assert len({info.message_id for info in found}) == 1
    assert await bus.message(event_id, group=group) == found[:2]
    assert await bus.reschedule_message(event_id, _in_an_hour()) == 4
    assert await bus.promote_message(event_id, group=group) == 2
    assert await bus.cancel_message(event_id, group=group) == 2
    assert [info.group for info in await bus.message(event_id)] == [group + " b"] * 2
    assert await bus.cancel_message(event_id) == 2
    others = 2 * 2 * 2 if publish is _publish_many else 0
    assert sum([(await figures(bus, name))["ready"] for name in groups]) == others
    assert sum([(await figures(bus, name))["delayed"] for name in groups]) == 0


async def test_the_very_event_and_its_copies_are_all_acted_on(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    event = _event(topic)
    again: list[Event] = [
        event,
        event,
        copy.copy(event),
        copy.deepcopy(event),
        dataclasses.replace(event, payload={"other": 1}),
        event.with_correlation("c"),
        pickle.loads(pickle.dumps(event)),
        Event.from_dict(event.to_dict()),
        Event(EventType.DELETED, "elsewhere", event_id=event.event_id),
    ]
    for one in again:
        await bus.publish(topic, one)
    await bus.publish(topic, event, source="s")
    await bus.publish(topic, _event(topic, "another"))
    found = await bus.message(event)
    assert len({info.message_id for info in found}) == len(found) == len(again) + 1
    # The id of one publish means that one.
    assert await bus.cancel_message(found[3].message_id) == 1
    assert await bus.cancel_message(event) == len(again)
    async with bus.deliveries(topic, group=group) as deliveries:
        last = await take(deliveries)
        assert last.event.payload == "another"
        await nothing_from(deliveries)


async def test_an_event_that_was_received_and_published_again_is_found_twice(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    await bus.declare_group(group + " next", topic + ":next")
    event = _event(topic)
    await bus.publish(topic, event)
    async with bus.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        await bus.publish(topic + ":next", delivery.event)
        found = await bus.message(event)
        assert [info.state for info in found] == ["active", "ready"]
        assert await bus.cancel_message(event) == 1
        await delivery.ack()


async def test_an_event_that_many_publish_again_stays_quick_to_find_and_to_settle(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    event = _event(topic)
    for _ in range(4):
        await bus.publish_many([(topic, event)] * 500)
    handled = 0

    def handle(_event: Event) -> None:
        nonlocal handled
        handled += 1

    assert len(await bus.message(event)) == 2000
    async with bus.deliveries(topic, group=group, prefetch=10) as deliveries:
        for delivery in await take_all(deliveries, 10):
            await delivery.ack()
    assert await bus.reschedule_message(event, _in_an_hour()) == 1990
    assert await bus.promote_message(event) == 1990
    consumer = await bus.consume(topic, handle, group=group)
    await eventually(lambda: handled > 100, timeout=WITHIN)
    await consumer.stop()
    cancelled = await bus.cancel_message(event)
    await figures_become(bus, group, ready=0, in_flight=0, acked=10 + handled, removed=cancelled)
    assert handled + cancelled == 1990


async def test_a_plain_payload_s_event_is_found_by_the_id_that_a_subscriber_sees(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    seen: list[Event] = []
    await bus.subscribe(topic, seen.append)
    await bus.publish(topic, {"n": 1})
    await bus.publish(topic, {"n": 2}, source="s")
    await eventually(lambda: len(seen) == 2, timeout=WITHIN)
    assert seen[0].event_id != seen[1].event_id
    for event in seen:
        (info,) = await bus.message(event)
        assert info.message_id == event.event_id
        assert await bus.cancel_message(event.event_id) == 1


async def test_a_subscriber_sees_the_event_id_that_the_publisher_gave(bus: Bus, topic: str) -> None:
    seen: list[Event] = []
    await bus.subscribe(topic, seen.append)
    given = uuid.uuid4()
    await bus.publish(topic, 1, event_id="seven")
    await bus.publish(topic, _event(topic), event_id=given)
    await eventually(lambda: len(seen) == 2, timeout=WITHIN)
    assert [event.event_id for event in seen] == ["seven", str(given)]


async def test_a_cancelled_or_rescheduled_head_frees_or_keeps_its_key(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    first, second, third = (_event(topic, number) for number in (1, 2, 3))
    for event in (first, second, third):
        await bus.publish(topic, event, key="k")
    async with bus.deliveries(topic, group=group, prefetch=2) as deliveries:
        held = await take(deliveries)
        assert await bus.cancel_message(first) == 0
        await held.retry(after=3600)
        assert await bus.reschedule_message(second, dt.datetime(2020, 1, 1, tzinfo=dt.UTC)) == 1
        await nothing_from(deliveries)
        # The head that waits for its retry is a waiting one.
        assert await bus.cancel_message(first) == 1
        held = await take(deliveries)
        assert held.event.payload == 2
        assert await bus.cancel_message(third) == 1


async def test_a_dead_letter_is_not_a_waiting_event_until_it_is_retried(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    event = _event(topic)
    for _ in range(2):
        await bus.publish(topic, event)
    async with bus.deliveries(topic, group=group) as deliveries:
        for delivery in await take_all(deliveries, 2):
            await delivery.reject("no")
    assert await bus.message(event) == []
    for call in (bus.cancel_message, bus.promote_message):
        assert await call(event) == 0
    letters = await bus.dead_letters(group).list()
    assert {letter.event.event_id for letter in letters if letter.event} == {event.event_id}
    assert await bus.dead_letters(group).retry(*[one.message_id for one in letters]) == 2
    assert await bus.cancel_message(event) == 2
    assert await bus.dead_letters(group).list() == []


async def test_each_copy_is_either_cancelled_or_handled_while_others_consume(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    count = 60
    publisher, other = await make_bus(), await make_bus()
    handled: list[int] = []
    await publisher.declare_group(group, topic)
    events = [_event(topic, number) for number in range(count)]
    for number, event in enumerate(events):
        await publisher.publish(topic, event, key=f"k{number % 20}" if number % 2 else None)
    await other.consume(
        topic, lambda event: handled.append(event.payload), group=group, concurrency=2
    )
    cancelled = [
        number
        for number, event in reversed(list(enumerate(events)))
        if await publisher.cancel_message(event)
    ]
    await figures_become(
        publisher, group, ready=0, in_flight=0, acked=count - len(cancelled), dead=0
    )
    assert sorted(handled + cancelled) == list(range(count))


async def test_another_process_s_bus_finds_the_event_too(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    publisher, other = await make_bus(), await make_bus()
    await publisher.declare_group(group, topic)
    await publisher.publish(topic, 1, event_id="shared", delay=3600)
    assert (await other.message("shared"))[0].state == "delayed"
    assert await other.cancel_message("shared") == 1
    assert await publisher.message("shared") == []


async def test_groups_whose_names_begin_alike_are_told_apart(bus: Bus, topic: str) -> None:
    names = [f"{topic} g", f"{topic} g1", f"{topic} g:1", f"{topic} \u00fc", f"{topic} \U0001f600"]
    for name in names:
        await bus.declare_group(name, topic)
    event = _event(topic)
    for _ in range(3):
        await bus.publish(topic, event)
    for name in names:
        assert len(await bus.message(event, group=name)) == 3
    assert await bus.cancel_message(event, group=names[1]) == 3
    assert {info.group for info in await bus.message(event)} == {*names} - {names[1]}
    await bus.delete_group(names[0])
    with pytest.raises(NotFoundError):
        await bus.message(event, group=names[0])
    assert await bus.cancel_message(event) == 9


async def test_an_id_that_is_none_is_refused(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    with pytest.raises(InvalidArgumentError, match="event_id"):
        await bus.message("")
    with pytest.raises(TypeError, match="an Event, its event_id or a UUID, not int"):
        await bus.cancel_message(7)  # type: ignore[arg-type]
    naive = dt.datetime(2030, 1, 1)
    with pytest.raises(InvalidArgumentError, match="time zone"):
        await bus.reschedule_message(str(uuid.uuid4()), naive)
    with pytest.raises(TypeError, match="event_id must be a str or a UUID, not int"):
        await bus.publish(topic, 1, event_id=7)  # type: ignore[arg-type]
    for wrong in ("", "x" * 256):
        with pytest.raises(InvalidArgumentError, match="event_id"):
            await bus.publish(topic, 1, event_id=wrong)
    assert (await figures(bus, group))["accepted"] == 0


async def test_a_call_that_is_cancelled_leaves_each_copy_whole(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    event = _event(topic)
    await bus.publish_many([(topic, event)] * 800)
    call = asyncio.ensure_future(bus.cancel_message(event))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    left = len(await bus.message(event))
    assert await bus.cancel_message(event) == left
    assert (await figures(bus, group))["removed"] == 800


@pytest.mark.parametrize("wire", ["native", "dataknobs"])
async def test_the_wire_makes_no_difference(
    unique: Callable[[str], str], wire: str, topic: str, group: str
) -> None:
    url = shared_redis().url() + f"?prefix={unique('bus').replace(':', '-')}"
    async with connect(url, wire=wire) as bus:
        await bus.declare_group(group, topic)
        event = _event(topic, {"n": 1})
        for _ in range(2):
            await bus.publish(topic, event)
        await bus.publish(topic, {"n": 2}, event_id="other", delay=3600)
        assert [info.state for info in await bus.message(event)] == ["ready", "ready"]
        assert await bus.promote_message("other") == 1
        assert await bus.cancel_message(event) == 2
        async with bus.deliveries(topic, group=group) as deliveries:
            assert (await take(deliveries)).event.event_id == "other"
