"""Decorated handlers: registered at import time, started by ``bus.include``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import MethodType, ModuleType
from typing import Any, TypeVar

from eventbus.errors import InvalidArgumentError
from eventbus.handlers import check_registration
from eventbus.registering import check_options
from eventbus.signatures import BEHIND

__all__ = [
    "CallingConvention",
    "Registration",
    "Registry",
    "calling_conventions",
    "default_registry",
    "event_handler",
]

F = TypeVar("F", bound=Callable[..., Any])

CallingConvention = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Turns a handler of some convention into one that is called with the event."""


def _with_event(handler: Callable[..., Any]) -> Callable[..., Any]:
    return handler


def _with_payload(handler: Callable[..., Any]) -> Callable[..., Any]:
    def call(event: Any) -> Any:
        return handler(event.payload)

    return call


def _with_topic_and_arguments(handler: Callable[..., Any]) -> Callable[..., Any]:
    def call(event: Any) -> Any:
        payload = event.payload
        return handler(event.topic, *payload.get("args", ()), **payload.get("kwargs", {}))

    return call


calling_conventions: dict[str, CallingConvention] = {
    "event": _with_event,
    "payload": _with_payload,
    "topic_args": _with_topic_and_arguments,
}
"""How handlers are called, by name: ``event`` → ``handler(event)``, ``payload`` →
``handler(event.payload)``, ``topic_args`` → ``handler(topic, *args, **kwargs)`` with ``args`` and
``kwargs`` from the payload. Other modules add theirs."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A handler and what it is registered for.

    Attributes:
        handler: The function, method or callable object, unchanged.
        topics: Topics it handles.
        pattern: Pattern it handles, or ``None``.
        group: The group it consumes in; ``None`` = it subscribes.
        calls: The name of its calling convention.
        options: Further options of ``consume`` or ``subscribe``.
    """

    handler: Callable[..., Any]
    topics: tuple[str, ...]
    pattern: str | None = None
    group: str | None = None
    calls: str = "event"
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def module(self) -> str | None:
        """The module that the handler was defined in."""
        return getattr(inspect.unwrap(self.handler), "__module__", None)

    def bound_to(self, instance: object) -> Callable[..., Any] | None:
        """Return the handler bound to an instance; ``None`` when it is no method of its class."""
        for class_ in type(instance).__mro__:
            for value in vars(class_).values():
                function = getattr(value, "__func__", value)
                if function is self.handler:
                    bound: Callable[..., Any] = value.__get__(instance, type(instance))
                    return bound
        return None

    def callable_for(self, handler: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Return what is called with the event."""
        handler = handler or self.handler
        call = calling_conventions[self.calls](handler)
        if call is not handler:
            # Whether it is async def, and its name, are those of the handler.
            with suppress(AttributeError):
                setattr(call, BEHIND, handler)
        return call


class Registry:
    """A collection of registrations."""

    def __init__(self) -> None:
        """Begin empty."""
        self.registrations: list[Registration] = []

    def event_handler(
        self,
        *topics: str,
        pattern: str | None = None,
        group: str | None = None,
        calls: str = "event",
        **options: Any,
    ) -> Callable[[F], F]:
        """Return a decorator that registers a handler and returns it unchanged.

        Args:
            *topics: Topics to handle.
            pattern: A pattern to handle, beside or instead of topics.
            group: Consume in this group; without it the handler subscribes.
            calls: The calling convention, a key of ``calling_conventions``.
            **options: Options of ``Bus.consume`` (with a group) or ``Bus.subscribe``.

        Raises:
            TypeError: No topic and no pattern, or one that is no str; an unknown option, or one
                that only goes with a group, or only without. When it decorates: the handler cannot
                be called as the convention says.
            InvalidArgumentError: An unknown calling convention, or an option of ``subscribe`` out
                of range.
            ConfigError: An option of ``consume`` out of range, or one that does not go with the
                handler.
        """
        if not topics and pattern is None:
            raise TypeError(
                "event_handler needs a topic or a pattern: @event_handler('orders:new')"
            )
        for topic in topics:
            if not isinstance(topic, str):
                raise TypeError(
                    f"event_handler needs topics as str, not {type(topic).__name__}; "
                    "write @event_handler('topic')"
                )
        if pattern is not None and not isinstance(pattern, str):
            raise TypeError(
                f"event_handler needs a pattern as str, not {type(pattern).__name__}: {pattern!r}"
            )
        if calls not in calling_conventions:
            valid = ", ".join(sorted(calling_conventions))
            raise InvalidArgumentError(f"unknown calling convention {calls!r}; valid: {valid}")

        consuming = check_options(group, options)

        def register(handler: F) -> F:
            check_registration(handler, calls, consuming)
            # A class body holds functions; a method that is bound already stays so.
            is_bound = isinstance(handler, MethodType)
            function = handler if is_bound else getattr(handler, "__func__", handler)
            self.registrations.append(
                Registration(
                    handler=function,
                    topics=topics,
                    pattern=pattern,
                    group=group,
                    calls=calls,
                    options=options,
                )
            )
            return handler

        return register

    def of_module(self, module: ModuleType) -> list[Registration]:
        """Return what was registered in a module."""
        return [one for one in self.registrations if one.module == module.__name__]

    def of_instance(self, instance: object) -> list[tuple[Registration, Callable[..., Any]]]:
        """Return what was registered in the class of an instance, bound to the instance."""
        found: list[tuple[Registration, Callable[..., Any]]] = []
        for registration in self.registrations:
            method = registration.bound_to(instance)
            if method is not None:
                found.append((registration, method))
        return found


default_registry = Registry()
"""Where ``eventbus.event_handler`` registers."""

event_handler = default_registry.event_handler
"""``Registry.event_handler`` of the default registry."""


def handlers_of(
    target: ModuleType | Registry | object,
) -> Iterable[tuple[Registration, Callable[..., Any]]]:
    """Return the registrations of a module, a registry or an instance, with what is to be called.

    Raises:
        InvalidArgumentError: When there are none.
    """
    if isinstance(target, Registry):
        found = [(one, one.handler) for one in target.registrations]
    elif isinstance(target, ModuleType):
        found = [
            (one, one.handler)
            for one in default_registry.of_module(target)
            if "." not in one.handler.__qualname__.replace("<locals>.", "")
        ]
    else:
        found = default_registry.of_instance(target)
    if not found:
        raise InvalidArgumentError(
            f"no handlers in {target!r}; decorate them with @event_handler before including it"
        )
    return found
