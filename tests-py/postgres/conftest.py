"""A schema of the test's own on the server of the run, buses on it, and connections of a caller."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from conformance.conftest import MakeBus, bus, buses
from servers.postgres import PostgresServer
from servers.shared import shared_postgres

__all__ = ["Caller", "Eventually", "MakeBus", "bus", "caller", "make_bus", "schema", "server"]

Eventually = Callable[[Callable[[], object]], Awaitable[None]]

_schemas = itertools.count(1)


@pytest.fixture
def server() -> PostgresServer:
    """The server of the run."""
    return shared_postgres()


@pytest.fixture
def schema() -> str:
    """A schema of the test's own."""
    return f"own_{os.getpid()}_{next(_schemas)}"


@pytest.fixture
async def make_bus(server: PostgresServer, schema: str) -> AsyncIterator[MakeBus]:
    """Return a function that makes a connected bus on the test's schema."""
    async with buses(server.url(), schema=schema) as make:
        yield make


class Caller:
    """A connection of the caller's, of either driver, in the words that the tests need."""

    def __init__(self, connection: Any, *, is_asyncpg: bool, schema: str = "") -> None:
        self.connection = connection
        self.is_asyncpg = is_asyncpg
        self.schema = schema

    def transaction(self) -> Any:
        """Begin a transaction, or a savepoint."""
        return self.connection.transaction()

    @asynccontextmanager
    async def begun(self, level: str) -> AsyncIterator[None]:
        """Begin a transaction of an isolation level."""
        if self.is_asyncpg:
            async with self.connection.transaction(isolation=level.replace(" ", "_")):
                yield
            return
        await self.connection.set_isolation_level(
            psycopg.IsolationLevel[level.upper().replace(" ", "_")]
        )
        async with self.connection.transaction():
            yield

    async def execute(self, text: str) -> None:
        await self.connection.execute(text)

    async def value(self, text: str) -> Any:
        if self.is_asyncpg:
            return await self.connection.fetchval(text)
        cursor = await self.connection.execute(text)
        row = await cursor.fetchone()
        return row[0]

    async def settle(self) -> None:
        """Make what autocommit does not do: psycopg begins a transaction with each statement."""
        if not self.is_asyncpg:
            await self.connection.commit()


@pytest.fixture(params=["asyncpg", "psycopg"])
async def caller(
    request: pytest.FixtureRequest, server: PostgresServer, schema: str
) -> AsyncIterator[Caller]:
    """A connection of each driver in turn."""
    if request.param == "asyncpg":
        connection = await asyncpg.connect(server.url())
        yield Caller(connection, is_asyncpg=True, schema=schema)
        await connection.close()
        return
    async with await psycopg.AsyncConnection.connect(server.url()) as other:
        yield Caller(other, is_asyncpg=False, schema=schema)
