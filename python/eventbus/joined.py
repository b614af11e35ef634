"""Transactions of the caller's: the bus's steps on a connection of a driver or of SQLAlchemy."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from eventbus._eventbus import CoreTransaction
from eventbus.errors import NoTransactionError
from eventbus.joined_sqlalchemy import of_sqlalchemy

if TYPE_CHECKING:
    from eventbus.bus import Bus
    from eventbus.types import PublishOptions

__all__ = ["Joined", "apply", "joined", "publish"]

_ACCEPTED = (
    "an asyncpg Connection, a psycopg AsyncConnection or Connection, or SQLAlchemy's AsyncSession, "
    "AsyncConnection, Session or Connection"
)


class Joined(Protocol):
    """A connection of the caller's, as the bus uses it."""

    def block(self) -> AbstractAsyncContextManager[object]:
        """Return a transaction, or a savepoint inside the one that is open."""
        ...

    def check(self) -> None:
        """Refuse a connection on which a statement would take effect at once."""
        ...

    async def figures(self, text: str, argument: str) -> list[int]:
        """Run a statement with one argument, ``$1``, and return the one array it answers."""
        ...


class _Driver:
    """What the connections of both drivers have alike."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def block(self) -> AbstractAsyncContextManager[object]:
        block: AbstractAsyncContextManager[object] = self._connection.transaction()
        return block


class _Asyncpg(_Driver):
    """A connection of asyncpg."""

    def check(self) -> None:
        if not self._connection.is_in_transaction():
            raise NoTransactionError(
                "no transaction is open on connection, so this would take effect at once, whatever "
                "you do later; put it in 'async with connection.transaction():' (a session of "
                "SQLAlchemy is taken itself), or publish without connection="
            )

    async def figures(self, text: str, argument: str) -> list[int]:
        found: list[int] = await self._connection.fetchval(text, argument)
        return found


class _AnyPsycopg(_Driver):
    """What both kinds of psycopg's connections have alike."""

    def check(self) -> None:
        # Without autocommit the first statement begins a transaction.
        connection = self._connection
        idle = sys.modules["psycopg"].pq.TransactionStatus.IDLE
        if connection.autocommit and connection.info.transaction_status == idle:
            raise NoTransactionError(
                "connection is in autocommit mode and no transaction is open, so this would take "
                "effect at once, whatever you do later; put it in a 'with connection."
                "transaction():' block ('async with' for an AsyncConnection), or publish without "
                "connection="
            )


class _BlockingPsycopg(_AnyPsycopg):
    """A connection of psycopg that blocks the event loop, as every call of it does."""

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[None]:
        with self._connection.transaction():
            yield

    async def figures(self, text: str, argument: str) -> list[int]:
        cursor_class = sys.modules["psycopg"].Cursor
        with cursor_class(self._connection, row_factory=_plain_rows) as cursor:
            row = cursor.execute(text.replace("$1", "%s"), (argument,)).fetchone()
        found: list[int] = row[0]
        return found


class _Psycopg(_AnyPsycopg):
    """A connection of psycopg."""

    async def figures(self, text: str, argument: str) -> list[int]:
        # The caller may have chosen other kinds of cursors and rows.
        cursor_class = sys.modules["psycopg"].AsyncCursor
        async with cursor_class(self._connection, row_factory=_plain_rows) as cursor:
            await cursor.execute(text.replace("$1", "%s"), (argument,))
            row = await cursor.fetchone()
        found: list[int] = row[0]
        return found


def _plain_rows(_cursor: object) -> type[tuple[Any, ...]]:
    return tuple


def joined(connection: object) -> Joined:
    """Return a connection as the bus uses it.

    Raises:
        TypeError: It is none of the accepted kinds.
    """
    # Whoever has a connection has imported its driver; nothing is imported for the others.
    asyncpg: Any = sys.modules.get("asyncpg")
    if asyncpg is not None and isinstance(
        connection, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
    ):
        return _Asyncpg(connection)
    psycopg: Any = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(connection, psycopg.AsyncConnection):
        return _Psycopg(connection)
    if psycopg is not None and isinstance(connection, psycopg.Connection):
        return _BlockingPsycopg(connection)
    of_it = of_sqlalchemy(connection)
    if of_it is not None:
        return of_it
    kind = type(connection)
    raise TypeError(
        f"connection must be {_ACCEPTED}, not {kind.__module__}.{kind.__qualname__}"
        f"{_remedy(connection)}"
    )


def _remedy(connection: object) -> str:
    """Say what to take instead of things that hold such a connection, or look like one."""
    if hasattr(connection, "acquire") or hasattr(connection, "getconn"):
        return "; take a connection out of the pool"
    if hasattr(connection, "execute"):
        return "; any other client can call the SQL function publish() itself"
    if callable(getattr(connection, "connect", None)) or callable(connection):
        return "; take a session or a connection that it makes"
    return ""


async def apply(core: CoreTransaction, connection: Joined, *, many: bool = False) -> None:
    """Run the steps of a transaction on a connection.

    Raises:
        LeaseLost: As for a commit; also VersionConflict, QueueFull: nothing of the steps happened.
        ConfigError: The connection leads elsewhere, or its role may not use the bus.
        NoTransactionError: No transaction is open on the connection.
        SerializationError: The transaction collided with another.
    """
    text, argument = core.statement(many)
    connection.check()
    try:
        figures: Sequence[int] = await connection.figures(text, argument)
    except Exception as error:
        # SQLAlchemy wraps the error of the driver, and that of asyncpg once more.
        cause: BaseException = getattr(error, "orig", None) or error
        if not isinstance(getattr(cause, "sqlstate", None), str) or cause is not error:
            cause = cause.__cause__ or cause
        code = getattr(cause, "sqlstate", None)
        if isinstance(code, str):
            core.failed(code, str(cause).partition("\n")[0])
        raise
    core.answered(list(figures))


async def publish(
    bus: Bus,
    connection: object,
    items: Iterable[tuple[str, object, PublishOptions]],
    *,
    many: bool = False,
) -> None:
    """Publish in the transaction that is open on a connection; its commit makes it true."""
    core = CoreTransaction(bus)
    bus._check_joins()
    own = joined(connection)
    for topic, event, options in items:
        core.publish(topic, event, **options)
    await apply(core, own, many=many)
