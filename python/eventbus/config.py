"""Options with their meaning, unit and default; checked when they are made."""

# No `from __future__ import annotations`: each key of a TypedDict would cost a compilation.
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from os import PathLike
from typing import Literal, TypedDict

from eventbus.errors import ConfigError

__all__ = [
    "BufferOptions",
    "BusOptions",
    "ConsumeOptions",
    "DeliveryMode",
    "Foreign",
    "MemoryBusOptions",
    "MemoryOptions",
    "Overflow",
    "Password",
    "PostgresOptions",
    "PostgresOwnOptions",
    "RedisOptions",
    "RedisOwnOptions",
    "RetryPolicy",
    "RunIn",
    "Seconds",
    "Secret",
    "ServerOptions",
    "SigningKey",
    "SigningOptions",
    "SslMode",
    "StoreOptions",
    "StreamOptions",
    "Wire",
    "seconds",
]

Seconds = float | timedelta
"""A duration: a number of seconds, or a timedelta."""

RunIn = Literal["loop", "thread"]
"""Where a handler runs: on the event loop, or in a thread of its consumer."""

DeliveryMode = Literal["inline", "queued"]
"""``inline``: handlers have run when ``publish`` returns; ``queued``: each has a task."""

Overflow = Literal["drop_oldest", "drop_newest", "close"]
"""What a full buffer does; each announces a gap."""


Wire = Literal["native", "dataknobs"]
"""What broadcasts are sent as."""

Foreign = Literal["dataknobs"]
"""What is heard beside the native wire."""

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
"""The modes of libpq; none that encrypts leaves the server unverified here."""

Password = str | Callable[[], str]
"""A password, or a function that returns it; called once, when the bus is made."""


Secret = str | bytes
"""The secret of a signature: at least 16 bytes, as ``secrets.token_hex(32)`` makes them."""

SigningKey = Secret | Sequence[Secret] | Callable[[], Secret | Sequence[Secret]]
"""A secret, several (the first signs, each verifies), or a function that returns them; called once,
when the bus is made."""


class SigningOptions(TypedDict, total=False):
    """What every backend signs with.

    Attributes:
        signing_key: Secret, or secrets, by which what is published is signed, and without which
            nothing received is accepted; never in a URL (default none; without effect on a memory
            bus, which nothing leaves).
    """

    signing_key: SigningKey | None


class StoreOptions(TypedDict, total=False):
    """How long every backend remembers what is settled.

    Attributes:
        dedup_window: Seconds that a ``dedup_id`` is remembered (default 86,400, a day).
        dead_retention: Seconds that a dead letter is kept (default 1,209,600, two weeks).
        max_dead: Most dead letters kept per group (default 100,000).
        max_tombstones: Most deleted record keys whose version is remembered (default 100,000).
        retention: Seconds that broadcasts are kept for replay; 0 forgets what was kept (default
            none: nothing is kept, unless ``retention_max`` is given).
        retention_max: Most broadcasts kept for replay (default 1,000,000 with ``retention``).
    """

    dedup_window: Seconds
    dead_retention: Seconds
    max_dead: int
    max_tombstones: int
    retention: Seconds | None
    retention_max: int | None


class MemoryOptions(StoreOptions, SigningOptions, total=False):
    """Options of the memory backend.

    Attributes:
        max_length: Most messages in a group (default 1,000,000).
        max_dedup_ids: Most ids remembered (default 1,000,000).
    """

    max_length: int
    max_dedup_ids: int


class BufferOptions(TypedDict, total=False):
    """How every bus calls handlers, buffers and limits.

    Attributes:
        delivery: How handlers are called (default ``inline``; on a server always ``queued``).
        queue_size: Events buffered per queued subscription or stream (default 10,000).
        overflow: What a full buffer does (default ``drop_oldest``).
        outbox_size: Events buffered by ``publish_nowait`` (default 10,000).
        drain_timeout: Seconds that running handlers get when the bus is drained (default 25).
        max_message_bytes: Largest encoded message in bytes (default 1,048,576, 1 MiB; with the
            DataKnobs wire 16,777,216, 16 MiB).
        max_depth: Deepest nesting of a payload in levels, at most 512 (default 64).
        max_elements: Most elements in a payload (default 100,000).
    """

    delivery: DeliveryMode
    queue_size: int
    overflow: Overflow
    outbox_size: int
    drain_timeout: Seconds
    max_message_bytes: int
    max_depth: int
    max_elements: int


class MemoryBusOptions(MemoryOptions, BufferOptions, total=False):
    """Options of a memory bus: those of ``Bus``.

    Attributes:
        name: Share the backend with every bus of this name in the process (default none).
        strict: Encode broadcasts too, so that what a server would refuse fails (default false).
    """

    name: str | None
    strict: bool


class StreamOptions(TypedDict, total=False):
    """What no backend does yet: ``UnsupportedError`` unless it is the default.

    Attributes:
        partitions: Partitions of the bus (default 1).
    """

    partitions: int


class ServerOptions(TypedDict, total=False):
    """How a server is reached and spoken to.

    Attributes:
        username: Who logs in (default none; on Postgres ``postgres``).
        password: Its password, or a function that returns it (default none).
        tls_ca: PEM file with the authorities to trust (default: the system's).
        tls_cert: PEM file with the client's certificate chain; needs ``tls_key`` (default none).
        tls_key: PEM file with the client's private key; needs ``tls_cert`` (default none).
        tls_server_name: The name the server must prove (default: the host connected to).
        insecure_skip_verify: Accept any certificate; for tests only (default false).
        connect_timeout: Seconds that making a connection may take, TLS and login included
            (default 5).
        op_timeout: Seconds that an operation may take, reconnecting included (default 10).
        heartbeat: Seconds between the proofs that an idle connection is alive; it is dead after
            two silent intervals (default 10).
        sweep: Seconds until what waits is looked at without a wake-up (default 5).
        channel_prefix: What the names of DataKnobs channels begin with (default ``events``).
        wire: What broadcasts are sent as, ``native`` or ``dataknobs`` (default ``native``).
        hear: What is heard beside the native wire: ``("dataknobs",)``, on the channels of the
            ``channel_prefix`` (default nothing; with ``wire="dataknobs"`` it is heard anyway).
    """

    username: str | None
    password: Password | None
    tls_ca: str | PathLike[str] | None
    tls_cert: str | PathLike[str] | None
    tls_key: str | PathLike[str] | None
    tls_server_name: str | None
    insecure_skip_verify: bool
    connect_timeout: Seconds
    op_timeout: Seconds
    heartbeat: Seconds
    sweep: Seconds
    channel_prefix: str
    wire: Wire
    hear: str | Sequence[Foreign]


class RedisOwnOptions(TypedDict, total=False):
    """What only Redis has.

    Attributes:
        db: Number of the database (default 0; a cluster has no other).
        prefix: What every key of the bus begins with: buses of different prefixes never meet
            (default ``eventbus``).
        scripts: How the server runs the scripts of the bus: ``functions``, the library that
            ``eventbus redis-setup`` loads; ``eval``, scripts that every process loads; ``auto``,
            the library where it is loaded, else scripts (default ``auto``).
        sentinel_username: Who logs in at the sentinels (default none).
        sentinel_password: Its password, or a function that returns it (default none).
    """

    db: int
    prefix: str
    scripts: Literal["auto", "functions", "eval"]
    sentinel_username: str | None
    sentinel_password: Password | None


class PostgresOwnOptions(TypedDict, total=False):
    """What only Postgres has; ``user``, ``dbname`` and ``ssl…`` are the names of libpq.

    Attributes:
        host: Host name, address, or folder of a socket (default: that of the URL).
        port: Port (default 5432).
        user: The same as ``username``.
        database: The database (default ``postgres``).
        dbname: The same as ``database``.
        schema: The schema of the bus's own tables: ``[a-z_][a-z0-9_]{0,40}`` (default
            ``eventbus``).
        migrate: Whether connecting brings the schema up to date; otherwise its version is only
            checked, for a role without DDL rights (default true).
        pool_size: Most connections beside those that listen and commit (default 4).
        accept_unsigned: What need not be signed although the bus has a ``signing_key``: ``sql``,
            what the SQL function ``publish`` stored (default none).
        broadcast_bodies: Where broadcasts stand: ``inline`` in notifications, which every role
            that may connect reads, or ``table``, of which notifications only name the row; the
            last one given holds for every process (default: as the bus is set, at first
            ``inline``).
        large_payloads: How events go that are too large for a notification: ``table`` (default
            ``table``).
        sslmode: ``disable``, ``require``, ``verify-ca`` or ``verify-full``; ``allow`` and
            ``prefer`` mean the default (default: plain on this machine, else ``verify-full``).
        sslrootcert: The same as ``tls_ca``.
        sslcert: The same as ``tls_cert``.
        sslkey: The same as ``tls_key``.
    """

    host: str
    port: int
    user: str | None
    database: str
    dbname: str
    schema: str
    migrate: bool
    pool_size: int
    accept_unsigned: Literal["sql"] | None
    broadcast_bodies: Literal["inline", "table"] | None
    large_payloads: Literal["table", "error"]
    sslmode: SslMode | None
    sslrootcert: str | PathLike[str] | None
    sslcert: str | PathLike[str] | None
    sslkey: str | PathLike[str] | None


class RedisOptions(
    ServerOptions,
    RedisOwnOptions,
    SigningOptions,
    StoreOptions,
    BufferOptions,
    StreamOptions,
    total=False,
):
    """Options of ``connect`` for Redis."""


class PostgresOptions(
    ServerOptions,
    PostgresOwnOptions,
    SigningOptions,
    StoreOptions,
    BufferOptions,
    StreamOptions,
    total=False,
):
    """Options of ``connect`` for Postgres."""


class BusOptions(
    MemoryBusOptions,
    ServerOptions,
    RedisOwnOptions,
    PostgresOwnOptions,
    StreamOptions,
    total=False,
):
    """Options of ``connect``: those of the backend that the URL names; others are refused."""


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
        run_in: ``loop`` (default), or ``thread`` for a plain function that blocks.
        lease: Seconds a claim holds without renewal (default 30); renewed by the core.
        max_lease: Seconds a delivery is renewed at most (default 3600).
        max_length: Most messages in the group; ``None`` leaves what is set (default).
        retry: What follows a failure.
    """

    group: str = "default"
    concurrency: int = 16
    batch: int | None = None
    timeout: float | None = None
    run_in: RunIn = "loop"
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
        run_in: object = self.run_in
        if run_in not in ("loop", "thread"):
            problems.append(f"run_in={run_in!r} must be 'loop' or 'thread'")
        _instance(problems, "retry", self.retry, RetryPolicy)
        _check(problems)
