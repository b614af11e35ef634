"""A fail-over by sentinels: everybody finds the new master, and says what may be missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chaos.load import Load, Markers, all_done, drained
from eventbus import Bus, connect
from servers.brokers import QUICK
from servers.checker import Journal, judge
from servers.sentinel import SentinelSet

GROUP = "group"
TOPIC = "work"


@pytest.fixture
def servers() -> Iterator[SentinelSet]:
    with SentinelSet(appendonly=True) as one:
        yield one


@pytest.fixture
async def buses(servers: SentinelSet) -> AsyncIterator[list[Bus]]:
    options = {**QUICK, "op_timeout": 15.0, "drain_timeout": 2.0}
    made = [connect(servers.url(), **options) for _ in range(2)]
    for bus in made:
        await bus.connect()
    yield made
    for bus in made:
        await bus.close()


@pytest.mark.parametrize("pause", [False, True], ids=["killed", "stopped"])
async def test_a_fail_over_under_load_ends_with_everybody_on_the_new_master(
    pause: bool, servers: SentinelSet, buses: list[Bus], tmp_path: Path
) -> None:
    publisher, listener = buses
    journal = Journal(tmp_path, "consumer", sync=False)
    load = Load(publisher, TOPIC, tmp_path, pause=0.01)
    await listener.consume(TOPIC, journal.handle, group=GROUP, lease=1.0)
    markers = Markers(listener, "markers")
    await markers.start()
    await markers.alive(publisher)
    loading = asyncio.create_task(load.run(lanes=2))
    await asyncio.sleep(0.5)
    with servers.master.client() as client:
        # What both have by now must be there afterwards.
        client.wait(1, 5000)
    safe = set(judge(tmp_path).ok)
    loop = asyncio.get_running_loop()
    old, new = await loop.run_in_executor(None, lambda: servers.fail_over(pause=pause))
    await markers.alive(publisher, 10.0)
    await markers.alive(listener, 10.0)
    await asyncio.sleep(0.5)
    load.stop()
    await loading
    assert markers.gaps, "nobody told of what may be missing"
    await all_done(tmp_path, 10)
    await drained(listener, GROUP, 10)
    verdict = judge(tmp_path)
    # Replication is asynchronous: only what both servers had is promised.
    assert not verdict.lost & safe, str(verdict)
    assert not verdict.unexpected, str(verdict)
    with new.client() as client:
        assert client.info("replication")["role"] == "master"
    assert len(new.clients()) >= 2
    if pause:
        # The old one comes back and must not be listened to any more.
        old.resume()
        await asyncio.sleep(1.0)
        await markers.alive(publisher, 10.0)
        await publisher.publish(TOPIC, {"n": 1_000_000})
        await drained(listener, GROUP, 5)
        assert 1_000_000 in judge(tmp_path).done


async def test_the_sentinels_may_be_named_in_any_order_and_some_may_be_gone(
    servers: SentinelSet,
) -> None:
    from servers.process import free_port
    from servers.sentinel import SERVICE

    hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), servers.ports[2]))
    async with connect(f"redis+sentinel://{hosts}/{SERVICE}/0", **QUICK) as bus:
        markers = Markers(bus, "markers")
        await markers.start()
        await markers.alive(bus)


async def test_an_unknown_service_is_named(servers: SentinelSet) -> None:
    from eventbus import EventBusError

    url = f"redis+sentinel://127.0.0.1:{servers.ports[0]}/nonsense/0"
    with pytest.raises(EventBusError, match="nonsense"):
        async with asyncio.timeout(6):
            await connect(url, **QUICK).connect()
