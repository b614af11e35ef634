"""The names of ``dataknobs_common.exceptions``: what a bus raises is one of them.

``RateLimitError``, ``ConsentRequiredError`` and the errors of dotted paths belong to other parts of
the original: a bus never raises them, and they are here so that an import of them works.
"""

from __future__ import annotations

from typing import Any

from eventbus.errors import (
    CodecError,
    ConcurrencyError,
    ConfigurationError,
    DataknobsError,
    NotFoundError,
    OperationError,
    OperationTimeout,
    ResourceError,
    ValidationError,
)

__all__ = [
    "ConcurrencyError",
    "ConfigurationError",
    "ConsentRequiredError",
    "DataknobsError",
    "DottedPathError",
    "DottedPathTypeError",
    "NotFoundError",
    "OperationError",
    "RateLimitError",
    "ResourceError",
    "SerializationError",
    "TimeoutError",
    "ValidationError",
]

SerializationError = CodecError
"""Bytes and values; a collision of transactions is ``eventbus.SerializationError``."""

TimeoutError = OperationTimeout  # noqa: A001 - the original's name
"""No answer in time; an instance of the builtin ``TimeoutError`` too."""


class RateLimitError(OperationError):
    """A limit of a rate is reached.

    Attributes:
        retry_after: Seconds until it may work again, or ``None``.
    """

    def __init__(
        self,
        message: str = "Rate limit exceeded",
        retry_after: float | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        """Keep message, seconds and context."""
        super().__init__(message, context)
        self.retry_after = retry_after


class ConsentRequiredError(DataknobsError):
    """Somebody must agree first.

    Attributes:
        scope: To what, or ``None``.
        user_id: Who, or ``None``.
        context: What was being done, by name.
    """

    def __init__(
        self,
        message: str = "Consent required",
        scope: str | None = None,
        user_id: str | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        """Keep message, scope, user and context."""
        told = {"scope": scope, "user_id": user_id}
        said = {key: value for key, value in told.items() if value is not None}
        super().__init__(message)
        self.context: dict[str, Any] = {**said, **(context or {})}
        self.scope = scope
        self.user_id = user_id


class DottedPathError(ConfigurationError):
    """A dotted path leads nowhere.

    Attributes:
        ref: The path.
        reason: Why, in one word.
        context: What was being done, by name.
    """

    def __init__(
        self, message: str = "", *, ref: str = "", reason: str = "", **context: Any
    ) -> None:
        """Keep message, path, reason and context."""
        super().__init__(message)
        self.ref = ref
        self.reason = reason
        self.context: dict[str, Any] = {"ref": ref, "reason": reason, **context}


class DottedPathTypeError(ConfigurationError):
    """A dotted path leads to something of another kind.

    Attributes:
        ref: The path.
        expected: The class that was expected.
        context: What was being done, by name.
    """

    def __init__(
        self, message: str = "", *, ref: str = "", expected: type = object, **context: Any
    ) -> None:
        """Keep message, path, class and context."""
        super().__init__(message)
        self.ref = ref
        self.expected = expected
        self.context: dict[str, Any] = {"ref": ref, "expected": expected, **context}
