"""DataKnobs contract D1 to D12: the import mapping, EventType, Event and Subscription."""

import collections
import copy
import dataclasses
import importlib
import inspect
import pickle
import subprocess
import sys
import types
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any, cast

import pytest

import eventbus
from eventbus.compat import dataknobs
from eventbus.compat.dataknobs import Event, EventType, InMemoryEventBus, Subscription

FIELDS = (
    "type",
    "topic",
    "payload",
    "timestamp",
    "event_id",
    "source",
    "correlation_id",
    "metadata",
)
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
# For calls that a type checker refuses, which is what they are about.
untyped: Any = Event


def full(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "type": EventType.UPDATED,
        "topic": "registry:bots",
        "payload": {"bot_id": "b1", "nested": {"list": [1, 2]}},
        "timestamp": WHEN,
        "event_id": "id-1",
        "source": "manager",
        "correlation_id": "c-1",
        "metadata": {"k": {"x": []}},
    }
    return Event(**(values | changes))


@pytest.fixture(params=["made", "defaults", "decoded"])
async def event(request: pytest.FixtureRequest, bus: InMemoryEventBus, eventually: Any) -> Event:
    """An event of this process, one of defaults only, and one that came as bytes."""
    if request.param == "made":
        return full()
    if request.param == "defaults":
        return Event(EventType.CREATED, "t")
    got: list[Event] = []
    await bus.consume("registry:bots", got.append, group="g")
    await bus.publish("registry:bots", full())
    await eventually(lambda: got)
    return got[0]


# D1


@pytest.mark.parametrize(
    "name",
    [
        "EventBus",
        "create_event_bus",
        "Event",
        "EventType",
        "Subscription",
        "InMemoryEventBus",
        "create_event_bus_async",
        "event_bus_backends",
        "EventBusFactory",
        "EventBusConfig",
        "MemoryEventBusConfig",
        "PostgresEventBus",
        "PostgresEventBusConfig",
        "RedisEventBus",
        "RedisEventBusConfig",
    ],
)
def test_d01_package_offers_the_same_objects(name: str) -> None:
    assert getattr(dataknobs, name) is getattr(eventbus, name)
    assert name in dataknobs.__all__


@pytest.mark.parametrize(
    ("submodule", "names"),
    [
        ("types", ["Event", "EventType", "Subscription"]),
        ("bus", ["EventBus", "create_event_bus", "create_event_bus_async"]),
        ("memory", ["InMemoryEventBus"]),
        (
            "config",
            [
                "EventBusConfig",
                "MemoryEventBusConfig",
                "PostgresEventBusConfig",
                "RedisEventBusConfig",
            ],
        ),
        ("redis", ["RedisEventBus"]),
        ("postgres", ["PostgresEventBus"]),
        ("registry", ["event_bus_backends", "EventBusFactory"]),
    ],
)
def test_d01_submodules_offer_the_same_objects(submodule: str, names: list[str]) -> None:
    module = importlib.import_module(f"eventbus.compat.dataknobs.{submodule}")
    assert sorted(module.__all__) == sorted(names)
    for name in names:
        assert getattr(module, name) is getattr(eventbus, name)


@pytest.mark.parametrize(
    "name", ["DataknobsError", "OperationError", "ConfigurationError", "NotFoundError"]
)
def test_d01_exceptions_are_the_same_objects(name: str) -> None:
    module = importlib.import_module("eventbus.compat.dataknobs.exceptions")
    assert getattr(module, name) is getattr(eventbus, name) is getattr(dataknobs, name)
    assert name in module.__all__


def test_d01_star_import_gives_exactly_the_contract_names() -> None:
    namespace: dict[str, Any] = {}
    exec("from eventbus.compat.dataknobs import *", namespace)
    assert {name for name in namespace if not name.startswith("__")} == set(dataknobs.__all__)


def test_d01_sqs_is_out_of_scope() -> None:
    for name in ("SqsEventBus", "SqsEventBusConfig"):
        with pytest.raises(ImportError):
            exec(f"from eventbus.compat.dataknobs import {name}")


def test_d01_import_needs_no_driver_and_starts_no_loop() -> None:
    program = """
import asyncio, sys, threading
def refuse(*args, **kwargs):
    raise AssertionError("an event loop was asked for")
asyncio.get_event_loop = asyncio.new_event_loop = refuse
import eventbus.compat.dataknobs
from eventbus.compat.dataknobs import bus, config, exceptions, memory, registry, types
drivers = {"redis", "asyncpg", "psycopg", "psycopg2", "sqlalchemy", "boto3", "dotenv"}
assert not drivers & set(sys.modules), drivers & set(sys.modules)
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


# D2


def test_d02_event_type_is_a_plain_enum_of_seven_members_in_order() -> None:
    assert issubclass(EventType, Enum)
    assert not issubclass(EventType, str)
    assert [member.name for member in EventType] == [
        "CREATED",
        "UPDATED",
        "DELETED",
        "ACTIVATED",
        "DEACTIVATED",
        "ERROR",
        "CUSTOM",
    ]
    assert all(member.value == member.name.lower() for member in EventType)
    assert EventType("deleted") is EventType.DELETED
    value: Any = "created"
    assert (value == EventType.CREATED) is False


# D3


def test_d03_all_eight_by_position_and_by_keyword() -> None:
    payload, metadata = {"a": 1}, {"b": 2}
    values = (EventType.ERROR, "t", payload, WHEN, "id", "source", "correlation", metadata)
    by_position = Event(*values)
    by_keyword = untyped(**dict(zip(FIELDS, values, strict=True)))
    for event in (by_position, by_keyword):
        for name, value in zip(FIELDS, values, strict=True):
            assert getattr(event, name) is value
    assert by_position == by_keyword


def test_d03_defaults() -> None:
    before = datetime.now(UTC)
    event = Event(EventType.CREATED, "t")
    after = datetime.now(UTC)
    assert (event.payload, event.metadata) == ({}, {})
    assert (event.source, event.correlation_id) == (None, None)
    assert before <= event.timestamp <= after
    assert event.timestamp.tzinfo is UTC
    assert len(event.event_id) == 36
    assert str(uuid.UUID(event.event_id)) == event.event_id


def test_d03_every_default_is_fresh_per_event() -> None:
    events = [Event(EventType.CREATED, "t") for _ in range(1000)]
    assert len({event.event_id for event in events}) == 1000
    events[0].payload["x"] = events[0].metadata["y"] = 1
    assert events[1].payload == events[1].metadata == {}
    assert events[0].payload is not events[0].metadata
    assert events[0].timestamp <= events[-1].timestamp


def test_d03_default_time_is_that_of_making_not_of_first_reading() -> None:
    event = Event(EventType.CREATED, "t")
    made = datetime.now(UTC)
    while datetime.now(UTC) == made:
        pass
    assert event.timestamp <= made


@pytest.mark.parametrize("arguments", [(), (EventType.CREATED,)])
def test_d03_missing_type_or_topic_is_a_type_error(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="topic"):
        Event(*arguments)


def test_d03_other_wrong_calls_are_type_errors() -> None:
    with pytest.raises(TypeError):
        untyped(topic="t")
    with pytest.raises(TypeError, match="nope"):
        untyped(EventType.CREATED, "t", nope=1)
    with pytest.raises(TypeError):
        untyped(EventType.CREATED, "t", topic="t")
    with pytest.raises(TypeError):
        untyped(EventType.CREATED, "t", {}, WHEN, "id", None, None, {}, "ninth")


def test_d03_the_constructor_validates_nothing() -> None:
    event = untyped("created", 5, payload=[1], timestamp="soon", event_id=7, metadata=None)
    assert (event.type, event.topic, event.payload) == ("created", 5, [1])
    assert (event.timestamp, event.event_id, event.metadata) == ("soon", 7, None)


def test_d03_an_explicit_none_is_kept() -> None:
    event = untyped(EventType.CREATED, "t", None, None, None, None, None, None)
    assert [getattr(event, name) for name in FIELDS[2:]] == [None] * 6


# D4


@pytest.mark.parametrize("name", [*FIELDS, "id", "anything_new", "__dict__"])
def test_d04_assignment_raises_frozen_instance_error(event: Event, name: str) -> None:
    before = event.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError) as caught:
        setattr(event, name, 1)
    assert isinstance(caught.value, AttributeError)
    assert name in str(caught.value)
    assert "dataclasses.replace" in str(caught.value)
    assert event.to_dict() == before


@pytest.mark.parametrize("name", [*FIELDS, "id", "anything_new"])
def test_d04_deletion_raises_frozen_instance_error(event: Event, name: str) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError) as caught:
        delattr(event, name)
    assert name in str(caught.value)
    assert "dataclasses.replace" in str(caught.value)


def test_d04_object_setattr_finds_no_way_round() -> None:
    event = full()
    with pytest.raises((TypeError, AttributeError)):
        object.__setattr__(event, "topic", "other")
    assert event.topic == "registry:bots"
    assert not hasattr(event, "__dict__")


# D5


def test_d05_is_dataclass(event: Event) -> None:
    assert dataclasses.is_dataclass(Event)
    assert dataclasses.is_dataclass(event)


def test_d05_fields_with_defaults_and_factories(event: Event) -> None:
    for subject in (Event, event):
        fields = dataclasses.fields(subject)
        assert tuple(field.name for field in fields) == FIELDS
        by_name = {field.name: field for field in fields}
        for name in ("type", "topic"):
            assert by_name[name].default is dataclasses.MISSING
            assert by_name[name].default_factory is dataclasses.MISSING
        for name in ("source", "correlation_id"):
            assert by_name[name].default is None
        factories = [
            by_name[name].default_factory
            for name in ("payload", "timestamp", "event_id", "metadata")
        ]
        payload, timestamp, event_id, metadata = (cast("Any", one)() for one in factories)
        assert payload == metadata == {}
        assert timestamp.tzinfo is UTC
        assert len(event_id) == 36


@pytest.mark.parametrize("name", FIELDS)
def test_d05_replace_keeps_the_other_seven_objects(event: Event, name: str) -> None:
    value: Any = object()
    changed = dataclasses.replace(event, **{name: value})
    assert type(changed) is Event
    assert getattr(changed, name) is value
    for other in FIELDS:
        if other != name:
            assert getattr(changed, other) is getattr(event, other)


def test_d05_replace_refuses_unknown_names() -> None:
    unknown: dict[str, Any] = {"nope": 1}
    with pytest.raises(TypeError):
        dataclasses.replace(cast("Any", full()), **unknown)


def test_d05_asdict_and_astuple_copy_deeply(event: Event) -> None:
    as_dict = dataclasses.asdict(event)
    assert list(as_dict) == list(FIELDS)
    assert as_dict == {name: getattr(event, name) for name in FIELDS}
    assert as_dict["payload"] is not event.payload
    assert dataclasses.astuple(event) == tuple(getattr(event, name) for name in FIELDS)


def test_d05_match_statement(event: Event) -> None:
    assert Event.__match_args__ == FIELDS
    match full():
        case Event(EventType.CREATED):
            pytest.fail("another type matched")
        case Event(EventType.UPDATED, topic, {"bot_id": bot}, source="manager"):
            assert (topic, bot) == ("registry:bots", "b1")
        case _:
            pytest.fail("nothing matched")
    match event:
        case Event(_, _, _, _, _, _, _, metadata):
            assert metadata is event.metadata


def test_d05_signature() -> None:
    signature = inspect.signature(Event)
    assert tuple(signature.parameters) == FIELDS
    required = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    assert required == ["type", "topic"]
    assert signature.parameters["source"].default is None
    bound = signature.bind(EventType.CREATED, "t", correlation_id="c")
    assert Event(*bound.args, **bound.kwargs).correlation_id == "c"


def test_d05_copy_shares_and_deepcopy_does_not(event: Event) -> None:
    shallow, deep = copy.copy(event), copy.deepcopy(event)
    assert shallow == deep == event
    assert shallow is not event
    assert shallow.payload is event.payload
    assert shallow.metadata is event.metadata
    assert deep.payload is not event.payload
    assert deep.metadata is not event.metadata
    assert deep.type is event.type


def test_d05_deepcopy_keeps_sharing_within_the_memo() -> None:
    shared = [1]
    event = full(payload={"a": shared}, metadata={"b": shared})
    deep: Any = copy.deepcopy([event, event, shared])
    assert deep[0] is deep[1]
    assert deep[0].payload["a"] is deep[0].metadata["b"] is deep[2]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_d05_pickle(event: Event, protocol: int) -> None:
    loaded = pickle.loads(pickle.dumps(event, protocol))
    assert type(loaded) is Event
    assert loaded == event
    assert loaded.type is event.type
    assert loaded.timestamp.tzinfo == event.timestamp.tzinfo


# D6


def test_d06_equality_compares_all_eight_fields(event: Event) -> None:
    twin = Event(*(getattr(event, name) for name in FIELDS))
    assert event == twin
    assert (event != twin) is False
    for name in FIELDS:
        changed = dataclasses.replace(event, **{name: cast("Any", "something else")})
        assert event != changed
        assert (event == changed) is False


def test_d06_equality_is_false_against_any_other_class() -> None:
    event = full()
    lookalike = types.SimpleNamespace(**{name: getattr(event, name) for name in FIELDS})
    for other in (lookalike, event.to_dict(), dataclasses.astuple(event), None, 5):
        assert (event == other) is False
        assert (event != other) is True


def test_d06_order_is_a_type_error() -> None:
    for compare in ("__lt__", "__le__", "__gt__", "__ge__"):
        assert getattr(full(), compare)(full()) is NotImplemented
    with pytest.raises(TypeError, match="'<' not supported between instances of 'Event'"):
        full() < full()  # type: ignore[operator]  # noqa: B015


def test_d06_hash_is_a_type_error_with_the_text_of_a_dataclass() -> None:
    with pytest.raises(TypeError) as caught:
        hash(full())
    assert str(caught.value) == "unhashable type: 'Event'"
    assert not isinstance(full(), collections.abc.Hashable)


def test_d06_repr_is_the_dataclass_form() -> None:
    event = Event(EventType.CREATED, "t", timestamp=WHEN, event_id="id")
    assert repr(event) == (
        "Event(type=<EventType.CREATED: 'created'>, topic='t', payload={}, "
        "timestamp=datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc), "
        "event_id='id', source=None, correlation_id=None, metadata={})"
    )
    assert str(event) == repr(event)


def test_d06_repr_shows_what_was_given() -> None:
    assert repr(untyped("created", 5, [1], None, 7, b"s", 1.5, ())) == (
        "Event(type='created', topic=5, payload=[1], timestamp=None, event_id=7, "
        "source=b's', correlation_id=1.5, metadata=())"
    )


# D7


def test_d07_id_is_a_read_only_alias(event: Event) -> None:
    assert event.id is event.event_id
    assert "id" not in {field.name for field in dataclasses.fields(event)}
    assert ", id=" not in repr(event)
    assert "id" not in event.to_dict()
    with pytest.raises(TypeError):
        untyped(EventType.CREATED, "t", id="x")


# D8


def test_d08_payload_and_metadata_are_the_same_object_at_every_read(event: Event) -> None:
    assert event.payload is event.payload
    assert event.metadata is event.metadata
    event.payload["added"] = 1
    event.metadata.setdefault("k", {})["added"] = 2
    assert event.payload["added"] == 1
    assert event.metadata["k"]["added"] == 2
    assert event.to_dict()["payload"]["added"] == 1


def test_d08_there_is_no_with_metadata() -> None:
    assert not hasattr(Event, "with_metadata")


# D9


def test_d09_to_dict_key_order_and_values(event: Event) -> None:
    found = event.to_dict()
    assert tuple(found) == FIELDS
    assert found["type"] == event.type.value
    assert found["timestamp"] == event.timestamp.isoformat()
    for name in set(FIELDS) - {"type", "timestamp"}:
        assert found[name] is getattr(event, name)
    assert event.to_dict() is not found


def test_d09_timestamp_text_is_isoformat() -> None:
    plain = full(timestamp=datetime(2026, 1, 2, 3, 4, 5))
    assert plain.to_dict()["timestamp"] == "2026-01-02T03:04:05"
    east = full(timestamp=datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert east.to_dict()["timestamp"] == "2026-01-02T00:00:00+02:00"


def test_d09_type_without_value_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'str' object has no attribute 'value'"):
        full(type="created").to_dict()


def test_d09_timestamp_without_isoformat_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'int' object has no attribute 'isoformat'"):
        full(timestamp=5).to_dict()


# D10


def test_d10_only_type_and_topic_are_required() -> None:
    before = datetime.now(UTC)
    event = Event.from_dict({"type": "created", "topic": "t"})
    assert event.type is EventType.CREATED
    assert event.topic == "t"
    assert event.payload == event.metadata == {}
    assert (event.source, event.correlation_id) == (None, None)
    assert before <= event.timestamp <= datetime.now(UTC)
    assert len(event.event_id) == 36
    assert event.event_id != Event.from_dict({"type": "created", "topic": "t"}).event_id


def test_d10_round_trip(event: Event) -> None:
    assert Event.from_dict(event.to_dict()) == event


def test_d10_type_may_be_a_value_or_a_member() -> None:
    for kind in EventType:
        assert Event.from_dict({"type": kind, "topic": "t"}).type is kind
        assert Event.from_dict({"type": kind.value, "topic": "t"}).type is kind


def test_d10_unknown_keys_are_ignored() -> None:
    event = Event.from_dict(full().to_dict() | {"bus_topic": "x", "n": 1, "id": "other"})
    assert event == full()


def test_d10_a_present_none_stays_none() -> None:
    event = Event.from_dict({"type": "created", "topic": "t"} | dict.fromkeys(FIELDS[2:]))
    assert [getattr(event, name) for name in FIELDS[2:]] == [None] * 6
    assert Event.from_dict({"type": "created", "topic": None}).topic is None


TIMES = [
    "2026-01-02T03:04:05.678901+00:00",
    "2026-01-02T03:04:05Z",
    "2026-01-02 03:04:05",
    "2026-01-02T03:04:05",
    "2026-01-02T03:04",
    "2026-01-02T03",
    "2026-01-02",
    "20260102T030405",
    "20260102T030405.5Z",
    "20260102",
    "2026-W01-5",
    "2026W015T0304",
    "2026-W01",
    "2026-01-02T03:04:05,123456789",
    "2026-01-02T03:04:05.123+05:30",
    "2026-01-02T03:04:05-00:00:01.5",
    "2026-01-02T03:04:05+0530",
    "0001-01-01T00:00:00",
    "9999-12-31T23:59:59.999999-23:59",
]


@pytest.mark.parametrize("text", TIMES)
def test_d10_timestamp_text_is_read_as_fromisoformat_does(text: str) -> None:
    event = Event.from_dict({"type": "created", "topic": "t", "timestamp": text})
    expected = datetime.fromisoformat(text)
    assert event.timestamp == expected
    assert event.timestamp.utcoffset() == expected.utcoffset()
    assert event.timestamp.isoformat() == expected.isoformat()
    if text.endswith("Z"):
        assert event.timestamp.tzinfo is UTC


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "2026-01-02T03:04:05+", "2026-W54-1"])
def test_d10_unreadable_timestamp_is_the_value_error_of_fromisoformat(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as expected:
        datetime.fromisoformat(text)
    with pytest.raises(ValueError, match=r".") as found:
        Event.from_dict({"type": "created", "topic": "t", "timestamp": text})
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("value", [5, 1.5, WHEN, b"2026-01-02", object(), []])
def test_d10_a_timestamp_that_is_no_text_is_kept_as_it_is(value: object) -> None:
    event = Event.from_dict({"type": "created", "topic": "t", "timestamp": value})
    assert event.timestamp is value


@pytest.mark.parametrize("value", [[1], "text", 5, None, {1, 2}, len])
def test_d10_payload_of_any_type_is_kept(value: object) -> None:
    event = Event.from_dict({"type": "created", "topic": "t", "payload": value, "metadata": value})
    assert event.payload is value
    assert event.metadata is value


@pytest.mark.parametrize(
    "wrap", [dict, types.MappingProxyType, collections.UserDict, collections.OrderedDict]
)
def test_d10_any_mapping_is_taken(wrap: Callable[[dict[str, Any]], Any]) -> None:
    assert Event.from_dict(wrap(full().to_dict())) == full()


def test_d10_missing_keys_of_a_defaultdict_are_missing() -> None:
    data = collections.defaultdict(str, {"type": "created", "topic": "t"})
    event = Event.from_dict(data)
    assert event.payload == {}
    assert set(data) == {"type", "topic"}


def test_d10_unknown_type_is_a_value_error() -> None:
    refused: list[Any] = ["X", "CREATED", None, 5, []]
    for bad in refused:
        with pytest.raises(ValueError, match="is not a valid EventType") as caught:
            Event.from_dict({"type": bad, "topic": "t"})
        assert str(caught.value) == f"{bad!r} is not a valid EventType"


def test_d10_missing_type_or_topic_is_a_key_error() -> None:
    with pytest.raises(KeyError) as caught:
        Event.from_dict({"topic": "t"})
    assert str(caught.value) == "'type'"
    with pytest.raises(KeyError) as caught:
        Event.from_dict({"type": "created"})
    assert str(caught.value) == "'topic'"
    with pytest.raises(KeyError) as caught:
        Event.from_dict({})
    assert str(caught.value) == "'type'"


@pytest.mark.parametrize("bad", [[], None, "text", 5, [("type", "created"), ("topic", "t")]])
def test_d10_what_is_no_mapping_is_a_type_error(bad: Any) -> None:
    with pytest.raises(TypeError):
        Event.from_dict(bad)


# D11


def test_d11_with_correlation(event: Event) -> None:
    changed = event.with_correlation("c-2")
    assert changed is not event
    assert changed.correlation_id == "c-2"
    for name in FIELDS:
        if name != "correlation_id":
            assert getattr(changed, name) is getattr(event, name)
    assert event.with_correlation(None).correlation_id is None
    assert event.with_correlation(correlation_id="c-3").correlation_id == "c-3"


# D12


def test_d12_subscription_is_constructible_by_users() -> None:
    before = datetime.now(UTC)
    subscription = Subscription("id", "t", print)
    assert subscription.subscription_id == "id"
    assert subscription.topic == "t"
    assert subscription.handler is print
    assert subscription.pattern is None
    assert before <= subscription.created_at <= datetime.now(UTC)
    assert subscription.created_at.tzinfo is UTC
    full_form = Subscription("id", "t", print, "t*", WHEN, None)
    assert (full_form.pattern, full_form.created_at) == ("t*", WHEN)
    by_keyword = Subscription(
        subscription_id="id", topic="t", handler=print, pattern=None, created_at=WHEN,
        _cancel_callback=None,
    )  # fmt: skip
    assert by_keyword.created_at is WHEN


def test_d12_repr() -> None:
    assert repr(Subscription("i", "t", print)) == "Subscription(id='i', topic='t', pattern=None)"
    with_pattern = Subscription("i", "t", print, "t:*")
    assert repr(with_pattern) == "Subscription(id='i', topic='t', pattern='t:*')"


async def test_d12_cancel_calls_the_callback_with_the_id() -> None:
    calls: list[str] = []

    async def cancelled(subscription_id: str) -> None:
        calls.append(subscription_id)

    subscription = Subscription("id-1", "t", print, _cancel_callback=cancelled)
    assert calls == []
    assert await subscription.cancel() is None  # type: ignore[func-returns-value]
    assert calls == ["id-1"]


async def test_d12_cancel_without_callback_does_nothing() -> None:
    subscription = Subscription("id-1", "t", print)
    assert await subscription.cancel() is None  # type: ignore[func-returns-value]
    await subscription.cancel()


async def test_d12_subscribe_fills_the_subscription(bus: InMemoryEventBus) -> None:
    def handler(event: Event) -> None: ...

    before = datetime.now(UTC)
    subscription = await bus.subscribe("t", handler, "t:*")
    assert type(subscription) is Subscription
    assert str(uuid.UUID(subscription.subscription_id)) == subscription.subscription_id
    assert (subscription.topic, subscription.pattern) == ("t", "t:*")
    assert subscription.handler is handler
    assert before <= subscription.created_at <= datetime.now(UTC)
