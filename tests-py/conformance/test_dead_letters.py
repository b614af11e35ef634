"""Dead letters: what they keep, and listing, retrying and discarding them."""

from __future__ import annotations

import datetime as dt

from conformance.support import AT_ONCE, figures, figures_become, nothing_from, take
from eventbus import Bus, Event, EventType, Reject


async def _bury(bus: Bus, topic: str, group: str, *payloads: object) -> None:
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        for payload in payloads:
            await bus.publish(topic, payload)
            await (await take(deliveries)).reject(f"reason of {payload}")


async def test_a_dead_letter_keeps_everything(bus: Bus, topic: str, group: str) -> None:
    sent = Event(EventType.ERROR, topic, {"a": (1, b"x")}, source="s", metadata={"m": 1})
    before = dt.datetime.now(dt.UTC)
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, sent)
        delivery = await take(deliveries)
        await delivery.reject("bad")
    (letter,) = await bus.dead_letters(group).list()
    assert letter.event == sent
    assert letter.message_id == delivery.message_id
    assert (letter.group, letter.topic) == (group, topic)
    assert (letter.reason, letter.error) == ("rejected", "bad")
    assert letter.body
    second = dt.timedelta(seconds=5)
    assert before - second <= letter.died_at <= dt.datetime.now(dt.UTC) + second
    assert (await figures(bus, group))["dead"] == 1


async def test_they_are_listed_in_pages_oldest_first(bus: Bus, topic: str, group: str) -> None:
    await _bury(bus, topic, group, *range(7))
    letters = bus.dead_letters(group)
    pages, after = [], None
    while page := await letters.list(after=after, limit=3):
        pages.append([letter.event.payload for letter in page if letter.event is not None])
        after = page[-1].message_id
    assert pages == [[0, 1, 2], [3, 4, 5], [6]]


async def test_a_retried_one_comes_back_with_fresh_counters(
    bus: Bus, topic: str, group: str
) -> None:
    def fail(_event: Event) -> None:
        raise ValueError("broken")

    consumer = await bus.consume(topic, fail, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1, in_flight=0)
    await consumer.stop()
    (letter,) = await bus.dead_letters(group).list()
    assert await bus.dead_letters(group).retry(letter.message_id) == 1
    assert await bus.dead_letters(group).retry(letter.message_id) == 0
    async with bus.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        assert (delivery.attempt, delivery.crashes) == (1, 0)
        assert delivery.message_id == letter.message_id
        await delivery.ack()
    assert await bus.dead_letters(group).list() == []


async def test_a_discarded_one_is_gone(bus: Bus, topic: str, group: str) -> None:
    await _bury(bus, topic, group, 1, 2, 3)
    letters = bus.dead_letters(group)
    ids = [letter.message_id for letter in await letters.list()]
    assert await letters.discard(ids[0], ids[1]) == 2
    assert await letters.discard(ids[0]) == 0
    assert [letter.message_id for letter in await letters.list()] == ids[2:]


async def test_each_group_has_its_own(bus: Bus, topic: str, group: str) -> None:
    async def reject(_event: Event) -> None:
        raise Reject("here")

    await bus.consume(topic, reject, group=group)
    await bus.consume(topic, lambda _event: None, group=group + ":b")
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1)
    await figures_become(bus, group + ":b", acked=1, dead=0)
    assert await bus.dead_letters(group + ":b").list() == []


async def test_a_long_error_is_cut(bus: Bus, topic: str, group: str) -> None:
    def fail(_event: Event) -> None:
        raise ValueError("ü" * 50_000)

    await bus.consume(topic, fail, group=group, retry=AT_ONCE)
    await bus.publish(topic, 1)
    await figures_become(bus, group, dead=1)
    (letter,) = await bus.dead_letters(group).list()
    assert 10_000 < len(letter.error.encode()) <= 16 * 1024


async def test_a_dead_letter_is_not_delivered(bus: Bus, topic: str, group: str) -> None:
    await _bury(bus, topic, group, 1)
    async with bus.deliveries(topic, group=group) as deliveries:
        await nothing_from(deliveries)
