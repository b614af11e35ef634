"""One background task that runs here: its function, its reports and its last word."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

from eventbus.background.endings import Ending, ending_of, not_stored
from eventbus.background.reporter import ProgressReporter
from eventbus.background.state import Number, TaskState
from eventbus.errors import BusClosedError, EventBusError, VersionConflict

__all__ = ["BackgroundTask", "RunningTask", "Write"]

log = logging.getLogger("eventbus.background")

BackgroundTask = Callable[[ProgressReporter], Awaitable[str | None]]
"""The function of a task; what it returns is the final message."""

Write = Callable[[TaskState], Awaitable[TaskState]]
"""Stores a state behind the one it was made from, and returns it as it was stored."""

_PATIENCE = 60.0  # seconds that the task itself tries to store its end; then the sweep does
_HURRY = 5.0  # the same when the process is to end


class RunningTask:
    """Runs a function, stores what it reports, and then how it ended.

    Attributes:
        stored: Whether the end is stored, or somebody else's is.
    """

    def __init__(self, state: TaskState, write: Write) -> None:
        """Begin.

        Args:
            state: The first state, as it was stored.
            write: Stores the next one.
        """
        self.stored = False
        self._latest = state
        self._write = write
        # Held while a state is written, so that each is made from the one before.
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._reporter = ProgressReporter(self._report, uuid.UUID(state.task_id))
        self._ending: Ending | None = None
        self._told = False

    async def run(self, func: BackgroundTask) -> None:
        """Run the function and store how it ended.

        A server that is away is waited for up to a minute; ``store_end`` goes on from there.

        Raises:
            SystemExit: The function raised it; its task is stored as failed.
            KeyboardInterrupt: The same.
        """
        self._task = asyncio.current_task()
        what = f"task={self._latest.task_id} name={self._latest.name}"
        ending = self._ending = await ending_of(lambda: func(self._reporter), log, what)
        await self._store_patiently(_PATIENCE if ending.ends_process is None else _HURRY)
        if ending.ends_process is not None:
            raise ending.ends_process

    def cancelled(self) -> None:
        """Note that the function will not run, or not go on; one that has ended keeps its end."""
        if self._ending is None:
            self._ending = Ending("cancelled", "")

    async def _report(self, current: Number, total: Number, message: str | None) -> None:
        now = time.time()
        async with self._lock:
            changed = replace(
                self._latest, current=current, total=total, message=message, updated_at=now
            )
            try:
                self._latest = await self._write(changed)
            except VersionConflict:
                # Somebody took this manager for dead: the task is failed, and must not go on.
                if self._task is not None:
                    self._task.cancel("the task was marked failed by another manager")
                await asyncio.sleep(0)
                raise

    async def _store_patiently(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        pause = 0.1
        while not await self.store_end():
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def store_end(self) -> bool:
        """Try to store how the function ended; return whether nothing is left to do.

        False while it runs, and when the server refused or is away: call it again later.
        """
        async with self._lock:
            if self._ending is not None and not self.stored:
                self.stored = await self._try_to_store(self._ending)
        return self.stored

    async def _try_to_store(self, ending: Ending) -> bool:
        task_id = self._latest.task_id
        try:
            await self._store(ending)
        except VersionConflict:
            log.warning("task was marked failed by another manager task=%s", task_id)
        except BusClosedError:
            log.warning("the bus was closed before the end was stored task=%s", task_id)
        except EventBusError as error:
            if not self._told:
                self._told = True
                log.error("cannot store the end task=%s reason=%s; trying again", task_id, error)
            return False
        return True

    async def _store(self, ending: Ending) -> None:
        """Store an ending, or, where it can never be stored, a short one that says so."""
        state = replace(
            self._latest, status=ending.status, message=ending.message, updated_at=time.time()
        )
        reporter = self._reporter
        try:
            await self._write(
                replace(state, current=reporter.current_progress, total=reporter.total_progress)
            )
        except (VersionConflict, BusClosedError):
            raise
        except Exception as error:
            if isinstance(error, EventBusError) and error.is_retryable:
                raise
            log.error("cannot store how a task ended task=%s reason=%s", state.task_id, error)
            short = not_stored(ending, error)
            # The progress that was stored before: the present one may be what cannot be stored.
            await self._write(replace(state, status=short.status, message=short.message))
