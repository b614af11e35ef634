"""Handlers by event name, in order of registration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, MutableMapping, MutableSet
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from eventbus.dispatcher.coalescing import CoalescingOptions, CoalescingState
from eventbus.dispatcher.events import AbstractEvent
from eventbus.dispatcher.transport import Message, next_number

__all__ = ["ArgsMatcher", "EventHandler", "Handler", "HandlerSet", "HandlerTable", "new_name"]

ArgsMatcher = Callable[[tuple[Any, ...]], object]
"""Called with the arguments of an event; the handler runs when the result is true."""

_serial = itertools.count(1)


def new_name() -> str:
    """Return a name for a handler that was given none."""
    return f"handler-{next(_serial)}"


class Handler(Protocol):
    """What the engine needs to know of a handler; compared by identity."""

    @property
    def coalescing_opts(self) -> CoalescingOptions | None:
        """How bursts are coalesced."""
        ...

    @property
    def coalescing_state(self) -> CoalescingState:
        """The burst of this handler."""
        ...

    def accepts(self, message: Message) -> bool:
        """Whether the handler wants an event of its name."""
        ...

    def invoke(self, message: Message, decoded: dict[type, Any]) -> object:
        """Call it; the result is awaited when it is awaitable.

        Args:
            message: The event.
            decoded: Events made from this message so far, by class; shared by its handlers.
        """
        ...


H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, eq=False)
class EventHandler:
    """One registration; immutable, compared and hashed by identity.

    Attributes:
        callback: ``callback(context, source, name, *args)``, or with a class
            ``callback(context, source, event)``.
        context: Handed to the callback as it was given.
        event_cls: The typed event, or ``None`` for one by name.
        name: Names the handler in logs; need not be unique.
        args_matcher: Asked with the arguments before each call, or ``None``.
        coalescing_opts: How bursts are coalesced, or ``None``.
        coalescing_state: The burst of this handler.
    """

    callback: Callable[..., object]
    context: object = None
    event_cls: type[AbstractEvent] | None = None
    name: str = field(default_factory=new_name)
    args_matcher: ArgsMatcher | None = None
    coalescing_opts: CoalescingOptions | None = None
    coalescing_state: CoalescingState = field(default_factory=CoalescingState)

    def accepts(self, message: Message) -> bool:
        """Ask the args matcher."""
        return self.args_matcher is None or bool(self.args_matcher(message.args))

    def invoke(self, message: Message, decoded: dict[type, Any]) -> object:
        """Call the callback."""
        if self.event_cls is None:
            return self.callback(self.context, message.source, message.name, *message.args)
        return self.callback(
            self.context, message.source, decode_once(self.event_cls, message, decoded)
        )


def decode_once(
    event_cls: type[AbstractEvent], message: Message, decoded: dict[type, Any]
) -> AbstractEvent:
    """Return the typed event of a message, made at its first use."""
    event: AbstractEvent | None = decoded.get(event_cls)
    if event is None:
        event = decoded[event_cls] = event_cls.deserialize(message.args)
    return event


class HandlerSet(MutableSet[H]):
    """The handlers of one event name, in order of registration."""

    __slots__ = ("_name", "_since", "_table")

    def __init__(self, table: HandlerTable[H], name: str) -> None:
        """Begin empty; it enters the table with its first handler."""
        self._table = table
        self._name = name
        self._since: dict[H, int] = {}

    def add(self, value: H) -> None:
        """Add a handler behind the others."""
        if value not in self._since:
            self._since[value] = next_number()
            self._table._keep(self._name, self)

    def discard(self, value: H) -> None:
        """Remove a handler, if it is there."""
        if self._since.pop(value, None) is not None:
            self._table._keep(self._name, self)

    def since(self, handler: H) -> int:
        """Return the number at which a handler was registered; 0 when it is not."""
        return self._since.get(handler, 0)

    def __contains__(self, value: object) -> bool:
        """Whether a handler is registered."""
        return value in self._since

    def __iter__(self) -> Iterator[H]:
        """Iterate over a snapshot: handlers may register and remove others meanwhile."""
        return iter(tuple(self._since))

    def __len__(self) -> int:
        """Return the number of handlers."""
        return len(self._since)

    def __repr__(self) -> str:
        """Return the handlers."""
        return f"{{{', '.join(map(repr, self._since))}}}"


class HandlerTable(MutableMapping[str, MutableSet[H]]):
    """Handlers by event name. Looking an unknown name up gives an empty set and stores nothing.

    Attributes:
        on_change: Called when a name got its first handler or lost its last.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._sets: dict[str, HandlerSet[H]] = {}
        self.on_change: Callable[[], object] | None = None

    def find(self, name: str) -> HandlerSet[H] | None:
        """Return the handlers of a name, ``None`` when there are none."""
        return self._sets.get(name)

    @property
    def coalescing(self) -> int:
        """How many handlers coalesce: each holds one event back at most."""
        return sum(h.coalescing_opts is not None for found in self._sets.values() for h in found)

    def _keep(self, name: str, handlers: HandlerSet[H]) -> None:
        known = name in self._sets
        if len(handlers):
            self._sets[name] = handlers
        elif known:
            del self._sets[name]
        if known != (name in self._sets) and self.on_change is not None:
            self.on_change()

    def __getitem__(self, key: str) -> MutableSet[H]:
        """Return the handlers of a name."""
        found = self._sets.get(key)
        return HandlerSet(self, key) if found is None else found

    def __setitem__(self, key: str, value: MutableSet[H]) -> None:
        """Replace the handlers of a name."""
        handlers: HandlerSet[H] = HandlerSet(self, key)
        for handler in value:
            handlers.add(handler)
        self._keep(key, handlers)

    def __delitem__(self, key: str) -> None:
        """Remove the handlers of a name."""
        for handler in self._sets[key]:
            self[key].discard(handler)

    def __contains__(self, key: object) -> bool:
        """Whether a name has handlers."""
        return key in self._sets

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that have handlers."""
        return iter(tuple(self._sets))

    def __len__(self) -> int:
        """Return the number of names that have handlers."""
        return len(self._sets)
