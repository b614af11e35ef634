"""DataKnobs contract D37 to D55: buses over servers beside unchanged processes of the original.

The original is the package ``dataknobs-common`` as published. Raw clients look at the channels.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from dataknobs_common.events import Event as TheirEvent
from dataknobs_common.events import EventType as TheirType
from dataknobs_common.events.postgres import PostgresEventBus as TheirPostgres
from dataknobs_common.events.redis import RedisEventBus as TheirRedis

import eventbus
from eventbus.compat.dataknobs import (
    Event,
    EventType,
    PostgresEventBus,
    RedisEventBus,
    create_event_bus,
)
from eventbus.errors import PayloadTooLarge
from servers.shared import shared_postgres, shared_redis

Heard = list[Any]
Eventually = Callable[[Callable[[], object]], Awaitable[None]]

_numbers = itertools.count(1)

GOLDEN = Event(
    EventType.UPDATED,
    "registry:bots:b1",
    {
        "bot_id": "b1",
        "ü": "é😀",
        "n": [1, 2.5, None, True],
        "nan": float("nan"),
        "big": 2**70,
        5: "intkey",
    },
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    "id-1",
    "caching_manager",
    None,
    {"k": {"x": []}},
)
GOLDEN_TEXT = (
    '{"type": "updated", "topic": "registry:bots:b1", "payload": {"bot_id": "b1", '
    '"\\u00fc": "\\u00e9\\ud83d\\ude00", "n": [1, 2.5, null, true], "nan": NaN, '
    '"big": 1180591620717411303424, "5": "intkey"}, '
    '"timestamp": "2026-01-02T03:04:05.678901+00:00", "event_id": "id-1", '
    '"source": "caching_manager", "correlation_id": null, "metadata": {"k": {"x": []}}}'
)
GOLDEN_PAYLOAD = {
    "bot_id": "b1",
    "ü": "é😀",
    "n": [1, 2.5, None, True],
    "big": 2**70,
    "5": "intkey",
}

ODD_TOPICS = [
    "",
    "café",
    "日本語",
    "bot:x 1",
    "a:b",
    "a.b",
    "a_b",
    "a-b",
    "Bots",
    "bots",
    "nul\0",
    "two\nlines",
    "x" * 5000,
    "'; drop table t; --",
    '"quoted"',
    "$$",
    "%s",
    "*",
]


class Side:
    """One server, with buses of both kinds on a prefix of the test's own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = f"dk{os.getpid()}x{next(_numbers)}"
        self.buses: list[Any] = []
        self.raw: list[Any] = []

    def _where(self) -> dict[str, Any]:
        if self.name == "redis":
            return {"host": "127.0.0.1", "port": shared_redis().port}
        return {"connection_string": shared_postgres().url()}

    def _own(self) -> dict[str, Any]:
        """Keys and tables of the test's own, beside the channels."""
        return {"prefix": self.prefix} if self.name == "redis" else {"schema": self.prefix}

    async def _connected(self, bus: Any) -> Any:
        self.buses.append(bus)
        await bus.connect()
        return bus

    async def ours(self, **options: Any) -> RedisEventBus | PostgresEventBus:
        """Return a bus of ours in the DataKnobs wire."""
        config = {"backend": self.name, **self._where(), **self._own()}
        bus = create_event_bus({**config, "channel_prefix": self.prefix, **options})
        assert isinstance(bus, RedisEventBus | PostgresEventBus)
        await self._connected(bus)
        return bus

    async def native(self, **more: Any) -> eventbus.Bus:
        """Return a bus of ours in the native wire."""
        server = shared_redis() if self.name == "redis" else shared_postgres()
        options: Any = {**self._own(), "channel_prefix": self.prefix, **more}
        bus: eventbus.Bus = await self._connected(eventbus.connect(server.url(), **options))
        return bus

    async def theirs(self) -> Any:
        """Return a bus of the original."""
        if self.name == "redis":
            bus: Any = TheirRedis(**self._where(), channel_prefix=self.prefix)
        else:
            bus = TheirPostgres(**self._where(), channel_prefix=self.prefix)
        return await self._connected(bus)

    def channel(self, topic: str) -> str:
        """Return the channel of a plain topic."""
        if self.name == "redis":
            return f"{self.prefix}:{topic}"
        return f"{self.prefix}_{topic.replace(':', '_')}"

    async def texts(self, *channels: str) -> list[tuple[str, str]]:
        """Return a list that raw texts on channels are added to."""
        texts: list[tuple[str, str]] = []
        if self.name == "postgres":
            connection = await asyncpg.connect(shared_postgres().url())
            self.raw.append(connection)
            for channel in channels:
                await connection.add_listener(
                    channel, lambda _c, _p, name, text: texts.append((name, text))
                )
            return texts
        client = shared_redis().async_client()
        pubsub = client.pubsub()
        await pubsub.subscribe(*channels)

        def keep(message: dict[str, Any]) -> None:
            if message["type"] == "message":
                texts.append((message["channel"].decode(), message["data"].decode()))

        async def read() -> None:
            async for message in pubsub.listen():
                keep(message)

        task = asyncio.create_task(read())
        self.raw += [task, pubsub, client]
        for _ in channels:
            await asyncio.sleep(0.05)
        return texts

    async def send(self, channel: str, text: str) -> None:
        """Send a raw text."""
        if self.name == "postgres":
            await asyncio.to_thread(
                shared_postgres().execute, "select pg_notify(%s, %s)", channel, text
            )
            return
        async with shared_redis().async_client() as client:
            await client.publish(channel, text)

    async def close(self) -> None:
        for raw in self.raw:
            if isinstance(raw, asyncio.Task):
                raw.cancel()
                await asyncio.wait([raw])
            elif hasattr(raw, "aclose"):
                await raw.aclose()
            else:
                await raw.close()
        for bus in self.buses:
            await bus.close()


@pytest.fixture(params=["redis", "postgres"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    """Each server in turn."""
    side = Side(request.param)
    yield side
    await side.close()


@pytest.fixture
async def postgres() -> AsyncIterator[Side]:
    """The Postgres alone."""
    side = Side("postgres")
    yield side
    await side.close()


async def hears(bus: Any, topic: str, pattern: str | None = None) -> Heard:
    """Subscribe and return a list that events are added to."""
    heard: Heard = []
    if pattern is None:
        await bus.subscribe(topic, heard.append)
    else:
        await bus.subscribe(topic, heard.append, pattern=pattern)
    return heard


async def settled(*buses: Any) -> None:
    """Give the original's listener, which polls, time to begin."""
    del buses
    await asyncio.sleep(1.2)


def theirs(topic: str, payload: Any = None, **fields: Any) -> TheirEvent:
    return TheirEvent(TheirType.CREATED, topic, payload if payload is not None else {}, **fields)


def payloads(heard: Heard) -> list[Any]:
    return [event.payload for event in heard]


# D38: mixed fleet


async def test_d38_an_original_and_ours_hear_each_other_once(
    side: Side, eventually: Eventually
) -> None:
    ours, original = await side.ours(), await side.theirs()
    at_ours, at_original = (
        await hears(ours, "registry:bots"),
        await hears(original, "registry:bots"),
    )
    await settled(original)
    await original.publish("registry:bots", theirs("registry:bots", {"from": "original"}))
    await ours.publish("registry:bots", Event(EventType.UPDATED, "registry:bots", {"from": "ours"}))
    await eventually(lambda: len(at_ours) == 2 and len(at_original) == 2)
    await asyncio.sleep(0.3)
    wanted = [{"from": "original"}, {"from": "ours"}]
    assert sorted(payloads(at_ours), key=str) == sorted(wanted, key=str)
    assert sorted(payloads(at_original), key=str) == sorted(wanted, key=str)
    first = next(event for event in at_ours if event.payload["from"] == "original")
    assert (type(first), first.type, first.topic) == (Event, EventType.CREATED, "registry:bots")
    second = next(event for event in at_original if event.payload["from"] == "ours")
    assert (type(second), second.type) == (TheirEvent, TheirType.UPDATED)


async def test_d38_what_json_can_say_comes_through_in_both_directions(
    side: Side, eventually: Eventually
) -> None:
    ours, original = await side.ours(), await side.theirs()
    at_ours, at_original = await hears(ours, "t"), await hears(original, "t")
    await settled(original)
    payload = {
        "texts": ["", "ü😀", "\ud800", '\x00\x1f\x7f"\\/', "\u2028"],
        "numbers": [0, -1, 2**70, 1e16, 1e-07, 5e-324, 0.1, float("inf")],
        "deep": [[[[{"a": [None, True, False]}]]]],
        "empty": [{}, []],
    }
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    fields: dict[str, Any] = {
        "timestamp": when,
        "event_id": "e-1",
        "source": "s",
        "correlation_id": "c",
        "metadata": {"m": 1},
    }
    await original.publish("t", theirs("t", payload, **fields))
    await eventually(lambda: at_ours)
    await ours.publish("t", Event(EventType.CREATED, "t", payload, **fields))
    await eventually(lambda: len(at_original) == 2)
    assert at_ours[0].to_dict() == theirs("t", payload, **fields).to_dict()
    assert at_original[0].to_dict() == at_original[1].to_dict() == at_ours[0].to_dict()


async def test_d38_order_holds_and_nothing_is_lost_in_a_stream(
    side: Side, eventually: Eventually
) -> None:
    ours, original = await side.ours(), await side.theirs()
    at_ours, at_original = await hears(ours, "t"), await hears(original, "t")
    await settled(original)
    for n in range(200):
        await original.publish("t", theirs("t", {"n": n}))
    await eventually(lambda: len(at_ours) == 200)
    assert payloads(at_ours) == [{"n": n} for n in range(200)]
    await asyncio.gather(
        *(ours.publish("t", Event(EventType.CREATED, "t", {"n": n})) for n in range(200))
    )
    await eventually(lambda: len(at_original) == 400)
    assert sorted(event.payload["n"] for event in at_original[200:]) == list(range(200))


# D37: wire modes


async def test_d37_buses_of_every_wire_hear_each_event_once(
    side: Side, eventually: Eventually
) -> None:
    ours, original = await side.ours(), await side.theirs()
    native = await side.native(hear=("dataknobs",))
    lists = [
        heard
        for bus in (ours, native)
        for heard in (await hears(bus, "a:b"), await hears(bus, "a:*", pattern="a:*"))
    ]
    at_original = await hears(original, "a:b")
    await settled(original)
    await ours.publish("a:b", Event(EventType.CREATED, "a:b", {"from": "ours"}))
    await native.publish("a:b", {"from": "native"})
    await eventually(lambda: all(len(heard) == 2 for heard in lists))
    await asyncio.sleep(0.3)
    for heard in lists:
        assert sorted(event.payload["from"] for event in heard) == ["native", "ours"]
    # The native wire is not for originals.
    assert payloads(at_original) == [{"from": "ours"}]


async def test_d37_a_native_bus_hears_the_other_wire_only_when_asked_under_its_own_prefix(
    side: Side, eventually: Eventually
) -> None:
    ours, native = await side.ours(), await side.native()
    asked = await side.native(hear=("dataknobs",))
    elsewhere = await side.native(hear=("dataknobs",), channel_prefix=f"{side.prefix}other")
    lists = [
        heard
        for bus in (native, elsewhere, asked)
        for heard in (await hears(bus, "a:b"), await hears(bus, "a:*", pattern="a:*"))
    ]
    await ours.publish("a:b", Event(EventType.CREATED, "a:b", {"from": "ours"}))
    await native.publish("a:b", {"from": "native"})
    await eventually(lambda: all(heard for heard in lists) and len(lists[-1]) == 2)
    await asyncio.sleep(0.3)
    found = [sorted(event.payload["from"] for event in heard) for heard in lists]
    assert found == [["native"]] * 4 + [["native", "ours"]] * 2


async def test_d37_groups_work_in_both_wires_and_never_get_what_originals_publish(
    side: Side, eventually: Eventually
) -> None:
    ours, native, original = await side.ours(), await side.native(), await side.theirs()
    handled: list[Any] = []
    await native.consume("t", lambda event: handled.append(event.payload), group="g")
    heard = await hears(ours, "t")
    await settled(original)
    await original.publish("t", theirs("t", {"n": 1}))
    await ours.publish("t", Event(EventType.CREATED, "t", {"n": 2}))
    await native.publish("t", {"n": 3})
    await eventually(lambda: len(heard) == 3 and len(handled) == 2)
    assert sorted(one["n"] for one in handled) == [2, 3]
    async with ours.transaction() as tx:
        tx.publish("t", Event(EventType.CREATED, "t", {"n": 4}))
        tx.put("r", 1)
    await eventually(lambda: len(heard) == 4 and len(handled) == 3)


async def test_d50_prefixes_keep_buses_apart(side: Side, eventually: Eventually) -> None:
    ours, other = await side.ours(), await side.ours(channel_prefix=f"{side.prefix}other")
    original = await side.theirs()
    at_ours, at_other = await hears(ours, "t"), await hears(other, "t")
    await settled(original)
    await other.publish("t", Event(EventType.CREATED, "t", {"n": 1}))
    await original.publish("t", theirs("t", {"n": 2}))
    await eventually(lambda: at_ours and at_other)
    assert (payloads(at_ours), payloads(at_other)) == ([{"n": 2}], [{"n": 1}])


# D47, D48, D49: texts


async def test_d47_the_golden_message_is_what_stands_on_the_channel(
    side: Side, eventually: Eventually
) -> None:
    ours = await side.ours()
    channels = [side.channel("registry:bots")]
    if side.name == "postgres":
        channels.append(f"{side.prefix}:*")
    texts = await side.texts(*channels)
    heard = await hears(ours, "registry:bots")
    await ours.publish("registry:bots", GOLDEN)
    await eventually(lambda: len(texts) == len(channels) and heard)
    text = GOLDEN_TEXT
    if side.name == "postgres":
        text = text[:-1] + ', "bus_topic": "registry:bots"}'
    else:
        assert len(text) == 346
    assert sorted(texts) == sorted((channel, text) for channel in channels)
    found = {key: value for key, value in heard[0].payload.items() if key != "nan"}
    assert found == GOLDEN_PAYLOAD
    assert heard[0].topic == "registry:bots:b1"


async def test_d47_the_golden_message_is_read_from_the_channel(
    side: Side, eventually: Eventually
) -> None:
    ours = await side.ours()
    heard = await hears(ours, "registry:bots")
    text = GOLDEN_TEXT
    if side.name == "postgres":
        text = text[:-1] + ', "bus_topic": "registry:bots"}'
    await side.send(side.channel("registry:bots"), text)
    await side.send(side.channel("registry:bots"), GOLDEN_TEXT)
    await side.send(side.channel("registry:bots"), '{"type":"created","topic":"registry:bots"}')
    await eventually(lambda: len(heard) == 3)
    assert heard[0].event_id == heard[1].event_id == "id-1"
    assert heard[0].timestamp == GOLDEN.timestamp
    assert heard[2].payload == {}


async def test_d49_poison_is_dropped_told_and_costs_nothing(
    side: Side, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    ours = await side.ours()
    heard = await hears(ours, "t")
    poison = ["", "[]", "null", "5", '"str"', "{", "{} {}", "\ufeff{}", '{"type": "created"}']
    poison += ['{"type": "nope", "topic": "t"}', '{"type": "created", "topic": 5}']
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        for text in poison:
            if text or side.name == "redis":
                await side.send(side.channel("t"), text)
        await side.send(side.channel("t"), '{"type": "created", "topic": "t", "payload": 1}')
        await eventually(lambda: heard)
    assert payloads(heard) == [1]
    product = "Redis message" if side.name == "redis" else "notification payload"
    assert any(
        one.getMessage().startswith(f"Failed to parse {product}: ") for one in caplog.records
    )
    assert ours.counters["malformed"] >= len(poison) - 1


async def test_d45_equal_events_are_all_heard(side: Side, eventually: Eventually) -> None:
    ours = await side.ours()
    exact, wide = await hears(ours, "t"), await hears(ours, "*", pattern="*")
    event = Event(EventType.CREATED, "t", {"n": 1})
    await ours.publish_many([("t", event)] * 5)
    await asyncio.gather(*(ours.publish("t", event) for _ in range(5)))
    await eventually(lambda: len(exact) == 10 and len(wide) == 10)


# Topics and patterns


async def test_d52_d66_odd_topics_neither_collide_nor_fail(
    side: Side, eventually: Eventually
) -> None:
    ours, other = await side.ours(), await side.ours()
    lists = {topic: await hears(ours, topic) for topic in ODD_TOPICS}
    everything = await hears(ours, "", pattern="*")
    for topic in ODD_TOPICS:
        await other.publish(topic, Event(EventType.CREATED, topic, {"topic": topic}))
    await eventually(lambda: len(everything) == len(ODD_TOPICS))
    await eventually(lambda: all(lists.values()))
    for topic, heard in lists.items():
        assert payloads(heard) == [{"topic": topic}]


async def test_d52_hashed_channels_are_named_as_the_contract_says(
    postgres: Side, eventually: Eventually
) -> None:
    ours = await postgres.ours()
    digest = hashlib.sha256("café".encode()).hexdigest()[:32]
    texts = await postgres.texts(f"{postgres.prefix}:{digest}", postgres.channel("caf"))
    await ours.publish("café", Event(EventType.CREATED, "café", {}))
    await eventually(lambda: texts)
    assert [name for name, _ in texts] == [f"{postgres.prefix}:{digest}"]
    assert json.loads(texts[0][1])["bus_topic"] == "café"


async def test_d53_an_original_s_event_may_name_a_longer_topic(
    side: Side, eventually: Eventually
) -> None:
    ours, original = await side.ours(), await side.theirs()
    exact = await hears(ours, "registry:bots")
    sibling = await hears(ours, "registry.bots") if side.name == "postgres" else []
    await settled(original)
    await original.publish("registry:bots", theirs("registry:bots:b1", {"n": 1}))
    await eventually(lambda: exact)
    assert exact[0].topic == "registry:bots:b1"
    await original.publish("registry:bots", theirs("elsewhere", {"n": 2}))
    await original.publish("registry:bots", theirs("registry:bots", {"n": 3}))
    # On Redis the channel says the topic; on Postgres two share it: "elsewhere" decides nothing.
    wanted = [1, 2, 3] if side.name == "redis" else [1, 3]
    await eventually(lambda: len(exact) == len(wanted))
    assert [event.payload["n"] for event in exact] == wanted
    assert sibling == []


async def test_d54_patterns_hear_ours_everywhere_and_originals_where_somebody_listens(
    side: Side, eventually: Eventually
) -> None:
    ours, other, original = await side.ours(), await side.ours(), await side.theirs()
    wide = await hears(ours, "registry:bots", pattern="registry:*")
    exact = await hears(ours, "registry:tools")
    await settled(original)
    await other.publish("registry:any", Event(EventType.CREATED, "registry:any", {"n": 1}))
    await other.publish("registry:tools", Event(EventType.CREATED, "registry:tools", {"n": 2}))
    await original.publish("registry:bots", theirs("registry:bots", {"n": 3}))
    await original.publish("registry:tools", theirs("registry:tools", {"n": 4}))
    await eventually(lambda: len(wide) == 4 and len(exact) == 2)
    await asyncio.sleep(0.3)
    assert sorted(event.payload["n"] for event in wide) == [1, 2, 3, 4]
    assert sorted(event.payload["n"] for event in exact) == [2, 4]


async def test_a_cancelled_subscription_leaves_its_neighbours_their_channel(
    side: Side, eventually: Eventually
) -> None:
    ours, other = await side.ours(), await side.ours()
    kept: Heard = []
    first = await ours.subscribe("a:b", lambda _: None)
    await ours.subscribe("a:b", kept.append)
    gone = await ours.subscribe("a.b", lambda _: None)
    await first.cancel()
    await gone.cancel()
    for _ in range(20):
        one = await ours.subscribe("c", lambda _: None)
        await one.cancel()
    again = await hears(ours, "c")
    await other.publish("a:b", Event(EventType.CREATED, "a:b", {}))
    await other.publish("c", Event(EventType.CREATED, "c", {}))
    await eventually(lambda: kept and again)
    assert (len(kept), len(again)) == (1, 1)


# D55: large payloads


@pytest.mark.parametrize("size", [7_000, 7_999, 8_000, 9_000, 1_000_000])
async def test_d55_large_payloads_come_through(
    side: Side, eventually: Eventually, size: int
) -> None:
    ours, other, native = await side.ours(), await side.ours(), await side.native(hear="dataknobs")
    lists = [
        await hears(ours, "t"),
        await hears(ours, "t", pattern="t*"),
        await hears(native, "t"),
        await hears(native, "t", pattern="*"),
    ]
    payload = {"text": "é" * (size // 6), "rest": "x" * (size % 6)}
    await other.publish("t", Event(EventType.CREATED, "t", payload))
    await eventually(lambda: all(lists))
    await asyncio.sleep(0.1)
    assert [payloads(heard) for heard in lists] == [[payload]] * 4


async def test_d55_the_limit_is_exact(postgres: Side, eventually: Eventually) -> None:
    ours = await postgres.ours()
    texts = await postgres.texts(postgres.channel("t"))
    heard = await hears(ours, "t")
    event = Event(EventType.CREATED, "t", {"x": ""})
    room = 7_999 - len(json.dumps(event.to_dict())) - len(', "bus_topic": "t"')
    for length in (room, room + 1):
        await ours.publish("t", Event(EventType.CREATED, "t", {"x": "x" * length}))
    await eventually(lambda: len(texts) == 2 and len(heard) == 2)
    assert len(texts[0][1]) == 7_999
    assert set(json.loads(texts[1][1])) == {"bus_topic", "stored"}
    assert [len(event.payload["x"]) for event in heard] == [room, room + 1]


async def test_d55_the_original_fails_or_skips_where_ours_does_not(
    postgres: Side, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other, original = await postgres.ours(), await postgres.ours(), await postgres.theirs()
    at_ours, at_original = await hears(ours, "t"), await hears(original, "t")
    large = {"text": "x" * 9_000}
    with pytest.raises(asyncpg.PostgresError, match="payload string too long"):
        await original.publish("t", theirs("t", large))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await other.publish("t", Event(EventType.CREATED, "t", large))
        await other.publish("t", Event(EventType.CREATED, "t", {"small": 1}))
        await eventually(lambda: len(at_ours) == 3 and at_original)
    assert payloads(at_ours) == [large, large, {"small": 1}]
    assert payloads(at_original) == [{"small": 1}]
    told = [one for one in caplog.records if "goes by table" in one.getMessage()]
    assert len(told) == 1
    assert "topic=t" in told[0].getMessage()


async def test_d55_a_fleet_of_originals_can_ask_for_an_error(
    postgres: Side, eventually: Eventually
) -> None:
    ours = await postgres.ours(large_payloads="error")
    heard = await hears(ours, "t")
    with pytest.raises(PayloadTooLarge, match="payload string too long: event on topic 't' is"):
        await ours.publish("t", Event(EventType.CREATED, "t", {"text": "x" * 9_000}))
    with pytest.raises(PayloadTooLarge) as refused:
        await ours.publish_many([("t", {"small": 0}), ("t", {"text": "x" * 9_000})])
    assert (refused.value.limit, refused.value.size > 9_000) == (7_999, True)
    await ours.publish("t", Event(EventType.CREATED, "t", {"small": 1}))
    await eventually(lambda: heard)
    assert payloads(heard) == [{"small": 1}]


async def test_d55_a_stored_event_that_is_gone_is_a_gap(
    postgres: Side, eventually: Eventually
) -> None:
    ours = await postgres.ours()
    gaps: list[Any] = []
    await ours.subscribe("t", lambda _: None, on_gap=gaps.append)
    text = json.dumps({"bus_topic": "t", "stored": "00000000-0000-0000-0000-000000000000"})
    await postgres.send(postgres.channel("t"), text)
    await eventually(lambda: gaps)
    assert (gaps[0].cause, gaps[0].count) == ("retention", 1)


async def test_a_joined_publish_reaches_originals(postgres: Side, eventually: Eventually) -> None:
    ours, original = await postgres.ours(), await postgres.theirs()
    heard = await hears(original, "t")
    connection = await asyncpg.connect(shared_postgres().url())
    postgres.raw.append(connection)
    event = Event(EventType.CREATED, "t", {"n": 1})
    async with connection.transaction():
        for _ in range(3):
            await ours.publish("t", event, connection=connection)
    await eventually(lambda: len(heard) == 3)


# Availability


async def test_d60_d61_d62_both_sides_survive_the_loss_of_their_connections(
    side: Side, eventually: Eventually
) -> None:
    ours, other = await side.ours(), await side.ours()
    gaps: list[Any] = []
    heard: Heard = []
    await ours.subscribe("t", heard.append, on_gap=gaps.append)
    if side.name == "redis":
        with shared_redis().client() as client:
            client.client_kill_filter(_type="pubsub")
            client.client_kill_filter(_type="normal", skipme=True)
    else:
        await asyncio.to_thread(shared_postgres().terminate_all)
    await eventually(lambda: gaps)
    await other.publish("t", Event(EventType.CREATED, "t", {"n": 1}))
    await eventually(lambda: heard)
