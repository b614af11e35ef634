"""Typed payloads: what is published as an object, and what a handler's annotation gets."""

from __future__ import annotations

import datetime as dt
import enum
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from conformance.support import WITHIN
from eventbus import Bus, DeadLetter, EncodeError, Event, EventType, connect
from eventbus.compat.dataknobs import InMemoryEventBus, create_event_bus
from eventbus.payloads import converter, plain
from eventbus.testing import eventually


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Item:
    name: str
    price: Decimal = Decimal(0)
    color: Color = Color.RED


@dataclass
class Order:
    number: int
    items: list[Item] = field(default_factory=list)
    by_name: dict[str, Item] = field(default_factory=dict)
    first: Item | None = None
    at: dt.datetime | None = None
    id: uuid.UUID | None = None
    raw: bytes = b""
    marks: set[int] = field(default_factory=set)
    pair: tuple[int, str] = (0, "")
    point: Point = Point(0)  # noqa: RUF009 - a tuple
    size: Size = Size.SMALL


class Note(TypedDict):
    text: str
    by: NotRequired[str]


class Packed(msgspec.Struct, rename="camel", tag="packed"):
    unit_price: Decimal
    item: Item | None = None
    left_out: int | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    a: int


class Model(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")
    tags: list[str] = []


class ClosedModel(pydantic.BaseModel, extra="forbid"):
    a: int


@dataclass
class WithModel:
    model: Model
    models: list[Model] = field(default_factory=list)


@pydantic.dataclasses.dataclass
class Checked:
    a: int = pydantic.Field(gt=0)


EVENT = EventType.CUSTOM
NOW = dt.datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
ID = uuid.UUID(int=5)
ITEM = Item("a", Decimal("1.50"), Color.BLUE)
FULL = Order(
    1, [ITEM, Item("b")], {"a": ITEM}, ITEM, NOW, ID, b"\x00", {1, 2}, (3, "c"), Point(1, 2)
)

OBJECTS = [
    FULL,
    Packed(Decimal("2.5"), ITEM),
    Row(1, "x"),
    Closed(1),
    Model(userId=5, tags=["a"]),
    WithModel(Model(userId=1), [Model(userId=2)]),
    Checked(a=3),
    Point(1, 2),
    Color.BLUE,
    Size.SMALL,
]


def taking(wanted: Any) -> tuple[Any, list[Any]]:
    """Return a handler annotated with a type, and the list of what it was given."""
    seen: list[Any] = []

    def handler(value: Any) -> None:
        seen.append(value)

    handler.__annotations__["value"] = wanted
    return handler, seen


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
async def test_what_is_published_as_an_object_arrives_as_one(
    bus: Bus, topic: str, group: str, value: Any
) -> None:
    kind: Any = type(value)
    subscriber, seen = taking(kind)
    consumer, handled = taking(kind)
    lists, nested = taking(list[kind])
    batch, batched = taking(list[kind])
    await bus.subscribe(topic, subscriber)
    await bus.consume(topic, consumer, group=group)
    await bus.consume(topic, batch, group=f"{group}:batch", batch=10)
    await bus.subscribe(f"{topic}:list", lists)
    await bus.publish(topic, value)
    await bus.publish(f"{topic}:list", [value, value])
    await eventually(lambda: (len(seen), len(handled), len(batched)) == (1, 1, 1), WITHIN)
    await eventually(lambda: len(nested) == 1, WITHIN)
    assert [*seen, *handled, *batched[0], *nested[0]] == [value] * 5
    assert {type(one) for one in [*seen, *handled, *batched[0], *nested[0]]} == {kind}


async def test_every_way_to_publish_takes_objects(bus: Bus, topic: str, group: str) -> None:
    consumer, handled = taking(Order)
    await bus.consume(topic, consumer, group=group)
    await bus.publish(topic, FULL, key="k")
    await bus.publish_many([(topic, FULL), (topic, Event(topic=topic, payload=FULL, type=EVENT))])
    bus.publish_nowait(topic, FULL)
    await bus.flush()
    async with bus.transaction() as tx:
        tx.publish(topic, FULL)
        tx.put(f"{topic}:record", {"orders": [FULL]})
    await eventually(lambda: len(handled) == 5, WITHIN)
    assert handled == [FULL] * 5
    record = await bus.read(f"{topic}:record")
    assert record is not None
    stored = record.value["orders"][0]
    assert stored["items"][0] == {"name": "a", "price": Decimal("1.50"), "color": "blue"}
    assert (stored["at"], stored["id"], stored["marks"]) == (NOW, ID, {1, 2})


FITTING: list[tuple[Any, Any, Any]] = [
    (Order, {"number": 1, "items": [{"name": "a", "new": 1}], "new": {}}, Order(1, [Item("a")])),
    (Order, {"number": 1, "first": None, "point": [5]}, Order(1, point=Point(5))),
    (Order | None, None, None),
    (Order | None, {"number": 1}, Order(1)),
    (list[Item], [{"name": "a"}], [Item("a")]),
    (Sequence[Item], [{"name": "a"}], [Item("a")]),
    (dict[str, Item], {"x": {"name": "a"}}, {"x": Item("a")}),
    (Mapping[str, int], {"x": 1}, {"x": 1}),
    (dict[int, tuple[Item, ...]], {1: [{"name": "a"}]}, {1: (Item("a"),)}),
    (Note, {"text": "a", "new": 1}, {"text": "a"}),
    (Point, (1, 2), Point(1, 2)),
    (Color, "red", Color.RED),
    (Literal["a", "b"], "a", "a"),
    (dt.datetime, NOW, NOW),
    (uuid.UUID, ID, ID),
    (Decimal, Decimal("1.5"), Decimal("1.5")),
    (set[int], {1, 2}, {1, 2}),
    (bytes, b"\x00", b"\x00"),
    (float, 1, 1.0),
    (dict, {"a": 1}, {"a": 1}),
    (Model, {"userId": "5", "new": 1}, Model(userId=5)),
    (list[Model] | None, [{"userId": 5}], [Model(userId=5)]),
    (WithModel, {"model": {"userId": 5}}, WithModel(Model(userId=5))),
    (Packed, {"type": "packed", "unitPrice": Decimal(1)}, Packed(Decimal(1))),
]


@pytest.mark.parametrize(("wanted", "payload", "value"), FITTING, ids=repr)
async def test_plain_data_is_converted_and_unknown_fields_are_ignored(
    bus: Bus, topic: str, group: str, wanted: Any, payload: Any, value: Any
) -> None:
    consumer, handled = taking(wanted)
    await bus.consume(topic, consumer, group=group)
    await bus.publish(topic, payload)
    await eventually(lambda: len(handled) == 1, WITHIN)
    assert handled == [value]
    assert type(handled[0]) is type(value)


MISFITS: list[tuple[Any, Any, str]] = [
    (Order, {"number": 1, "items": [{"name": 5}]}, r"Expected `str`, got `int` - at `\$.items"),
    (Closed, {"a": 1, "b": 2}, "unknown field `b`"),
    (ClosedModel, {"a": 1, "b": 2}, "(?s)b.*Extra inputs are not permitted"),
    (WithModel, {"model": {"userId": "x"}}, "valid integer"),
    (Checked, {"a": 0}, "greater than 0"),
    (Order | None, 5, "Expected `object | null`"),
    (list[Item], {"name": "a"}, "Expected `array`, got `object`"),
    (Color, "green", "Invalid enum value 'green'"),
    (Point, [], "array"),
    (set[int], ["a"], "Expected `int`, got `str`"),
]


@pytest.mark.parametrize(("wanted", "payload", "reason"), MISFITS, ids=repr)
async def test_what_does_not_fit_goes_to_the_dead_letters_with_the_reason(
    bus: Bus, topic: str, group: str, wanted: Any, payload: Any, reason: str
) -> None:
    consumer, handled = taking(wanted)
    await bus.consume(topic, consumer, group=group)
    await bus.publish(topic, payload)
    letters: list[DeadLetter] = []

    async def dead() -> bool:
        letters[:] = await bus.dead_letters(group).list()
        return bool(letters)

    await eventually(dead, WITHIN)
    assert letters[0].reason == "rejected"
    assert letters[0].error.startswith("payload does not fit ")
    assert re.search(reason, letters[0].error), letters[0].error
    assert handled == []


async def test_an_object_of_another_class_arrives_as_it_does_over_a_server(
    bus: Bus, topic: str
) -> None:
    @dataclass
    class Named:
        name: str

    class NamedModel(pydantic.BaseModel):
        name: str

    class NamedStruct(msgspec.Struct):
        name: str

    kinds: list[Any] = [Named, NamedModel, NamedStruct, dict[str, Any], dict, Note | Named]
    handlers = [taking(kind) for kind in kinds[:5]]
    for handler, _ in handlers:
        await bus.subscribe(topic, handler)
    await bus.publish(topic, ITEM)
    await eventually(lambda: all(seen for _, seen in handlers), WITHIN)
    plainly = {"name": "a", "price": Decimal("1.50"), "color": "blue"}
    given = [seen[0] for _, seen in handlers]
    assert given == [Named("a"), NamedModel(name="a"), NamedStruct("a"), plainly, plainly]


async def test_inline_subscribers_get_the_very_object() -> None:
    async with connect("memory://") as bus:
        typed, seen = taking(Order)
        events: list[Event] = []
        await bus.subscribe("t", typed)
        await bus.subscribe("t", events.append)
        await bus.publish("t", FULL)
        assert seen[0] is FULL
        assert events[0].payload is FULL


class Slots:
    def __init__(self) -> None:
        self.a = 1


@dataclass
class Holder:
    value: Any


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Holder(Slots()), "Slots cannot be encoded.*at .*value"),
        ([{"a": Holder([Slots()])}], r"Slots cannot be encoded.*at .*\[0\].*a.*value.*\[0\]"),
        (Slots(), "dataclass"),
        (Holder(Holder), "type cannot be encoded"),
        (Holder(Event(None, "t")), "Event cannot be encoded"),  # type: ignore[arg-type]
    ],
)
async def test_what_no_object_of_data_is_is_refused_with_the_path(
    bus: Bus, topic: str, group: str, value: Any, said: str
) -> None:
    await bus.declare_group(group, topic)
    with pytest.raises(EncodeError, match=said):
        await bus.publish(topic, value)


async def test_an_object_that_holds_itself_is_refused(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    circle = Holder([])
    circle.value.append({"a": circle})
    with pytest.raises(EncodeError, match="Circular reference"):
        await bus.publish(topic, circle)
    # The same object twice is no circle.
    await bus.publish(topic, [Holder(1), ITEM, ITEM])


async def test_an_annotation_that_cannot_be_converted_to_is_refused_at_once(
    bus: Bus, topic: str, group: str
) -> None:
    handler, _ = taking(Item | Order)
    for verb in (
        lambda: bus.subscribe(topic, handler),
        lambda: bus.consume(topic, handler, group=group),
    ):
        with pytest.raises(TypeError, match="more than one dataclass"):
            await verb()
    assert all(one["group"] != group for one in (await bus.inspect())["groups"])


async def test_handlers_of_the_dataknobs_buses_always_get_the_event() -> None:
    for bus in (InMemoryEventBus(), create_event_bus({"backend": "memory"})):
        await bus.connect()
        handler, seen = taking(Item)
        await bus.subscribe("t", handler)
        await bus.publish("t", Event(EVENT, "t", {"name": "a"}))
        assert isinstance(seen[0], Event)
        await bus.close()


def test_a_type_is_taken_apart_once() -> None:
    first, second = converter(taking(list[Item])[0]), converter(taking(list[Item])[0])
    assert first is second
    assert first is not None


def test_what_is_not_an_object_of_data_is_left_alone() -> None:
    for value in (object(), Item, Slots(), Event(EVENT, "t")):
        assert plain(value) is NotImplemented
