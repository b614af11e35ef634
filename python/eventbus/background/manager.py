"""Runs background tasks, keeps their state as records, and watches those of other managers."""

from __future__ import annotations

import asyncio
import glob
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from eventbus.background.liveness import RecordLiveness
from eventbus.background.running import BackgroundTask, RunningTask
from eventbus.background.state import TaskState
from eventbus.bus import Bus
from eventbus.config import Seconds, seconds
from eventbus.errors import (
    BusClosedError,
    ConnectError,
    DecodeError,
    EventBusError,
    InvalidArgumentError,
    NotConnectedError,
    NotFoundError,
    VersionConflict,
)
from eventbus.names import shown
from eventbus.stream import Stream
from eventbus.supervisor import Supervisor
from eventbus.types import Gap

__all__ = ["BackgroundTask", "BackgroundTaskManager"]

log = logging.getLogger("eventbus.background")

_SWEEP = 2.0  # most seconds between two looks for tasks of dead managers
_WATCHED = 100  # states buffered per watcher; each is whole, so that older ones may go


class _Watcher:
    """What one reader of a task has not seen yet."""

    def __init__(self) -> None:
        self.states: deque[TaskState] = deque(maxlen=_WATCHED)
        self.doubtful = False
        self.ended = False
        self._wake = asyncio.Event()

    def tell(self, state: TaskState) -> None:
        self.states.append(state)
        self._wake.set()

    def doubt(self) -> None:
        self.doubtful = True
        self._wake.set()

    def end(self) -> None:
        self.ended = True
        self._wake.set()

    async def wait(self) -> None:
        await self._wake.wait()
        self._wake.clear()


class BackgroundTaskManager:
    """Runs functions in the background and shows the progress of all managers' tasks.

    Each state of a task is a versioned record, written in one transaction with its announcement:
    whoever hears of a change finds at least that state. A manager that dies stops renewing its
    lease; another one then marks its tasks failed, within the lease and 5 seconds.

    Use it as ``async with BackgroundTaskManager(bus) as tasks:``.

    Attributes:
        ongoing_tasks: The tasks that run here.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        prefix: str = "background",
        lease: Seconds = 30.0,
        keep: Seconds = 86_400.0,
    ) -> None:
        """Make a manager that is not started yet.

        Args:
            bus: The bus; connected when it is new, never closed here.
            prefix: What topics and record keys begin with; managers of one prefix belong together.
            lease: Seconds or a timedelta without a sign of life after which a manager is dead.
            keep: Seconds or a timedelta that the state of a task is kept after its last change.

        Raises:
            InvalidArgumentError: A duration is not positive.
        """
        self._bus = bus
        self._prefix = prefix
        self._lease = seconds(lease, "lease")
        self._keep = seconds(keep, "keep")
        for option, value in (("lease", self._lease), ("keep", self._keep)):
            if not value > 0:
                raise InvalidArgumentError(f"{option}={value!r} must be more than 0 seconds")
        self._liveness = RecordLiveness(bus, prefix, self._lease)
        self._watchers: dict[str, set[_Watcher]] = {}
        self._helpers: dict[str, asyncio.Task[None]] = {}
        self._supervisor: Supervisor | None = None
        self._malformed = 0
        self._stream: Stream | None = None
        self._live = False
        self._running: dict[str, RunningTask] = {}
        self.ongoing_tasks: set[asyncio.Task[None]] = set()

    # Life

    async def start_up(self) -> None:
        """Connect and watch; returns once announcements are received. Idempotent."""
        if self._live:
            return
        if self._bus.state == "new":
            await self._bus.connect()
        # The prefix is a name of ours, not a pattern.
        pattern = f"{glob.escape(self._prefix)}:*"
        self._stream = self._bus.stream(pattern=pattern, on_gap=self._gap)
        await self._stream.__aenter__()
        await self._liveness.renew()
        self._live = True
        self._supervisor = Supervisor(
            f"background manager prefix={shown(self._prefix)}", self._bus._replaced
        )
        self._supervisor.keep(partial(self._begin, "updates", partial(self._serve, self._stream)))
        self._supervisor.keep(partial(self._begin, "sweep", self._sweep))

    def _begin(
        self, name: str, serve: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        create = asyncio.get_running_loop().create_task
        task = self._helpers[name] = create(serve(), name=f"eventbus-background-{name}")
        return task

    async def shutdown(self) -> None:
        """Cancel what runs here, wait until it ended as cancelled, and stop watching. Idempotent.

        Streams of ``watch`` end without a final state.
        """
        for task in self.ongoing_tasks:
            task.cancel()
        if self.ongoing_tasks:
            await asyncio.wait(list(self.ongoing_tasks))
        if not self._live:
            return
        self._live = False
        if self._supervisor is not None:
            self._supervisor.stop()
        for helper in self._helpers.values():
            helper.cancel()
        await asyncio.wait(self._helpers.values())
        with suppress(EventBusError):
            await self._store_ends()
        if self._stream is not None:
            await self._stream.aclose()
        for watchers in list(self._watchers.values()):
            for watcher in list(watchers):
                watcher.end()
        try:
            await self._liveness.close()
        except EventBusError as error:
            log.debug("cannot sign off reason=%s; the lease ends by itself", error)

    async def __aenter__(self) -> Self:
        """Connect and watch."""
        await self.start_up()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shut down."""
        await self.shutdown()

    # Running

    async def start(self, func: BackgroundTask, name: str | None = None) -> uuid.UUID:
        """Run a function in the background; returns once its first state is stored.

        Args:
            func: ``async (reporter) -> str | None``; the result is the final message. What it
                raises makes the task failed, with the exception as its message.
            name: What the task is called.

        Returns:
            The id of the task.

        Raises:
            NotConnectedError: The manager is not started.
            ConnectError: The state could not be stored; the function does not run.
        """
        if not self._live:
            raise NotConnectedError("manager is not started: use 'async with manager:'")
        if not callable(func):
            raise TypeError(f"func must be an async function of the reporter, not {func!r}")
        task_id = uuid.uuid4()
        now = time.time()
        state = TaskState(task_id=str(task_id), name=name, started_at=now, updated_at=now)
        try:
            stored = await self._write(state)
        except (asyncio.CancelledError, ConnectError):
            # Stored perhaps all the same: then nobody runs it, and it ends as cancelled.
            unsure = RunningTask(replace(state, version=1), self._write)
            unsure.cancelled()
            self._running[state.task_id] = unsure
            raise
        running = self._running[state.task_id] = RunningTask(stored, self._write)
        run = running.run(func)
        task = asyncio.get_running_loop().create_task(run, name=f"eventbus-background-{task_id}")
        self.ongoing_tasks.add(task)
        task.add_done_callback(partial(self._ended, running, state.task_id))
        return task_id

    def _ended(self, running: RunningTask, task_id: str, task: asyncio.Task[None]) -> None:
        self.ongoing_tasks.discard(task)
        if running.stored:
            self._running.pop(task_id, None)
        else:
            # Cancelled, perhaps before its first step: the sweep, or `shutdown`, stores its end.
            running.cancelled()

    async def _store_ends(self) -> None:
        """Store the ends of tasks that could not store theirs: cancelled at it, or no server."""
        for task_id, running in list(self._running.items()):
            if await running.store_end():
                self._running.pop(task_id, None)

    def _key(self, task_id: str) -> str:
        return f"{self._prefix}/task/{task_id}"

    async def _write(self, state: TaskState) -> TaskState:
        """Store a state behind the one it was made from, and announce it, in one step.

        Raises:
            VersionConflict: The stored state is another one.
        """
        stored = replace(state, version=state.version + 1)
        value = stored.to_dict()
        async with self._bus.transaction() as tx:
            tx.put(self._key(state.task_id), value, if_version=state.version, ttl=self._keep)
            if stored.is_final:
                self._liveness.remove(tx, state.task_id)
            elif state.version == 0:
                self._liveness.add(tx, state.task_id)
            topic = f"{self._prefix}:{state.task_id}"
            tx.publish(topic, {"state": value, "version": stored.version})
        return stored

    # Watching

    async def read(self, task_id: uuid.UUID | str) -> TaskState | None:
        """Return the state of a task of any manager, ``None`` when it is unknown or expired."""
        text = str(task_id)
        found = await self._bus.read(self._key(text))
        return None if found is None else TaskState.from_dict(found.value, found.version)

    async def watch(self, task_id: uuid.UUID | str) -> AsyncGenerator[TaskState]:
        """Iterate over the states of a task of any manager: the present one, then each change.

        Ends after the final state; without one when this manager is shut down. A reader that is
        slow misses states in between, never the last one. Closing the iterator frees everything.

        Raises:
            NotFoundError: The task is unknown or expired.
            NotConnectedError: The manager is not started.
        """
        if not self._live:
            raise NotConnectedError("manager is not started: use 'async with manager:'")
        text = str(task_id)
        watcher = _Watcher()
        # Register first, read then: a change between the two is seen twice, not missed.
        self._watchers.setdefault(text, set()).add(watcher)
        try:
            version = 0
            watcher.doubt()
            while True:
                for state in await self._news(watcher, text):
                    if state.version > version:
                        version = state.version
                        yield state
                        if state.is_final:
                            return
                if watcher.ended:
                    return
                await watcher.wait()
        finally:
            watchers = self._watchers[text]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[text]

    async def _news(self, watcher: _Watcher, task_id: str) -> list[TaskState]:
        """Return what a reader has not seen, from the record when announcements may be missing."""
        news: list[TaskState] = []
        if watcher.doubtful:
            watcher.doubtful = False
            state = await self.read(task_id)
            if state is None:
                raise NotFoundError(f"no background task {task_id}")
            news.append(state)
        while watcher.states:
            news.append(watcher.states.popleft())
        return news

    async def _serve(self, stream: Stream) -> None:
        """Hand announcements to whoever watches the task."""
        skip = len(self._prefix) + 1
        try:
            async for event in stream:
                watchers = self._watchers.get(event.topic[skip:])
                if watchers is None:
                    continue
                try:
                    payload: Any = event.payload
                    state = TaskState.from_dict(payload["state"], int(payload["version"]))
                except Exception as error:  # noqa: BLE001 - it concerns this announcement only
                    self._bad(event.topic, error)
                    continue
                for watcher in watchers:
                    watcher.tell(state)
        except BusClosedError:
            pass
        for watchers in list(self._watchers.values()):
            for watcher in watchers:
                watcher.end()

    def _bad(self, topic: str, error: Exception) -> None:
        self._malformed += 1
        if self._malformed == 1 or self._malformed % 1000 == 0:
            log.warning(
                "malformed announcement skipped topic=%s count=%d reason=%s",
                shown(topic),
                self._malformed,
                error,
            )

    def _gap(self, gap: Gap) -> None:
        """Announcements were lost: every reader looks at the record."""
        del gap
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.doubt()

    # Tasks of dead managers

    async def _sweep(self) -> None:
        pause = min(self._lease / 3, _SWEEP)
        while True:
            await asyncio.sleep(pause)
            try:
                await self._liveness.renew()
                await self._store_ends()
                for task_id in await self._liveness.orphans():
                    try:
                        await self._bury(task_id)
                    except DecodeError as error:
                        # A record that somebody else wrote; the other tasks do not wait for it.
                        log.warning("cannot bury a task task=%s reason=%s", task_id, error)
            except BusClosedError:
                return
            except EventBusError as error:
                log.warning("cannot look for lost tasks reason=%s; trying again", error)
            except Exception:
                log.exception("cannot look for lost tasks; trying again")

    async def _bury(self, task_id: str) -> None:
        """Mark the task of a dead manager failed, unless another manager does."""
        state = await self.read(task_id)
        if state is None or state.is_final:
            await self._liveness.leave(task_id)
            return
        try:
            await self._write(
                replace(
                    state,
                    status="failed",
                    message="the manager that ran the task died",
                    updated_at=time.time(),
                )
            )
        except VersionConflict:
            return
        log.warning("marked the task of a dead manager failed task=%s", task_id)
