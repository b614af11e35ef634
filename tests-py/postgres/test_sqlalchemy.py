"""Sessions and connections of SQLAlchemy as the caller's own transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session

from eventbus import (
    Bus,
    Delivery,
    Event,
    NoTransactionError,
    RetryPolicy,
    SerializationError,
    VersionConflict,
)
from postgres.conftest import Eventually, MakeBus
from servers.postgres import PostgresServer

ASYNC_DRIVERS = ["asyncpg", "psycopg"]
KINDS = [
    *(f"AsyncSession {driver}" for driver in ASYNC_DRIVERS),
    *(f"AsyncConnection {driver}" for driver in ASYNC_DRIVERS),
    "Session psycopg",
    "Connection psycopg",
]


class Base(DeclarativeBase):
    """The models of the tests."""


class Order(Base):
    """What is written beside an event."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)


class Own:
    """A session or connection of one kind, with the verbs that the tests need."""

    def __init__(self, given: Any) -> None:
        self.given = given

    async def do(self, verb: str, *arguments: Any) -> Any:
        result = getattr(self.given, verb)(*arguments)
        return await result if hasattr(result, "__await__") else result

    async def add(self, number: int) -> None:
        if isinstance(self.given, AsyncSession | Session):
            self.given.add(Order(id=number))
        else:
            await self.do("execute", sa.insert(Order).values(id=number))


@pytest.fixture
async def address(server: PostgresServer, schema: str) -> AsyncIterator[str]:
    """The address of a database of the test's own, with the table of the orders."""
    url = server.create_database(f"sa_{schema}")
    engine = sa.create_engine(_with("psycopg", url))
    Base.metadata.create_all(engine)
    engine.dispose()
    yield url
    server.terminate_all(f"sa_{schema}")


def _with(driver: str, url: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


@pytest.fixture
async def own_bus(address: str, make_bus: MakeBus) -> Bus:
    """A bus in the database of the orders."""
    return await make_bus(address)


@pytest.fixture(params=KINDS)
async def own(request: pytest.FixtureRequest, address: str) -> AsyncIterator[Own]:
    """A session or connection of each kind in turn, that has not begun."""
    kind, driver = request.param.split()
    async with AsyncExitStack() as stack:
        if kind.startswith("Async"):
            engine = create_async_engine(_with(driver, address))
            stack.push_async_callback(engine.dispose)
            made: Any = AsyncSession(engine) if kind == "AsyncSession" else engine.connect()
            yield Own(await stack.enter_async_context(made))
            return
        blocking = sa.create_engine(_with(driver, address))
        stack.callback(blocking.dispose)
        plain: Any = Session(blocking) if kind == "Session" else blocking.connect()
        yield Own(stack.enter_context(plain))


@pytest.fixture
async def handled(own_bus: Bus) -> list[Any]:
    """Payloads that a group handled."""
    payloads: list[Any] = []
    await own_bus.consume("orders", lambda event: payloads.append(event.payload), group="g")
    return payloads


def stored(server: PostgresServer, schema: str) -> list[int]:
    """Return the orders that are committed."""
    found = server.execute("select id from orders order by id", database=f"sa_{schema}")
    return [number for (number,) in found]


async def test_a_session_that_has_not_begun_begins_with_the_publish(
    own_bus: Bus, own: Own, handled: list[Any], eventually: Eventually
) -> None:
    await own_bus.publish("orders", "never", connection=own.given)
    assert own.given.in_transaction()
    await own.do("rollback")
    await own_bus.publish_many([("orders", 1), ("orders", 2)], connection=own.given)
    assert handled == []
    await own.do("commit")
    await eventually(lambda: sorted(handled) == [1, 2])
    assert (await own_bus.inspect())["groups"][0]["accepted"] == 2


async def test_rows_and_events_of_one_transaction_come_and_vanish_together(
    own_bus: Bus,
    own: Own,
    handled: list[Any],
    server: PostgresServer,
    schema: str,
    eventually: Eventually,
) -> None:
    await own.add(1)
    await own_bus.publish("orders", 1, connection=own.given)
    await own.do("rollback")
    await own.add(2)
    await own_bus.publish("orders", 2, connection=own.given)
    await own.do("commit")
    await eventually(lambda: handled == [2])
    assert stored(server, schema) == [2]


async def test_a_block_is_a_transaction_or_a_savepoint_in_the_one_that_is_open(
    own_bus: Bus,
    own: Own,
    handled: list[Any],
    server: PostgresServer,
    schema: str,
    eventually: Eventually,
) -> None:
    async with own_bus.transaction(connection=own.given) as tx:
        await own.add(1)
        tx.publish("orders", 1)
        tx.put("record", "first", if_version=0)
    assert not own.given.in_transaction()
    await eventually(lambda: handled == [1])
    await own.add(2)
    await own_bus.publish("orders", 2, connection=own.given)
    with pytest.raises(VersionConflict):  # noqa: PT012
        async with own_bus.transaction(connection=own.given) as tx:
            await own.add(3)
            tx.publish("orders", 3)
            tx.put("record", "second", if_version=7)
    await own.do("commit")
    await eventually(lambda: handled == [1, 2])
    assert stored(server, schema) == [1, 2]


async def test_a_handler_settles_its_delivery_with_its_rows(
    own_bus: Bus, own: Own, server: PostgresServer, schema: str, eventually: Eventually
) -> None:
    attempts: list[int] = []

    async def handle(event: Event, delivery: Delivery) -> None:
        attempts.append(event.payload)
        async with delivery.transaction(connection=own.given):
            await own.add(event.payload)
            if len(attempts) == 1:
                raise RuntimeError

    await own_bus.consume("orders", handle, group="h", concurrency=1, retry=RetryPolicy(base=0.01))
    await own_bus.publish("orders", 7)
    await eventually(lambda: stored(server, schema) == [7])
    await own_bus.wait_idle(10)
    assert attempts == [7, 7]


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
async def test_autocommit_is_refused(
    own_bus: Bus, address: str, handled: list[Any], driver: str
) -> None:
    engine = create_async_engine(_with(driver, address), isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session:
        with pytest.raises(NoTransactionError, match="AUTOCOMMIT"):
            await own_bus.publish("orders", 1, connection=session)
    await engine.dispose()
    assert (await own_bus.inspect())["groups"][0]["accepted"] == 0


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
async def test_an_old_snapshot_is_told_to_try_again(
    own_bus: Bus, address: str, driver: str
) -> None:
    engine = create_async_engine(_with(driver, address), isolation_level="SERIALIZABLE")
    async with AsyncSession(engine) as session:
        await session.execute(sa.select(Order))
        await own_bus.declare_group("late", "orders")
        with pytest.raises(SerializationError) as refused:
            await own_bus.publish("orders", 1, connection=session)
        assert refused.value.sqlstate == "40001"
        await session.rollback()
        await own_bus.publish("orders", 1, connection=session)
        await session.commit()
    await engine.dispose()


async def test_scoped_sessions_and_the_inside_of_async_ones_are_taken(
    own_bus: Bus, address: str, handled: list[Any], eventually: Eventually
) -> None:
    engine: AsyncEngine = create_async_engine(_with("asyncpg", address))
    blocking = sa.create_engine(_with("psycopg", address))
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
    await own_bus.publish("orders", 1, connection=scoped)
    await scoped.commit()
    await scoped.remove()
    local = scoped_session(lambda: Session(blocking))
    await own_bus.publish("orders", 2, connection=local)
    local.commit()
    local.remove()
    async with AsyncSession(engine) as session:
        await own_bus.publish("orders", 3, connection=session.sync_session)
        await session.commit()
    await eventually(lambda: sorted(handled) == [1, 2, 3])
    await engine.dispose()
    blocking.dispose()


async def test_what_makes_sessions_is_no_session(own_bus: Bus, address: str) -> None:
    engine = create_async_engine(_with("asyncpg", address))
    for wrong in (engine, async_sessionmaker(engine)):
        with pytest.raises(TypeError, match=r"AsyncSession.*session or a connection that it makes"):
            await own_bus.publish("orders", 1, connection=wrong)
    with pytest.raises(TypeError, match="not started"):
        await own_bus.publish("orders", 1, connection=engine.connect())
    other = sa.create_engine("sqlite://")
    with pytest.raises(TypeError, match=r"sqlite.*postgresql\+asyncpg"), Session(other) as session:
        await own_bus.publish("orders", 1, connection=session)
    await engine.dispose()
