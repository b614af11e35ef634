"""What a peer offers: a sending and a receiving side; and what counts on the receiving one."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

AT_ONCE = 50
"""Publishes that run at the same time where they do."""

BATCH = 100
"""Events per batch where there are batches."""

Payload = dict[str, Any]
Seen = Callable[[Payload], None]


class Producer:
    """The sending side."""

    async def one(self, payload: Payload) -> None:
        """Send one event; it was accepted when this returns."""
        raise NotImplementedError

    async def flood(self, payloads: Iterable[Payload]) -> None:
        """Send many events in the peer's way; all were accepted when this returns."""
        for payload in payloads:
            await self.one(payload)

    async def close(self) -> None:
        """Disconnect."""


class Consumer(Protocol):
    """The receiving side: runs until its process ends."""

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        """Receive, call ``seen`` for each event, and ``ready`` once that can happen."""


class Counter:
    """Counts what a consumer sees; asked from another thread.

    Attributes:
        count: Events since the last ``expect``.
    """

    def __init__(self) -> None:
        """Begin at none."""
        self.count = 0
        self._wanted = -1
        self._latencies = array("q")
        self._end = 0
        self._reached = threading.Event()
        self._lock = threading.Lock()

    def seen(self, payload: Payload) -> None:
        """Count one event; reading the payload is part of the work."""
        sent = payload["sent"]
        if sent:
            self._latencies.append(time.monotonic_ns() - sent)
        self.count += 1
        if self.count == self._wanted:
            self._end = time.monotonic_ns()
            self._reached.set()

    def seen_by_threads(self, payload: Payload) -> None:
        """Do the same where several threads handle events."""
        with self._lock:
            self.seen(payload)

    def expect(self, count: int) -> None:
        """Count from none again, up to so many."""
        self._latencies = array("q")
        self._reached.clear()
        self.count, self._wanted = 0, count

    def wait(self, timeout: float) -> tuple[bool, int, list[int]]:
        """Wait for them; return whether they came, when the last did, and all latencies."""
        reached = self._reached.wait(timeout)
        return reached, self._end, list(self._latencies)


async def by_lanes(payloads: Iterable[Payload], one: Callable[[Payload], Awaitable[Any]]) -> None:
    """Send with ``AT_ONCE`` publishes at a time."""
    left = iter(payloads)

    async def lane() -> None:
        for payload in left:
            await one(payload)

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))


def batches(payloads: Iterable[Payload], size: int = BATCH) -> Iterable[list[Payload]]:
    """Return the payloads in lists."""
    batch: list[Payload] = []
    for payload in payloads:
        batch.append(payload)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
