"""Decorated handlers, registries, calling conventions and typed payloads."""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import dataclass, field
from typing import Any, ClassVar, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from eventbus import Bus, Delivery, Event, Registry, connect, event_handler
from eventbus.dispatch import calling_conventions, default_registry
from eventbus.errors import InvalidArgumentError
from eventbus.payloads import converter, parameters
from eventbus.testing import Recorder, eventually


@dataclass
class Order:
    number: int
    price: float = 0.0
    tags: list[str] = field(default_factory=list)


class Parcel(TypedDict):
    weight: int
    note: NotRequired[str]


class Packed(msgspec.Struct):
    number: int
    name: str = "none"


class Model(pydantic.BaseModel):
    number: int
    name: str = "none"


# Registration


def test_the_decorator_returns_the_function_unchanged() -> None:
    registry = Registry()

    def handler(_event: Event) -> None: ...

    assert registry.event_handler("a", "b", pattern="c*", group="g", lease=5.0)(handler) is handler
    (one,) = registry.registrations
    assert one.handler is handler
    assert (one.topics, one.pattern, one.group, one.calls) == (("a", "b"), "c*", "g", "event")
    assert one.options == {"lease": 5.0}
    assert one.module == __name__
    with pytest.raises(AttributeError):
        one.group = "other"  # type: ignore[misc]


def test_the_top_level_decorator_uses_the_default_registry() -> None:
    before = len(default_registry.registrations)

    @event_handler("a")
    def handler(_event: Event) -> None: ...

    assert default_registry.registrations[before].handler is handler
    del default_registry.registrations[before:]


def test_registering_starts_nothing_and_imports_no_loop() -> None:
    registry = Registry()
    registry.event_handler("a", group="g")(print)
    assert len(registry.registrations) == 1


def test_one_handler_can_be_registered_twice() -> None:
    registry = Registry()

    @registry.event_handler("a")
    @registry.event_handler("b", group="g")
    def handler(_event: Event) -> None: ...

    assert [one.topics for one in registry.registrations] == [("b",), ("a",)]


async def test_a_module_is_started_as_it_was_imported() -> None:
    source = """
from eventbus import event_handler
seen = []

@event_handler("made")
async def made(event):
    seen.append(("made", event.payload))

@event_handler(pattern="ma*", group="workers")
def queued(event):
    seen.append(("queued", event.payload))

class Service:
    @event_handler("made")
    def method(self, event):
        raise AssertionError("not of the module")
"""
    module = types.ModuleType("handlers_of_a_test")
    sys.modules[module.__name__] = module
    before = len(default_registry.registrations)
    try:
        exec(source, module.__dict__)
        async with connect("memory://") as bus:
            assert len(await bus.include(module)) == 2
            await bus.publish("made", 1)
            await bus.wait_idle()
            assert sorted(module.seen) == [("made", 1), ("queued", 1)]
    finally:
        del sys.modules[module.__name__]
        del default_registry.registrations[before:]


async def test_static_and_class_methods_and_overrides_of_an_instance() -> None:
    before = len(default_registry.registrations)

    class Base:
        calls: ClassVar[list[str]] = []

        @event_handler("t")
        def plain(self, event: Event) -> None:
            self.calls.append(f"plain {event.payload}")

        @event_handler("t")
        @staticmethod
        def static(event: Event) -> None:
            Base.calls.append(f"static {event.payload}")

        @event_handler("t")
        @classmethod
        def of_class(cls, event: Event) -> None:
            cls.calls.append(f"class {event.payload}")

    try:
        async with connect("memory://") as bus:
            assert len(await bus.include(Base())) == 3
            await bus.publish("t", 1)
            assert Base.calls == ["plain 1", "static 1", "class 1"]
    finally:
        del default_registry.registrations[before:]


# Calling conventions


async def test_conventions_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_arguments(handler: Any) -> Any:
        return lambda event: handler(event.payload, event.topic)

    monkeypatch.setitem(calling_conventions, "reversed", reversed_arguments)
    registry, calls = Registry(), list[Any]()
    registry.event_handler("a", calls="reversed")(lambda *args: calls.append(args))
    async with connect("memory://") as bus:
        await bus.include(registry)
        await bus.publish("a", 7)
    assert calls == [(7, "a")]


def test_an_unknown_convention_is_refused_where_it_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="topic_args"):
        event_handler("a", calls="shouted")


async def test_topic_and_arguments() -> None:
    registry, calls = Registry(), list[Any]()

    @registry.event_handler("a", group="g", calls="topic_args")
    async def handler(topic: str, *args: Any, **kwargs: Any) -> None:
        calls.append((topic, args, kwargs))

    async with connect("memory://") as bus:
        await bus.include(registry)
        await bus.publish("a", {"args": [1], "kwargs": {"k": 2}})
        await bus.publish("a", {})
        await bus.wait_idle()
    assert calls == [("a", (1,), {"k": 2}), ("a", (), {})]


# Typed payloads


def _taking(wanted: Any) -> tuple[Any, list[Any]]:
    """Return a handler annotated with a type, and the list of what it was given."""
    seen: list[Any] = []

    def handler(value: Any) -> None:
        seen.append(value)

    handler.__annotations__["value"] = wanted
    return handler, seen


FITTING = [
    (Order, {"number": 1, "price": 2}, Order(1, 2)),
    (Order, {"number": 1, "tags": ["a"]}, Order(1, tags=["a"])),
    (Order, {"number": 1, "color": 2}, Order(1)),
    (Parcel, {"weight": 3}, {"weight": 3}),
    (Parcel, {"weight": 3, "note": "x"}, {"weight": 3, "note": "x"}),
    (Packed, {"number": 1}, Packed(1)),
    (Model, {"number": "5", "name": "x"}, Model(number=5, name="x")),
]
MISFITS = [
    (Order, {"price": 1.0}, "missing required field `number`"),
    (Order, {"number": True}, "Expected `int`, got `bool` - at `$.number`"),
    (Order, [1], "Expected `object`, got `array`"),
    (Order, None, "Expected `object`, got `null`"),
    (Parcel, {"note": "x"}, "missing required field `weight`"),
    (Parcel, {"weight": "heavy"}, "Expected `int`, got `str` - at `$.weight`"),
    (Packed, {"number": "x"}, "number"),
    (Model, {"number": "x"}, "number"),
    (Model, 5, "Model"),
]


@pytest.mark.parametrize(("wanted", "payload", "value"), FITTING)
async def test_a_fitting_payload_is_converted(wanted: Any, payload: Any, value: Any) -> None:
    async with connect("memory://") as bus:
        subscriber, seen = _taking(wanted)
        consumer, handled = _taking(wanted)
        await bus.subscribe("t", subscriber)
        await bus.consume("t", consumer)
        await bus.publish("t", payload)
        await bus.wait_idle()
        assert seen == handled == [value]
        assert type(handled[0]) is type(value)


@pytest.mark.parametrize(("wanted", "payload", "reason"), MISFITS)
async def test_a_misfit_is_dead_lettered_with_the_reason(
    wanted: Any, payload: Any, reason: str
) -> None:
    async with connect("memory://") as bus:
        handler, seen = _taking(wanted)
        await bus.consume("t", handler, group="g", concurrency=1)
        await bus.publish("t", payload)
        await bus.wait_idle()
        (letter,) = await bus.dead_letters("g").list()
        assert letter.reason == "rejected"
        assert wanted.__name__ in letter.error
        assert reason in letter.error
        assert seen == []


async def test_a_misfit_of_a_subscriber_is_a_failure_of_its_own() -> None:
    async with connect("memory://") as bus:
        told: list[str] = []
        bus.on_handler_error = lambda _name, error: told.append(str(error.reason))
        handler, seen = _taking(Order)
        other = Recorder()
        await bus.subscribe("t", handler)
        await bus.subscribe("t", other)
        await bus.publish("t", {"number": "x"})
        await bus.publish("t", {"number": 1})
        assert seen == [Order(1)]
        assert len(other) == 2
        assert "got `str` - at `$.number`" in told[0]


async def test_a_batch_of_typed_payloads_rejects_only_the_misfits() -> None:
    batches: list[list[Order]] = []

    async def handler(orders: list[Order]) -> None:
        batches.append(orders)

    async with connect("memory://") as bus:
        await bus.declare_group("g", "t")
        await bus.publish_many([("t", {"number": n if n != 2 else "two"}) for n in range(4)])
        await bus.consume("t", handler, group="g", batch=10)
        await bus.wait_idle()
        assert batches == [[Order(0), Order(1), Order(3)]]
        (letter,) = await bus.dead_letters("g").list()
        assert "got `str` - at `$.number`" in letter.error
        # One whose payloads all misfit is not called at all, and the worker goes on.
        await bus.publish("t", {})
        await bus.publish("t", {"number": 9})
        await eventually(lambda: batches[-1][-1:] == [Order(9)])


async def test_a_typed_payload_and_its_delivery() -> None:
    found: list[Any] = []

    async def handler(order: Order, *, delivery: Delivery) -> None:
        found.append((order, delivery.attempt))

    async with connect("memory://") as bus:
        await bus.consume("t", handler)
        await bus.publish("t", {"number": 1})
        await bus.wait_idle()
    assert found == [(Order(1), 1)]


def test_the_event_itself_is_what_an_event_or_nothing_asks_for() -> None:
    def event(_event: Event) -> None: ...
    def bare(_event) -> None: ...  # type: ignore[no-untyped-def]
    def any_(_event: Any) -> None: ...
    def maybe(_event: Event | None) -> None: ...
    def several(_event: list[Event]) -> None: ...
    def plain_class(_event: Recorder) -> None: ...
    def unknown(_event: Missing) -> None: ...  # type: ignore[name-defined] # noqa: F821

    for handler in (
        event,
        bare,
        any_,
        maybe,
        several,
        plain_class,
        unknown,
        print,
        len,
        lambda: None,
    ):
        assert converter(handler) is None


def test_the_annotation_is_found_behind_partials_methods_and_objects() -> None:
    class Handler:
        def __call__(self, order: Order) -> None: ...
        def method(self, order: Order) -> None: ...

    def second(_first: int, order: Order) -> None: ...

    for handler in (Handler(), Handler().method, functools.partial(second, 1)):
        assert parameters(handler)[0] == ("order", Order)
        convert = converter(handler)
        assert convert is not None
        assert convert(_event({"number": 3})) == Order(3)


def _event(payload: Any) -> Event:
    from eventbus import EventType

    return Event(EventType.CUSTOM, "t", payload)


def test_a_bus_is_what_the_fixtures_think() -> None:
    assert isinstance(connect("memory://"), Bus)
