"""Names that are written to break something: bound, quoted, or refused by a typed error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, eventually
from eventbus import Bus, EventBusError, NotFoundError, TopicError
from eventbus.compat.dataknobs import InMemoryEventBus
from eventbus.errors import InvalidArgumentError

HOSTILE = [
    "'; drop table messages; --",
    '"; drop schema eventbus cascade; --',
    "$$; drop table messages; $$",
    "$1",
    "%s %(name)s {name} {0}",
    "\\'; select pg_sleep(9) --",
    "\\x00\\u0000",
    "E'\\n'",
    "*?[a-z]",
    "[unclosed",
    "{tag}:\r".strip(),
    "a\u2028b\u202e",
    "ÿ\u00a0\ufeff",
    "ü" * 127 + "x",
    "😀" * 63,
    "; drop table messages",
    "KEYS[1] redis.call('flushall')",
    "null",
    "-1",
]
"""What a name may be, as long as it is 1 to 255 bytes without control characters."""

REFUSED = {
    "empty": "",
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "a\x1bb",
    "next line": "a\x85b",
    "256 bytes": "ü" * 128,
    "lone surrogate": "a\ud800",
}
"""What no name is."""


def named(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:10]}...{len(name.encode(errors='replace'))}"


@pytest.fixture(params=HOSTILE, ids=named)
def hostile(request: pytest.FixtureRequest) -> str:
    """Each name in turn."""
    found: str = request.param
    return found


async def test_a_hostile_topic_is_heard_and_handled_as_it_is(bus: Bus, hostile: str) -> None:
    heard: list[Any] = []
    near: list[Any] = []
    handled: list[Any] = []
    await bus.subscribe(hostile, lambda event: heard.append((event.topic, event.payload)))
    await bus.subscribe("near", near.append)
    await bus.consume(hostile, lambda event: handled.append(event.topic), group="g")
    await bus.publish("near", 0)
    await bus.publish(hostile, {"key": hostile})
    await bus.publish_many([(hostile, 2), (hostile, 3)])
    await eventually(lambda: len(heard) == 3 and len(handled) == 3 and len(near) == 1)
    assert heard[0] == (hostile, {"key": hostile})
    assert set(handled) == {hostile}


async def test_a_hostile_pattern_matches_what_it_says(bus: Bus, hostile: str) -> None:
    from fnmatch import fnmatchcase

    heard: list[str] = []
    handled: list[str] = []
    # A pattern has at most 255 bytes, as a topic has.
    wider = f"{hostile if len(hostile.encode()) < 255 else hostile[:-1]}*"
    await bus.subscribe("x", lambda event: heard.append(event.topic), pattern=hostile)
    await bus.consume(None, lambda event: handled.append(event.topic), pattern=wider, group="g")
    await bus.subscribe("END", lambda event: heard.append(event.topic))
    topics = [hostile, "a", "drop table messages"]
    for topic in [*topics, "END"]:
        await bus.publish(topic, 1)
    # Of two subscriptions either may run first.
    expected = sorted(["END", *(topic for topic in topics if fnmatchcase(topic, hostile))])
    await eventually(lambda: sorted(heard) == expected)
    wanted = [topic for topic in topics if fnmatchcase(topic, wider)]
    await eventually(lambda: sorted(handled) == sorted(wanted))


async def test_a_hostile_group_is_one_of_that_name(bus: Bus, hostile: str) -> None:
    await bus.declare_group(hostile, "t", max_length=10)
    await bus.declare_group("other", "t")
    await bus.publish("t", 1)
    await bus.publish("t", 2, key=hostile, dedup_id=hostile, unique=hostile)
    await bus.publish("t", 3, key=hostile, dedup_id=hostile, unique=hostile)
    groups = {group["group"]: group["ready"] for group in (await bus.inspect())["groups"]}
    assert sum(groups.values()) >= 2
    assert set(groups) == {hostile, "other"}
    async with bus.deliveries("t", group=hostile) as deliveries, asyncio.timeout(WITHIN):
        delivery = await anext(deliveries)
        assert delivery.group == hostile
        await delivery.reject(hostile)
        keyed = await anext(deliveries)
        assert keyed.key == hostile
        found = await bus.message(keyed.message_id, group=hostile)
        assert len(found) == 1
        await keyed.ack()
    [letter] = await bus.dead_letters(hostile).list()
    assert hostile in letter.error
    assert await bus.dead_letters(hostile).retry(letter.message_id) == 1
    await bus.pause(hostile)
    await bus.resume(hostile)
    assert await bus.purge(hostile) == 1
    assert await bus.unbind(hostile, "t") == 0
    await bus.delete_group(hostile)
    with pytest.raises(NotFoundError):
        await bus.purge(hostile)
    assert [group["group"] for group in (await bus.inspect())["groups"]] == ["other"]


async def test_a_hostile_record_key_is_one_of_that_name(bus: Bus, hostile: str) -> None:
    async with bus.transaction() as tx:
        tx.put(hostile, {hostile: hostile}, if_version=0)
        tx.put("z", 1)
    record = await bus.read(hostile)
    assert record is not None
    assert (record.key, record.value) == (hostile, {hostile: hostile})
    assert [one.key for one in await bus.scan(hostile)] == [hostile]
    assert [one.key for one in await bus.scan(after=hostile)] == (
        ["z"] if hostile.encode() < b"z" else []
    )
    async with bus.transaction() as tx:
        tx.delete(hostile, if_version=1)
    assert await bus.read(hostile) is None
    assert await bus.read("z") is not None


CALLS: dict[str, Callable[[Bus, str], Awaitable[object]]] = {
    "publish": lambda bus, name: bus.publish(name, 1),
    "publish_many": lambda bus, name: bus.publish_many([("t", 1), (name, 1)]),
    "subscribe": lambda bus, name: bus.subscribe(name, print),
    "stream": lambda bus, name: anext(bus.stream(name)),
    "consume": lambda bus, name: bus.consume(name, print),
    "consume group": lambda bus, name: bus.consume("t", print, group=name),
    "declare topic": lambda bus, name: bus.declare_group("g", name),
    "declare group": lambda bus, name: bus.declare_group(name, "t"),
    "key": lambda bus, name: bus.publish("t", 1, key=name),
    "dedup_id": lambda bus, name: bus.publish("t", 1, dedup_id=name),
    "unique": lambda bus, name: bus.publish("t", 1, unique=name),
}

NAMES_OF_TOPICS = {
    "publish",
    "publish_many",
    "subscribe",
    "stream",
    "consume",
    "consume group",
    "declare topic",
    "declare group",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("rule", REFUSED)
async def test_what_is_no_name_is_refused_by_a_typed_error(bus: Bus, call: str, rule: str) -> None:
    await bus.declare_group("before", "t")
    name = REFUSED[rule]
    refuses = call in NAMES_OF_TOPICS or rule in {"empty", "256 bytes", "lone surrogate"}
    nul_is_refused = bus.capabilities["name"] == "postgres" and rule == "NUL"
    if not refuses and not nul_is_refused:
        # Keys are bytes of text: only their length is limited.
        await CALLS[call](bus, name)
        return
    with pytest.raises((EventBusError, ValueError)) as refused:
        await asyncio.wait_for(CALLS[call](bus, name), WITHIN)
    error = refused.value
    if call in NAMES_OF_TOPICS:
        assert isinstance(error, TopicError), repr(error)
    # Whatever was refused left nothing behind, and the bus goes on.
    await bus.publish("t", 1)
    groups = (await bus.inspect())["groups"]
    assert [group["group"] for group in groups] == ["before"]
    assert groups[0]["ready"] == 1


@pytest.mark.parametrize("rule", [*REFUSED, "unknown"])
async def test_calls_that_look_for_a_name_find_nothing_or_say_why_not(bus: Bus, rule: str) -> None:
    name = REFUSED.get(rule, "nowhere")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.purge(name),
        lambda: bus.pause(name),
        lambda: bus.resume(name),
        lambda: bus.delete_group(name),
        lambda: bus.unbind(name, "t"),
        lambda: bus.dead_letters(name).list(),
        lambda: bus.dead_letters(name).retry("00000000-0000-0000-0000-000000000000"),
        lambda: bus.message("00000000-0000-0000-0000-000000000000", group=name),
    ]
    for call in calls:
        with pytest.raises((EventBusError, ValueError)):
            await asyncio.wait_for(call(), WITHIN)
    # The id of an event may be any text.
    for text in ("nonsense", "'; drop table messages; --", "0" * 500, "a\0b"):
        assert await bus.message(text) == []
        assert await bus.cancel_message(text) == 0
    with pytest.raises(InvalidArgumentError):
        await bus.message("")
    await bus.publish("t", 1)


async def test_a_name_of_ten_thousand_characters_is_neither_logged_nor_shown_whole(
    make_bus: MakeBus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus, long = await make_bus(), "é\n" * 5_000
    anything: Any = bus
    dataknobs = InMemoryEventBus()
    await bus.declare_group(group, topic)
    calls: list[Callable[[], Any]] = [
        lambda: bus.publish(long, 1),
        lambda: bus.publish_many([(long, 1)]),
        lambda: bus.publish(topic, 1, key=long),
        lambda: bus.publish(topic, 1, dedup_id=long),
        lambda: bus.subscribe(long, print),
        lambda: bus.consume(long, print, group=group),
        lambda: bus.consume(topic, print, group=long),
        lambda: bus.declare_group(long, topic),
        lambda: bus.delete_group(long),
        lambda: bus.purge(long),
        lambda: bus.unbind(group, long),
        lambda: bus.message(group, long),
        lambda: bus.dead_letters(long).list(),
        lambda: bus.read(long),
        lambda: anything.subscribe([long], print),
        lambda: anything.subscribe(topic, long),
        lambda: anything.consume(topic, long),
        lambda: anything.publish([long], 1),
        lambda: anything.read([long]),
        lambda: anything.subscribe(topic, print, delivery=long),
        lambda: dataknobs.publish(long, 1, delay=1.0),  # type: ignore[arg-type]
    ]
    texts: list[tuple[int, str]] = []
    for number, call in enumerate(calls):
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - its text is what is looked at
            texts.append((number, str(error)))
    assert len(texts) > 10
    assert [(number, text[:300]) for number, text in texts if len(text) > 600] == []
    for record in caplog.records:
        assert len(record.getMessage()) < 600, record.getMessage()[:300]
        assert "\n" not in record.getMessage()
