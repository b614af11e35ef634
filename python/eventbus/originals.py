"""Events of the original DataKnobs package, recognised by the names of their classes.

A library that imports the original hands a bus the original's events, and compares their types with
the original's. The original is never imported: its classes are known by module and name.
"""

from __future__ import annotations

from typing import Any

__all__ = ["adopt", "is_event_class", "is_event_type"]

_PACKAGE = "dataknobs_common.events"


def _is_original(kind: type[Any], name: str) -> bool:
    return kind.__qualname__ == name and (
        kind.__module__ == _PACKAGE or kind.__module__.startswith(f"{_PACKAGE}.")
    )


def is_event_class(kind: Any) -> bool:
    """Whether this is the original's ``Event`` class, or a subclass of it."""
    return isinstance(kind, type) and any(_is_original(one, "Event") for one in kind.__mro__)


def is_event_type(value: object) -> bool:
    """Whether this is a member of the original's ``EventType``."""
    return _is_original(type(value), "EventType")


def adopt(value: Any) -> Any:
    """Return the event that an event of the original stands for; ``None`` for anything else.

    Payload, metadata and the other values are the very objects; what a subclass adds is left out.
    """
    if not is_event_class(type(value)):
        return None
    from eventbus.types import Event, EventType

    kind = value.type
    return Event(
        EventType(kind.value) if is_event_type(kind) else kind,
        value.topic,
        value.payload,
        value.timestamp,
        value.event_id,
        value.source,
        value.correlation_id,
        value.metadata,
    )
