"""T16: a Redis whose append-only file lost its tail: only what was in the tail is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.support import seeded
from chaos.load import Load, drained
from eventbus import connect
from servers.brokers import QUICK
from servers.checker import Journal, judge
from servers.redis_server import RedisServer

GROUP = "group"
TOPIC = "work"


def newest_part(server: RedisServer) -> Path:
    """Return the file that the server appended to."""
    return max(server.folder.rglob("*.incr.aof"), key=lambda file: file.stat().st_mtime)


@pytest.mark.parametrize("lost", [0, 1, 37, 1_000, 50_000])
async def test_a_file_without_its_end_loses_its_end_and_nothing_else(
    lost: int, tmp_path: Path
) -> None:
    rng = seeded()
    with RedisServer(appendonly=True, appendfsync="everysec") as server:
        async with connect(server.url(), **QUICK) as bus:
            await bus.declare_group(GROUP, TOPIC)
            load = Load(bus, TOPIC, tmp_path)
            sizes = []
            for _ in range(10):
                await load.many(20)
                sizes.append(newest_part(server).stat().st_size)
        server.kill()
        file = newest_part(server)
        left = file.stat().st_size - (lost and rng.randint(lost // 2 + 1, lost))
        with file.open("r+b") as handle:
            handle.truncate(left)
        # Each twenty that were written whole before the cut are safe.
        safe = 20 * sum(size <= left for size in sizes)
        server.start()
        journal = Journal(tmp_path, "consumer", sync=False)
        async with connect(server.url(), **QUICK) as bus:
            await bus.consume(TOPIC, journal.handle, group=GROUP)
            await drained(bus, GROUP, 10)
            await bus.publish(TOPIC, {"n": 1_000_000})
            await asyncio.sleep(0.2)
            figures = await drained(bus, GROUP, 5)
    verdict = judge(tmp_path)
    assert len(verdict.ok) == 200
    assert len(verdict.lost) <= 200 - safe, str(verdict)
    assert lost or not verdict.lost
    assert 1_000_000 in verdict.done
    assert not verdict.duplicates
    # The counters tell the same as the queue: no half of a script was kept.
    assert figures["acked"] == len(verdict.done)
