"""Facts about asyncio that receivers and workers share."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

from eventbus.errors import BusClosedError

__all__ = ["HandlerPlace", "calling_task", "is_own_cancellation", "is_running", "report_failure"]

_place: contextvars.ContextVar[HandlerPlace] = contextvars.ContextVar("eventbus_handler_place")


class HandlerPlace:
    """Where handlers run: the task of a receiver or worker, known to every task they start."""

    __slots__ = ("_is_busy", "_task", "context")

    def __init__(self, base: contextvars.Context) -> None:
        """Make a context for handlers that knows this place.

        Args:
            base: What the handlers' context is a copy of.
        """
        self.context = base.copy()
        self.context.run(_place.set, self)
        self._task: asyncio.Task[Any] | None = None
        self._is_busy: Callable[[], bool] = bool

    def runs_in(self, task: asyncio.Task[Any], is_busy: Callable[[], bool]) -> None:
        """Set the task, and what tells whether it is inside a handler now."""
        self._task, self._is_busy = task, is_busy

    def caller(self, current: asyncio.Task[Any] | None) -> asyncio.Task[Any] | None:
        """Return the task of this place when a handler runs in it, else the current one."""
        if self._task is None or current is self._task:
            return current
        return self._task if self._is_busy() else current


def calling_task() -> asyncio.Task[Any] | None:
    """Return the task whose handler calls this, directly or through a task that it started.

    ``asyncio.wait_for`` of CPython 3.11 starts such a task: the handler waits for it, so it must
    not wait for the handler. Outside of handlers, the current task.
    """
    current = asyncio.current_task()
    place = _place.get(None)
    return current if place is None else place.caller(current)


def is_own_cancellation(error: BaseException) -> bool:
    """Whether a handler raised ``CancelledError`` although its task is not being cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() == 0


def is_running(task: asyncio.Task[Any] | None) -> bool:
    """Whether this is called by the code of a task, not by the collector that closes its coroutine.

    Tells a ``GeneratorExit`` that a handler raised from one that ends a dropped coroutine.
    """
    try:
        return task is not None and asyncio.current_task() is task
    except RuntimeError:
        return False


def report_failure(task: asyncio.Task[None]) -> None:
    """Report what ended a task of ours, unless it is an end itself.

    An exit or interrupt has left the loop; a closed bus, or the interpreter's end under a thread of
    its own, is no fault.
    """
    error = None if task.cancelled() else task.exception()
    ends = (SystemExit, KeyboardInterrupt, BusClosedError)
    if error is not None and not isinstance(error, ends):
        context = {"message": "task of eventbus failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)
