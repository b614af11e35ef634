"""Checks of single arguments: the error names the argument, the value and what is valid."""

from __future__ import annotations

from typing import TypeVar

from eventbus.errors import EventBusError, InvalidArgumentError
from eventbus.names import shown

__all__ = ["one_of", "positive"]

Choice = TypeVar("Choice", bound=str)


def one_of(
    name: str,
    value: Choice,
    valid: tuple[Choice, ...],
    error: type[EventBusError] = InvalidArgumentError,
) -> Choice:
    """Return the value if it is a valid one.

    Raises:
        EventBusError: Of the class given, when it is not.
    """
    if value not in valid:
        raise error(f"{name}={shown(repr(value))} must be one of {', '.join(valid)}")
    return value


def positive(
    name: str,
    value: object,
    error: type[EventBusError] = InvalidArgumentError,
    *,
    most: int = 2**63 - 1,
) -> int:
    """Return the value if it is an int from 1 to ``most``.

    Raises:
        EventBusError: Of the class given, when it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise error(f"{name}={shown(repr(value))} must be an int of at least 1 and at most {most}")
    return value
