"""Coalescing: of a burst of events only the last one is handled."""

from __future__ import annotations

import asyncio
from typing import TypedDict

from eventbus.errors import InvalidArgumentError

__all__ = ["CoalescingOptions", "CoalescingState", "check_coalescing"]


class CoalescingOptions(TypedDict):
    """When a handler that coalesces runs.

    Attributes:
        max_wait: Seconds of silence after which the last event of a burst is handled.
        max_batch_size: The event of this number in a burst is handled at once.
    """

    max_wait: float
    max_batch_size: int


class CoalescingState:
    """How far the current burst of one handler is.

    Attributes:
        batch_size: Events of the burst so far.
        last_added: ``loop.time()`` of the last one.
        last_handle: The timer that ends the burst.
        fut_sync: What the last event waits for: true = handle it.
    """

    def __init__(
        self,
        batch_size: int = 0,
        last_added: float = 0.0,
        last_handle: asyncio.TimerHandle | None = None,
        fut_sync: asyncio.Future[bool] | None = None,
    ) -> None:
        """Begin without a burst, or in the middle of one."""
        self.batch_size = batch_size
        self.last_added = last_added
        self.last_handle = last_handle
        self.fut_sync = fut_sync

    def proceed(self) -> None:
        """End the burst: the event that waits is handled."""
        self._end(True)
        self.batch_size = 0

    async def rate_control(self, opts: CoalescingOptions | None) -> bool:
        """Return whether the event that has just come is handled.

        Without options true at once. Otherwise false as soon as another one follows within
        ``max_wait``, true after that time of silence, and true at once for the event that fills
        the batch. Cancelling it forgets that event.
        """
        if opts is None:
            return True
        self._end(False)
        loop = asyncio.get_running_loop()
        self.last_added = loop.time()
        self.batch_size += 1
        if self.batch_size >= opts["max_batch_size"]:
            self.batch_size = 0
            return True
        waiting: asyncio.Future[bool] = loop.create_future()
        self.fut_sync = waiting
        self.last_handle = loop.call_later(opts["max_wait"], self.proceed)
        try:
            return await waiting
        except asyncio.CancelledError:
            if self.fut_sync is waiting:
                self._end(False)
            raise

    def _end(self, answer: bool) -> None:
        if self.last_handle is not None:
            self.last_handle.cancel()
            self.last_handle = None
        if self.fut_sync is not None:
            if not self.fut_sync.done():
                self.fut_sync.set_result(answer)
            self.fut_sync = None


def check_coalescing(opts: CoalescingOptions | None) -> CoalescingOptions | None:
    """Return the options when they can be used.

    Raises:
        InvalidArgumentError: One is missing or out of range.
    """
    if opts is None:
        return None
    wait: object = opts.get("max_wait")
    size: object = opts.get("max_batch_size")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0:
        raise InvalidArgumentError(f"max_wait={wait!r} must be 0 seconds or more")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InvalidArgumentError(f"max_batch_size={size!r} must be an int of at least 1")
    return opts
