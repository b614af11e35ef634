"""Every exception of eventbus, grouped by what a caller can do about it.

The first line of each docstring says what happened; the rest says what to do. Messages name what
failed, the value, and the limit or remedy. Contracts: DataKnobs D56.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

__all__ = [
    "BatchError",
    "BusClosedError",
    "CodecError",
    "ConcurrencyError",
    "ConfigError",
    "ConfigurationError",
    "ConnectError",
    "DataknobsError",
    "DecodeError",
    "EncodeAttributeError",
    "EncodeError",
    "EncodeTypeError",
    "EncodeValueError",
    "EventBusError",
    "ForkedError",
    "InternalError",
    "InvalidArgumentError",
    "LeaseLost",
    "NotConnectedError",
    "NotFoundError",
    "OperationError",
    "OperationTimeout",
    "PayloadTooLarge",
    "QueueFull",
    "Reject",
    "ResourceError",
    "Retry",
    "SerializationError",
    "TopicError",
    "UnknownVersionError",
    "UnsupportedError",
    "ValidationError",
    "VersionConflict",
]


class EventBusError(Exception):
    """Base of every failure that eventbus raises.

    Attributes:
        is_retryable: Whether the same call can succeed later.
        outcome_unknown: Whether the operation may have taken effect although it failed.
    """

    is_retryable: bool = False
    outcome_unknown: bool = False

    def __init__(self, message: str = "", *details: Any) -> None:
        """Keep the message and the details, so that the exception can be pickled.

        Args:
            message: What failed, the value, and the limit or remedy.
            *details: Values of the class's attributes, in their documented order.
        """
        super().__init__(message, *details)

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.args[0]) if self.args else ""


DataknobsError = EventBusError
"""The name of the base class in ``dataknobs_common.exceptions``."""


class ConfigError(EventBusError, ValueError):
    """The configuration cannot be used.

    Attributes:
        problems: One line per problem found.
    """

    def __init__(self, message: str = "", problems: list[str] | None = None) -> None:
        """Keep the message and the list of problems."""
        super().__init__(message, problems if problems is not None else [message])
        self.problems: list[str] = problems if problems is not None else [message]


class ConfigurationError(ConfigError):
    """A required part of the configuration is missing (DataKnobs name)."""


class OperationError(EventBusError):
    """An operation failed because of another error, its ``__cause__`` (DataKnobs name).

    Attributes:
        context: What was being done, by name.
    """

    def __init__(self, message: str = "", context: dict[str, Any] | None = None) -> None:
        """Keep the message and the context."""
        super().__init__(message, context or {})
        self.context: dict[str, Any] = context or {}

    @property
    def details(self) -> dict[str, Any]:
        """The same as ``context``."""
        return self.context


class OperationValueError(OperationError, ValueError):
    """An operation failed because of a bad value."""


class NotFoundError(EventBusError):
    """A named thing does not exist."""


class ValidationError(EventBusError):
    """A value breaks a rule (DataKnobs name)."""


class ResourceError(EventBusError):
    """What is needed cannot be had now (DataKnobs name)."""


class ConcurrencyError(EventBusError):
    """Somebody else was faster (DataKnobs name)."""


class CodecError(EventBusError):
    """A value and its bytes cannot be turned into each other."""


class TopicError(ValidationError, ValueError):
    """A topic, pattern or group name breaks a rule, which the message names."""


class InvalidArgumentError(ValidationError, ValueError):
    """An argument is out of range; the message names it, the value and the range."""


class ConnectError(ResourceError, ConnectionError):
    """The server cannot be reached or refused the connection; try again later."""

    is_retryable = True


class OperationTimeout(ConnectError, TimeoutError):
    """No answer in time; when ``outcome_unknown`` is true the operation may have taken effect."""

    def __init__(self, message: str = "", outcome_unknown: bool = False) -> None:
        """Keep the message and whether the outcome is unknown."""
        super().__init__(message, outcome_unknown)
        self.outcome_unknown = outcome_unknown


class NotConnectedError(EventBusError, RuntimeError):
    """The bus is not connected; use ``async with bus:`` or ``await bus.connect()`` first."""


class BusClosedError(NotConnectedError):
    """The bus, subscription or consumer was closed; ``await bus.connect()`` opens a bus again."""


class EncodeError(CodecError):
    """A value cannot be encoded; the message holds the path to it."""


class EncodeAttributeError(EncodeError, AttributeError):
    """A field of an event that is not what the wire reads: no ``EventType``, no ``datetime``."""


class EncodeTypeError(EncodeError, TypeError):
    """A value of a type that the wire cannot carry."""


class EncodeValueError(EncodeError, ValueError):
    """A value that the wire cannot carry although its type can: a circular reference."""


class DecodeError(CodecError, ValueError):
    """Bytes that are not a valid message."""


class UnknownVersionError(DecodeError):
    """An envelope of a newer version; it is left for workers that know it.

    Attributes:
        version: The version found.
    """

    def __init__(self, message: str = "", version: int = 0) -> None:
        """Keep the message and the version."""
        super().__init__(message, version)
        self.version = version


class PayloadTooLarge(EventBusError, ValueError):
    """A size, nesting or element limit is exceeded; nothing was sent or allocated.

    Attributes:
        size: The measured figure.
        limit: The limit.
    """

    def __init__(self, message: str = "", size: int = 0, limit: int = 0) -> None:
        """Keep the message and the figures."""
        super().__init__(message, size, limit)
        self.size = size
        self.limit = limit


class QueueFull(EventBusError):
    """A bounded group or buffer is full; nothing was stored anywhere.

    Attributes:
        limit: Its limit in messages.
    """

    is_retryable = True

    def __init__(self, message: str = "", limit: int = 0) -> None:
        """Keep the message and the limit."""
        super().__init__(message, limit)
        self.limit = limit


class LeaseLost(ConcurrencyError):
    """The delivery was taken back and belongs to somebody else; nothing was changed."""


class VersionConflict(ConcurrencyError):
    """A record precondition failed; nothing of the transaction was applied.

    Attributes:
        key: The record's key.
        expected: The version that was expected; 0 = must not exist.
        actual: The version found; 0 = absent.
    """

    def __init__(
        self, message: str = "", key: str = "", expected: int = 0, actual: int = 0
    ) -> None:
        """Keep the message and the versions."""
        super().__init__(message, key, expected, actual)
        self.key = key
        self.expected = expected
        self.actual = actual


class NoTransactionError(EventBusError, RuntimeError):
    """No transaction is open on ``connection=``: nothing was sent, as it would have been final."""


class SerializationError(EventBusError):
    """Your transaction on the server collided with another; roll it back and run it again.

    Raised for a publish or a settlement with ``connection=``: mostly in a REPEATABLE READ or
    SERIALIZABLE transaction whose snapshot is older than what it would have to see. Nothing of the
    transaction happens. The driver's own exception is its ``__context__``.

    Attributes:
        sqlstate: What the server answered: ``40001``, or ``40P01`` for a deadlock.
    """

    is_retryable = True

    def __init__(self, message: str = "", sqlstate: str = "40001") -> None:
        """Keep the message and the server's code."""
        super().__init__(message, sqlstate)
        self.sqlstate = sqlstate


class UnsupportedError(EventBusError, NotImplementedError):
    """This backend cannot do that; see ``bus.capabilities``."""


class ForkedError(EventBusError, RuntimeError):
    """The object was made before ``fork()`` and used in the child; make a new bus there."""


class InternalError(EventBusError):
    """A bug in eventbus; please report it."""


class Retry(Exception):
    """Raised by a handler: try this delivery again. Counts as an attempt.

    Args:
        after: Seconds or a timedelta until the next attempt; the back-off of the policy by default.
        reason: Kept with the delivery, and with its dead letter if the attempts run out.
    """

    def __init__(self, after: float | timedelta | None = None, reason: str = "") -> None:
        """Keep delay and reason."""
        super().__init__(after, reason)
        self.after = after
        self.reason = reason


class Reject(Exception):
    """Raised by a handler: move this delivery to the dead letters now.

    Args:
        reason: Why; kept with the dead letter.
    """

    def __init__(self, reason: str = "") -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


class BatchError(Exception):
    """Raised by a batch handler: some events failed, the others are acknowledged.

    Each named event ends as if its handler had raised that exception: ``Retry``, ``Reject`` or a
    failure. An index that the batch does not have fails the whole batch.

    Args:
        errors: The exceptions by index in the list that the handler was given, from 0; an empty
            mapping acknowledges every event.

    Raises:
        TypeError: An index is no int, or what stands for it is no exception.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        """Keep the exceptions."""
        found = dict(errors)
        for index, error in found.items():
            if isinstance(index, bool) or not isinstance(index, int):
                raise TypeError(f"BatchError needs indexes as int, not {index!r}")
            if not is_outcome(error):
                raise TypeError(f"BatchError needs an exception for index {index}, not {error!r}")
        super().__init__(found)
        self.errors: dict[int, BaseException] = found

    def __str__(self) -> str:
        """Return the exceptions by index."""
        return ", ".join(f"{index}: {error!r}" for index, error in sorted(self.errors.items()))


def is_outcome(error: object) -> bool:
    """Whether an exception can be what came of an event: one that ends the program cannot."""
    ends = (SystemExit, KeyboardInterrupt, GeneratorExit)
    return isinstance(error, BaseException) and not isinstance(error, ends)
