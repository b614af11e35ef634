"""Tools for tests: a bus on a clock turned by hand, a recording handler, waiting for an event.

Everything here works with any test runner; ``eventbus.pytest_plugin`` makes fixtures of it. None of
it sleeps to synchronise: what is waited for is a condition with a deadline.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

from eventbus.bus import Bus
from eventbus.config import MemoryBusOptions, Seconds, seconds
from eventbus.errors import BusClosedError
from eventbus.types import Event

__all__ = ["ManualBus", "Recorder", "eventually", "manual_bus", "wait_for_event"]

Predicate = Callable[[Event], bool]

# How long ``advance`` lets handlers that became due run; one that waits for the clock itself never
# comes to an end, so there is a limit.
_SETTLE = 0.25


class ManualBus(Bus):
    """A memory bus whose clock stands still until ``advance`` moves it; made by ``manual_bus``.

    Delays, retries, leases, time to live and the dedup window follow this clock. The renewal of
    leases follows the real one: a step beyond a lease takes the delivery back, as from a worker
    that was paused.
    """

    def __init__(self, start: datetime, **options: Unpack[MemoryBusOptions]) -> None:
        """Make a bus whose clock shows ``start``."""
        self._now = start
        super().__init__(_manual_clock=_micros(start), **options)

    @property
    def now(self) -> datetime:
        """What the clock shows, aware, in UTC."""
        return self._now

    async def advance(self, by: Seconds) -> None:
        """Move the clock and let what became due run.

        Returns when nothing that is due waits for a handler any more and no handler runs, at the
        latest after a quarter of a real second: a handler may itself be waiting for the clock.

        Args:
            by: Seconds or a timedelta, 0 or more.

        Raises:
            InvalidArgumentError: A negative step.
        """
        step = seconds(by, "by")
        self._advance(step)
        self._now += timedelta(seconds=step)
        try:
            await self.wait_idle(_SETTLE)
        except TimeoutError:
            return


def manual_bus(start: datetime | None = None, **options: Unpack[MemoryBusOptions]) -> ManualBus:
    """Return a memory bus on a manual clock, not connected yet.

    ``async with manual_bus() as bus:`` and then ``await bus.advance(60)``.

    Args:
        start: What the clock shows at first, with a time zone; 2030-01-01 UTC by default.
        **options: Options of ``eventbus.connect`` for a memory bus; ``strict`` is on by default.

    Raises:
        ValueError: A start without time zone.
        ConfigError: A bad option.
    """
    first = datetime(2030, 1, 1, tzinfo=UTC) if start is None else start
    if first.tzinfo is None:
        raise ValueError(f"start={first!r} must have a time zone, as datetime.now(UTC) has")
    options.setdefault("strict", True)
    return ManualBus(first.astimezone(UTC), **options)


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class Recorder:
    """A handler that keeps what it is called with; works for ``subscribe`` and ``consume``.

    Attributes:
        events: The events, in the order of the calls.
    """

    def __init__(self, then: Callable[[Event], Any] | None = None) -> None:
        """Begin empty.

        Args:
            then: Called with each event after it was recorded; what it raises or returns is what
                the recorder raises or returns, so it can fail or be a coroutine function.
        """
        self.events: list[Event] = []
        self._then = then
        # Whether it can have a timeout or run in a thread is up to what it calls.
        self.__eventbus_handler__ = then
        self._waiting: list[asyncio.Future[None]] = []

    def __call__(self, event: Event) -> Any:
        """Record an event; this is the handler."""
        self.events.append(event)
        self._tell()
        return None if self._then is None else self._then(event)

    def __len__(self) -> int:
        """Return how many events were recorded."""
        return len(self.events)

    def __bool__(self) -> bool:
        """A recorder is true, also an empty one."""
        return True

    @property
    def payloads(self) -> list[Any]:
        """The payloads, in the order of the calls."""
        return [event.payload for event in self.events]

    @property
    def topics(self) -> list[str]:
        """The topics, in the order of the calls."""
        return [event.topic for event in self.events]

    def clear(self) -> None:
        """Forget what was recorded."""
        self.events.clear()

    async def wait_for(self, wanted: int | Predicate = 1, timeout: Seconds = 5.0) -> list[Event]:
        """Wait until enough was recorded, before this call or after it.

        Args:
            wanted: How many events (at least 1), or a predicate that one of them must satisfy.
            timeout: Seconds or a timedelta.

        Returns:
            All events recorded so far, or those that satisfy the predicate.

        Raises:
            TimeoutError: Not in time; the message says what was recorded.
        """
        limit = seconds(timeout, "timeout")
        try:
            async with asyncio.timeout(limit):
                while not (found := self._found(wanted)):
                    await self._next_call()
        except TimeoutError:
            what = f"{wanted} events" if isinstance(wanted, int) else "an event that fits"
            raise TimeoutError(
                f"waited {limit:g} s for {what}; recorded {len(self)}: {self.topics[-10:]}"
            ) from None
        return found

    def _found(self, wanted: int | Predicate) -> list[Event]:
        if isinstance(wanted, int):
            return list(self.events) if len(self.events) >= wanted else []
        return [event for event in self.events if wanted(event)]

    async def _next_call(self) -> None:
        called = asyncio.get_running_loop().create_future()
        self._waiting.append(called)
        try:
            await called
        finally:
            if called in self._waiting:
                self._waiting.remove(called)

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for called in waiting:
            # Handlers may run on another loop than the one that waits.
            loop = called.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, called)


def _finish(called: asyncio.Future[None]) -> None:
    if not called.done():
        called.set_result(None)


async def wait_for_event(
    bus: Bus,
    topic: str | None = None,
    predicate: Predicate | None = None,
    *,
    pattern: str | None = None,
    timeout: Seconds = 5.0,
) -> Event:
    """Return the next event that is broadcast on a topic or pattern.

    It sees what is published after it began: start it first
    (``asyncio.create_task``, ``asyncio.gather``), or use a ``Recorder`` that was subscribed before.

    Args:
        bus: The bus.
        topic: The topic, or
        predicate: What the event must satisfy; ``None`` takes the first.
        pattern: the pattern.
        timeout: Seconds or a timedelta.

    Raises:
        TimeoutError: None came in time; the message says what came instead.
        BusClosedError: The bus was closed before one came.
        TypeError: Topic and pattern, or neither.
    """
    limit = seconds(timeout, "timeout")
    others: list[str] = []
    where = topic if pattern is None else pattern
    async with bus.stream(topic, pattern=pattern) as events:
        try:
            async with asyncio.timeout(limit):
                async for event in events:
                    if predicate is None or predicate(event):
                        return event
                    others.append(event.topic)
        except TimeoutError:
            raise TimeoutError(
                f"waited {limit:g} s for an event on {where!r} that fits; "
                f"{len(others)} others came: {others[-10:]}"
            ) from None
    raise BusClosedError(f"the bus was closed before an event came on {where!r}")


async def eventually(
    condition: Callable[[], Any],
    what: str = "the condition",
    *,
    timeout: Seconds = 5.0,
) -> Any:
    """Wait until a condition is true and return its value.

    Args:
        condition: A function, or a coroutine function, without arguments.
        what: Names it in the error.
        timeout: Seconds or a timedelta.

    Raises:
        TimeoutError: Not in time; the message holds the last value.
    """
    limit = seconds(timeout, "timeout")
    value: Any = None
    pause = 0.0
    try:
        async with asyncio.timeout(limit):
            while True:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(pause)
                pause = min(pause + 0.0005, 0.02)
    except TimeoutError:
        raise TimeoutError(f"waited {limit:g} s for {what}; last value: {value!r}") from None
