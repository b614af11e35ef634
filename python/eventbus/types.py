"""The plain values of the bus: events, their types, gaps, records, dead letters."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal, TypedDict
from uuid import UUID

from eventbus import originals
from eventbus._eventbus import Event

__all__ = [
    "BusState",
    "ConnectionState",
    "DeadLetter",
    "DeadReason",
    "Event",
    "EventType",
    "Gap",
    "GapCause",
    "MessageInfo",
    "MessageState",
    "PublishOptions",
    "Record",
    "Since",
]


BusState = Literal["new", "connecting", "live", "draining", "closed"]
ConnectionState = Literal["connecting", "live", "degraded", "closed"]
"""Where a bus is in its life."""

GapCause = Literal["overflow", "reconnect", "retention"]
"""A buffer was full, the connection was lost, or the events are not kept any more."""

Since = str | UUID | datetime
"""Where a replay begins: ``"beginning"``, an ``event_id``, or an aware datetime."""

DeadReason = Literal[
    "failed", "rejected", "crashed", "undecodable", "unknown_task", "expired", "unsigned"
]
"""Why a message became a dead letter."""

MessageState = Literal["ready", "delayed", "active"]
"""Where a message is in its group."""


class EventType(Enum):
    """The category of an event; the value is the lower-case name.

    A member equals the member of the original DataKnobs package that has the same value, from both
    sides and in dicts and sets.
    """

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    ACTIVATED = "activated"
    DEACTIVATED = "deactivated"
    ERROR = "error"
    CUSTOM = "custom"

    def __eq__(self, other: object) -> bool:
        """Whether this is the same member, or that of the original package."""
        if self is other:
            return True
        if isinstance(other, Enum) and originals.is_event_type(other):
            return bool(self.value == other.value)
        return NotImplemented

    # As the original's, which hashes as any Enum does.
    __hash__ = Enum.__hash__


class PublishOptions(TypedDict, total=False):
    """The options of ``Bus.publish``; absent and ``None`` mean the same.

    Attributes:
        key: A group handles the events of one key one at a time, in order.
        delay: Seconds or a timedelta until groups get it; it is not broadcast.
        at: Aware datetime, instead of ``delay``.
        priority: From -32768 to 32767, 0 by default; higher first.
        dedup_id: A second publish of it on the topic is dropped inside the bus's window.
        unique: A group drops the event while it holds another one of it.
        expires_after: Seconds or a timedelta until a group may no longer start with it.
        correlation_id: Replaces the event's.
        source: Replaces the event's.
        metadata: Replaces the event's.
        event_id: Replaces the event's: text or a UUID, to find again what was published.
    """

    key: str | None
    delay: float | timedelta | None
    at: datetime | None
    priority: int
    dedup_id: str | None
    unique: str | None
    expires_after: float | timedelta | None
    correlation_id: str | None
    source: str | None
    metadata: dict[str, Any] | None
    event_id: str | UUID | None


def new_id() -> str:
    """Return a new identity: the text of a random UUID."""
    import uuid  # only needed when one is made in Python

    return str(uuid.uuid4())


@dataclass
class _EventShape:
    """The dataclass that ``Event`` answers for: same fields, same defaults."""

    type: EventType
    topic: str
    payload: dict[str, Any] = field(default_factory=dict[str, Any])
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    event_id: str = field(default_factory=new_id)
    source: str | None = None
    correlation_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


def kept(event: Event) -> dict[str, Any]:
    """Return what an event of a subclass keeps besides the eight fields."""
    own = dict(getattr(event, "__dict__", {}))
    further = (one.name for one in fields(event) if one.name not in Event.__match_args__)
    return own | {name: getattr(event, name) for name in further}


def made_again(kind: type[Event], values: tuple[Any, ...], own: dict[str, Any]) -> Event:
    """Return an event of a subclass with these fields: what ``copy`` and ``pickle`` make.

    Args:
        kind: The subclass; its constructor is not called.
        values: The eight fields, in order.
        own: What else its instance keeps.
    """
    make: Any = kind.__new__
    event: Event = make(kind)
    for name, value in {**dict(zip(Event.__match_args__, values, strict=True)), **own}.items():
        object.__setattr__(event, name, value)
    return event


class _Signature:
    """The signature of ``Event``; a subclass has that of its own constructor."""

    def __init__(self, signature: inspect.Signature) -> None:
        """Keep it."""
        self._signature = signature

    def __get__(self, event: Event | None, kind: type[Event]) -> inspect.Signature:
        """Return it for the class itself alone."""
        if kind is Event:
            return self._signature
        raise AttributeError("__signature__")


def _make(self: Event, *args: Any, **kwargs: Any) -> None:
    """Fill an event of a subclass; arguments as for ``Event``."""
    self._fill(*args, **kwargs)


def _refuse_assignment(self: Event, name: str, value: object) -> None:
    del self, value
    raise FrozenInstanceError(f"cannot assign to field {name!r}; use dataclasses.replace(event, …)")


def _refuse_deletion(self: Event, name: str) -> None:
    del self
    raise FrozenInstanceError(f"cannot delete field {name!r}; use dataclasses.replace(event, …)")


def _answer_dataclass_protocol() -> None:
    """Let ``dataclasses`` and ``match`` treat the compiled class as a dataclass (contract D5)."""
    answers = {
        "__dataclass_fields__": vars(_EventShape)["__dataclass_fields__"],
        "__dataclass_params__": vars(Gap)["__dataclass_params__"],
        "__match_args__": vars(_EventShape)["__match_args__"],
        "__signature__": _Signature(inspect.signature(_EventShape)),
        # Python functions, not slots of the compiled class: past those, `object.__setattr__` could
        # not fill an event of a frozen dataclass that inherits from it.
        "__setattr__": _refuse_assignment,
        "__delattr__": _refuse_deletion,
        "__init__": _make,
        # The interpreter's messages name a compiled class with its module until its name is set:
        # "unhashable type: 'Event'" (contract D6).
        "__name__": "Event",
    }
    for name, answer in answers.items():
        setattr(Event, name, answer)


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole in a broadcast: events between those around it were lost.

    Attributes:
        cause: ``"overflow"``, ``"reconnect"`` or ``"retention"``.
        count: How many are missing, when that is known.
    """

    cause: GapCause
    count: int | None


@dataclass(frozen=True, slots=True)
class Record:
    """A stored value with its version.

    Attributes:
        key: The record's key.
        version: Counts the writes of this key from 1; never reused.
        value: The value.
    """

    key: str
    version: int
    value: Any


class UnreadableRecord(Record):
    """A record of a page whose value cannot be decoded; it keeps nobody from the others."""

    __slots__ = ("_error",)
    _error: BaseException

    def __init__(self, key: str, version: int, error: BaseException) -> None:
        """Keep why there is no value."""
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "version", version)
        object.__setattr__(self, "_error", error)

    @property
    def value(self) -> Any:
        """Raise ``DecodeError``."""
        raise self._error

    def __repr__(self) -> str:
        """Return key, version, and why there is no value."""
        return f"Record(key={self.key!r}, version={self.version!r}, error={str(self._error)!r})"

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object: there is no value to compare."""
        return self is other

    def __hash__(self) -> int:
        """Return a hash of key and version."""
        return hash((self.key, self.version))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that ended without being handled.

    Attributes:
        group: The group it belonged to.
        message_id: Names it for ``retry`` and ``discard``.
        topic: The topic it was published on.
        reason: ``failed``, ``rejected``, ``crashed``, ``undecodable``, ``unknown_task``,
            ``expired`` or ``unsigned``.
        error: The last error: type, message, traceback; at most 16 KiB.
        attempts: Handler errors.
        crashes: Deliveries that ended without an answer.
        died_at: When, aware, in UTC.
        body: The raw bytes.
        event: The event, or ``None`` when the bytes cannot be decoded, or have no signature where
            the bus wants one.
    """

    group: str
    message_id: str
    topic: str
    reason: DeadReason
    error: str
    attempts: int
    crashes: int
    died_at: datetime
    body: bytes
    event: Event | None

    @property
    def event_id(self) -> str:
        """The id of the event; the message's own when the bytes cannot be decoded."""
        return self.message_id if self.event is None else str(self.event.event_id)

    @property
    def attempt(self) -> int:
        """Which attempt it died in, from 1; 0 when no handler has seen it."""
        if self.reason == "failed":
            return self.attempts
        return self.attempts + 1 if self.reason == "rejected" else self.attempts + self.crashes


@dataclass(frozen=True, slots=True)
class MessageInfo:
    """A copy of an event that waits in a group or is being handled.

    Attributes:
        group: The group.
        message_id: Names one publish of the event in all groups: the ``event_id`` where this is the
            first of an event with an id of the bus's making, else a UUID of its own.
        topic: The topic it was published on.
        state: ``ready``, ``delayed`` or ``active``.
        at: When it is due, or its lease ends; aware, in UTC.
        attempts: Handler errors so far.
        priority: Its priority.
    """

    group: str
    message_id: str
    topic: str
    state: MessageState
    at: datetime
    attempts: int
    priority: int


_answer_dataclass_protocol()
