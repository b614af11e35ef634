"""Transactions of the caller's: the bus's steps on a connection that asyncpg or psycopg made."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from eventbus._eventbus import CoreTransaction

if TYPE_CHECKING:
    from eventbus.bus import Bus
    from eventbus.types import PublishOptions

__all__ = ["Joined", "apply", "joined", "publish"]

_ACCEPTED = "an asyncpg Connection or a psycopg AsyncConnection"


class Joined(Protocol):
    """A connection of the caller's, as the bus uses it."""

    def block(self) -> AbstractAsyncContextManager[object]:
        """Return a transaction, or a savepoint inside the one that is open."""
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

    async def figures(self, text: str, argument: str) -> list[int]:
        found: list[int] = await self._connection.fetchval(text, argument)
        return found


class _Psycopg(_Driver):
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
    kind = type(connection)
    raise TypeError(
        f"connection must be {_ACCEPTED}, not {kind.__module__}.{kind.__qualname__}"
        f"{_remedy(connection)}"
    )


def _remedy(connection: object) -> str:
    """Say what to take instead of things that hold such a connection, or look like one."""
    if hasattr(connection, "get_raw_connection"):
        return "; of SQLAlchemy take (await connection.get_raw_connection()).driver_connection"
    if hasattr(connection, "acquire") or hasattr(connection, "getconn"):
        return "; take a connection out of the pool"
    if hasattr(connection, "execute"):
        return "; a blocking connection can call the SQL function publish() itself"
    return ""


async def apply(core: CoreTransaction, connection: Joined, *, many: bool = False) -> None:
    """Run the steps of a transaction on a connection.

    Raises:
        LeaseLost: As for a commit; also VersionConflict, QueueFull: nothing of the steps happened.
        ConfigError: The connection leads elsewhere, or its role may not use the bus.
    """
    text, argument = core.statement(many)
    try:
        figures: Sequence[int] = await connection.figures(text, argument)
    except Exception as error:
        code = getattr(error, "sqlstate", None)
        if isinstance(code, str):
            core.failed(code, str(error).partition("\n")[0])
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
