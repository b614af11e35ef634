"""Transactions of SQLAlchemy sessions and connections; SQLAlchemy itself is never imported here."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from eventbus.errors import NoTransactionError

__all__ = ["SqlAlchemy", "of_sqlalchemy"]

_DRIVERS = ("asyncpg", "psycopg", "psycopg_async")


def of_sqlalchemy(given: Any) -> SqlAlchemy | None:
    """Return a session or connection of SQLAlchemy as the bus uses it; ``None`` for others."""
    # A caller who has such an object has imported its module already.
    orm: Any = sys.modules.get("sqlalchemy.orm")
    engine: Any = sys.modules.get("sqlalchemy.engine")
    aio: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if orm is not None and isinstance(given, orm.scoped_session):
        given = given()
    if aio is not None:
        if isinstance(given, aio.async_scoped_session):
            given = given()
        if isinstance(given, aio.AsyncSession):
            return SqlAlchemy(given.sync_session, is_session=True, is_async=True)
        if isinstance(given, aio.AsyncConnection):
            if given.sync_connection is None:
                raise TypeError(
                    "connection is an AsyncConnection of SQLAlchemy that was not started; take it "
                    "from 'async with engine.connect() as connection:'"
                )
            return SqlAlchemy(given.sync_connection, is_session=False, is_async=True)
    if orm is not None and isinstance(given, orm.Session):
        return SqlAlchemy(given, is_session=True)
    if engine is not None and isinstance(given, engine.Connection):
        return SqlAlchemy(given, is_session=False)
    return None


class SqlAlchemy:
    """A session or connection of SQLAlchemy.

    It begins what SQLAlchemy would begin for a statement, so that a commit or rollback there is one
    of what was published. Those of a blocking driver block the event loop, as all their calls do.
    """

    def __init__(self, own: Any, *, is_session: bool, is_async: bool | None = None) -> None:
        """Take the blocking object that is inside of an async one."""
        self._own = own
        self._is_session = is_session
        self._is_async = is_async

    def check(self) -> None:
        """Check nothing: what is missing is begun with the statement."""

    async def figures(self, text: str, argument: str) -> list[int]:
        """Run a statement with one argument, ``$1``, and return the one array it answers."""
        found: list[int] = await self._call(lambda: self._figures(text, argument))
        return found

    def block(self) -> AbstractAsyncContextManager[object]:
        """Return a transaction, or a savepoint inside the one that is open."""
        return self._block()

    @asynccontextmanager
    async def _block(self) -> AsyncGenerator[None]:
        own = self._own
        begin = own.begin_nested if own.in_transaction() else own.begin
        block = await self._call(begin)
        try:
            yield
        except BaseException:
            # An error of the commit may have ended it already.
            if block.is_active:
                await self._call(block.rollback)
            raise
        await self._call(block.commit)

    async def _call(self, call: Callable[[], Any]) -> Any:
        is_async = self._is_async
        if is_async is None:
            bound = self._own.get_bind() if self._is_session else self._own
            is_async = self._is_async = bool(bound.dialect.is_async)
        if is_async:
            return await sys.modules["sqlalchemy.util"].greenlet_spawn(call)
        return call()

    def _figures(self, text: str, argument: str) -> list[int]:
        connection = self._own.connection() if self._is_session else self._own
        dialect = connection.dialect
        if dialect.name != "postgresql" or dialect.driver not in _DRIVERS:
            raise TypeError(
                f"connection is of SQLAlchemy's dialect {dialect.name}+{dialect.driver}; make the "
                "engine with postgresql+asyncpg:// or postgresql+psycopg://"
            )
        if not connection.in_transaction():
            connection.begin()
        _check_begun(connection)
        if dialect.driver != "asyncpg":
            text = text.replace("$1", "%s")
        found: list[int] = connection.exec_driver_sql(text, (argument,)).scalar_one()
        return found


def _check_begun(connection: Any) -> None:
    """Refuse a connection whose isolation level AUTOCOMMIT makes each statement a transaction."""
    driver = connection.connection.driver_connection
    if connection.dialect.driver == "asyncpg":
        if not driver.is_in_transaction():
            # The transaction begins with its first statement.
            connection.exec_driver_sql("select 1")
        is_begun = driver.is_in_transaction()
    else:
        is_begun = not driver.autocommit
    if not is_begun:
        raise NoTransactionError(
            "connection is in isolation level AUTOCOMMIT, so this would take effect at once; take "
            "an engine or connection of another level, or publish without connection="
        )
