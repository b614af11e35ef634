"""What the fault tests share: publishing under load, waiting for a marker, figures of a group."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eventbus import Bus, EventBusError
from eventbus.testing import eventually
from servers.checker import Journal, Verdict, judge

_markers = itertools.count(1)


class Load:
    """Publishes numbers until told to stop, several at a time, and writes how each went.

    Attributes:
        published: The next number.
    """

    def __init__(self, bus: Bus, topic: str, folder: Path, *, pause: float = 0.002) -> None:
        """Choose where to.

        Args:
            bus: Publishes.
            topic: On this topic.
            folder: For the journal.
            pause: Seconds between two publishes of a lane.
        """
        self.published = 0
        self._bus = bus
        self._topic = topic
        self._journal = Journal(folder, "publisher", sync=False)
        self._pause = pause
        self._stopping = False

    async def run(self, lanes: int = 4) -> None:
        """Publish until ``stop``."""
        await asyncio.gather(*(self._lane() for _ in range(lanes)))

    async def _lane(self) -> None:
        while not self._stopping:
            await self.one()
            await asyncio.sleep(self._pause)

    async def one(self, **options: Any) -> bool:
        """Publish the next number; returns whether it was accepted."""
        number = self.published
        self.published += 1
        publishing = self._bus.publish(self._topic, {"n": number}, **options)
        return await self._journal.publish(publishing, number)

    async def many(self, count: int, lanes: int = 16, **options: Any) -> None:
        """Publish so many numbers."""
        left = iter(range(count))

        async def lane() -> None:
            for _ in left:
                await self.one(**options)

        await asyncio.gather(*(lane() for _ in range(lanes)))

    def stop(self) -> None:
        """End ``run`` after what is being published."""
        self._stopping = True


async def group_of(bus: Bus, group: str) -> dict[str, Any]:
    """Return the figures of a group."""
    found = await bus.inspect()
    return dict(next(one for one in found["groups"] if one["group"] == group))


async def drained(bus: Bus, group: str, within: float) -> dict[str, Any]:
    """Wait until nothing of a group waits or is being handled; returns its figures."""
    last: dict[str, Any] = {}

    async def empty() -> bool:
        last.update(await group_of(bus, group))
        return not (last["ready"] or last["in_flight"] or last["delayed"])

    try:
        await eventually(empty, timeout=within)
    except TimeoutError:
        raise AssertionError(f"not drained in {within} s: {last}") from None
    return last


async def soon(condition: Callable[[], object], within: float, every: float = 0.01) -> bool:
    """Wait until a condition holds; returns whether it did in time."""
    deadline = time.monotonic() + within
    while not (holds := condition()) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(every)
    return bool(holds)


async def all_done(folder: Path, within: float) -> Verdict:
    """Wait until every accepted id was done; returns the verdict, also when that never comes."""
    await soon(lambda: not judge(folder).lost, within, every=0.1)
    return judge(folder)


class Markers:
    """A subscription that is asked, again and again, whether it is alive."""

    def __init__(self, bus: Bus, topic: str) -> None:
        """Choose the topic."""
        self._bus = bus
        self._topic = topic
        self._seen: set[int] = set()
        self._news = asyncio.Event()
        self.gaps: list[Any] = []

    async def start(self) -> None:
        """Subscribe."""
        await self._bus.subscribe(self._topic, self._handle, on_gap=self.gaps.append)

    def _handle(self, event: Any) -> None:
        if isinstance(event.payload, int):
            self._seen.add(event.payload)
        self._news.set()

    async def alive(self, publisher: Bus, within: float = 5.0) -> float:
        """Publish markers until one made after this call is seen; returns the seconds it took.

        Raises:
            AssertionError: None was seen in time.
        """
        begin = time.monotonic()
        mine: set[int] = set()
        while not mine & self._seen:
            took = time.monotonic() - begin
            assert took < within, f"no marker of {len(mine)} seen within {within} s"
            self._news.clear()
            marker = next(_markers)
            try:
                async with asyncio.timeout(within - took):
                    await publisher.publish(self._topic, marker)
                mine.add(marker)
                async with asyncio.timeout(0.1):
                    await self._news.wait()
            except TimeoutError:
                continue
            except EventBusError:
                await asyncio.sleep(0.02)
        return time.monotonic() - begin
