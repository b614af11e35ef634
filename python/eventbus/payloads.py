"""Typed payloads: what a handler's annotation asks for is what it gets."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, NotRequired, Required

from eventbus.errors import Reject
from eventbus.types import Event

__all__ = ["Convert", "converter"]

Convert = Callable[[Event], Any]


def converter(handler: Callable[..., Any], *, of_list: bool = False) -> Convert | None:
    """Return what turns an event into the handler's first argument; ``None`` = the event itself.

    A dataclass, TypedDict, ``msgspec.Struct`` or pydantic model in the annotation of the first
    parameter is built from the payload. A payload that does not fit raises ``Reject``.

    Args:
        handler: The handler.
        of_list: It takes a list of them, annotated ``list[Order]`` or the like.
    """
    wanted = _first_annotation(handler)
    if of_list:
        wanted = next(iter(typing.get_args(wanted)), None)
    if not isinstance(wanted, type):
        return None
    kind: type[Any] = wanted
    if issubclass(kind, Event):
        return None
    if dataclasses.is_dataclass(kind):
        return _rejecting(kind, lambda payload: _dataclass(kind, payload))
    if typing.is_typeddict(kind):
        return _rejecting(kind, lambda payload: _typed_dict(kind, payload))
    if any(base.__module__.partition(".")[0] == "msgspec" for base in kind.__mro__):
        import msgspec

        return _rejecting(kind, lambda payload: msgspec.convert(payload, kind))
    validate: Callable[[Any], Any] | None = getattr(kind, "model_validate", None)
    return None if validate is None else _rejecting(kind, validate)


def parameters(handler: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Return name and resolved annotation of a handler's parameters; empty when unknown."""
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and hasattr(type(function), "__call__"):  # noqa: B004 - its signature is wanted
        function = type(function).__call__
    try:
        hints = typing.get_type_hints(function)
        names = inspect.signature(handler).parameters
    except (NameError, TypeError, ValueError, AttributeError):
        return []
    return [(name, hints.get(name)) for name in names]


def _first_annotation(handler: Callable[..., Any]) -> Any:
    found = parameters(handler)
    return found[0][1] if found else None


def _rejecting(wanted: type, build: Callable[[Any], Any]) -> Convert:
    def convert(event: Event) -> Any:
        try:
            return build(event.payload)
        except Exception as error:
            raise Reject(f"payload does not fit {wanted.__qualname__}: {error}") from error

    return convert


def _dataclass(wanted: type, payload: Any) -> Any:
    fields = [field for field in dataclasses.fields(wanted) if field.init]
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    hints = typing.get_type_hints(wanted)
    _check(payload, {field.name: hints.get(field.name) for field in fields}, required)
    return wanted(**payload)


def _typed_dict(wanted: Any, payload: Any) -> Any:
    # `from __future__ import annotations` hides NotRequired from `__required_keys__`.
    marks = typing.get_type_hints(wanted, include_extras=True)
    optional = {name for name, mark in marks.items() if typing.get_origin(mark) is NotRequired}
    stated = {name for name, mark in marks.items() if typing.get_origin(mark) is Required}
    required = (set(wanted.__required_keys__) | stated) - optional
    _check(payload, typing.get_type_hints(wanted), required)
    return payload


def _check(payload: dict[Any, Any], hints: dict[str, Any], required: set[str]) -> None:
    """Check the keys, and the types of values whose annotation is a plain class.

    Raises:
        TypeError: Naming every problem.
    """
    if not isinstance(payload, dict):
        raise TypeError(f"a dict is needed, not {type(payload).__name__}")
    problems = [f"missing {name!r}" for name in sorted(required - payload.keys())]
    problems += [f"unknown {name!r}" for name in payload if name not in hints]
    for name, hint in hints.items():
        if name not in payload or not isinstance(hint, type):
            continue
        value = payload[name]
        fits = isinstance(value, hint) or (hint is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and hint in (int, float)):
            problems.append(f"{name!r} is {type(value).__name__}, not {hint.__name__}")
    if problems:
        raise TypeError("; ".join(problems))
