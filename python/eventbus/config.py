"""Options with their meaning, unit and default; checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypedDict

from eventbus.errors import ConfigError

__all__ = [
    "BusOptions",
    "ConsumeOptions",
    "DeliveryMode",
    "MemoryOptions",
    "Overflow",
    "RetryPolicy",
    "Seconds",
    "seconds",
]

Seconds = float | timedelta
"""A duration: a number of seconds, or a timedelta."""

DeliveryMode = Literal["inline", "queued"]
"""``inline``: handlers have run when ``publish`` returns; ``queued``: each has a task."""

Overflow = Literal["drop_oldest", "drop_newest", "close"]
"""What a full buffer does; each announces a gap."""


class MemoryOptions(TypedDict, total=False):
    """Options of the memory backend.

    Attributes:
        max_length: Most messages in a group (default 1,000,000).
        dedup_window: Seconds that a ``dedup_id`` is remembered (default 86,400).
        max_dedup_ids: Most ids remembered (default 1,000,000).
        dead_retention: Seconds that a dead letter is kept (default 1,209,600, two weeks).
        max_dead: Most dead letters kept per group (default 100,000).
        max_tombstones: Most deleted record keys whose version is remembered (default 100,000).
    """

    max_length: int
    dedup_window: float
    max_dedup_ids: int
    dead_retention: float
    max_dead: int
    max_tombstones: int


class BusOptions(MemoryOptions, total=False):
    """Options of ``connect``; their meaning and defaults are those of ``Bus``.

    Attributes:
        name: Share the backend with every bus of this name in the process.
        delivery: How handlers are called.
        queue_size: Events buffered per queued subscription or stream.
        overflow: What a full buffer does.
        outbox_size: Events buffered by ``publish_nowait``.
        drain_timeout: Seconds that running handlers get when the bus is drained.
        strict: Encode broadcasts too.
        max_message_bytes: Largest encoded message.
        max_depth: Deepest nesting of a payload.
        max_elements: Most elements in a payload.
    """

    name: str | None
    delivery: DeliveryMode
    queue_size: int
    overflow: Overflow
    outbox_size: int
    drain_timeout: Seconds
    strict: bool
    max_message_bytes: int
    max_depth: int
    max_elements: int


def seconds(value: object, name: str) -> float:
    """Return a number of seconds.

    Args:
        value: Seconds (int or float) or a timedelta.
        name: The option, for the error.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    return float(value)


def _check(problems: list[str]) -> None:
    if problems:
        raise ConfigError("invalid configuration: " + "; ".join(problems), problems)


def _count(problems: list[str], name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        problems.append(f"{name}={value!r} must be an int from {least} to {most}")


def _instance(problems: list[str], name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        problems.append(f"{name}={value!r} must be a {wanted.__name__}")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """What follows a failed delivery: exponential back-off with full jitter, then the dead letters.

    Attributes:
        max_attempts: Handler errors until it is dead (default 5).
        max_deliveries: Deliveries that ended without an answer until it is dead (default 5).
        base: Upper bound of the first delay in seconds (default 1).
        cap: Upper bound of every delay in seconds (default 600).
        factor: Growth of the bound per attempt (default 2).
    """

    max_attempts: int = 5
    max_deliveries: int = 5
    base: float = 1.0
    cap: float = 600.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: Listing all problems.
        """
        problems: list[str] = []
        _count(problems, "max_attempts", self.max_attempts, 1, 2**31)
        _count(problems, "max_deliveries", self.max_deliveries, 1, 2**31)
        object.__setattr__(self, "base", seconds(self.base, "base"))
        object.__setattr__(self, "cap", seconds(self.cap, "cap"))
        if not 0 <= self.base <= 86_400 * 365:
            problems.append(f"base={self.base!r} must be seconds from 0 to one year")
        if not 0 <= self.cap <= 86_400 * 365:
            problems.append(f"cap={self.cap!r} must be seconds from 0 to one year")
        factor: object = self.factor
        if not isinstance(factor, int | float) or not 1.0 <= factor <= 100.0:
            problems.append(f"factor={self.factor!r} must be a number from 1 to 100")
        _check(problems)


@dataclass(frozen=True, kw_only=True)
class ConsumeOptions:
    """How a consumer claims and runs its handler.

    Attributes:
        group: The durable queue (default ``"default"``).
        concurrency: Deliveries handled at a time (default 16).
        batch: Events per handler call; ``None`` = one event, not a list (default).
        timeout: Seconds a handler may run; ``None`` = no limit (default).
        lease: Seconds a claim holds without renewal (default 30); renewed by the core.
        max_lease: Seconds a delivery is renewed at most (default 3600).
        max_length: Most messages in the group; ``None`` leaves what is set (default).
        retry: What follows a failure.
    """

    group: str = "default"
    concurrency: int = 16
    batch: int | None = None
    timeout: float | None = None
    lease: float = 30.0
    max_lease: float = 3600.0
    max_length: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: Listing all problems.
        """
        problems: list[str] = []
        _instance(problems, "group", self.group, str)
        _count(problems, "concurrency", self.concurrency, 1, 10_000)
        if self.batch is not None:
            _count(problems, "batch", self.batch, 1, 10_000)
        if self.max_length is not None:
            _count(problems, "max_length", self.max_length, 1, 2**63 - 1)
        if self.timeout is not None:
            object.__setattr__(self, "timeout", seconds(self.timeout, "timeout"))
            if not self.timeout > 0:  # not <=, which is false for NaN too
                problems.append(f"timeout={self.timeout!r} must be more than 0 seconds")
        object.__setattr__(self, "lease", seconds(self.lease, "lease"))
        object.__setattr__(self, "max_lease", seconds(self.max_lease, "max_lease"))
        if not 0.01 <= self.lease <= 86_400:
            problems.append(f"lease={self.lease!r} must be from 0.01 to 86400 seconds")
        if not self.max_lease >= self.lease:
            problems.append(f"max_lease={self.max_lease!r} must be at least lease={self.lease!r}")
        _instance(problems, "retry", self.retry, RetryPolicy)
        _check(problems)
