"""Runs background tasks as Backend.AI does: the hash, its events, the end (B44-B47)."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from eventbus.background import Liveness
from eventbus.background import ProgressReporter as NativeReporter
from eventbus.background.endings import Ending, ending_of, not_stored
from eventbus.background.state import Number
from eventbus.compat.backendai import dispatcher as era_a
from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai.connection import Connection, with_retries
from eventbus.compat.backendai.types import BackgroundTaskEventArgs
from eventbus.errors import BusClosedError, EventBusError
from eventbus.supervisor import Supervisor

__all__ = [
    "MAX_BGTASK_ARCHIVE_PERIOD",
    "Announcer",
    "BackgroundTask",
    "BackgroundTaskManager",
    "ProgressReporter",
    "TaskResult",
]

log = logging.getLogger("eventbus.compat.backendai")

MAX_BGTASK_ARCHIVE_PERIOD = 86_400
"""Seconds that the state of a task is kept after its last change."""

TaskResult = Literal["task_done", "task_cancelled", "task_failed"]

_SWEEP = 2.0
_HURRY = 5.0  # seconds for the last word of a task that ends the process

Announcer = era_a.EventDispatcher | era_b.EventProducer


class BackgroundTask(Protocol):
    """The function of a task; what it returns is the final message."""

    def __call__(self, reporter: ProgressReporter, /) -> Awaitable[str | None]:
        """Run."""
        ...


class _Journal:
    """Writes the hash of a task and produces its event, in this order (B46, B47)."""

    def __init__(self, announcer: Announcer) -> None:
        self.announcer = announcer
        self.connection: Connection = announcer.connection
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def lock(self, task_id: uuid.UUID) -> asyncio.Lock:
        key = str(task_id)
        found = self._locks.get(key)
        if found is None:
            found = self._locks[key] = asyncio.Lock()
        return found

    async def write(self, task_id: uuid.UUID | str, **fields: object) -> None:
        key = f"bgtask.{task_id}"
        redis = self.connection.redis
        texts = {name: str(value) for name, value in fields.items()}

        async def step() -> None:
            await redis.hmset_dict(key, texts)
            await redis.expire(key, MAX_BGTASK_ARCHIVE_PERIOD)

        await with_retries(step, "store the state of a task")

    async def update(
        self, task_id: uuid.UUID, current: Number, total: Number, message: str | None, now: float
    ) -> None:
        await self.write(task_id, current=current, total=total, msg=message or "", last_update=now)
        if isinstance(self.announcer, era_b.EventProducer):
            event = era_b.BgtaskUpdatedEvent(task_id, current, total, message)
            await self.announcer.produce_event(event)
        else:
            args = BackgroundTaskEventArgs(str(task_id), message, current, total)
            await self.announcer.produce_event("task_updated", (_arguments(args),))

    async def end(self, task_id: uuid.UUID, status: str, message: str) -> None:
        await self.write(task_id, status=status, msg=message, last_update=time.time())
        if isinstance(self.announcer, era_b.EventProducer):
            await self.announcer.produce_event(_ENDS[status](task_id, message))
        else:
            args = BackgroundTaskEventArgs(str(task_id), message)
            await self.announcer.produce_event(f"task_{status}", (_arguments(args),))


_ENDS: dict[str, Callable[[uuid.UUID, str], era_b.AbstractEvent]] = {
    "done": era_b.BgtaskDoneEvent,
    "failed": era_b.BgtaskFailedEvent,
    "cancelled": era_b.BgtaskCancelledEvent,
}


def _arguments(args: BackgroundTaskEventArgs) -> dict[str, Any]:
    return {
        "task_id": args.task_id,
        "message": args.message,
        "current_progress": args.current_progress,
        "total_progress": args.total_progress,
    }


class ProgressReporter(NativeReporter):
    """Tells everybody how far a task is: ``await reporter.update(increment, message)``."""

    def __init__(
        self,
        announcer: Announcer,
        task_id: uuid.UUID,
        current_progress: Number = 0,
        total_progress: Number = 0,
        *,
        _journal: _Journal | None = None,
    ) -> None:
        """Begin.

        Args:
            announcer: The dispatcher (era A) or producer (era B).
            task_id: The task.
            current_progress: How far it is.
            total_progress: How far it goes.
        """
        journal = _Journal(announcer) if _journal is None else _journal
        lock = journal.lock(task_id)

        async def report(current: Number, total: Number, message: str | None) -> None:
            now = time.time()
            async with lock:
                await journal.update(task_id, current, total, message, now)

        super().__init__(report, task_id, current_progress, total_progress)


@dataclass(slots=True, eq=False)
class _End:
    """How a task ended, until that is stored and announced.

    Attributes:
        ending: The last word.
        struck_off: Whether the task was taken off the list of those that run.
        unless_ended: Whether the hash may have an end already, which is kept.
        told: Whether the log has been told that it cannot be stored.
    """

    ending: Ending
    struck_off: bool = False
    unless_ended: bool = False
    told: bool = False


class BackgroundTaskManager:
    """Runs functions in the background and tells their progress.

    Tasks of a manager that died are marked failed by another one, within the lease and 5 seconds.

    Attributes:
        ongoing_tasks: The tasks that run here.
        tasks_replaced: How often the task that looks for lost ones ended for no reason.
    """

    def __init__(self, announcer: Announcer, *, lease: float = 30.0) -> None:
        """Make a manager, inside a running event loop.

        Args:
            announcer: An era A dispatcher (events ``task_*``), or an era B producer (``bgtask_*``).
            lease: Seconds after which a silent manager is dead.
        """
        self.dispatcher = announcer
        self.ongoing_tasks: set[asyncio.Task[None]] = set()
        self._journal = _Journal(announcer)
        self._lease = lease
        self._liveness: Liveness = announcer.connection.liveness(lease)
        self._ends: dict[uuid.UUID, _End] = {}
        self.tasks_replaced = 0
        self._supervisor = Supervisor("background tasks", self._replaced)
        self._sweeper: asyncio.Task[None] | None = None
        self._supervisor.keep(self._begin)

    def _begin(self) -> asyncio.Task[None]:
        create = asyncio.get_running_loop().create_task
        self._sweeper = create(self._sweep(), name="eventbus-background-sweep")
        return self._sweeper

    def _replaced(self) -> None:
        self.tasks_replaced += 1

    async def start(
        self, func: BackgroundTask, name: str | None = None, *, sched: object = None
    ) -> uuid.UUID:
        """Run a function in the background; returns once its first state is stored.

        Args:
            func: ``async (reporter) -> str | None``.
            name: For logs.
            sched: Not offered.

        Raises:
            NotImplementedError: ``sched`` was given.
        """
        if sched:
            raise NotImplementedError(f"sched={sched!r}: scheduled tasks are not offered")
        task_id = uuid.uuid4()
        now = time.time()
        await self._liveness.renew()
        try:
            await self._liveness.enter(str(task_id))
            await self._journal.write(
                task_id,
                status="started",
                current=0,
                total=0,
                msg="",
                started_at=now,
                last_update=now,
            )
        except BaseException:
            # Stored perhaps all the same: then nobody runs it, and it ends as cancelled.
            self._ends[task_id] = _End(Ending("cancelled", ""), unless_ended=True)
            raise
        run = self._run(func, task_id, name)
        task = asyncio.get_running_loop().create_task(run, name=f"eventbus-background-{task_id}")
        self.ongoing_tasks.add(task)
        task.add_done_callback(partial(self._ended, task_id))
        return task_id

    def _ended(self, task_id: uuid.UUID, task: asyncio.Task[None]) -> None:
        self.ongoing_tasks.discard(task)
        if task.cancelled():
            # Perhaps before its first step; one that was telling its end has it in the table.
            self._ends.setdefault(task_id, _End(Ending("cancelled", "")))

    async def _run(self, func: BackgroundTask, task_id: uuid.UUID, name: str | None) -> None:
        reporter = ProgressReporter(self.dispatcher, task_id, _journal=self._journal)
        ending = await ending_of(lambda: func(reporter), log, f"task={task_id} name={name}")
        self._ends[task_id] = _End(ending)
        if ending.ends_process is None:
            await self._tell_end(task_id)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_HURRY):
                await self._tell_end(task_id)
        raise ending.ends_process

    async def _tell_end(self, task_id: uuid.UUID) -> None:
        """Write and announce how a task ended; what fails is tried again by every sweep."""
        async with self._journal.lock(task_id):
            # The task itself and a sweep may both be at it: the first one tells.
            if (end := self._ends.get(task_id)) is not None:
                await self._try_to_tell(task_id, end)

    async def _try_to_tell(self, task_id: uuid.UUID, end: _End) -> None:
        try:
            if await self._may_tell(task_id, end):
                await self._store_end(task_id, end.ending)
        except BusClosedError:
            log.warning("closed before the end was stored task=%s", task_id)
        except (EventBusError, TimeoutError) as error:
            if not end.told:
                end.told = True
                log.error("cannot store the end task=%s reason=%s; trying again", task_id, error)
            return
        self._ends.pop(task_id, None)

    async def _may_tell(self, task_id: uuid.UUID, end: _End) -> bool:
        """Strike a task off the list of those that run; false when somebody else did."""
        if not end.struck_off:
            try:
                end.struck_off = await self._liveness.leave(str(task_id))
            except EventBusError:
                # It may be struck off although the answer was lost: then the hash decides.
                end.unless_ended = True
                raise
        if end.struck_off and not end.unless_ended:
            return True
        if end.unless_ended:
            found = await self.dispatcher.connection.redis.hgetall(f"bgtask.{task_id}")
            return found.get("status") == "started"
        log.warning("task was marked failed by another manager task=%s", task_id)
        return False

    async def _store_end(self, task_id: uuid.UUID, ending: Ending) -> None:
        try:
            await self._journal.end(task_id, ending.status, ending.message)
        except Exception as error:
            if isinstance(error, TimeoutError | BusClosedError) or (
                isinstance(error, EventBusError) and error.is_retryable
            ):
                raise
            log.error("cannot store how a task ended task=%s reason=%s", task_id, error)
            short = not_stored(ending, error)
            await self._journal.end(task_id, short.status, short.message)

    async def shutdown(self) -> None:
        """Cancel what runs here, all at once, and wait until it ended as cancelled. Idempotent."""
        for task in self.ongoing_tasks:
            task.cancel()
        if self.ongoing_tasks:
            await asyncio.wait(list(self.ongoing_tasks))
        self._supervisor.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None
            for task_id in list(self._ends):
                await self._tell_end(task_id)
            try:
                await self._liveness.close()
            except EventBusError as error:
                log.debug("cannot sign off reason=%s; the lease ends by itself", error)

    async def _sweep(self) -> None:
        """Show that this manager lives, and mark tasks of dead ones failed."""
        while True:
            try:
                await self._liveness.renew()
                for task_id in await self._liveness.orphans():
                    if await self._liveness.leave(task_id):
                        log.warning("a manager died: its task is failed task=%s", task_id)
                        died = Ending("failed", "the manager that ran the task died")
                        end = _End(died, struck_off=True, unless_ended=True)
                        self._ends[uuid.UUID(task_id)] = end
                for ended in list(self._ends):
                    await self._tell_end(ended)
            except BusClosedError:
                return
            except (EventBusError, TimeoutError) as error:
                log.warning("cannot look for lost tasks reason=%s; trying again", error)
            except Exception:
                log.exception("cannot look for lost tasks; trying again")
            await asyncio.sleep(min(self._lease / 3, _SWEEP))
