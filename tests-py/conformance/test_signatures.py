"""Signatures: a handler that could not be called is refused before the first event."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from conformance.support import WITHIN, figures_become
from eventbus import Bus, Delivery, Event, EventType, Registry
from eventbus.errors import ConfigError, InvalidArgumentError
from eventbus.registering import CONSUMING, SUBSCRIBING
from eventbus.testing import eventually

if TYPE_CHECKING:
    from eventbus import Delivery as Attempt


async def async_generator(event: Event) -> AsyncIterator[Event]:
    yield event


def generator(event: Event) -> Iterator[Event]:
    yield event


class Generating:
    async def __call__(self, event: Event) -> AsyncIterator[Event]:
        yield event

    def method(self, event: Event) -> Iterator[Event]:
        yield event


GENERATORS: list[Any] = [
    async_generator,
    generator,
    Generating(),
    Generating().method,
    functools.partial(async_generator),
    lambda event: (yield event),
]


def nothing() -> None: ...


async def two(event: Event, other: int) -> None: ...


def keyword(event: Event, *, database: object) -> None: ...


class Needing:
    def __init__(self, one: int, two: int) -> None: ...

    def method(self) -> None: ...

    async def __call__(self, event: Event, other: int) -> None: ...


UNCALLABLE: list[Any] = [
    nothing,
    two,
    keyword,
    Needing,
    Needing(1, 2),
    Needing(1, 2).method,
    functools.partial(two, 1, 2),
    lambda: None,
]


class Fitting:
    def __init__(self, event: Event) -> None:
        seen.append(event)

    @classmethod
    def on_class(cls, event: Event) -> None:
        seen.append(event)

    @staticmethod
    def on_static(event: Event) -> None:
        seen.append(event)

    def __call__(self, event: Event, *, times: int = 1) -> None:
        seen.append(event)


seen: list[object] = []


def optional(event: Event, other: int = 0, *rest: int, **more: int) -> None:
    seen.append(event)


async def of_many(*events: Event) -> None:
    seen.append(events[0])


FITTING: list[Any] = [
    seen.append,
    Fitting,
    Fitting(Event(EventType.CUSTOM, "t")),
    Fitting.on_class,
    Fitting.on_static,
    functools.partial(optional, rest=1),
    functools.singledispatch(optional),
    optional,
    of_many,
    Mock(side_effect=seen.append),
    MagicMock(side_effect=seen.append),
    AsyncMock(side_effect=seen.append),
]


def named(handler: Any) -> str:
    return getattr(handler, "__qualname__", type(handler).__name__)


@pytest.mark.parametrize("handler", GENERATORS, ids=named)
async def test_a_generator_function_is_refused_everywhere(
    bus: Bus, topic: str, group: str, handler: Callable[..., Any]
) -> None:
    text = (
        r"is an? (async )?generator function: its call would run nothing; expected handler\(event"
    )
    with pytest.raises(TypeError, match=text):
        await bus.subscribe(topic, handler)
    with pytest.raises(TypeError, match=text):
        await bus.consume(topic, handler, group=group)
    with pytest.raises(TypeError, match="generator function"):
        await bus.consume(topic, handler, group=group, batch=5)
    with pytest.raises(TypeError, match=text):
        Registry().event_handler(topic)(handler)
    for calls in ("event", "payload", "topic_args"):
        with pytest.raises(TypeError, match="generator function"):
            Registry().event_handler(topic, group=group, calls=calls)(handler)
    # Nothing was declared for it.
    assert group not in [one["group"] for one in (await bus.inspect())["groups"]]
    assert bus.subscription_count == 0


@pytest.mark.parametrize("handler", UNCALLABLE, ids=named)
async def test_a_handler_that_needs_other_arguments_is_refused_with_both_signatures(
    bus: Bus, topic: str, group: str, handler: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError) as refused:
        await bus.subscribe(topic, handler)
    assert "cannot be called as handler(event): " in str(refused.value)
    assert str(inspect.signature(handler)) in str(refused.value)
    with pytest.raises(TypeError, match=r"cannot be called as handler\(event\), or handler\(event"):
        await bus.consume(topic, handler, group=group)
    with pytest.raises(TypeError, match=r"cannot be called as handler\(events\) with a list"):
        await bus.consume(topic, handler, group=group, batch=5)
    with pytest.raises(TypeError, match="cannot be called as"):
        Registry().event_handler(topic)(handler)
    with pytest.raises(TypeError, match="cannot be called as"):
        Registry().event_handler(topic, calls="payload")(handler)
    assert group not in [one["group"] for one in (await bus.inspect())["groups"]]
    assert bus.subscription_count == 0


@pytest.mark.parametrize("handler", FITTING, ids=named)
async def test_whatever_can_be_called_with_an_event_is_a_handler(
    bus: Bus, topic: str, group: str, handler: Callable[..., Any]
) -> None:
    seen.clear()
    Registry().event_handler(topic, group=group)(handler)
    await bus.subscribe(topic, handler)
    await bus.consume(topic, handler, group=group)
    await bus.publish(topic, 1)
    await eventually(lambda: len(seen) == 2, timeout=WITHIN)
    await figures_become(bus, group, acked=1)


def wants_nothing() -> None: ...


@pytest.mark.parametrize("on_gap", [wants_nothing, generator, async_generator])
async def test_a_gap_callback_is_checked_as_a_handler_is(
    bus: Bus, topic: str, on_gap: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match=r"on_gap\(gap\)"):
        await bus.subscribe(topic, seen.append, on_gap=on_gap)
    with pytest.raises(TypeError, match=r"on_gap\(gap\)"):
        bus.stream(topic, on_gap=on_gap)
    with pytest.raises(TypeError, match=r"on_gap\(gap\)"):
        Registry().event_handler(topic, on_gap=on_gap)
    assert bus.subscription_count == 0


async def test_a_subscriber_cannot_ask_for_a_delivery(bus: Bus, topic: str, group: str) -> None:
    def handle(event: Event, delivery: Delivery) -> None:
        seen.append(delivery.attempt)

    with pytest.raises(TypeError, match=r"handler\(event\): .*missing .*'delivery'"):
        await bus.subscribe(topic, handle)
    seen.clear()
    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, 1)
    await eventually(lambda: seen == [1], timeout=WITHIN)


async def test_a_delivery_is_given_by_position_when_it_has_no_name(
    bus: Bus, topic: str, group: str
) -> None:
    def handle(event: Event, delivery: Delivery, /) -> None:
        seen.append((event.payload, delivery.attempt))

    seen.clear()
    await bus.consume(topic, handle, group=group)
    await bus.publish(topic, "x")
    await eventually(lambda: seen == [("x", 1)], timeout=WITHIN)


async def test_a_delivery_behind_an_annotation_that_cannot_be_read_says_so(
    bus: Bus, topic: str, group: str
) -> None:
    def handle(event: Event, delivery: Attempt) -> None: ...

    text = "annotations cannot be read: name 'Attempt' is not defined"
    with pytest.raises(TypeError, match=text):
        await bus.consume(topic, handle, group=group)


async def test_methods_of_a_class_body_are_checked_without_their_instance(topic: str) -> None:
    registry = Registry()

    class Service:
        @registry.event_handler(topic)
        async def fits(self, event: Event) -> None: ...

        @staticmethod
        @registry.event_handler(topic)
        def static(event: Event) -> None: ...

        @registry.event_handler(topic, group="g")
        @classmethod
        def of_class(cls, event: Event, delivery: Delivery) -> None: ...

    assert len(registry.registrations) == 3
    with pytest.raises(TypeError, match=r"refused\(.*\).* cannot be called as handler\(event\): "):

        class Refused:
            @registry.event_handler(topic)
            def refused(self, event: Event, other: int) -> None: ...


async def test_a_bound_method_in_a_registry_keeps_its_instance(bus: Bus, topic: str) -> None:
    class Service:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def on_event(self, event: Event) -> None:
            self.seen.append(event.payload)

    registry, service = Registry(), Service()
    registry.event_handler(topic)(service.on_event)
    await bus.include(registry)
    await bus.publish(topic, 1)
    await eventually(lambda: service.seen == [1], timeout=WITHIN)


def test_the_options_of_a_decorator_are_those_of_consume_and_subscribe() -> None:
    def keywords(method: Callable[..., Any]) -> set[str]:
        return set(inspect.signature(method).parameters)

    assert set(CONSUMING) == keywords(Bus.consume) - {
        "self",
        "topic",
        "handler",
        "pattern",
        "group",
    }
    assert set(SUBSCRIBING) == keywords(Bus.subscribe) - {"self", "topic", "handler", "pattern"}


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"group": "g", "concurency": 4}, TypeError, "'concurency'; did you mean 'concurrency'?"),
        ({"patern": "a:*"}, TypeError, "'patern'; did you mean 'pattern'?"),
        ({"over_flow": "close"}, TypeError, "did you mean 'overflow'?"),
        ({"xyz": 1}, TypeError, "valid without a group: on_gap, delivery"),
        ({"concurrency": 4}, TypeError, "'concurrency' is for a handler that consumes"),
        (
            {"group": "g", "since": "beginning"},
            TypeError,
            "'since' is for a handler that subscribes",
        ),
        ({"group": "g", "concurrency": 0}, ConfigError, "concurrency=0 must be an int from 1"),
        ({"group": "g", "timeout": "1"}, TypeError, "timeout must be seconds"),
        ({"group": "g", "run_in": "process"}, ConfigError, "run_in='process' must be"),
        ({"group": 5}, ConfigError, "group=5 must be a str"),
        ({"queue_size": 0}, InvalidArgumentError, "queue_size=0 must be an int of at least 1"),
        ({"delivery": "fast"}, InvalidArgumentError, "delivery='fast' must be one of"),
        ({"overflow": "burst"}, InvalidArgumentError, "overflow='burst' must be one of"),
        ({"on_gap": 1}, TypeError, "on_gap must be callable"),
        ({"pattern": 1}, TypeError, "pattern as str, not int"),
    ],
)
def test_an_option_that_is_misspelled_or_out_of_range_is_refused_at_the_decorator(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as refused:
        Registry().event_handler("topic", **options)
    assert text in str(refused.value)


def test_options_that_do_not_go_with_the_handler_are_refused_where_it_is_decorated() -> None:
    def plain(event: Event) -> None: ...

    async def coroutine(event: Event) -> None: ...

    decorate = Registry().event_handler("t", group="g", timeout=1.0)
    assert decorate(coroutine) is coroutine
    with pytest.raises(ConfigError, match=r"timeout=1 cannot end .*plain.*run_in='thread'"):
        decorate(plain)
    for calls in ("event", "payload", "topic_args"):
        decorate = Registry().event_handler("t", group="g", calls=calls, run_in="thread")
        assert decorate(plain) is plain
        with pytest.raises(ConfigError, match="run_in='thread' is for plain functions"):
            decorate(coroutine)


@pytest.mark.parametrize("calls", ["payload", "topic_args"])
async def test_a_calling_convention_keeps_what_its_handler_is(
    bus: Bus, topic: str, group: str, calls: str
) -> None:
    async def handle(*args: object) -> None:
        seen.append(args)

    registry = Registry()
    registry.event_handler(topic, group=group, calls=calls, timeout=WITHIN)(handle)
    registry.event_handler(topic, group=group + ":t", calls=calls, run_in="thread")(
        lambda *args: seen.append(args)
    )
    seen.clear()
    await bus.include(registry)
    await bus.publish(topic, {"args": [1]})
    await eventually(lambda: len(seen) == 2, timeout=WITHIN)
