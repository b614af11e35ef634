"""DataKnobs contract D13 to D23, D56, D57: protocol, constructors, factory, registry, errors."""

import asyncio
import dataclasses
import inspect
import logging
import threading
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest

import eventbus
from eventbus.compat.dataknobs import (
    Event,
    EventBus,
    EventBusConfig,
    EventType,
    InMemoryEventBus,
    MemoryEventBusConfig,
    Subscription,
    create_event_bus,
    create_event_bus_async,
    event_bus_backends,
)
from eventbus.compat.dataknobs.exceptions import (
    ConfigurationError,
    DataknobsError,
    NotFoundError,
    OperationError,
)


class UserBus:
    """A user's own bus: the four methods and nothing else."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, topic: str, event: Event) -> None: ...

    async def subscribe(self, topic: str, handler: Any, pattern: str | None = None) -> Subscription:
        return Subscription("id", topic, handler, pattern)


class Incomplete:
    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, topic: str, event: Event) -> None: ...


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


def connected(bus: Any) -> bool:
    """Read the one private attribute that is part of the contract on memory (D17)."""
    found = bus._connected
    assert type(found) is bool
    return found


@pytest.fixture
def backend() -> Iterator[str]:
    """A key that is free, and free again afterwards."""
    yield "mine"
    if event_bus_backends.is_registered("mine"):
        event_bus_backends.unregister("mine")


# D13


def test_d13_protocol_has_exactly_the_four_methods() -> None:
    members = {name for name in vars(EventBus) if not name.startswith("_")}
    assert members == {"connect", "close", "publish", "subscribe"}
    assert typing.Protocol in EventBus.__mro__
    for name in members:
        assert inspect.iscoroutinefunction(getattr(EventBus, name))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("connect", {}),
        ("close", {}),
        ("publish", {"topic": inspect.Parameter.empty, "event": inspect.Parameter.empty}),
        (
            "subscribe",
            {
                "topic": inspect.Parameter.empty,
                "handler": inspect.Parameter.empty,
                "pattern": None,
            },
        ),
    ],
)
def test_d13_signatures(method: str, parameters: dict[str, Any]) -> None:
    signature = inspect.signature(getattr(EventBus, method))
    found = {name: one.default for name, one in signature.parameters.items() if name != "self"}
    assert found == parameters


def test_d13_isinstance_and_issubclass_with_user_classes() -> None:
    for good in (InMemoryEventBus(), UserBus(), create_event_bus({"backend": "memory"})):
        assert isinstance(good, EventBus)
        assert issubclass(type(good), EventBus)
    for bad in (Incomplete(), None, object(), {}):
        assert not isinstance(bad, EventBus)
        assert not issubclass(type(bad), EventBus)
    assert issubclass(eventbus.Bus, EventBus)


def test_d13_the_protocol_can_be_inherited() -> None:
    class Explicit(UserBus, EventBus):
        pass

    assert isinstance(Explicit(), EventBus)


# D14


async def test_d14_methods_return_none_but_subscribe(bus: InMemoryEventBus) -> None:
    event = Event(EventType.CREATED, "t")
    assert await bus.publish("t", event) is None  # type: ignore[func-returns-value]
    subscription = await bus.subscribe("t", lambda event: "ignored")
    assert await bus.publish("t", event) is None  # type: ignore[func-returns-value]
    assert await bus.publish(topic="t", event=event) is None  # type: ignore[func-returns-value]
    assert await subscription.cancel() is None  # type: ignore[func-returns-value]
    assert await bus.connect() is None  # type: ignore[func-returns-value]
    assert await bus.close() is None  # type: ignore[func-returns-value]


async def test_d14_own_additions_are_keyword_only(bus: InMemoryEventBus) -> None:
    with pytest.raises(TypeError):
        await bus.subscribe("t", print, None, print)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        await bus.publish("t", Event(EventType.CREATED, "t"), "key")  # type: ignore[call-arg]
    await bus.subscribe("t", print, on_gap=lambda gap: None)
    await bus.subscribe(topic="t", handler=print, pattern=None)


async def test_d14_every_bus_is_truthy_and_has_no_len() -> None:
    bus = InMemoryEventBus()
    assert bool(bus) is True
    await bus.connect()
    assert bool(bus) is True
    await bus.close()
    assert bool(bus) is True
    assert not hasattr(bus, "__len__")


async def test_d14_subscription_count() -> None:
    bus = InMemoryEventBus()
    assert bus.subscription_count == 0
    first = await bus.subscribe("t", print)
    await bus.subscribe("t", print, "t*")
    assert bus.subscription_count == 2
    await first.cancel()
    await first.cancel()
    assert bus.subscription_count == 1
    await bus.close()
    assert bus.subscription_count == 0
    with pytest.raises(AttributeError):
        bus.subscription_count = 1  # type: ignore[misc]


async def test_d14_async_with() -> None:
    async with InMemoryEventBus() as bus:
        assert type(bus) is InMemoryEventBus
        assert connected(bus)
        await bus.subscribe("t", print)
    assert not connected(bus)
    assert bus.subscription_count == 0


# D15


@pytest.mark.parametrize(
    "config", [{}, {"backend": "memory"}, MappingProxyType({}), MemoryEventBusConfig(), None]
)
def test_d15_a_first_positional_mapping_or_config_is_the_config(config: Any) -> None:
    assert isinstance(InMemoryEventBus(config), InMemoryEventBus)
    assert isinstance(InMemoryEventBus(config=config), InMemoryEventBus)


async def test_d15_the_positional_mapping_takes_effect() -> None:
    bus = InMemoryEventBus({"delivery": "queued"})
    seen: list[Event] = []
    await bus.subscribe("t", seen.append)
    await bus.publish("t", Event(EventType.CREATED, "t"))
    assert seen == []
    await bus.close()


def test_d15_constructing_needs_no_loop_and_may_happen_in_any_thread() -> None:
    made: list[Any] = []
    thread = threading.Thread(
        target=lambda: made.extend([InMemoryEventBus(), create_event_bus({"backend": "memory"})])
    )
    thread.start()
    thread.join()
    seen: list[Event] = []
    for bus in made:
        asyncio.run(bus.subscribe("t", seen.append))
        asyncio.run(bus.connect())
        asyncio.run(bus.publish("t", Event(EventType.CREATED, "t")))
        asyncio.run(bus.close())
    assert len(seen) == 2


async def test_d15_a_subclass_may_have_a_constructor_of_its_own() -> None:
    class Recording(InMemoryEventBus):
        def __init__(self, name: str, *, limit: int = 5) -> None:
            super().__init__()
            self.topics: list[str] = []

        async def publish(self, topic: str, event: Event) -> None:  # type: ignore[override]
            self.topics.append(topic)
            await super().publish(topic, event)

    seen: list[Event] = []
    async with Recording("mine", limit=1) as bus:
        await bus.subscribe("t", seen.append)
        await bus.publish("t", Event(EventType.CREATED, "t"))
        assert isinstance(bus, EventBus)
    assert bus.topics == ["t"]
    assert len(seen) == 1


# D16


def test_d16_create_event_bus_is_synchronous(caplog: pytest.LogCaptureFixture) -> None:
    bus = create_event_bus({"backend": "memory"})
    assert type(bus) is InMemoryEventBus
    assert connected(bus) is False
    assert type(create_event_bus(MappingProxyType({"backend": "memory"}))) is InMemoryEventBus
    assert create_event_bus({"backend": "memory"}) is not bus
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("config", [None, {}])
def test_d16_no_configuration_gives_memory_with_one_warning(
    config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert type(create_event_bus(config)) is InMemoryEventBus
    (text,) = warnings_of(caplog)
    assert "memory" in text
    assert "process" in text


def test_d16_a_configuration_without_backend_is_memory(caplog: pytest.LogCaptureFixture) -> None:
    assert type(create_event_bus({"delivery": "queued"})) is InMemoryEventBus
    assert warnings_of(caplog) == []


def test_d16_unknown_keys_are_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = {"backend": "memory", "host": "h", "channel_prefix": "p", "queue_size": 5}
    before = dict(config)
    assert type(create_event_bus(config)) is InMemoryEventBus
    (text,) = warnings_of(caplog)
    named, _, valid = text.partition("valid")
    assert "'host'" in named
    assert "'channel_prefix'" in named
    assert "queue_size" not in named
    for key in ("delivery", "queue_size", "overflow"):
        assert key in valid
    assert config == before
    assert all(one.name.startswith("eventbus") for one in caplog.records)


def test_d16_values_of_unknown_keys_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    create_event_bus({"backend": "memory", "password": "hunter2-secret"})
    assert "hunter2-secret" not in caplog.text


@pytest.mark.parametrize("key", ["Memory", "MEMORY", " memory", "", 5, [], None, {}])
def test_d16_backend_is_case_sensitive(key: Any) -> None:
    with pytest.raises(ValueError, match="Unknown event bus backend"):
        create_event_bus({"backend": key})


async def test_d16_delivery_queued_queue_size_and_overflow_take_effect(eventually: Any) -> None:
    bus: Any = create_event_bus(
        {"backend": "memory", "delivery": "queued", "queue_size": 2, "overflow": "drop_newest"}
    )
    await bus.connect()
    seen: list[int] = []
    await bus.subscribe("t", lambda event: seen.append(event.payload["n"]))
    for number in range(5):
        await bus.publish("t", Event(EventType.CREATED, "t", {"n": number}))
    assert seen == []
    await eventually(lambda: len(seen) == 2)
    assert seen == [0, 1]
    assert bus.counters["dropped"] == 3
    await bus.close()


# D17


async def test_d17_connected_of_memory() -> None:
    bus = InMemoryEventBus()
    assert connected(bus) is False
    await bus.connect()
    assert connected(bus) is True
    await bus.close()
    assert connected(bus) is False


# D18


async def test_d18_create_event_bus_async_gives_the_same(caplog: pytest.LogCaptureFixture) -> None:
    assert type(await create_event_bus_async({"backend": "memory"})) is InMemoryEventBus
    assert warnings_of(caplog) == []
    assert type(await create_event_bus_async(None)) is InMemoryEventBus
    assert len(warnings_of(caplog)) == 1
    with pytest.raises(ValueError, match="Unknown event bus backend: nope"):
        await create_event_bus_async({"backend": "nope"})


async def test_d18_an_asynchronous_factory_is_awaited(backend: str) -> None:
    class Slow(UserBus):
        @classmethod
        def from_config(cls, config: Any) -> "Slow":
            raise AssertionError("the asynchronous form comes first")

        @classmethod
        async def from_config_async(cls, config: Any) -> "Slow":
            await asyncio.sleep(0)
            return cls(config)

    event_bus_backends.register(backend, Slow)
    config = {"backend": backend, "x": 1}
    bus: Any = await create_event_bus_async(config)
    assert type(bus) is Slow
    assert bus.config == config


async def test_d18_a_failing_asynchronous_factory_is_an_operation_error(backend: str) -> None:
    class Broken(UserBus):
        @classmethod
        async def from_config_async(cls, config: Any) -> "Broken":
            await asyncio.sleep(0)
            raise ValueError("later")

    event_bus_backends.register(backend, Broken)
    with pytest.raises(OperationError) as caught:
        await create_event_bus_async({"backend": backend})
    assert str(caught.value) == "Failed to create plugin 'mine' (ValueError): later"
    assert isinstance(caught.value, ValueError)


async def test_d18_a_plain_factory_serves_the_asynchronous_form(backend: str) -> None:
    event_bus_backends.register(backend, UserBus)
    assert type(await create_event_bus_async({"backend": backend})) is UserBus


# D19


def test_d19_config_classes_are_frozen_dataclasses() -> None:
    assert issubclass(MemoryEventBusConfig, EventBusConfig)
    for class_ in (EventBusConfig, MemoryEventBusConfig):
        assert dataclasses.is_dataclass(class_)
        assert dataclasses.fields(class_) == ()
        assert class_() == class_()
        with pytest.raises(dataclasses.FrozenInstanceError):
            class_().anything = 1  # type: ignore[attr-defined]
    assert repr(MemoryEventBusConfig()) == "MemoryEventBusConfig()"


def test_d19_from_dict_ignores_unknown_keys() -> None:
    for data in ({}, {"backend": "memory", "nope": 1}, MappingProxyType({"x": 1})):
        found = MemoryEventBusConfig.from_dict(data)
        assert type(found) is MemoryEventBusConfig
        assert type(EventBusConfig.from_dict(data)) is EventBusConfig


def test_d19_from_dict_of_a_users_config_class() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(EventBusConfig):
        host: str = "localhost"

    assert Mine.from_dict({"host": "h", "port": 5}) == Mine("h")


# D20


async def test_d20_from_config() -> None:
    for config in ({}, {"backend": "memory"}, MemoryEventBusConfig()):
        assert type(InMemoryEventBus.from_config(config)) is InMemoryEventBus
        assert type(await InMemoryEventBus.from_config_async(config)) is InMemoryEventBus


def test_d20_from_config_makes_a_subclass() -> None:
    class Mine(InMemoryEventBus):
        pass

    assert type(Mine.from_config({})) is Mine


def test_d20_config_property() -> None:
    config = MemoryEventBusConfig()
    assert InMemoryEventBus(config).config is config
    assert InMemoryEventBus.from_config({}).config == config
    assert InMemoryEventBus().config == config
    with pytest.raises(AttributeError):
        InMemoryEventBus().config = config  # type: ignore[misc]


async def test_d20_keywords_win_over_a_mapping() -> None:
    bus = InMemoryEventBus(config={"delivery": "inline", "queue_size": 5}, delivery="queued")
    seen: list[Event] = []
    await bus.subscribe("t", seen.append)
    await bus.publish("t", Event(EventType.CREATED, "t"))
    assert seen == []
    await bus.close()


def test_d20_a_config_object_may_not_be_mixed_with_keywords() -> None:
    with pytest.raises(TypeError) as caught:
        InMemoryEventBus(config=MemoryEventBusConfig(), host="h")
    assert str(caught.value) == (
        "InMemoryEventBus: cannot mix typed `config=MemoryEventBusConfig` "
        "with loose kwargs (['host'])."
    )


def test_d20_an_unknown_keyword_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    bus = InMemoryEventBus(hist_size=5)
    assert isinstance(bus, InMemoryEventBus)
    (text,) = warnings_of(caplog)
    assert "'hist_size'" in text


# D21


def test_d21_keys() -> None:
    assert event_bus_backends.is_registered("memory")
    assert not event_bus_backends.is_registered("sqs")
    assert "sqs" not in event_bus_backends.list_keys()
    assert event_bus_backends.list_keys()[0] == "memory"


def test_d21_register_list_unregister(backend: str) -> None:
    before = event_bus_backends.list_keys()
    event_bus_backends.register(backend, UserBus, metadata={"description": "mine"})
    assert event_bus_backends.is_registered(backend)
    assert event_bus_backends.list_keys() == [*before, backend]
    event_bus_backends.unregister(backend)
    assert event_bus_backends.list_keys() == before


def test_d21_registering_again_needs_override(backend: str) -> None:
    event_bus_backends.register(backend, UserBus)
    with pytest.raises(OperationError) as caught:
        event_bus_backends.register(backend, UserBus)
    assert str(caught.value) == (
        "Plugin 'mine' already registered in event_bus_backends. Use override=True to replace."
    )
    event_bus_backends.register(backend, InMemoryEventBus, override=True)
    assert type(event_bus_backends.create(backend)) is InMemoryEventBus
    event_bus_backends.register(backend, UserBus, True)
    assert type(event_bus_backends.create(backend)) is UserBus
    event_bus_backends.register(backend, InMemoryEventBus, allow_overwrite=True)
    with pytest.raises(OperationError):
        event_bus_backends.register(backend, UserBus, allow_overwrite=False)


def test_d21_memory_is_protected_like_any_other_key() -> None:
    with pytest.raises(OperationError) as caught:
        event_bus_backends.register("memory", UserBus)
    assert str(caught.value) == (
        "Plugin 'memory' already registered in event_bus_backends. Use override=True to replace."
    )


def test_d21_factories_are_functions_classes_and_classes_with_from_config(backend: str) -> None:
    seen: list[Any] = []

    def function(config: Any) -> UserBus:
        seen.append(config)
        return UserBus()

    class WithFromConfig(UserBus):
        def __init__(self) -> None:
            super().__init__("from_config")

        @classmethod
        def from_config(cls, config: Mapping[str, Any]) -> "WithFromConfig":
            seen.append(config)
            return cls()

    config = {"backend": backend, "x": 1}
    for factory in (function, UserBus, WithFromConfig):
        event_bus_backends.register(backend, factory, override=True)
        assert isinstance(create_event_bus(config), UserBus)
        assert isinstance(event_bus_backends.create(config=config), UserBus)
        assert isinstance(event_bus_backends.create(backend, config), UserBus)
    assert seen == [config] * 6


async def test_d21_create_async(backend: str) -> None:
    event_bus_backends.register(backend, UserBus)
    assert type(await event_bus_backends.create_async(backend, {})) is UserBus
    found = await event_bus_backends.create_async(config={"backend": backend})
    assert type(found) is UserBus
    assert type(await event_bus_backends.create_async("memory")) is InMemoryEventBus


@pytest.mark.parametrize("result", [5, None, Incomplete()])
async def test_d21_a_factory_must_return_a_bus(backend: str, result: Any) -> None:
    event_bus_backends.register(backend, lambda config: result)
    text = f"Factory for plugin 'mine' must return a EventBus instance, got {type(result).__name__}"
    with pytest.raises(OperationError) as caught:
        event_bus_backends.create(backend)
    assert str(caught.value) == text
    with pytest.raises(OperationError) as caught:
        await event_bus_backends.create_async(backend)
    assert str(caught.value) == text
    with pytest.raises(OperationError) as caught:
        create_event_bus({"backend": backend})
    assert str(caught.value) == text


async def test_d21_unknown_plugin() -> None:
    for make in (
        lambda: event_bus_backends.create("zz"),
        lambda: event_bus_backends.unregister("zz"),
    ):
        with pytest.raises(NotFoundError) as caught:
            make()
        assert str(caught.value) == "Plugin not found: zz"
    with pytest.raises(NotFoundError):
        await event_bus_backends.create_async("zz")


@pytest.mark.parametrize("bad", [5, None, "text"])
def test_d21_a_factory_must_be_callable(bad: Any) -> None:
    with pytest.raises(TypeError) as caught:
        event_bus_backends.register("zz", bad)
    assert str(caught.value) == f"Factory must be a class or callable, got {type(bad).__name__}"
    assert not event_bus_backends.is_registered("zz")


# D56, the rows that concern memory, the factory and the arguments


def unknown(backend: object) -> str:
    available = ", ".join(sorted(event_bus_backends.list_keys()))
    return f"Unknown event bus backend: {backend}. Available backends: {available}"


def test_d56_unknown_backend(backend: str) -> None:
    event_bus_backends.register(backend, UserBus)
    event_bus_backends.register("aaa", UserBus)
    try:
        for bad in ("nope", None):
            with pytest.raises(eventbus.ConfigError) as caught:
                create_event_bus({"backend": bad})
            assert isinstance(caught.value, ValueError)
            assert str(caught.value) == unknown(bad)
            assert "aaa, memory, mine" in str(caught.value)
            assert "sqs" not in str(caught.value)
    finally:
        event_bus_backends.unregister("aaa")


@pytest.mark.parametrize(
    ("error", "is_value_error"),
    [(ValueError("bad port"), True), (UnicodeError("x"), True), (OSError("x"), False)],
)
def test_d56_a_failing_factory(backend: str, error: Exception, is_value_error: bool) -> None:
    def broken(config: Any) -> Any:
        raise error

    event_bus_backends.register(backend, broken)
    with pytest.raises(OperationError) as caught:
        create_event_bus({"backend": backend})
    found = caught.value
    assert str(found) == f"Failed to create plugin 'mine' ({type(error).__name__}): {error}"
    assert found.context == found.details == {"key": "mine", "registry": "event_bus_backends"}
    assert found.__cause__ is error
    assert isinstance(found, ValueError) is is_value_error


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("delivery", "immediate"),
        ("overflow", "drop_all"),
        ("queue_size", 0),
        ("queue_size", "many"),
        ("queue_size", True),
    ],
)
def test_d56_a_bad_value_names_key_value_and_the_valid_ones(key: str, value: Any) -> None:
    with pytest.raises(eventbus.ConfigError) as caught:
        InMemoryEventBus(**{key: value})
    assert isinstance(caught.value, ValueError)
    assert f"{key}={value!r}" in str(caught.value)
    if key == "delivery":
        assert "inline" in str(caught.value)
        assert "queued" in str(caught.value)
    with pytest.raises(ValueError, match=key) as through_factory:
        create_event_bus({"backend": "memory", key: value})
    assert isinstance(through_factory.value, OperationError)
    assert str(through_factory.value) == (
        f"Failed to create plugin 'memory' (ConfigError): {caught.value}"
    )


@pytest.mark.parametrize("bad", [None, 5, "print", object()])
async def test_d56_handler_not_callable(bus: InMemoryEventBus, bad: Any) -> None:
    with pytest.raises(TypeError) as caught:
        await bus.subscribe("t", bad)
    assert repr(bad) in str(caught.value)
    assert bus.subscription_count == 0


@pytest.mark.parametrize("bad", [None, 5, b"t", ["t"]])
async def test_d56_topic_or_pattern_not_text(bus: InMemoryEventBus, bad: Any) -> None:
    with pytest.raises(TypeError) as caught:
        await bus.subscribe(bad, print)
    assert repr(bad) in str(caught.value)
    if bad is not None:
        with pytest.raises(TypeError) as caught:
            await bus.subscribe("t", print, bad)
        assert repr(bad) in str(caught.value)
    with pytest.raises(TypeError) as caught:
        await bus.publish(bad, Event(EventType.CREATED, "t"))
    assert type(bad).__name__ in str(caught.value)
    assert bus.subscription_count == 0


def test_d56_config_misuse() -> None:
    @dataclasses.dataclass(frozen=True)
    class OtherConfig(EventBusConfig):
        pass

    for bad in (OtherConfig(), 5, "memory", ["memory"]):
        text = f"`config` must be MemoryEventBusConfig or Mapping, got {type(bad).__name__}."
        with pytest.raises(TypeError) as caught:
            InMemoryEventBus.from_config(bad)
        assert str(caught.value) == f"InMemoryEventBus.from_config: {text}"
        with pytest.raises(TypeError) as caught:
            InMemoryEventBus(bad)
        assert text in str(caught.value)


def test_d56_one_tree() -> None:
    for class_ in (OperationError, ConfigurationError, NotFoundError, eventbus.ConfigError):
        assert issubclass(class_, eventbus.EventBusError)
        assert issubclass(class_, DataknobsError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(eventbus.BusClosedError, eventbus.NotConnectedError)
    assert issubclass(eventbus.NotConnectedError, RuntimeError)


async def test_d56_topic_that_utf8_cannot_encode(bus: InMemoryEventBus) -> None:
    with pytest.raises(eventbus.TopicError, match="position 1") as caught:
        await bus.publish("a\ud800", Event(EventType.CREATED, "t"))
    assert isinstance(caught.value, ValueError)
    with pytest.raises(eventbus.TopicError, match="position 0"):
        await bus.subscribe("\udfff", print)
    assert bus.subscription_count == 0


# D57


def test_d57_no_import_error_for_a_missing_driver() -> None:
    for backend in ("redis", "postgres"):
        if not event_bus_backends.is_registered(backend):
            with pytest.raises(ValueError, match=f"Unknown event bus backend: {backend}"):
                create_event_bus({"backend": backend})
