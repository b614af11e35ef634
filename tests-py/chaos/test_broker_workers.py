"""T1, T2: workers that are killed or stopped lose nothing and settle nothing that is not theirs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.support import seeded, sizes
from chaos.conftest import Connect
from chaos.load import Load, all_done, drained, group_of
from servers.brokers import DEFAULTS, QUICK, Broker
from servers.checker import judge, read
from servers.fleet import Fleet
from servers.worker import Orders

GROUP = "workers"
TOPIC = "work"


def orders(full: bool, **more: Any) -> Orders:
    """Return what workers do, with the short or the default lease."""
    lease, options = (30.0, DEFAULTS) if full else (1.5, QUICK)
    return Orders(TOPIC, GROUP, lease=lease, options=options, **more)


async def in_thread(work: Callable[..., Any], *values: Any) -> Any:
    """Do something with processes without holding the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work, *values)


async def kill_some(fleet: Fleet, kills: int, rng: random.Random, longest: float) -> None:
    """Kill random workers, and start each again after a while."""
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(0.05, longest / 2))
        killed = await in_thread(fleet.kill_one, rng)
        await asyncio.sleep(rng.uniform(0, longest))
        await in_thread(fleet.start_again, killed)


@sizes(200, 10_000)
async def test_killed_workers_lose_nothing(
    count: int, broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    full, rng = count == 10_000, seeded()
    kills, slots = (20, 8) if full else (2, 4)
    work = orders(full, concurrency=slots, work=0.02 if full else 0.04)
    bus = await connected()
    await bus.declare_group(GROUP, TOPIC)
    with Fleet(broker.url(), tmp_path, work, 4 if full else 2) as fleet:
        load = Load(bus, TOPIC, tmp_path, pause=0.0)
        killing = asyncio.create_task(kill_some(fleet, kills, rng, 3.0 if full else 0.4))
        await load.many(count)
        await killing
        last_kill = time.monotonic()
        verdict = await all_done(tmp_path, work.lease + 15)
        assert not verdict.lost, f"{verdict}\n{fleet.logs()}"
        assert verdict.last_done <= last_kill + work.lease + 10
        figures = await drained(bus, GROUP, work.lease + 10)
        verdict = judge(tmp_path)
        assert len(verdict.ok) == count, str(verdict)
        assert not verdict.unexpected, str(verdict)
        assert len(verdict.duplicates) <= kills * slots, str(verdict)
        assert figures["acked"] == figures["accepted"] == count
        assert figures["dead"] == 0
        assert fleet.ended() == {}, fleet.logs()


@sizes(1, 20, "pauses")
async def test_a_stopped_worker_settles_nothing_that_is_not_its_own_any_more(
    pauses: int, broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    full, rng = pauses > 1, seeded()
    work = orders(full, concurrency=4, work=0.3, transaction=True)
    work.lease = 2.0 if full else 1.0
    count = 400 if full else 40
    bus = await connected()
    await bus.declare_group(GROUP, TOPIC)
    with Fleet(broker.url(), tmp_path, work, 2) as fleet:
        load = Load(bus, TOPIC, tmp_path)
        await load.many(count)
        for _ in range(pauses):
            await asyncio.sleep(0.4)  # Into the handlers of the victim.
            fleet.pause(0)
            await asyncio.sleep(work.lease * (rng.uniform(0.5, 3.0) if full else 3.0))
            fleet.resume(0)
        verdict = await all_done(tmp_path, work.lease + 30)
        assert not verdict.lost, f"{verdict}\n{fleet.logs()}"
        figures = await drained(bus, GROUP, work.lease + 20)
        # Each effect of the transactions is there once, whoever tried it.
        records = await bus.scan(f"{GROUP}/", limit=count + 1)
        assert len(records) == count
        assert {record.version for record in records} == {1}
        verdict = judge(tmp_path)
        settled = verdict.settled
        assert set(settled.values()) == {1}, "two workers settled the same delivery"
        assert figures["acked"] == count
        if not full:
            # Everything that the stopped worker held was taken from it.
            assert figures["expired_leases"] >= 1
            assert 1 <= len(verdict.duplicates) <= work.concurrency, str(verdict)


async def test_a_handler_that_kills_its_worker_ends_in_the_dead_letters(
    broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    work = orders(False, concurrency=1, suicide_on=3, max_deliveries=3)
    bus = await connected()
    await bus.declare_group(GROUP, TOPIC)
    load = Load(bus, TOPIC, tmp_path)
    with Fleet(broker.url(), tmp_path, work, 2) as fleet:
        await load.many(10, lanes=1)
        deadline = time.monotonic() + 30
        while (await group_of(bus, GROUP))["dead"] == 0 and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            for number in range(2):
                await in_thread(fleet.start_again, number)
        await drained(bus, GROUP, 15)
        [letter] = await bus.dead_letters(GROUP).list()
        verdict = judge(tmp_path)
    assert letter.reason == "crashed"
    assert letter.event is not None
    assert letter.event.payload == {"n": 3}
    assert set(verdict.done) == set(range(10)) - {3}
    # Handed out exactly as often as allowed, and counted before the handler ran.
    starts = [line for line in read(tmp_path)[0] if line["kind"] == "start" and line["id"] == 3]
    assert len(starts) == 3


async def test_a_handler_that_holds_its_thread_keeps_its_lease(
    broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    work = orders(False, concurrency=1, block=2.0)
    work.lease = 0.6
    bus = await connected()
    await bus.declare_group(GROUP, TOPIC)
    load = Load(bus, TOPIC, tmp_path)
    with Fleet(broker.url(), tmp_path, work, 2):
        await load.many(4, lanes=1)
        verdict = await all_done(tmp_path, 20)
        await drained(bus, GROUP, 5)
    assert not verdict.lost
    assert not verdict.duplicates, "a lease ran out while its handler ran"


@sizes(3, 50, "restarts")
async def test_workers_that_are_deployed_anew_hand_back_what_they_hold(
    restarts: int, broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    work = orders(False, concurrency=4, work=0.1)
    work.lease = 30.0  # Nothing may wait for a lease.
    bus = await connected()
    await bus.declare_group(GROUP, TOPIC)
    load = Load(bus, TOPIC, tmp_path, pause=0.05)
    loading = asyncio.create_task(load.run(lanes=2))
    with Fleet(broker.url(), tmp_path, work, 1) as fleet:
        for _ in range(restarts):
            await asyncio.sleep(0.5)
            await in_thread(fleet.stop)
            await in_thread(fleet.start)
        load.stop()
        await loading
        verdict = await all_done(tmp_path, 20)
        figures = await drained(bus, GROUP, 10)
    verdict = judge(tmp_path)
    assert not verdict.lost, str(verdict)
    assert not verdict.duplicates, str(verdict)
    assert figures["expired_leases"] == 0
