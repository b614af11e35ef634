"""Typed events: a class that names its event and turns itself into a tuple and back."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

__all__ = ["AbstractEvent"]


class AbstractEvent(abc.ABC):
    """An event with a name and attributes; its wire form is a tuple of plain values.

    Subclass it in the application; handing the class to ``consume`` or ``subscribe`` is all the
    registration there is. Nothing is looked up or imported by a name that came with a message.

    Attributes:
        name: The event name.
    """

    name: ClassVar[str] = "undefined"

    @abc.abstractmethod
    def serialize(self) -> tuple[Any, ...]:
        """Return the arguments as a tuple of values that the wire carries."""

    @classmethod
    @abc.abstractmethod
    def deserialize(cls, value: tuple[Any, ...]) -> Self:
        """Make the event from what ``serialize`` returned, arrays being tuples."""
