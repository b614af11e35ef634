"""Rules B23 and B55 over processes: managers killed with -9, and nobody there at first."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from eventbus.compat.backendai import EventDispatcher

from .conftest import WHERE, Where, address

WORKER = Path(__file__).with_name("worker.py")
# Not memory: a bus of one process has no managers to kill.
PLACES = [where for where in WHERE if not where.name.startswith("memory")]


class Fleet:
    """Manager processes that note what they handled."""

    def __init__(self, url: str, where: Where, folder: Path) -> None:
        self.note = folder / "handled"
        self.note.touch()
        self.url = url
        self.where = where
        self.wire = where.options.get("wire", "backendai")
        self._command = [sys.executable, str(WORKER), url, self.wire, str(self.note)]
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        process = await asyncio.create_subprocess_exec(*self._command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        self.running.append(process)

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        self.running.remove(process)
        process.kill()
        await process.wait()

    def handled(self) -> Counter[int]:
        return Counter(map(int, self.note.read_text().split()))


@pytest.fixture(params=PLACES, ids=lambda where: where.name)
async def fleet(
    request: pytest.FixtureRequest, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[Fleet]:
    where: Where = request.param
    name = unique("bus").replace(":", "-")
    found = Fleet(address(where, request, name), where, tmp_path)
    yield found
    for process in list(found.running):
        await found.kill(process)


async def produce(fleet: Fleet, count: int, *, pause: float) -> None:
    d = await EventDispatcher.new(bus=fleet.url, wire=fleet.wire)
    for start in range(0, count, 100):
        await asyncio.gather(*(d.produce_event("e", (start + n,)) for n in range(100)))
        await asyncio.sleep(pause)
    await d.close()


async def all_handled(fleet: Fleet, count: int, timeout: float) -> Counter[int]:
    deadline = time.monotonic() + timeout
    while len(found := fleet.handled()) < count:
        missing = sorted(set(range(count)) - set(found))
        assert time.monotonic() < deadline, f"{len(missing)} missing: {missing[:10]}"
        await asyncio.sleep(0.2)
    return found


async def kills(fleet: Fleet, count: int, times: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)  # noqa: T201 - shown when it fails
    dice = random.Random(seed)
    await asyncio.gather(*(fleet.start() for _ in range(3)))
    producing = asyncio.create_task(produce(fleet, count, pause=0.6 * times * 100 / count))
    for _ in range(times):
        await asyncio.sleep(dice.uniform(0.1, 0.5))
        await fleet.kill(dice.choice(fleet.running))
        await fleet.start()
    await producing
    # lease + 5 s, and the time that a loaded machine needs for the rest
    found = await all_handled(fleet, count, 2.0 + 5.0 + count / 200)
    twice = sum(found.values()) - count
    assert twice <= times * 16, f"{twice} handled twice"


async def test_b55_two_kills_lose_nothing(fleet: Fleet) -> None:
    await kills(fleet, 1000, 2)


@pytest.mark.chaos
async def test_b55_ten_kills_and_ten_thousand_events_lose_nothing(fleet: Fleet) -> None:
    await kills(fleet, 10_000, 10)


async def test_b23_events_wait_for_the_first_manager_process(fleet: Fleet) -> None:
    if not fleet.where.wire:
        # A name that no dispatcher ever consumed stores nothing (B38).
        await fleet.start()
        await fleet.kill(fleet.running[0])
    await produce(fleet, 500, pause=0)
    await fleet.start()
    assert set((await all_handled(fleet, 500, 20)).values()) == {1}
