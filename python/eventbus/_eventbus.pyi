"""The compiled core of eventbus; use the package `eventbus` instead."""

from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from inspect import Signature
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, Unpack, final
from uuid import UUID

from typing_extensions import disjoint_base

from eventbus.bus import Bus
from eventbus.config import ConsumeOptions
from eventbus.figures import BusFigures
from eventbus.types import EventType, GapCause, PublishOptions

__all__ = [
    "CoreBus",
    "CoreConsumer",
    "CoreDelivery",
    "CoreSubscription",
    "CoreTransaction",
    "Event",
    "Invoke",
    "Pending",
    "Publish",
    "RedisClient",
    "RedisSubscription",
    "Runner",
    "__version__",
    "_after_fork_in_child",
    "_shutdown",
    "decode",
    "encode",
    "migrate",
    "redis_setup",
]

__version__: str

_T_co = TypeVar("_T_co", covariant=True)

# What a step of an awaitable gives to the event loop: an asyncio future, or None.
_Waiter = Any

def encode(
    value: object,
    *,
    max_bytes: int | None = None,
    max_depth: int | None = None,
    max_elements: int | None = None,
) -> bytes:
    """Encode a value.

    Args:
        value: Plain data; see the module.
        max_bytes: Largest result; 1 MiB by default.
        max_depth: Deepest nesting; 64 by default, at most 512.
        max_elements: Most elements in all; 100,000 by default.

    Raises:
        EncodeError: A value of another type, or one that contains itself; the message holds the
            path to it. Also a ``TypeError`` or a ``ValueError``.
        PayloadTooLarge: A limit is exceeded.
    """

def decode(
    data: bytes,
    *,
    max_bytes: int | None = None,
    max_depth: int | None = None,
    max_elements: int | None = None,
) -> Any:
    """Decode what ``encode`` made.

    Args:
        data: The bytes of one value.
        max_bytes: Largest input; 1 MiB by default.
        max_depth: Deepest nesting; 64 by default, at most 512.
        max_elements: Most elements in all; 100,000 by default.

    Raises:
        DecodeError: The bytes are not one valid value.
        PayloadTooLarge: A limit is exceeded.
    """

def _shutdown() -> None: ...
def _after_fork_in_child() -> None: ...

# A dataclass to type checkers, so that they allow `dataclasses.replace` and know its fields.
@disjoint_base
@dataclass(frozen=True, init=False)
class Event:
    """An immutable event.

    Answers the protocol of dataclasses: ``fields``, ``replace``, ``asdict``, ``match``, ``==``,
    ``copy`` and ``pickle`` work; it cannot be hashed. Fields that were not given are made, and
    those of a received event are decoded, when they are first touched.

    Attributes:
        type: Its category.
        topic: The topic it is about; the one it is published on may be another.
        payload: What happened: any value that ``eventbus.codec`` carries, usually a dict; ``{}`` by
            default.
        timestamp: When it was made, aware, in UTC by default.
        event_id: Names it: the text of a new UUID by default.
        source: Who made it, or ``None``.
        correlation_id: Names what it belongs to, or ``None``.
        metadata: Further data about it; ``{}`` by default.

    A subclass may have methods, a constructor of its own, or be a frozen dataclass with further
    fields that have defaults. A wire carries the eight fields: what comes from one is a plain
    ``Event``.
    """

    type: EventType
    topic: str
    payload: Any = ...
    timestamp: datetime = ...
    event_id: str = ...
    source: str | None = ...
    correlation_id: str | None = ...
    metadata: dict[str, Any] = ...

    def __new__(
        cls,
        type: EventType,
        topic: str,
        payload: Any = ...,
        timestamp: datetime = ...,
        event_id: str = ...,
        source: str | None = ...,
        correlation_id: str | None = ...,
        metadata: dict[str, Any] = ...,
    ) -> Self:
        """Make an event; nothing is checked, so that it costs little."""

    def __init__(
        self,
        type: EventType,
        topic: str,
        payload: Any = ...,
        timestamp: datetime = ...,
        event_id: str = ...,
        source: str | None = ...,
        correlation_id: str | None = ...,
        metadata: dict[str, Any] = ...,
    ) -> None:
        """Fill an event of a subclass, whose constructor calls it."""

    @property
    def id(self) -> str:
        """Alias of ``event_id``."""

    def to_dict(self) -> dict[str, Any]:
        """Return a new dict of the fields: ``type`` as its value, ``timestamp`` as ISO text."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build an event from a mapping.

        Args:
            data: ``type`` (a member of ``EventType`` or its value) and ``topic``; the other fields
                when there. Unknown keys are ignored.

        Raises:
            KeyError: ``type`` or ``topic`` is missing.
            ValueError: An unknown type, or a timestamp that is no ISO text.
            TypeError: It is no mapping.
        """

    def with_correlation(self, correlation_id: str | None) -> Event:
        """Return a copy with another correlation id; everything else is the same object."""

    __hash__: ClassVar[None]  # type: ignore[assignment]  # as for every class with == and no hash
    __signature__: ClassVar[Signature]
    def _fill(self, *args: Any, **kwargs: Any) -> None:
        """Fill an event of a subclass; one of the class itself is complete."""

    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, Any]) -> Self: ...

@final
class Publish(Coroutine[Any, Any, None]):
    """What ``publish``, ``publish_many`` and ``Transaction.commit`` return: a coroutine to asyncio.

    Nothing happens before it is awaited or made a task, also no argument is checked; one that is
    dropped before that warns that it was never awaited.
    """

    def __await__(self) -> Generator[Any, Any]: ...
    def __iter__(self) -> Generator[Any, Any]: ...
    def __next__(self) -> _Waiter: ...
    def send(self, _value: None) -> _Waiter: ...
    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
    ) -> _Waiter: ...
    def close(self) -> None: ...

@final
class Pending(Coroutine[Any, Any, _T_co], Generic[_T_co]):
    """An awaitable over a future of the core: a coroutine to asyncio.

    Nothing happens before it is awaited; cancelling drops the future.
    """

    def __await__(self) -> Generator[Any, Any, _T_co]: ...
    def __iter__(self) -> Generator[Any, Any, _T_co]: ...
    def __next__(self) -> _Waiter: ...
    def send(self, _value: None) -> _Waiter: ...
    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
    ) -> _Waiter: ...
    def close(self) -> None: ...

@final
class Invoke(Coroutine[Any, Any, None]):
    """One handler call, awaited when its result is a coroutine, in a context of its own."""

    def __new__(
        cls,
        handler: Callable[[Any], object],
        argument: object,
        context: Context | None = None,
    ) -> Self: ...
    def __await__(self) -> Generator[Any, Any]: ...
    def __iter__(self) -> Generator[Any, Any]: ...
    def __next__(self) -> _Waiter: ...
    def send(self, _value: None) -> _Waiter: ...
    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
    ) -> _Waiter: ...
    def close(self) -> None: ...

# A delivery and what its handler raised.
_Failed = tuple[CoreDelivery, BaseException | None]

@final
class Runner(Coroutine[Any, Any, _Failed | None]):
    """Handles deliveries whenever it is awaited, until one needs a decision or none is left."""

    def __new__(
        cls,
        bus: Bus,
        consumer: CoreConsumer,
        handler: Callable[[Any], object],
        whole: bool,
        context: Context,
        variable: ContextVar[CoreDelivery],
        on_suspend: Callable[[], object],
        on_late: Callable[[CoreDelivery, BaseException], object],
        on_held: Callable[[float, int], object],
    ) -> Self: ...
    @property
    def token(self) -> int | None:
        """The token of the delivery whose handler is suspended."""

    def __await__(self) -> Generator[Any, Any, _Failed | None]: ...
    def __iter__(self) -> Generator[Any, Any, _Failed | None]: ...
    def __next__(self) -> _Waiter: ...
    def send(self, _value: None) -> _Waiter: ...
    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
    ) -> _Waiter: ...
    def close(self) -> None: ...

@disjoint_base
class CoreBus:
    """The compiled part of a bus; make an ``eventbus.Bus`` instead."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self: ...
    # They return a `Publish`; `async def` makes type checkers notice a forgotten `await`.
    async def publish(
        self,
        topic: str,
        event: object,
        *,
        key: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        priority: int = 0,
        dedup_id: str | None = None,
        unique: str | None = None,
        expires_after: float | timedelta | None = None,
        correlation_id: str | None = None,
        source: str | None = None,
        metadata: dict[str, Any] | None = None,
        event_id: str | UUID | None = None,
        connection: object = None,
    ) -> None:
        """Publish an event or a plain payload.

        First every group that is bound to the topic stores a copy, then the subscriptions are
        called, in the order they were made. When this returns, the event is accepted and inline
        handlers have run; when it raises, no group stored it and nobody was called.

        Args:
            topic: 1 to 255 bytes of UTF-8 without control characters.
            event: An ``Event``, or any value as the payload of a new one.
            key: 1 to 255 bytes; a group handles the events of one key one at a time, in order.
            delay: Seconds or a timedelta, at most 100 years, until groups get it; it is not
                broadcast.
            at: Aware datetime, instead of ``delay``.
            priority: From -32768 to 32767, 0 by default; groups take higher ones first.
            dedup_id: 1 to 255 bytes; a second publish of it on this topic is accepted and dropped
                while the bus remembers it (24 hours by default).
            unique: 1 to 255 bytes; a group drops the event while it holds another one of it.
            expires_after: Seconds or a timedelta; a group that did not start with it by then moves
                it to its dead letters.
            correlation_id: Replaces the event's.
            source: Replaces the event's.
            metadata: Replaces the event's.
            event_id: Replaces the event's: 1 to 255 bytes, or a UUID; ``cancel_message`` and its
                siblings find what was published by it.
            connection: An asyncpg ``Connection``, a psycopg ``AsyncConnection`` or ``Connection``,
                or an ``AsyncSession``, ``AsyncConnection``, ``Session`` or ``Connection`` of
                SQLAlchemy, to the database of a Postgres bus: the event is published when the
                transaction on it commits, and never when that is rolled back.

        Raises:
            TopicError: The topic breaks a rule.
            TypeError: The topic is no str, an option is of another type, or ``delay`` and ``at``.
            InvalidArgumentError: An option is out of range; also a ``ValueError``.
            EncodeError: A group is bound, or the bus is strict, and the payload cannot be encoded.
            PayloadTooLarge: The copy is larger than ``max_message_bytes``.
            QueueFull: A group is full.
            NoTransactionError: ``connection`` has no transaction open.
            SerializationError: The caller's transaction collided with another; run it again.
            BusClosedError: The bus was closed; ``NotConnectedError`` before it is connected.
            ForkedError: The bus was made before a fork.

        Arguments are checked when it is awaited, not at the call. Cancelling it leaves every copy
        whole or absent; an inline handler that is running is cancelled, the ones after it are not
        called.
        """

    async def publish_many(
        self, items: Iterable[tuple[str, object]], *, connection: object = None
    ) -> None:
        """Publish several events as one transaction: groups store all of them or none.

        Args:
            items: Pairs of topic and event or payload; at most 1,000 copies or 8 MiB.
            connection: As for ``publish``.

        Raises:
            TypeError: An item is no pair.
            PayloadTooLarge: There are more; split them.

        Everything else as for ``publish``.
        """

    def _open(
        self,
        kind: str,
        name: str | None,
        config: dict[str, Any],
        *,
        strict_topics: bool,
        strict_payloads: bool,
        max_bytes: int,
        max_depth: int,
        max_elements: int,
        manual_clock: int | None = None,
    ) -> None: ...
    def _connect(self) -> Pending[None]: ...
    def _disconnect(self) -> Pending[None]: ...
    def _commits(self) -> tuple[int, int]: ...
    def _finish_commits(self) -> Pending[None]: ...
    def _heard(self) -> Pending[None]: ...
    def _health(self) -> dict[str, Any]: ...
    def _set_live(self, live: bool) -> None: ...
    def _check_origin(self) -> None: ...
    def _check_joins(self) -> None: ...
    def _capabilities(self) -> dict[str, Any]: ...
    def _counters(self) -> dict[str, int]: ...
    def _count_malformed(self) -> None: ...
    def _is_signing(self) -> bool: ...
    def _refused(self, known: int) -> Pending[int]: ...
    def _count(self, delivered: int, failed: int, dropped: int, gaps: int) -> None: ...
    def _advance(self, seconds: float) -> None: ...
    def _subscribe_inline(
        self,
        text: str,
        is_pattern: bool,
        handler: Callable[[Any], object],
        report: Callable[[object, BaseException], object],
        id: object,
    ) -> int: ...
    def _subscribe_queued(
        self, text: str, is_pattern: bool, buffer: int, overflow: str
    ) -> CoreSubscription: ...
    def _listen(
        self,
        text: str,
        is_pattern: bool,
        buffer: int,
        overflow: str,
        malformed: Callable[[str, str], object],
        since: str | UUID | datetime | None = None,
        near: str | None = None,
    ) -> Pending[CoreSubscription]: ...
    def _unsubscribe(self, id: int) -> bool: ...
    def _consume(
        self, bindings: list[tuple[str, bool]], options: ConsumeOptions, ahead: bool
    ) -> Pending[CoreConsumer]: ...
    def _read(self, keys: Sequence[str]) -> Pending[list[tuple[str, int, Any] | None]]: ...
    def _scan(
        self, prefix: str, after: str | None, limit: int
    ) -> Pending[list[tuple[str, int, Any, BaseException | None]]]: ...
    def _inspect(self) -> Pending[BusFigures]: ...
    def _declare_group(
        self, group: str, bindings: list[tuple[str, bool]], max_length: int | None
    ) -> Pending[None]: ...
    def _group_action(
        self,
        action: Literal["unbind", "delete", "purge", "pause", "resume"],
        group: str,
        bindings: list[tuple[str, bool]] | None = None,
    ) -> Pending[int]: ...
    def _messages(self, event: object, group: str | None) -> Pending[list[dict[str, Any]]]: ...
    def _message_action(
        self,
        event: object,
        group: str | None,
        action: Literal["cancel", "promote", "reschedule"],
        at: datetime | None,
    ) -> Pending[int]: ...
    def _dead_letters(
        self, group: str, after: str | None, limit: int
    ) -> Pending[list[dict[str, Any]]]: ...
    def _settle_dead(self, group: str, ids: Sequence[str], retry: bool) -> Pending[int]: ...

@final
class CoreConsumer:
    """The compiled part of a consumer."""

    def take(self, bus: Bus) -> CoreDelivery | None: ...
    def wait(self) -> Pending[None]: ...
    def news(self) -> Pending[tuple[list[int], list[dict[str, Any]]]]: ...
    def dead(self) -> list[dict[str, Any]]: ...
    def stop(self) -> Pending[None]: ...
    def release(self) -> Pending[None]: ...
    def abandon(self, everything: bool) -> None: ...
    @property
    def in_hand(self) -> int: ...

@disjoint_base
class CoreDelivery:
    """The compiled part of a delivery."""

    @property
    def bus(self) -> Bus: ...
    @property
    def event(self) -> Event: ...
    @property
    def topic(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def key(self) -> str | None: ...
    @property
    def priority(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def crashes(self) -> int: ...
    @property
    def fencing_token(self) -> int: ...
    @property
    def message_id(self) -> str: ...
    @property
    def accepted_at(self) -> datetime: ...
    @property
    def settled(self) -> bool: ...
    @property
    def body(self) -> bytes: ...
    def next_attempt(self, asked: float | timedelta | None = None) -> float | None: ...
    def settle_ack(self) -> Pending[None] | None: ...
    def settle_failed(
        self, error: str, after: float | timedelta | None = None
    ) -> Pending[None] | None: ...
    def settle_dead(
        self,
        reason: Literal["rejected", "undecodable", "unknown_task", "failed"],
        error: str,
    ) -> Pending[None] | None: ...
    def settle_release(self) -> Pending[None] | None: ...
    def settle_last(self, crashed: bool) -> None: ...

@final
class CoreSubscription:
    """The buffer of a queued subscription or a stream."""

    def take(self) -> Event | tuple[GapCause, int | None] | None: ...
    def wait(self) -> Pending[None]: ...
    def idle(self) -> bool: ...
    def stop(self) -> None: ...
    def cancel(self) -> int: ...
    def abandon(self) -> int: ...
    def ended(self) -> bool: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> Literal[True]: ...

_Argument = str | bytes | int | float
_Reply = bytes | int | float | list["_Reply"] | None

@final
class RedisClient:
    """Single commands and channels of a Redis server, for wires that others have made.

    Args:
        config: Options as for the Redis backend.
    """

    def __new__(cls, config: dict[str, Any]) -> Self: ...
    def connect(self) -> Pending[None]: ...
    def command(self, *args: _Argument) -> Pending[_Reply]: ...
    def script(
        self, text: str, keys: Iterable[_Argument], args: Iterable[_Argument]
    ) -> Pending[_Reply]: ...
    def subscribe(self, channel: str, ring: int) -> Pending[RedisSubscription]: ...
    def keep(self, channel: str, keys: Sequence[str], values: Sequence[str]) -> None: ...
    def close(self) -> Pending[None]: ...

@final
class RedisSubscription:
    """The messages of a channel, buffered, as an async iterator."""

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Pending[tuple[str, bytes] | None]: ...
    def close(self) -> Pending[None]: ...

def migrate(
    config: dict[str, Any], grant_role: str | None, apply: bool
) -> Pending[tuple[int, int, str]]: ...
def redis_setup(
    config: dict[str, Any], apply: bool
) -> Pending[tuple[str, str, list[tuple[str, str]]]]: ...

@final
class CoreTransaction:
    """The compiled part of a transaction."""

    def __new__(cls, bus: Bus, delivery: CoreDelivery | None = None) -> Self: ...
    def publish(self, topic: str, event: object, **options: Unpack[PublishOptions]) -> None: ...
    def put(
        self,
        key: str,
        value: object,
        if_version: int | None = None,
        ttl: float | timedelta | None = None,
    ) -> None: ...
    def delete(self, key: str, if_version: int | None = None) -> None: ...
    def commit(self) -> Publish: ...
    def statement(self, many: bool = False) -> tuple[str, str]: ...
    def answered(self, figures: list[int]) -> None: ...
    def failed(self, code: str, said: str) -> None: ...
    def settled(self) -> None: ...
    def rollback(self) -> None: ...
    @property
    def versions(self) -> dict[str, int]: ...
