"""What can be said of a handler before its first event: how it is called, and what it is."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable
from typing import Any, Literal

__all__ = [
    "BEHIND",
    "check_call",
    "check_gap_handler",
    "check_kind",
    "handler_name",
    "is_coroutine_function",
    "within_class",
]

BEHIND = "__eventbus_handler__"
"""The attribute in which a wrapper of ours names the handler that it calls."""


def handler_name(handler: object) -> str:
    """Return what a message calls a handler."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    behind = _behind(handler)
    handler = handler if behind is None else behind
    name = getattr(handler, "__qualname__", None)
    return name if isinstance(name, str) else repr(handler)


def is_coroutine_function(handler: Callable[..., Any]) -> bool | None:
    """Return whether a handler is ``async def``; ``None`` when only its call could tell.

    Nothing is known of a mock, of a wrapper of an ``async def`` (``functools.wraps``), and of a
    function whose annotation says that it returns an awaitable.
    """
    function = _runs(handler)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(function):
        return True
    if any(base.__module__ == "unittest.mock" for base in inspect.getmro(type(handler))):
        return None
    wrapped = function
    while (wrapped := getattr(wrapped, "__wrapped__", None)) is not None:
        if inspect.iscoroutinefunction(wrapped):
            return None
    returned = _hints(function).get("return")
    returned = typing.get_origin(returned) or returned
    if isinstance(returned, type) and issubclass(returned, Awaitable):
        return None
    return False


def check_kind(handler: Callable[..., Any], expected: str) -> None:
    """Refuse a function whose call runs nothing of its body.

    Args:
        handler: What would be called.
        expected: How, for the message.

    Raises:
        TypeError: It is a generator function or an async generator function.
    """
    function = _runs(handler)
    kind = None
    if inspect.isasyncgenfunction(handler) or inspect.isasyncgenfunction(function):
        kind = "an async generator function"
    elif inspect.isgeneratorfunction(handler) or inspect.isgeneratorfunction(function):
        kind = "a generator function"
    if kind is not None:
        raise TypeError(
            f"{_found(handler)} is {kind}: its call would run nothing; expected {expected}, a "
            "function or async def without yield"
        )


def check_call(
    handler: Callable[..., Any],
    expected: str,
    positional: int = 1,
    keywords: tuple[str, ...] = (),
    *,
    more: Literal["none", "positional", "any"] = "none",
) -> None:
    """Refuse a handler that cannot be called as it will be.

    What has no signature (builtins, mocks) is accepted.

    Args:
        handler: What would be called.
        expected: How, for the message.
        positional: How many positional arguments it gets.
        keywords: The keyword arguments it gets.
        more: Which further arguments it may get, as only the event tells.

    Raises:
        TypeError: With the expected signature and the one found.
    """
    check_kind(handler, expected)
    try:
        signature = inspect.signature(handler)
    except (ValueError, TypeError):
        return
    bind = signature.bind if more == "none" else signature.bind_partial
    try:
        bind(*[None] * positional, **dict.fromkeys(keywords))
        if more == "positional":
            _check_keywords(signature)
    except TypeError as error:
        raise TypeError(
            f"{_found(handler)} cannot be called as {expected}: {error}{_unresolved(handler)}"
        ) from None


def _check_keywords(signature: inspect.Signature) -> None:
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and one.default is one.empty:
            raise TypeError(f"missing a required argument: {one.name!r}")


def check_gap_handler(on_gap: object) -> None:
    """Refuse what cannot be called with a gap; ``None`` is none.

    Raises:
        TypeError: It is not callable, a generator function, or needs other arguments.
    """
    if on_gap is None:
        return
    if not callable(on_gap):
        raise TypeError(f"on_gap must be callable, not {type(on_gap).__name__}: {on_gap!r}")
    check_call(on_gap, "on_gap(gap)")


def within_class(function: object) -> bool:
    """Return whether a function was defined in the body of a class."""
    if not isinstance(function, types.FunctionType):
        return False
    around, _, _ = function.__qualname__.rpartition(".")
    return bool(around) and not around.endswith("<locals>")


def _runs(handler: Any) -> Any:
    """Return the function that runs when a handler is called."""
    bound: tuple[Any, ...] = (types.MethodType, staticmethod, classmethod)
    while True:
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif isinstance(handler, bound):
            handler = handler.__func__
        elif (behind := _behind(handler)) is not None:
            handler = behind
        elif inspect.isroutine(handler) or isinstance(handler, type):
            return handler
        else:
            called = _call_method(handler)
            return called if inspect.isroutine(called) else handler


def _call_method(handler: object) -> Any:
    return getattr(type(handler), "__call__", None)  # noqa: B004 - it is wanted


def _behind(handler: object) -> Any:
    # Not by getattr: an object may answer every name.
    own: dict[str, Any] = getattr(handler, "__dict__", {})
    return own.get(BEHIND)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - annotations are expressions of the user's
        return {}


def _found(handler: Callable[..., Any]) -> str:
    try:
        return f"{handler_name(handler)}{inspect.signature(handler)}"
    except (ValueError, TypeError):
        return handler_name(handler)


def _unresolved(handler: Callable[..., Any]) -> str:
    """Return why annotations could not be read: then nobody knows which parameter is a Delivery."""
    try:
        typing.get_type_hints(_runs(handler))
    except NameError as error:
        return f"; its annotations cannot be read: {error}; import it where the module runs"
    except Exception:  # noqa: BLE001 - annotations are expressions of the user's
        return ""
    return ""
