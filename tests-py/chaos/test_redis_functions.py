"""The library of functions on Redis: loaded, missing, lost, replaced, and on a full server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.load import soon
from eventbus import ConnectError, EventBusError, UnsupportedError, connect
from eventbus.redis_setup import redis_setup
from servers.brokers import QUICK
from servers.cluster import RedisCluster
from servers.redis_server import RedisServer

OPTIONS: dict[str, Any] = {**QUICK, "drain_timeout": 2.0}
MISSING = r"function library eventbus_1 is not loaded.*eventbus redis-setup"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as one:
        yield one


def calls(server: RedisServer, command: str) -> int:
    """Return how often the server ran a command."""
    with server.client() as client:
        stats = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_without_the_library_connecting_fails_and_names_the_remedy(
    server: RedisServer,
) -> None:
    with pytest.raises(ConnectError, match=MISSING):
        await connect(server.url(), scripts="functions", **OPTIONS).connect()


async def test_auto_takes_the_library_where_it_is_and_scripts_elsewhere(
    server: RedisServer,
) -> None:
    async with connect(server.url(), **OPTIONS) as bus:
        await bus.publish("t", 1)
    # It was asked once whether the library is there.
    assert (calls(server, "fcall"), calls(server, "evalsha") > 0) == (1, True)
    server.load_functions()
    with server.client() as client:
        client.config_resetstat()
    async with (
        connect(server.url(), **OPTIONS) as bus,
        connect(server.url(), scripts="eval", **OPTIONS) as other,
    ):
        seen: list[Any] = []
        await bus.subscribe("t", lambda event: seen.append(event.payload))
        assert calls(server, "evalsha") > 0, "the other bus"
        before = calls(server, "evalsha")
        await bus.publish("t", 2)
        assert calls(server, "evalsha") == before
        await other.publish("t", 3)
        assert await soon(lambda: seen == [2, 3], 5)


async def test_a_library_that_is_lost_is_told_and_works_again_once_it_is_back(
    server: RedisServer,
) -> None:
    server.load_functions()
    async with (
        connect(server.url(), scripts="functions", **OPTIONS) as strict,
        connect(server.url(), **OPTIONS) as lenient,
    ):
        await strict.declare_group("g", "t")
        await lenient.publish("t", 1)
        with server.client() as client:
            client.function_flush()
        with pytest.raises(EventBusError, match=MISSING):
            await strict.publish("t", 2)
        with pytest.raises(EventBusError, match=MISSING):
            await strict.inspect()
        # It may run scripts, and does.
        await lenient.publish("t", 3)
        server.load_functions()
        await strict.publish("t", 4)
        [group] = (await strict.inspect())["groups"]
        assert group["ready"] == 3


async def test_a_library_of_another_text_is_not_used_and_is_replaced_by_the_operator(
    server: RedisServer,
) -> None:
    other = (
        "#!lua name=eventbus_1\n"
        "redis.register_function{function_name='eventbus_1_about', "
        "callback=function() return 'other' end, flags={'no-writes'}}"
    )
    with server.client() as client:
        client.function_load(other)
    with pytest.raises(ConnectError, match=r"is there with another text.*redis-setup"):
        await connect(server.url(), scripts="functions", **OPTIONS).connect()
    async with connect(server.url(), **OPTIONS) as bus:
        await bus.publish("t", 1)
    would = await redis_setup(server.url(), dry_run=True)
    assert list(would.servers.values()) == ["replaced"]
    assert list((await redis_setup(server.url())).servers.values()) == ["replaced"]
    async with connect(server.url(), scripts="functions", **OPTIONS) as bus:
        await bus.publish("t", 1)


async def test_the_library_outlives_a_restart_and_flushall(server: RedisServer) -> None:
    server.load_functions()
    server.restart(kill=True)
    with server.client() as client:
        client.flushall()
    async with connect(server.url(), scripts="functions", **OPTIONS) as bus:
        await bus.publish("t", 1)


async def test_functions_on_a_full_server_refuse_and_drain_as_scripts_do(
    server: RedisServer,
) -> None:
    server.load_functions()
    async with connect(server.url(), scripts="functions", **OPTIONS) as bus:
        await bus.declare_group("g", "t")
        await bus.publish_many([("t", number) for number in range(10)])
        seen: list[Any] = []
        await bus.subscribe("news", lambda event: seen.append(event.payload))
        with server.client() as client:
            client.config_set("maxmemory", 1)
        with pytest.raises(EventBusError, match="OOM") as caught:
            await bus.publish("t", 10)
        assert caught.value.is_retryable
        assert not caught.value.outcome_unknown
        await bus.publish("news", "heard")
        assert await soon(lambda: seen == ["heard"], 5)
        async with bus.deliveries("t", group="g") as deliveries:
            for number in range(10):
                delivery = await anext(deliveries)
                assert delivery.event.payload == number
                await delivery.ack()
        [group] = (await bus.inspect())["groups"]
        assert (group["ready"], group["acked"]) == (0, 10)
        with server.client() as client:
            client.config_set("maxmemory", 0)
        await bus.publish("t", 11)


async def test_every_primary_of_a_cluster_gets_the_library() -> None:
    cluster = RedisCluster().start()
    try:
        done = await redis_setup(cluster.url())
        assert sorted(done.servers.values()) == ["new"] * 3
        assert sorted((await redis_setup(cluster.url())).servers.values()) == ["unchanged"] * 3
        async with connect(cluster.url(), scripts="functions", **OPTIONS) as bus:
            await bus.declare_group("g", "t")
            await bus.publish("t", 1)
            async with bus.deliveries("t", group="g") as deliveries:
                await (await anext(deliveries)).ack()
    finally:
        for node in cluster.nodes:
            node.close()


def test_the_command_line_says_what_it_did(server: RedisServer) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "eventbus", "redis-setup", *words],
            env={**os.environ, "EVENTBUS_URL": server.url()},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    where = f"127.0.0.1:{server.port}: function library eventbus_1"
    assert run("--dry-run") == f"{where} is missing\n"
    assert run() == f"{where} was loaded\n"
    assert run() == f"{where} is up to date\n"


async def test_only_redis_has_functions() -> None:
    with pytest.raises(UnsupportedError, match="postgres bus has no functions"):
        await redis_setup("postgresql://localhost/x")
