"""What DataKnobs 3.2 has beyond 1.3: configuration classes, registry, subclasses of ``Event``.

The values were compared with ``dataknobs-common`` 3.2.0 on CPython 3.12; where ours differ, the
test says so. The original of that era needs Python 3.12 and is not run here.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import json
import pickle
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest

import eventbus
from eventbus import Event, EventType, create_event_bus, create_event_bus_async
from eventbus.compat import dataknobs
from eventbus.compat.dataknobs import (
    EventBusConfig,
    InMemoryEventBus,
    MemoryEventBusConfig,
    PostgresEventBus,
    PostgresEventBusConfig,
    RedisEventBus,
    RedisEventBusConfig,
    event_bus_backends,
    exceptions,
)
from eventbus.compat.dataknobs.registry import BackendRegistry
from servers.shared import shared_postgres, shared_redis

Eventually = Callable[..., Awaitable[Any]]
URL = "postgresql://u:p@h/d"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", *(f"POSTGRES_{one}" for one in ("HOST", "PORT", "DB", "USER"))):
        monkeypatch.delenv(name, raising=False)


# Configuration classes


def test_e2_to_dict_has_the_fields_secrets_too_and_from_dict_reads_it() -> None:
    redis = RedisEventBusConfig(password="s")
    assert redis.to_dict() == {
        "host": "localhost",
        "port": 6379,
        "password": "s",
        "ssl": False,
        "channel_prefix": "events",
    }
    postgres = PostgresEventBusConfig(URL)
    assert postgres.to_dict() == {"connection_string": URL, "channel_prefix": "events"}
    assert MemoryEventBusConfig().to_dict() == {}
    assert RedisEventBusConfig.from_dict(redis.to_dict()) == redis
    assert PostgresEventBusConfig.from_dict(config=postgres.to_dict()) == postgres
    assert redis.to_dict() is not redis.to_dict()


def test_e2_to_json_dict_is_fit_for_json_a_password_function_too() -> None:
    redis = RedisEventBusConfig(password=lambda: "secret")
    assert json.loads(json.dumps(redis.to_json_dict()))["password"] == "secret"
    assert callable(redis.to_dict()["password"])


def test_e2_from_dict_takes_its_argument_by_name_and_ignores_unknown_keys() -> None:
    found = RedisEventBusConfig.from_dict(config={"host": "a", "backend": "redis", "nope": 1})
    assert found == RedisEventBusConfig("a")
    with pytest.raises(TypeError):
        RedisEventBusConfig.from_dict(None)  # type: ignore[arg-type]


def test_e2_from_dict_of_postgres_makes_a_connection_string_of_its_keys() -> None:
    found = PostgresEventBusConfig.from_dict({"host": "h", "database": "d", "user": "u"})
    assert found.connection_string == "postgresql://u@h:5432/d"
    with pytest.raises(exceptions.ConfigurationError, match="Postgres connection requires one of"):
        PostgresEventBusConfig.from_dict({})


@pytest.mark.parametrize(
    ("kind", "key", "answer"),
    [
        (RedisEventBusConfig, "host", True),
        (RedisEventBusConfig, "backend", False),
        (RedisEventBusConfig, "nope", False),
        (RedisEventBusConfig, 5, False),
        (PostgresEventBusConfig, "connection_string", True),
        (PostgresEventBusConfig, "host", False),
        (MemoryEventBusConfig, "backend", False),
        (EventBusConfig, "backend", False),
    ],
)
def test_e2_accepts_knows_the_names_of_the_fields(
    kind: type[EventBusConfig], key: Any, answer: bool
) -> None:
    assert kind.accepts(key) is answer


@pytest.mark.parametrize(
    "config",
    [
        MemoryEventBusConfig(),
        RedisEventBusConfig(),
        PostgresEventBusConfig(URL),
        PostgresEventBusConfig(""),
    ],
)
def test_e2_validate_returns_nothing_when_all_is_well(config: EventBusConfig) -> None:
    config.validate()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (RedisEventBusConfig(port=99999), "port=99999"),
        (RedisEventBusConfig(host=""), "host=''"),
        (PostgresEventBusConfig("mysql://h"), "connection_string"),
        (PostgresEventBusConfig(None), "connection_string"),  # type: ignore[arg-type]
    ],
)
def test_e2_validate_refuses_what_the_bus_would_refuse(config: EventBusConfig, says: str) -> None:
    # Better than the original, whose `validate` of these classes checks nothing.
    with pytest.raises(eventbus.ConfigError, match=says) as caught:
        config.validate()
    assert isinstance(caught.value, ValueError)


# Buses from configurations


def test_e2_config_cls_names_the_configuration_class() -> None:
    assert InMemoryEventBus.CONFIG_CLS is MemoryEventBusConfig
    assert RedisEventBus.CONFIG_CLS is RedisEventBusConfig
    assert PostgresEventBus.CONFIG_CLS is PostgresEventBusConfig


async def test_e2_from_config_takes_components_and_keeps_them() -> None:
    clock = object()
    for bus in (
        InMemoryEventBus.from_config({}, clock=clock),
        await InMemoryEventBus.from_config_async(MemoryEventBusConfig(), clock=clock),
        RedisEventBus.from_config({"host": "a"}, clock=clock),
        PostgresEventBus.from_config({"connection_string": URL}, clock=clock),
    ):
        assert bus.components == {"clock": clock}
        with pytest.raises(TypeError):
            bus.components["more"] = 1  # type: ignore[index]
    # A component is no option, as in the original.
    assert RedisEventBus.from_config({"host": "a"}, host="b").config.host == "a"
    assert InMemoryEventBus().components == {}


@pytest.mark.parametrize("kind", [InMemoryEventBus, RedisEventBus, PostgresEventBus])
@pytest.mark.parametrize("config", [None, 5, "redis"])
def test_e2_from_config_refuses_what_is_no_configuration(kind: Any, config: Any) -> None:
    name, given = kind.CONFIG_CLS.__name__, type(config).__name__
    with pytest.raises(TypeError) as caught:
        kind.from_config(config)
    text = f"{kind.__name__}.from_config: `config` must be {name} or Mapping, got {given}."
    assert str(caught.value) == text


def test_e2_keywords_win_over_a_first_mapping_also_the_one_of_its_place() -> None:
    assert RedisEventBus({"host": "a"}, host="b").config.host == "b"
    assert RedisEventBus({"host": "a"}, port=5).config == RedisEventBusConfig("a", 5)
    bus = PostgresEventBus({"connection_string": URL}, connection_string="postgresql://x@y/z")
    assert bus.config.connection_string == "postgresql://x@y/z"
    assert RedisEventBus(host="b").config.host == "b"


def test_e2_a_first_configuration_object_cannot_be_mixed_with_keywords() -> None:
    with pytest.raises(TypeError) as caught:
        RedisEventBus(RedisEventBusConfig("a"), host="b")
    assert str(caught.value) == (
        "RedisEventBus: cannot mix typed `config=RedisEventBusConfig` with loose kwargs (['host'])."
    )
    with pytest.raises(TypeError, match=r"cannot mix typed .* \(\['connection_string'\]\)"):
        PostgresEventBus(PostgresEventBusConfig(URL), connection_string=URL)


@pytest.mark.parametrize("kind", [RedisEventBus, PostgresEventBus])
def test_e2_a_value_given_twice_is_a_type_error(kind: Any) -> None:
    name = "host" if kind is RedisEventBus else "connection_string"
    with pytest.raises(TypeError, match=f"multiple values for argument '{name}'"):
        kind(URL, **{name: URL})
    with pytest.raises(TypeError, match="multiple values for argument 'config'"):
        kind({name: URL}, config={name: URL})


@pytest.mark.parametrize("config", [5, "memory", [], [1], RedisEventBusConfig()])
async def test_e3_a_configuration_that_is_no_mapping_is_a_type_error(config: Any) -> None:
    given = type(config).__name__
    with pytest.raises(
        TypeError, match=f"create_event_bus: `config` must be a Mapping, got {given}"
    ):
        create_event_bus(config)
    with pytest.raises(TypeError, match=f"`config` must be a Mapping, got {given}"):
        await create_event_bus_async(config)


async def test_e2_sqs_is_refused_with_what_is_offered_instead() -> None:
    known = "Unknown event bus backend: sqs. Available backends: memory, postgres, redis"
    with pytest.raises(ValueError, match="SQS is not offered here: use 'redis'") as first:
        create_event_bus({"backend": "sqs"})
    with pytest.raises(ValueError, match="SQS is not offered here: use 'redis'") as second:
        await create_event_bus_async({"backend": "sqs"})
    for caught in (first, second):
        assert isinstance(caught.value, eventbus.ConfigError)
        assert str(caught.value).startswith(known)
    assert "sqs" not in event_bus_backends


# Registry


@pytest.fixture
def registry() -> BackendRegistry:
    found = BackendRegistry("buses")
    found.register("b", lambda config: InMemoryEventBus(), metadata={"note": 1})
    found.register("a", InMemoryEventBus)
    return found


def test_e2_the_registry_can_be_read(registry: BackendRegistry) -> None:
    assert len(registry) == 2
    assert "a" in registry
    assert "A" not in registry
    assert registry.name == "buses"
    assert event_bus_backends.name == "event_bus_backends"
    assert registry.has("a")
    assert registry.is_known("a")
    assert not registry.has("nope")
    assert not registry.is_known("nope")
    assert registry.list_keys() == ["b", "a"]
    assert registry.list_canonical_keys() == registry.list_known_keys() == ["a", "b"]
    assert registry.get_factory("a") is InMemoryEventBus
    assert registry.get_factory("nope") is None
    assert repr(registry) == "BackendRegistry(name='buses', plugins=2)"
    copied = registry.copy()
    copied.clear()
    assert len(registry) == 2


def test_e2_metadata_is_a_copy_and_stays_when_only_the_factory_is_replaced(
    registry: BackendRegistry,
) -> None:
    registry.get_metadata("b")["note"] = 2
    assert registry.get_metadata("b", follow_alias=True) == {"note": 1}
    assert registry.get_metadata("nope") == registry.get_metadata("a") == {}
    registry.register("b", InMemoryEventBus, override=True)
    assert registry.get_metadata("b") == {"note": 1}
    registry.register("b", InMemoryEventBus, override=True, metadata={"n": 3})
    assert registry.get_metadata("b") == {"n": 3}
    registry.unregister("b")
    registry.register("b", InMemoryEventBus)
    assert registry.get_metadata("b") == {}


def test_e2_bulk_register_adds_all_or_nothing(registry: BackendRegistry) -> None:
    registry.bulk_register({"c": InMemoryEventBus, "d": InMemoryEventBus})
    assert registry.list_keys() == ["b", "a", "c", "d"]
    # Better than the original, which keeps what came before the failure.
    with pytest.raises(eventbus.OperationError, match="Plugin 'a' already registered in buses"):
        registry.bulk_register({"e": InMemoryEventBus, "a": InMemoryEventBus})
    bad: Any = {"e": InMemoryEventBus, "f": 5}
    with pytest.raises(TypeError, match="Factory must be a class or callable, got int"):
        registry.bulk_register(bad)
    assert "e" not in registry
    registry.bulk_register({"a": InMemoryEventBus}, override=True)


async def test_e2_create_hands_further_keywords_to_the_factory(registry: BackendRegistry) -> None:
    seen: list[Any] = []

    def factory(config: Any, **keywords: Any) -> InMemoryEventBus:
        seen.append((config, keywords))
        return InMemoryEventBus()

    registry.register("f", factory)
    registry.create("f", {"x": 1}, clock=2)
    registry.create(config={"backend": "f"}, clock=3)
    await registry.create_async("f", clock=4)
    assert seen == [
        ({"x": 1}, {"clock": 2}),
        ({"backend": "f"}, {"clock": 3}),
        ({}, {"clock": 4}),
    ]
    made: Any = registry.create("a", clock=5)
    assert made.components == {"clock": 5}
    for backend in ("memory", "redis"):
        with pytest.raises(eventbus.OperationError, match="unexpected keyword argument 'host'"):
            event_bus_backends.create(backend, host="b")


def test_e2_the_default_factory_serves_get_for_unknown_keys(registry: BackendRegistry) -> None:
    with pytest.raises(eventbus.NotFoundError, match="'nope' not registered and no default"):
        registry.get("nope")
    seen: list[Any] = []

    def default(key: str, config: Any) -> InMemoryEventBus:
        seen.append((key, config))
        return InMemoryEventBus()

    registry.set_default_factory(default)
    assert registry.get("nope") is registry.get("nope")
    assert registry.get("nope", use_cache=False) is not registry.get("nope")
    assert registry.get("a") is registry.get("a")
    assert seen[0] == ("nope", {})
    assert "nope" not in registry
    with pytest.raises(eventbus.NotFoundError):
        registry.create("nope")
    with pytest.raises(eventbus.NotFoundError):
        registry.get("other", use_default=False)
    registry.set_default_factory(None)
    with pytest.raises(eventbus.NotFoundError):
        registry.get("other")
    bad: Any = 5
    with pytest.raises(TypeError, match="Factory must be a class or callable, got int"):
        registry.set_default_factory(bad)


# Exceptions


@pytest.mark.parametrize(
    "name",
    [
        "DataknobsError",
        "ValidationError",
        "ConfigurationError",
        "DottedPathError",
        "DottedPathTypeError",
        "ResourceError",
        "NotFoundError",
        "ConsentRequiredError",
        "OperationError",
        "ConcurrencyError",
        "SerializationError",
        "TimeoutError",
        "RateLimitError",
    ],
)
def test_e2_every_exception_name_of_the_original_can_be_imported_and_caught(name: str) -> None:
    kind = getattr(exceptions, name)
    assert name in exceptions.__all__
    assert issubclass(kind, dataknobs.DataknobsError)
    error = kind("told")
    assert str(error) == "told"


def test_e2_what_a_bus_raises_is_caught_by_the_original_s_names() -> None:
    caught: dict[type[Exception], list[type[Exception]]] = {
        exceptions.SerializationError: [eventbus.EncodeError, eventbus.DecodeError],
        exceptions.TimeoutError: [eventbus.OperationTimeout],
        exceptions.ResourceError: [eventbus.ConnectError],
        exceptions.ConcurrencyError: [eventbus.LeaseLost, eventbus.VersionConflict],
        exceptions.ValidationError: [eventbus.TopicError],
    }
    for name, kinds in caught.items():
        assert all(issubclass(kind, name) for kind in kinds)
    assert exceptions.RateLimitError(retry_after=2.0).retry_after == 2.0
    consent = exceptions.ConsentRequiredError("x", "s", "u")
    assert consent.context == {"scope": "s", "user_id": "u"}


# Subclasses of Event


class PlainEvent(Event):
    """Adds a method."""

    def bot(self) -> Any:
        return self.payload["bot"]


class BotChanged(Event):
    """Has a constructor of its own."""

    def __init__(self, bot: str) -> None:
        super().__init__(EventType.UPDATED, "registry:bots", {"bot": bot})


@dataclasses.dataclass(frozen=True)
class BotEvent(Event):
    """Has a further field."""

    bot_id: str = ""


@dataclasses.dataclass(frozen=True)
class BotDefaults(Event):
    """Has defaults of its own."""

    type: EventType = EventType.DELETED
    topic: str = "registry:bots"
    note: str = "n"


@dataclasses.dataclass(frozen=True, slots=True)
class BotSlots(Event):
    """Keeps its fields in slots."""

    bot_id: str = ""


MADE: dict[str, Callable[[], Any]] = {
    "plain": lambda: PlainEvent(EventType.CREATED, "registry:bots", payload={"bot": 1}),
    "own constructor": lambda: BotChanged("b1"),
    "dataclass": lambda: BotEvent(EventType.CREATED, "registry:bots", {"bot": 1}, bot_id="b1"),
    "dataclass, defaults only": lambda: BotEvent(EventType.CREATED, "registry:bots", bot_id="b1"),
    "own defaults": lambda: BotDefaults(source="s"),
    "slots": lambda: BotSlots(EventType.CREATED, "registry:bots", bot_id="b1"),
}


@pytest.fixture(params=MADE)
def subclassed(request: pytest.FixtureRequest) -> Any:
    """An event of each subclass."""
    return MADE[request.param]()


def test_e2_an_event_of_a_subclass_is_an_event_with_stable_fields(subclassed: Any) -> None:
    assert isinstance(subclassed, Event)
    assert subclassed.topic == "registry:bots"
    for name in Event.__match_args__:
        assert getattr(subclassed, name) is getattr(subclassed, name)
    assert repr(subclassed).startswith(f"{type(subclassed).__qualname__}(type=<EventType.")
    assert list(subclassed.to_dict()) == list(Event.__match_args__)
    assert uuid.UUID(subclassed.event_id)
    with pytest.raises(TypeError, match="unhashable"):
        hash(subclassed)


def test_e2_an_event_of_a_subclass_is_copied_pickled_and_compared(subclassed: Any) -> None:
    kind = type(subclassed)
    copies = [copy.copy(subclassed), copy.deepcopy(subclassed)]
    copies += [pickle.loads(pickle.dumps(subclassed, protocol)) for protocol in range(2, 6)]
    for one in copies:
        assert type(one) is kind
        assert one == subclassed
        assert dataclasses.asdict(one) == dataclasses.asdict(subclassed)
    assert copies[0].payload is subclassed.payload
    plain = Event(*(getattr(subclassed, name) for name in Event.__match_args__))
    assert plain != subclassed
    assert subclassed != plain
    assert type(subclassed.with_correlation("c")) is Event
    assert subclassed.with_correlation("c").payload is subclassed.payload


@pytest.mark.parametrize("name", ["plain", "own constructor", "dataclass", "own defaults"])
def test_e2_an_event_of_a_subclass_is_frozen(name: str) -> None:
    event = MADE[name]()
    for field in (*Event.__match_args__, "further"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field, 1)


def test_e2_constructors_and_from_dict_of_subclasses() -> None:
    made = BotEvent(EventType.CREATED, "t", bot_id="b1")
    assert dataclasses.replace(made, topic="u").bot_id == "b1"
    assert [field.name for field in dataclasses.fields(made)] == [*Event.__match_args__, "bot_id"]
    assert list(inspect.signature(BotChanged).parameters) == ["bot"]
    assert list(inspect.signature(Event).parameters) == list(Event.__match_args__)
    read = PlainEvent.from_dict({"type": "created", "topic": "t", "payload": {"bot": 3}})
    assert type(read) is PlainEvent
    assert read.bot() == 3
    untyped: Any = PlainEvent
    for arguments in ((), (EventType.CREATED,), (EventType.CREATED, "t", *range(7))):
        with pytest.raises(TypeError):
            untyped(*arguments)
    with pytest.raises(TypeError, match="nope"):
        untyped(EventType.CREATED, "t", nope=1)
    with pytest.raises(TypeError, match="non-frozen"):
        dataclasses.dataclass(type("Mutable", (Event,), {"__annotations__": {"x": int}, "x": 0}))


SERVERS = ["memory", "redis", "postgres"]


def _config(backend: str) -> dict[str, Any]:
    if backend == "memory":
        return {"backend": "memory"}
    own = f"era{uuid.uuid4().hex[:12]}"
    if backend == "redis":
        where: dict[str, Any] = {"host": "127.0.0.1", "port": shared_redis().port, "prefix": own}
    else:
        where = {"connection_string": shared_postgres().url(), "schema": own}
    return {"backend": backend, "channel_prefix": own, **where}


@pytest.fixture(params=SERVERS)
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    made = create_event_bus(_config(request.param))
    await made.connect()
    yield made
    await made.close()


async def test_e2_a_subclass_is_published_and_arrives_from_a_wire_as_a_plain_event(
    bus: Any, eventually: Eventually
) -> None:
    heard: list[Any] = []
    handled: list[Any] = []
    await bus.subscribe("registry:bots", heard.append)
    await bus.consume("registry:bots", handled.append, group="g")
    events = [make() for make in MADE.values()]
    for event in events:
        await bus.publish("registry:bots", event)
    await eventually(lambda: len(heard) == len(handled) == len(events))
    if isinstance(bus, InMemoryEventBus):
        assert all(one is event for one, event in zip(heard, events, strict=True))
    else:
        assert all(type(one) is Event for one in heard)
    assert all(type(one) is Event for one in handled)
    ids = [event.event_id for event in events]
    assert [one.event_id for one in heard] == ids
    by_id = {one.event_id: one for one in handled}
    for event in events:
        assert by_id[event.event_id].to_dict() == event.to_dict()


# Errors of payloads that are not JSON


class _Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class _Order:
    number: int = 1


NOT_JSON: list[Any] = [
    {"a": datetime(2026, 1, 1, tzinfo=UTC)},
    {"a": [1, {"b": date(2026, 1, 1)}]},
    {"a": {1, 2}},
    {"a": uuid.UUID(int=1)},
    {"a": Decimal(1)},
    {"a": b"x"},
    {"a": bytearray(b"x")},
    {"a": object()},
    {"a": int},
    {"a": len},
    {"a": lambda: 1},
    {"a": range(3)},
    {"a": 1j},
    {"a": _Colour.RED},
    {"a": _Order()},
    {"a": time(1)},
    {"a": ValueError("x")},
    {"a": ...},
    {(1, 2): 3},
    {"a": {frozenset(): 3}},
    {b"x": 1},
    {uuid.UUID(int=1): 1},
    {datetime(2026, 1, 1, tzinfo=UTC): 1},
    {time(1): 1},
    {_Colour.RED: 1},
    {range(3): 1},
]


@pytest.mark.parametrize("backend", ["redis", "postgres"])
async def test_e3_a_payload_that_is_not_json_has_the_text_of_json(backend: str) -> None:
    bus = create_event_bus(_config(backend))
    await bus.connect()
    heard: list[Event] = []
    await bus.subscribe("t", heard.append)
    for payload in NOT_JSON:
        with pytest.raises(TypeError) as theirs:
            json.dumps(payload)
        for event in (
            Event(EventType.CREATED, "t", payload),
            Event(EventType.CREATED, "t", {}, metadata=payload),
        ):
            with pytest.raises(TypeError) as ours:
                await bus.publish("t", event)
            assert isinstance(ours.value, eventbus.EncodeError)
            assert str(ours.value).startswith(str(theirs.value))
            assert "(at $." in str(ours.value)
    circular: dict[str, Any] = {}
    circular["a"] = circular
    with pytest.raises(ValueError, match=r"^Circular reference detected"):
        await bus.publish("t", Event(EventType.CREATED, "t", circular))
    await bus.close()
    assert heard == []


@pytest.mark.parametrize("backend", ["redis", "postgres"])
async def test_e3_a_type_or_timestamp_of_another_kind_is_an_attribute_error(backend: str) -> None:
    bus = create_event_bus(_config(backend))
    await bus.connect()
    untyped: Any = Event
    for event, says in (
        (untyped("created", "t"), "'str' object has no attribute 'value'"),
        (untyped(None, "t"), "'NoneType' object has no attribute 'value'"),
        (untyped(EventType.CREATED, "t", {}, 5), "'int' object has no attribute 'isoformat'"),
        (untyped(EventType.CREATED, "t", {}, "x"), "'str' object has no attribute 'isoformat'"),
    ):
        with pytest.raises(AttributeError, match=f"^{says}") as caught:
            await bus.publish("t", event)
        assert isinstance(caught.value, eventbus.EncodeError)
    await bus.close()
