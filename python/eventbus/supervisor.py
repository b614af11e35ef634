"""Keeps tasks running: one that ends for another reason than a stop is replaced."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable

from eventbus.errors import BusClosedError

__all__ = ["Supervisor"]

log = logging.getLogger("eventbus.supervisor")

_LONGEST_PAUSE = 5.0
"""Seconds before a task is replaced that has ended quickly again and again."""
_STEADY = 10.0
"""Seconds after which the end of a task has nothing to do with the end of the one before."""


class _Sentinel:
    """Knows whether a loop ends: its task does nothing, and is cancelled only with all others.

    Held by the supervisors of the loop; the last one that leaves ends the task.
    """

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Sentinel:
        """Return the sentinel of a loop; the caller must be running on it."""
        found = _sentinels.get(id(loop))
        if found is None or found._loop is not loop or found.loop_ends:
            found = cls(loop)
            _sentinels[id(loop)] = found
        found._users += 1
        return found

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._users = 0
        self._left: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._wait(self._left), name="eventbus-sentinel")
        # A loop that is dropped with all its tasks pending need not tell of this one.
        setattr(self._task, "_log_destroy_pending", False)  # noqa: B010 - not in the stubs

    @staticmethod
    async def _wait(left: asyncio.Future[None]) -> None:
        await left

    @property
    def loop_ends(self) -> bool:
        """Whether all tasks of the loop are being cancelled."""
        return self._task.done() or self._task.cancelling() > 0

    def leave(self) -> None:
        """Give it up; called on its loop."""
        self._users -= 1
        if self._users == 0:
            if _sentinels.get(id(self._loop)) is self:
                del _sentinels[id(self._loop)]
            if not self._left.done():
                self._left.set_result(None)


_sentinels: weakref.WeakValueDictionary[int, _Sentinel] = weakref.WeakValueDictionary()
"""By the id of their loop, which they keep alive."""


class Supervisor:
    """Starts tasks of one owner, and starts them again when they end for no good reason.

    Good reasons are: the task returns, its owner stops, its bus was closed, its loop ends.
    """

    def __init__(
        self,
        name: str,
        replaced: Callable[[], object],
        ended: Callable[[], object] | None = None,
    ) -> None:
        """Begin without tasks, on the running loop.

        Args:
            name: What the tasks do and for whom; for the log.
            replaced: Called when a task has ended for no good reason.
            ended: Called when the last task has ended for good.
        """
        self._name = name
        self._replaced = replaced
        self._at_end = ended
        self._loop = asyncio.get_running_loop()
        self._sentinel = _Sentinel.of(self._loop)
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopped = False
        self._left = False
        self.running = 0

    @property
    def is_over(self) -> bool:
        """Whether a task that ends now is not replaced: its owner stops, or its loop ends."""
        return self._stopped or self.loop_ends

    @property
    def loop_ends(self) -> bool:
        """Whether all tasks of the loop are being cancelled."""
        return not self._left and self._sentinel.loop_ends

    def keep(self, begin: Callable[[], asyncio.Task[None]]) -> None:
        """Start a task, and again whenever it ends for no good reason.

        Args:
            begin: Makes the task.
        """
        self._begin(begin, 0.0)

    def stop(self) -> None:
        """Replace nothing more; the tasks that run go on. Idempotent, works from other threads."""
        self._stopped = True
        for timer in list(self._timers):
            timer.cancel()
        if self._timers:
            self._timers.clear()
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._leave)

    def absorb(self) -> bool:
        """Undo a cancellation of the running task that is no stop; return whether it was none.

        User code reaches the task by ``asyncio.current_task()`` in a handler. It may cancel it to
        abort that handler, at any later time too.
        """
        if self.is_over:
            return False
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()
        return True

    def _begin(self, begin: Callable[[], asyncio.Task[None]], pause: float) -> None:
        began = self._loop.time()
        task = begin()
        self.running += 1

        def done(task: asyncio.Task[None]) -> None:
            self._done(task, begin, pause if self._loop.time() - began < _STEADY else 0.0)

        task.add_done_callback(done)

    def _done(
        self, task: asyncio.Task[None], begin: Callable[[], asyncio.Task[None]], pause: float
    ) -> None:
        self.running -= 1
        error = _fault(task)
        if error is None or self.is_over:
            self._leave()
            return
        # An exit or interrupt was shown when it left the loop, which goes on all the same.
        was_shown = isinstance(error, SystemExit | KeyboardInterrupt)
        log.log(
            logging.INFO if was_shown else logging.ERROR,
            "%s: a task has ended and is replaced task=%s",
            self._name,
            task.get_name(),
            exc_info=error,
        )
        self._replaced()
        if pause == 0.0:
            # Nothing is wrong with the first one.
            self._begin(begin, 0.05)
            return

        def again() -> None:
            self._timers.discard(timer)
            self._begin(begin, min(pause * 2, _LONGEST_PAUSE))

        timer = self._loop.call_later(pause, again)
        self._timers.add(timer)

    def _leave(self) -> None:
        if self.running or self._timers or self._left:
            return
        self._left = True
        self._sentinel.leave()
        if self._at_end is not None:
            self._at_end()


def _fault(task: asyncio.Task[None]) -> BaseException | None:
    """Return what ended a task, unless it is an end itself."""
    if task.cancelled():
        return asyncio.CancelledError("cancelled from outside")
    error = task.exception()
    # The bus, or the interpreter under a thread of its own, has ended.
    return None if isinstance(error, BusClosedError) else error
