"""One attempt to handle an event: settle it, or commit its effects with it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from eventbus._eventbus import CoreTransaction
from eventbus.errors import InvalidArgumentError
from eventbus.joined import apply, joined
from eventbus.outcomes import fail, reject
from eventbus.types import Event, PublishOptions

if TYPE_CHECKING:
    from eventbus._eventbus import CoreDelivery, Pending
    from eventbus.bus import Bus
    from eventbus.config import Seconds

__all__ = ["Delivery", "Transaction", "current_delivery"]

_current: ContextVar[CoreDelivery] = ContextVar("eventbus_delivery")


def current_delivery() -> Delivery:
    """Return the delivery that the running handler handles.

    Raises:
        LookupError: Outside a ``consume`` handler.
    """
    try:
        return Delivery(_current.get())
    except LookupError:
        raise LookupError("no delivery here: this is not a consume handler") from None


class Delivery:
    """One attempt to handle an event, held by a lease that the core renews.

    Ends by ``ack``, ``retry``, ``reject``, ``release`` or a committed ``transaction()``. A delivery
    that is forgotten is released.

    Attributes:
        event: The event.
        topic: The topic it was published on.
        group: The group.
        key: Its ordering key, or ``None``.
        priority: Its priority.
        attempt: Which attempt this is, from 1.
        crashes: Earlier deliveries that ended without an answer.
        message_id: Names the message.
        fencing_token: Increases with every claim; check it in your own writes.
        accepted_at: When the message was accepted, aware, in UTC.
        settled: Whether it has ended.
    """

    __slots__ = ("_core",)

    def __init__(self, core: CoreDelivery) -> None:
        """Wrap a claimed delivery; made by the bus."""
        self._core = core

    @property
    def event(self) -> Event:
        """The event."""
        return self._core.event

    @property
    def topic(self) -> str:
        """The topic it was published on."""
        return self._core.topic

    @property
    def group(self) -> str:
        """The group."""
        return self._core.group

    @property
    def key(self) -> str | None:
        """Its ordering key."""
        return self._core.key

    @property
    def priority(self) -> int:
        """Its priority."""
        return self._core.priority

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._core.attempt

    @property
    def crashes(self) -> int:
        """Earlier deliveries that ended without an answer."""
        return self._core.crashes

    @property
    def message_id(self) -> str:
        """Names the message."""
        return self._core.message_id

    @property
    def fencing_token(self) -> int:
        """Increases with every claim."""
        return self._core.fencing_token

    @property
    def accepted_at(self) -> datetime:
        """When the message was accepted."""
        return self._core.accepted_at

    @property
    def settled(self) -> bool:
        """Whether it has ended."""
        return self._core.settled

    async def ack(self) -> None:
        """Remove it: it was handled.

        Raises:
            LeaseLost: It was taken back or has ended already; nothing changed.
        """
        await _done(self._core.settle_ack())

    async def retry(self, *, after: Seconds | None = None, reason: str = "") -> None:
        """Count an attempt and try again later, or move it to the dead letters after the last.

        Args:
            after: Seconds or a timedelta; the back-off of the policy by default.
            reason: Kept with it.

        Raises:
            LeaseLost: It was taken back or has ended already; nothing changed.
        """
        await fail(self._core, reason, after)

    async def reject(self, reason: str = "") -> None:
        """Move it to the dead letters.

        Args:
            reason: Kept with it.

        Raises:
            LeaseLost: It was taken back or has ended already; nothing changed.
        """
        await reject(self._core, reason)

    async def release(self) -> None:
        """Give it back untouched: it keeps its place and nothing is counted.

        Raises:
            LeaseLost: It was taken back or has ended already; nothing changed.
        """
        await _done(self._core.settle_release())

    def transaction(self, *, connection: object = None) -> Transaction:
        """Return a transaction that acknowledges this delivery with its other steps.

        Commits when the block ends well; a lost lease or a failed precondition raises and nothing
        of it happens.

        Args:
            connection: As for ``Bus.transaction``: what you do on it inside the block takes effect
                with the acknowledgement, exactly once.
        """
        return Transaction(self._core.bus, self._core, connection)

    def __repr__(self) -> str:
        """Return group, topic and attempt."""
        return f"Delivery(group={self.group!r}, topic={self.topic!r}, attempt={self.attempt})"


async def _done(pending: Pending[None] | None) -> None:
    """Await a settlement that was not finished at once."""
    if pending is not None:
        await pending


class Transaction:
    """Publishes and record writes that take effect together or not at all.

    ``async with bus.transaction() as tx:`` commits when the block ends well and drops everything
    when it raises. Nothing is locked while the block runs: preconditions are checked at the commit.

    With a ``connection`` of yours the block is a transaction on it, or a savepoint inside the one
    that is open: what you do there and the steps of this one take effect together.
    """

    def __init__(
        self, bus: Bus, delivery: CoreDelivery | None = None, connection: object = None
    ) -> None:
        """Begin; made by ``Bus.transaction`` and ``Delivery.transaction``."""
        self._core = CoreTransaction(bus, delivery)
        self._joined = None
        self._block: AbstractAsyncContextManager[object] | None = None
        if connection is not None:
            bus._check_joins()
            self._joined = joined(connection)

    def publish(self, topic: str, event: object, **options: Unpack[PublishOptions]) -> None:
        """Add a publish; broadcast after the commit. Arguments as for ``Bus.publish``."""
        self._core.publish(topic, event, **options)

    def put(
        self,
        key: str,
        value: object,
        *,
        if_version: int | None = None,
        ttl: Seconds | None = None,
    ) -> None:
        """Add a record write.

        Args:
            key: 1 to 1024 bytes.
            value: Any encodable value.
            if_version: ``None`` = whatever is there, 0 = must not exist, n = must be at version n.
            ttl: Seconds or a timedelta after which it is removed.
        """
        self._core.put(key, value, _version(if_version), ttl)

    def delete(self, key: str, *, if_version: int | None = None) -> None:
        """Add a record deletion; deleting an absent record without ``if_version`` is fine."""
        self._core.delete(key, _version(if_version))

    async def commit(self) -> None:
        """Apply every step.

        With a connection it takes effect when the transaction that is open there commits.

        Raises:
            LeaseLost: The delivery was taken back; nothing changed.
            VersionConflict: A precondition failed; nothing changed.
            QueueFull: A group is full; nothing changed.
        """
        if self._joined is None:
            await self._core.commit()
            return
        await apply(self._core, self._joined)
        if self._block is None:
            self._core.settled()

    @property
    def versions(self) -> dict[str, int]:
        """The new version of each record put, after the commit."""
        return self._core.versions

    async def __aenter__(self) -> Self:
        """Begin: with a connection, a transaction on it."""
        if self._joined is not None:
            block = self._joined.block()
            await block.__aenter__()
            self._block = block
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Commit, or drop everything when the block raised."""
        if kind is not None:
            self._core.rollback()
        if self._block is not None:
            return await self._leave(self._block, kind, error, traceback)
        if kind is None:
            await self.commit()
        return None

    async def _leave(
        self,
        block: AbstractAsyncContextManager[object],
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Add the steps to the caller's transaction and end that, or undo it."""
        if kind is not None:
            return await block.__aexit__(kind, error, traceback)
        try:
            await self.commit()
        except BaseException as refused:
            await block.__aexit__(type(refused), refused, refused.__traceback__)
            raise
        await block.__aexit__(None, None, None)
        self._core.settled()
        return None


def _version(value: object) -> int | None:
    """Check the version that a record is expected to have."""
    if value is None or (isinstance(value, int) and 0 <= value < 2**63):
        return value
    raise InvalidArgumentError(
        f"if_version={value!r} must be None, 0 (must not exist) or the version of a record"
    )
