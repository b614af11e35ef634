"""A Redis Cluster: the bus lives on one slot, follows it, and survives the loss of its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.load import Load, Markers, all_done, drained
from eventbus import Bus, Event, connect
from servers.brokers import QUICK
from servers.checker import Journal, judge
from servers.cluster import RedisCluster
from servers.redis_server import RedisServer

GROUP = "group"
TOPIC = "work"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster(appendonly=True, appendfsync="always") as one:
        yield one


@pytest.fixture
async def buses(cluster: RedisCluster, request: pytest.FixtureRequest) -> AsyncIterator[list[Bus]]:
    prefix = request.node.originalname[:40].replace("_", "-")
    options: dict[str, Any] = {**QUICK, "op_timeout": 10.0, "drain_timeout": 2.0, "prefix": prefix}
    made = [connect(cluster.url(), **options) for _ in range(2)]
    for bus in made:
        await bus.connect()
    yield made
    for bus in made:
        await bus.close()


def home(cluster: RedisCluster, bus_prefix: str) -> tuple[int, RedisServer]:
    """Return slot and node of the keys of a bus, all of which must be in one slot."""
    slots: set[int] = set()
    for node in cluster.nodes:
        with node.client() as client:
            for key in client.scan_iter(f"*{bus_prefix}*", count=1_000):
                slots.add(client.execute_command("CLUSTER", "KEYSLOT", key))
    assert len(slots) == 1, f"the keys of one bus are in the slots {slots}"
    [slot] = slots
    return slot, cluster.node_of(slot)


async def under_load(
    publisher: Bus, worker: Bus, folder: Path
) -> tuple[Load, asyncio.Task[None], Markers]:
    """Begin to publish, to handle and to write both down, and return when it is under way."""
    journal = Journal(folder, "consumer", sync=False)
    await worker.consume(TOPIC, journal.handle, group=GROUP, lease=1.0)
    markers = Markers(worker, "markers")
    await markers.start()
    load = Load(publisher, TOPIC, folder)
    loading = asyncio.create_task(load.run())
    await asyncio.sleep(0.3)
    return load, loading, markers


async def test_everything_works_on_a_cluster(cluster: RedisCluster, buses: list[Bus]) -> None:
    publisher, worker = buses
    done: list[Any] = []

    async def handle(event: Event) -> None:
        done.append(event.payload)

    markers = Markers(worker, "markers")
    await markers.start()
    await markers.alive(publisher)
    for number in range(10):
        await worker.consume(f"topic:{number}", handle, group=f"group:{number}")
    await publisher.publish_many([(f"topic:{number}", number) for number in range(10)])
    for number in range(10):
        await drained(worker, f"group:{number}", 5)
    assert sorted(done) == list(range(10))
    async with publisher.transaction() as tx:
        for number in range(10):
            tx.put(f"record/{number}", number)
        tx.publish("topic:0", 10)
    assert len(await worker.scan("record/")) == 10
    home(cluster, "test-everything")


async def test_a_slot_that_moves_under_load_takes_the_bus_with_it(
    cluster: RedisCluster, buses: list[Bus], tmp_path: Path
) -> None:
    publisher, worker = buses
    load, loading, markers = await under_load(publisher, worker, tmp_path)
    slot, node = home(cluster, "test-a-slot")
    target = next(one for one in cluster.nodes if one is not node)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, cluster.move, slot, target)
    await asyncio.sleep(0.5)
    load.stop()
    await loading
    await markers.alive(publisher)
    verdict = await all_done(tmp_path, 10)
    await drained(worker, GROUP, 10)
    verdict = judge(tmp_path)
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected, str(verdict)
    assert not verdict.failed, str(verdict)
    assert home(cluster, "test-a-slot") == (slot, target)


async def test_the_bus_survives_the_death_of_its_node(
    cluster: RedisCluster, buses: list[Bus], tmp_path: Path
) -> None:
    publisher, worker = buses
    load, loading, markers = await under_load(publisher, worker, tmp_path)
    _, node = home(cluster, "test-the-bus")
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, node.kill)
    await asyncio.sleep(1.0)
    await loop.run_in_executor(None, node.start)
    await markers.alive(publisher, 10.0)
    load.stop()
    await loading
    verdict = await all_done(tmp_path, 10)
    await drained(worker, GROUP, 10)
    verdict = judge(tmp_path)
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected, str(verdict)
    assert markers.gaps
