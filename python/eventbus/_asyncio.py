"""Facts about asyncio that receivers and workers share."""

from __future__ import annotations

import asyncio

from eventbus.errors import BusClosedError

__all__ = ["is_own_cancellation", "report_failure"]


def is_own_cancellation(error: BaseException) -> bool:
    """Whether a handler raised ``CancelledError`` although its task is not being cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() == 0


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
