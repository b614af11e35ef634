"""Typed payloads: objects on their way out, and what a handler's annotation asks for."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

from eventbus import originals
from eventbus._eventbus import decode, encode
from eventbus.errors import EncodeError, PayloadTooLarge, Reject
from eventbus.types import Event

__all__ = ["Convert", "converter", "parameters", "plain"]

Convert = Callable[[Event], Any]

# The types of plain data, as annotations name them.
_DATA = frozenset[Any](
    [
        *(bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset),
        *(datetime.datetime, datetime.date, datetime.timedelta, uuid.UUID, decimal.Decimal),
        *(collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection),
        *(collections.abc.Set, collections.abc.MutableSet),
        *(collections.abc.Mapping, collections.abc.MutableMapping),
    ]
)
# A payload that only its own process has seen is as large as it likes.
_ANY_SIZE = {"max_bytes": 1 << 40, "max_depth": 512, "max_elements": 1 << 40}


def converter(handler: Callable[..., Any], *, of_list: bool = False) -> Convert | None:
    """Return what turns an event into the handler's first argument; ``None`` = the event itself.

    The annotation of the first parameter says what it wants: a dataclass, TypedDict, NamedTuple,
    enum, ``msgspec.Struct``, attrs class or pydantic model, plain data such as ``dict[str, int]``,
    and lists, dicts and unions of them. msgspec converts, pydantic what is its own. Fields that the
    type does not know are ignored unless it forbids them. A payload that does not fit raises
    ``Reject``. ``Event``, ``Any``, classes of other kinds and no annotation mean the event.

    Args:
        handler: The handler.
        of_list: It takes a list of them, annotated ``list[Order]`` or the like.

    Raises:
        TypeError: The annotation cannot be converted to, for instance a union of two dataclasses.
    """
    found = parameters(handler, with_extras=True)
    wanted = found[0][1] if found else None
    if of_list:
        wanted = next(iter(typing.get_args(wanted)), None)
    if not _is_data(wanted) or _names_event(wanted):
        return None
    try:
        return _conversion(wanted)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _conversion.__wrapped__(wanted)


def parameters(handler: Callable[..., Any], *, with_extras: bool = False) -> list[tuple[str, Any]]:
    """Return name and resolved annotation of a handler's parameters; empty when unknown."""
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and hasattr(type(function), "__call__"):  # noqa: B004 - its signature is wanted
        function = type(function).__call__
    try:
        hints = typing.get_type_hints(function, include_extras=with_extras)
        names = inspect.signature(handler).parameters
    except (NameError, TypeError, ValueError, AttributeError):
        return []
    return [(name, hints.get(name)) for name in names]


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return what a hint is made of: the members of a union, the type behind another name."""
    if isinstance(hint, typing.NewType):
        return (hint.__supertype__,)
    if typing.get_origin(hint) is typing.Annotated:
        return typing.get_args(hint)[:1]
    # A `type X = …` of Python 3.12.
    value = getattr(hint, "__value__", None)
    return typing.get_args(hint) if value is None or isinstance(hint, type) else (value,)


def _is_data(hint: Any) -> bool:
    """Whether a hint asks for a payload."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    if isinstance(hint, type) or isinstance(origin, type):
        kind: Any = hint if isinstance(hint, type) else origin
        if kind is types.UnionType:
            return any(_is_data(part) for part in _parts(hint))
        return kind in _DATA or _is_data_class(kind)
    return any(_is_data(part) for part in _parts(hint))


def _is_data_class(kind: type[Any]) -> bool:
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return True
    if any(hasattr(kind, mark) for mark in ("__struct_fields__", "__attrs_attrs__")):
        return True
    return hasattr(kind, "model_validate") or issubclass(kind, enum.Enum | tuple)


def _names_event(hint: Any) -> bool:
    """Whether the event itself may be wanted."""
    if isinstance(hint, type):
        return issubclass(hint, Event) or originals.is_event_class(hint)
    return any(_names_event(part) for part in _parts(hint))


@functools.lru_cache(maxsize=512)
def _conversion(wanted: Any) -> Convert:
    build = _builder(wanted)
    is_class = isinstance(wanted, type)
    own = is_class and _is_data_class(wanted) and not typing.is_typeddict(wanted)
    name = wanted.__qualname__ if is_class else str(wanted).replace("typing.", "")

    def convert(event: Event) -> Any:
        payload = event.payload
        if own and isinstance(payload, wanted):
            return payload
        try:
            return build(payload)
        except Exception as error:  # noqa: BLE001 - it becomes the reason
            problem = error
        try:
            # An object of another class arrives as it does over a server: as plain data.
            return build(decode(encode(payload, **_ANY_SIZE), **_ANY_SIZE))
        except (EncodeError, PayloadTooLarge):
            pass
        except Exception as error:  # noqa: BLE001 - it becomes the reason
            problem = error
        raise Reject(f"payload does not fit {name}: {problem}") from problem

    return convert


def _builder(wanted: Any) -> Callable[[Any], Any]:
    """Return what builds a value of a type from plain data.

    Raises:
        TypeError: It cannot be built.
    """
    if isinstance(wanted, type):
        validate: Callable[[Any], Any] | None = getattr(wanted, "model_validate", None)
        if validate is not None:
            return validate
        if hasattr(wanted, "__pydantic_validator__"):
            import pydantic

            return pydantic.TypeAdapter(wanted).validate_python
    # Not at the top: only a process with typed handlers pays for it.
    import msgspec

    build = functools.partial(msgspec.convert, type=wanted, dec_hook=_other_class)
    try:
        # Fits nothing, but the type is taken apart before that is seen.
        build(_NOTHING)
    except msgspec.ValidationError:
        pass
    except (TypeError, NameError) as error:
        raise TypeError(f"a payload cannot be converted to {wanted}: {error}") from error
    return build


class _Nothing:
    """What no type takes."""


_NOTHING = _Nothing()


def _other_class(kind: Any, value: object) -> Any:
    """Build a value of a class that msgspec does not know; called by msgspec."""
    if isinstance(kind, type):
        if isinstance(value, kind):
            return value
        validate: Callable[[Any], Any] | None = getattr(kind, "model_validate", None)
        if validate is not None:
            return validate(value)
    name = getattr(kind, "__name__", kind)
    raise TypeError(f"Expected `{name}`, got `{type(value).__name__}`")


def plain(value: Any) -> Any:
    """Return an object's value as data, one level of it; called by the encoder.

    An enum member becomes its value; a dataclass, attrs or ``msgspec.Struct`` object a dict of its
    fields as msgspec names them; a pydantic model what ``model_dump(by_alias=True)`` gives.

    Returns:
        The data, or ``NotImplemented`` for objects of other kinds.
    """
    kind: Any = value.__class__
    if isinstance(value, type | Event):
        return NotImplemented
    if isinstance(value, enum.Enum):
        return value.value
    if hasattr(kind, "__struct_fields__"):
        return _of_struct(value)
    if hasattr(kind, "model_dump"):
        return value.model_dump(by_alias=True)
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    return NotImplemented


def _of_struct(value: Any) -> dict[str, Any] | list[Any]:
    import msgspec

    config = value.__struct_config__
    values = [getattr(value, name) for name in value.__struct_fields__]
    if config.array_like:
        return values if config.tag is None else [config.tag, *values]
    found = {} if config.tag is None else {config.tag_field: config.tag}
    named = zip(value.__struct_encode_fields__, values, strict=True)
    return found | {name: one for name, one in named if one is not msgspec.UNSET}
