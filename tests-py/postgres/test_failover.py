"""Servers that take no writes for a while, and addresses that move to another server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest

from eventbus import Bus, ConnectError, EventBusError, Gap
from eventbus.testing import eventually
from postgres.conftest import Eventually
from servers.brokers import QUICK
from servers.postgres import PostgresServer
from servers.proxy import FaultProxy


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    """A server of the test's own."""
    with PostgresServer() as one:
        yield one


@pytest.fixture
def proxy(primary: PostgresServer) -> Iterator[FaultProxy]:
    """The address that moves."""
    with FaultProxy(primary.port) as one:
        yield one


class Seen:
    """What a bus heard, handled and missed."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.handled: list[Any] = []
        self.gaps: list[Gap] = []


@pytest.fixture
async def moving(proxy: FaultProxy) -> AsyncIterator[Bus]:
    """A bus at the address that moves."""
    from eventbus import connect

    async with connect(
        f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres",
        **QUICK | {"op_timeout": 2.0, "drain_timeout": 1.0},
    ) as bus:
        yield bus


async def watch(bus: Bus) -> Seen:
    """Subscribe and consume."""
    seen = Seen()
    await bus.subscribe(
        "orders", lambda event: seen.heard.append(event.payload), on_gap=seen.gaps.append
    )
    await bus.consume("orders", lambda event: seen.handled.append(event.payload), group="g")
    return seen


async def publish(bus: Bus, payload: object) -> None:
    """Publish until it is accepted; every error on the way must be worth another try."""
    while True:
        try:
            await bus.publish("orders", payload)
        except EventBusError as error:
            if not error.is_retryable:
                raise
        else:
            return


async def test_after_a_read_only_spell_everything_goes_on(
    primary: PostgresServer, moving: Bus, eventually: Eventually
) -> None:
    seen = await watch(moving)
    await moving.publish("orders", 1)
    await eventually(lambda: seen.handled == [1])
    primary.execute("alter system set default_transaction_read_only to on")
    primary.execute("select pg_reload_conf()")
    told = 0
    while told < 3:
        try:
            # The server takes a moment to read its settings anew.
            await moving.publish("orders", 1)
        except ConnectError as error:
            told += 1
            # The last attempt before the deadline may itself be cut off, which is said as such.
            wanted = re.search(r"read-only transaction.*writable", str(error))
            if not wanted or not error.is_retryable:
                raise
    primary.execute("alter system reset default_transaction_read_only")
    primary.execute("select pg_reload_conf()")
    await publish(moving, 2)
    await publish(moving, 3)
    await eventually(lambda: {2, 3} <= set(seen.handled))
    assert (await moving.health())["ok"]


@pytest.mark.parametrize("cut", ["all but the listener", "the listener"])
async def test_all_connections_follow_an_address_that_moves(
    primary: PostgresServer, proxy: FaultProxy, moving: Bus, cut: str
) -> None:
    seen = await watch(moving)
    await moving.publish("orders", "before")
    await eventually(lambda: seen.handled == ["before"])
    with primary.standby() as standby:
        await eventually(lambda: standby.position() == primary.position())
        standby.promote()
        proxy.retarget(standby.port)
        which = "!~*" if cut == "all but the listener" else "~*"
        ended = primary.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where application_name = 'eventbus' and query {which} 'listen'"
        )
        assert ended
        await eventually(lambda: seen.gaps)
        # A slow machine may need another connection, with another gap: one of these is heard.
        for number in range(100):
            await publish(moving, number)
            with suppress(TimeoutError):
                await eventually(lambda n=number: n in seen.heard, timeout=1.0)
                break
        await eventually(lambda: number in seen.handled)
        assert number in seen.heard
        sessions = "select count(*) from pg_stat_activity where application_name = 'eventbus'"
        await eventually(lambda: primary.execute(sessions) == [(0,)])
        assert (await moving.health())["ok"]
        await moving.close()


async def test_an_address_that_leads_to_a_standby_is_away_until_it_is_promoted(
    primary: PostgresServer, proxy: FaultProxy, moving: Bus, eventually: Eventually
) -> None:
    seen = await watch(moving)
    await moving.publish("orders", "before")
    await eventually(lambda: seen.handled == ["before"])
    with primary.standby() as standby:
        await eventually(lambda: standby.position() == primary.position())
        proxy.retarget(standby.port)
        proxy.cut()
        with pytest.raises(ConnectError):
            await moving.publish("orders", "never")
        assert "standby" in (await moving.health())["last_error"]
        standby.promote()
        await publish(moving, "after")
        await eventually(lambda: "after" in seen.handled)
        await eventually(lambda: seen.gaps)
        await moving.close()
