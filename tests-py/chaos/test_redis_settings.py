"""What depends on a server: databases are apart, warnings come where they matter."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.load import soon
from eventbus import connect
from servers.brokers import QUICK
from servers.redis_server import RedisServer

OPTIONS = {**QUICK, "drain_timeout": 2.0}


@pytest.fixture
def forgetful() -> Iterator[RedisServer]:
    """A server that keeps nothing."""
    with RedisServer() as server:
        yield server


async def test_databases_of_one_server_hear_nothing_of_each_other(forgetful: RedisServer) -> None:
    urls = [forgetful.url(database) for database in (1, 2, 12)]
    seen: dict[str, list[Any]] = {url: [] for url in urls}
    buses = [connect(url, **OPTIONS) for url in urls]
    for url, bus in zip(urls, buses, strict=True):
        await bus.connect()
        await bus.subscribe("news", lambda event, url=url: seen[url].append(event.payload))
        await bus.subscribe(
            "all", lambda event, url=url: seen[url].append(f"all {event.payload}"), "*"
        )
    for url, bus in zip(urls, buses, strict=True):
        await bus.publish("news", url)
        await bus.publish("2:news", url)
    for url in urls:
        own = [url, f"all {url}", f"all {url}"]
        assert await soon(lambda own=own, url=url: len(seen[url]) >= len(own), 5)  # type: ignore[misc]
    # Whoever heard the others would have heard them before the end of its own.
    for bus in buses:
        await bus.close()
    for url in urls:
        assert sorted(seen[url]) == sorted([url, f"all {url}", f"all {url}"])


async def test_the_channels_of_a_foreign_wire_are_those_of_all_databases(
    forgetful: RedisServer,
) -> None:
    seen: list[Any] = []
    async with (
        connect(forgetful.url(1), wire="dataknobs", **OPTIONS) as one,
        connect(forgetful.url(2), hear=("dataknobs",), **OPTIONS) as two,
    ):
        await two.subscribe("news", lambda event: seen.append(event.payload))
        await one.publish("news", {"n": 1})
        assert await soon(lambda: seen == [{"n": 1}], 5)


async def test_a_bus_that_only_broadcasts_is_not_warned_of_persistence(
    forgetful: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(forgetful.url(), **OPTIONS) as bus:
        await bus.subscribe("news", print)
        await bus.publish("news", 1)
        health = await bus.health()
    assert health["warnings"] == []
    assert health["connection"] == "live"
    assert "appendonly" not in caplog.text


async def test_persistence_is_warned_of_once_per_process_and_server(
    forgetful: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return sum("appendonly is off" in record.getMessage() for record in caplog.records)

    caplog.set_level(logging.WARNING)
    for database in (0, 0, 3):
        async with connect(forgetful.url(database), **OPTIONS) as bus:
            await bus.declare_group("group", "work")
            await bus.consume("work", print, group="other")
            async with bus.deliveries("work", group="third"):
                pass
            warnings = (await bus.health())["warnings"]
        assert sum("appendonly is off" in one for one in warnings) == 1, "its health says it"
        assert told() == 1
    with RedisServer() as another:
        async with connect(another.url(), **OPTIONS) as bus:
            await bus.consume("work", print, group="group")
            assert told() == 2


async def test_a_server_that_keeps_its_data_is_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RedisServer(appendonly=True) as server:
        async with connect(server.url(), **OPTIONS) as bus:
            await bus.declare_group("group", "work")
            assert (await bus.health())["warnings"] == []
    assert "appendonly" not in caplog.text
