"""The bounded buffer behind ``publish_nowait`` and ``flush``."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventbus.errors import EventBusError, QueueFull

if TYPE_CHECKING:
    from eventbus.bus import Bus
    from eventbus.types import PublishOptions

__all__ = ["Outbox"]


_Waiting = tuple[str, object, "PublishOptions"]
# Most events that share a request.
_BATCH = 250


@dataclass
class _Lane:
    """What one event loop has buffered: asyncio's tasks can only be awaited on their own loop."""

    waiting: deque[_Waiting] = field(default_factory=deque["_Waiting"])
    task: asyncio.Task[None] | None = None


class Outbox:
    """Events accepted by ``publish_nowait`` that are not published yet, in order per event loop."""

    def __init__(self, bus: Bus, limit: int) -> None:
        """Begin empty; ``limit`` is in events, of all loops together."""
        self._bus = bus
        self._limit = limit
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._lock = threading.Lock()
        self._failures: list[Exception] = []

    def __len__(self) -> int:
        """Return how many events wait."""
        with self._lock:
            return sum(len(lane.waiting) for lane in self._lanes.values())

    def _lane(self) -> tuple[asyncio.AbstractEventLoop, _Lane]:
        """Return the lane of the running loop; it takes over what ended loops have left."""
        loop = asyncio.get_running_loop()
        with self._lock:
            own = self._lanes.setdefault(loop, _Lane())
            for other in [one for one in self._lanes if one.is_closed()]:
                own.waiting.extend(self._lanes.pop(other).waiting)
        return loop, own

    def put(self, topic: str, event: object, options: PublishOptions) -> None:
        """Add an event; a task of the running loop publishes it.

        Raises:
            QueueFull: The buffer is full; the event was not taken.
            RuntimeError: No event loop is running in this thread.
        """
        loop, lane = self._lane()
        if len(self) >= self._limit:
            raise QueueFull(
                f"publish_nowait buffer is full: limit {self._limit} events; "
                "await bus.flush(), use await bus.publish(), or raise outbox_size",
                self._limit,
            )
        lane.waiting.append((topic, event, options))
        self._ensure_task(loop, lane)

    def _ensure_task(self, loop: asyncio.AbstractEventLoop, lane: _Lane) -> None:
        if lane.task is None or lane.task.done():
            lane.task = loop.create_task(self._drain(lane), name="eventbus-outbox")

    async def _drain(self, lane: _Lane) -> None:
        waiting = lane.waiting
        alone = 0
        while waiting:
            together = 0 if alone else self._together(waiting)
            if together > 1:
                alone = await self._publish_many(waiting, together)
                continue
            alone = max(0, alone - 1)
            topic, event, options = waiting[0]
            try:
                await self._bus.publish(topic, event, **options)
            except Exception as error:  # noqa: BLE001 - flush raises it
                self._failures.append(error)
            except asyncio.CancelledError:
                if waiting and self._bus.capabilities["in_process"]:
                    # Stored at its first step; only its inline handlers were cut off.
                    waiting.popleft()
                raise
            # Only now: elsewhere a cancelled drain leaves the event for the next one.
            if waiting:
                waiting.popleft()

    def _together(self, waiting: deque[_Waiting]) -> int:
        """Return how many of the first share a request: over a server, those without options."""
        if self._bus.capabilities["in_process"]:
            return 0
        first = itertools.islice(waiting, _BATCH)
        return sum(1 for _ in itertools.takewhile(lambda one: not one[2], first))

    async def _publish_many(self, waiting: deque[_Waiting], count: int) -> int:
        """Publish the first ones together; returns how many have to be tried one by one."""
        batch = [(topic, event) for topic, event, _ in itertools.islice(waiting, count)]
        try:
            await self._bus.publish_many(batch)
        except Exception as error:  # noqa: BLE001 - flush raises it
            if not getattr(error, "outcome_unknown", False):
                # None was stored: each for itself tells which is to blame.
                return count
            self._failures.append(error)
        for _ in range(min(count, len(waiting))):
            waiting.popleft()
        return 0

    async def flush(self) -> None:
        """Wait until what this loop, and loops that ended, have buffered is published.

        Raises:
            EventBusError: The one publish that failed since the last flush.
            ExceptionGroup: When several failed.
        """
        loop, lane = self._lane()
        while lane.waiting:
            self._ensure_task(loop, lane)
            task = lane.task
            if task is None:
                break
            await asyncio.wait([task])
            if task.cancelled():
                break
        failures, self._failures = self._failures, []
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup(f"{len(failures)} buffered publishes failed", failures)

    def fail_waiting(self, error: EventBusError) -> None:
        """Give up what waits; the next flush raises it."""
        with self._lock:
            lanes = dict(self._lanes)
        for loop, lane in lanes.items():
            if lane.waiting:
                self._failures.append(error)
                lane.waiting.clear()
            if lane.task is not None and not loop.is_closed():
                loop.call_soon_threadsafe(lane.task.cancel)
