"""Background tasks as Backend.AI has them: the hash, the events, the stream (B44-B48)."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Literal, Protocol

from eventbus.background import Liveness, ServerSentEvent
from eventbus.background import ProgressReporter as NativeReporter
from eventbus.background.sse import close_event
from eventbus.background.state import Number
from eventbus.compat.backendai import dispatcher as era_a
from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai.base import BaseDispatcher
from eventbus.compat.backendai.connection import Connection, with_retries
from eventbus.compat.backendai.types import BackgroundTaskEventArgs
from eventbus.errors import BusClosedError, EventBusError, NotFoundError

__all__ = [
    "MAX_BGTASK_ARCHIVE_PERIOD",
    "BackgroundTask",
    "BackgroundTaskManager",
    "ProgressReporter",
    "TaskResult",
    "aiohttp_handler",
    "asgi_app",
    "sse_events",
]

log = logging.getLogger("eventbus.compat.backendai")

MAX_BGTASK_ARCHIVE_PERIOD = 86_400
"""Seconds that the state of a task is kept after its last change."""

TaskResult = Literal["task_done", "task_cancelled", "task_failed"]

_SWEEP = 2.0
_WATCHED = 1000

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


class BackgroundTaskManager:
    """Runs functions in the background and tells their progress.

    Tasks of a manager that died are marked failed by another one, within the lease and 5 seconds.

    Attributes:
        ongoing_tasks: The tasks that run here.
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
        self._sweeper: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(
            self._sweep(), name="eventbus-background-sweep"
        )

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
        await self._liveness.enter(str(task_id))
        await self._journal.write(
            task_id, status="started", current=0, total=0, msg="", started_at=now, last_update=now
        )
        run = self._run(func, task_id, name)
        task = asyncio.get_running_loop().create_task(run, name=f"eventbus-background-{task_id}")
        self.ongoing_tasks.add(task)
        task.add_done_callback(self.ongoing_tasks.discard)
        return task_id

    async def _run(self, func: BackgroundTask, task_id: uuid.UUID, name: str | None) -> None:
        reporter = ProgressReporter(self.dispatcher, task_id, _journal=self._journal)
        try:
            status, message = "done", await func(reporter) or ""
        except asyncio.CancelledError:
            status, message = "cancelled", ""
        except Exception as error:
            log.exception("background task failed task=%s name=%s", task_id, name)
            status, message = "failed", repr(error)
        try:
            if await self._liveness.leave(str(task_id)):
                async with self._journal.lock(task_id):
                    await self._journal.end(task_id, status, message)
            else:
                log.warning("task was marked failed by another manager task=%s", task_id)
        except (EventBusError, TimeoutError):
            log.exception("cannot store the end task=%s", task_id)

    async def shutdown(self) -> None:
        """Cancel what runs here, all at once, and wait until it ended as cancelled. Idempotent."""
        for task in self.ongoing_tasks:
            task.cancel()
        if self.ongoing_tasks:
            await asyncio.wait(list(self.ongoing_tasks))
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
            self._sweeper = None
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
                        await self._bury(task_id)
            except BusClosedError:
                return
            except EventBusError as error:
                log.warning("cannot look for lost tasks reason=%s; trying again", error)
            await asyncio.sleep(min(self._lease / 3, _SWEEP))

    async def _bury(self, task_id: str) -> None:
        found = await self.dispatcher.connection.redis.hgetall(f"bgtask.{task_id}")
        if found.get("status") == "started":
            await self._journal.end(
                uuid.UUID(task_id), "failed", "the manager that ran the task died"
            )
            log.warning("marked the task of a dead manager failed task=%s", task_id)


# The stream


class _Watcher:
    """What one stream has not sent yet; ``None`` = the dispatcher was closed."""

    def __init__(self) -> None:
        self.events: deque[tuple[str, dict[str, Any]] | None] = deque(maxlen=_WATCHED)
        self.doubtful = False
        self.wake = asyncio.Event()

    def tell(self, event: tuple[str, dict[str, Any]] | None) -> None:
        self.events.append(event)
        self.wake.set()

    def doubt(self) -> None:
        self.doubtful = True
        self.wake.set()

    def end(self) -> None:
        self.tell(None)


class _Hub:
    """Hands the task events of one dispatcher to its streams, by task."""

    def __init__(self, dispatcher: era_a.EventDispatcher | era_b.EventDispatcher) -> None:
        self._dispatcher = dispatcher
        self._watchers: dict[str, set[_Watcher]] = {}
        self._undo: list[Callable[[], None]] = []

    def join(self, task_id: str, watcher: _Watcher) -> None:
        if not self._watchers:
            self._subscribe()
        self._watchers.setdefault(task_id, set()).add(watcher)
        self._dispatcher._when_closed.add(watcher.end)
        self._dispatcher._when_gap.add(watcher.doubt)

    def leave(self, task_id: str, watcher: _Watcher) -> None:
        self._dispatcher._when_closed.discard(watcher.end)
        self._dispatcher._when_gap.discard(watcher.doubt)
        watchers = self._watchers.get(task_id, set())
        watchers.discard(watcher)
        if not watchers:
            self._watchers.pop(task_id, None)
        if not self._watchers:
            for undo in self._undo:
                undo()
            self._undo = []

    def _subscribe(self) -> None:
        d = self._dispatcher
        if isinstance(d, era_a.EventDispatcher):
            for name in ("task_updated", "task_done", "task_failed", "task_cancelled"):
                old = d.subscribe(name, None, self._on_a)
                self._undo.append(partial(d.unsubscribe, name, old))
            return
        for event_cls in (
            era_b.BgtaskUpdatedEvent,
            era_b.BgtaskDoneEvent,
            era_b.BgtaskFailedEvent,
            era_b.BgtaskCancelledEvent,
        ):
            new = d.subscribe(event_cls, None, self._on_b)
            self._undo.append(partial(d.unsubscribe, new))

    def _on_a(self, context: object, agent_id: str, name: str, args: dict[str, Any]) -> None:
        del context, agent_id
        self._tell(name, args)

    def _on_b(self, context: object, source: str, event: Any) -> None:
        del context, source
        args = {
            "task_id": str(event.task_id),
            "message": event.message,
            "current_progress": getattr(event, "current_progress", None),
            "total_progress": getattr(event, "total_progress", None),
        }
        self._tell(event.name, args)

    def _tell(self, name: str, args: dict[str, Any]) -> None:
        for watcher in self._watchers.get(str(args["task_id"]), ()):
            watcher.tell((name, args))


_hubs: weakref.WeakKeyDictionary[BaseDispatcher[Any], _Hub] = weakref.WeakKeyDictionary()

Watched = era_a.EventDispatcher | era_b.EventDispatcher | BackgroundTaskManager


def _dispatcher_of(x: Watched) -> era_a.EventDispatcher | era_b.EventDispatcher:
    found = x.dispatcher if isinstance(x, BackgroundTaskManager) else x
    if isinstance(found, era_b.EventProducer):
        raise TypeError("the stream needs a dispatcher: give the EventDispatcher of era B")
    return found


def _live(name: str, args: dict[str, Any]) -> ServerSentEvent:
    data: dict[str, Any] = {"task_id": str(args["task_id"]), "message": args.get("message")}
    if name.endswith("_updated"):
        for field in ("current_progress", "total_progress"):
            if args.get(field) is not None:
                data[field] = args[field]
    return ServerSentEvent(name, json.dumps(data))


def _late(family: str, task_id: str, found: dict[str, str], numeric: bool) -> ServerSentEvent:
    current: str | Number = found.get("current", "0")
    total: str | Number = found.get("total", "0")
    if numeric:
        current, total = _number(str(current)), _number(str(total))
    data = {
        "task_id": task_id,
        "status": found["status"],
        "current_progress": current,
        "total_progress": total,
        "message": found.get("msg", ""),
    }
    return ServerSentEvent(f"{family}_{found['status']}", json.dumps(data))


def _number(text: str) -> Number:
    try:
        return int(text)
    except ValueError:
        return float(text)


async def open_stream(x: Watched, task_id: uuid.UUID | str, *, numeric: bool = False) -> _Stream:
    """Return the events of a task, once it is known that there is such a task.

    Raises:
        NotFoundError: The task is unknown or expired.
    """
    dispatcher = _dispatcher_of(x)
    text = str(task_id)
    hub = _hubs.setdefault(dispatcher, _Hub(dispatcher))
    watcher = _Watcher()
    # Register first, read then: the end of the task cannot fall between the two.
    hub.join(text, watcher)
    try:
        found = await dispatcher.connection.redis.hgetall(f"bgtask.{text}")
        if not found:
            raise NotFoundError(f"no background task {text}")
    except BaseException:
        hub.leave(text, watcher)
        raise
    return _Stream(dispatcher, hub, watcher, text, found, numeric)


class _Stream:
    """The events of one task; closing it, or dropping it half-way, frees everything."""

    def __init__(
        self,
        dispatcher: era_a.EventDispatcher | era_b.EventDispatcher,
        hub: _Hub,
        watcher: _Watcher,
        task_id: str,
        found: dict[str, str],
        numeric: bool,
    ) -> None:
        self._dispatcher = dispatcher
        self._leave = weakref.finalize(self, hub.leave, task_id, watcher)
        self._watcher = watcher
        self._task_id = task_id
        self._family = "task" if dispatcher.era == "A" else "bgtask"
        self._numeric = numeric
        self._last: list[ServerSentEvent] | None = None
        self._end_if_finished(found)

    def _end_if_finished(self, found: dict[str, str]) -> None:
        if found and found.get("status") != "started":
            late = _late(self._family, self._task_id, found, self._numeric)
            self._last = [late, close_event()]

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> ServerSentEvent:
        watcher = self._watcher
        while self._last is None:
            if watcher.doubtful:
                watcher.doubtful = False
                key = f"bgtask.{self._task_id}"
                self._end_if_finished(await self._dispatcher.connection.redis.hgetall(key))
            elif watcher.events:
                told = watcher.events.popleft()
                if told is None:
                    self._last = []
                    break
                name, args = told
                if name.endswith("_updated"):
                    return _live(name, args)
                self._last = [_live(name, args), close_event()]
            else:
                watcher.wake.clear()
                await watcher.wake.wait()
        if not self._last:
            self._leave()
            raise StopAsyncIteration
        return self._last.pop(0)

    async def aclose(self) -> None:
        """End it. Idempotent."""
        self._last = []
        self._leave()


async def sse_events(
    x: Watched, task_id: uuid.UUID | str, *, numeric: bool = False
) -> AsyncGenerator[ServerSentEvent]:
    """Iterate over a task's events ``(event, data, retry)``, ending with ``server_close``.

    Live: ``task_updated`` per update, then ``task_done``, ``task_failed`` or ``task_cancelled``.
    Late: one ``task_<status>`` with everything. Era B: ``bgtask_*``. When the dispatcher is closed
    they end without ``server_close``. Closing the iterator frees everything.

    Args:
        x: A dispatcher, or the manager of era A.
        task_id: The task, of any manager.
        numeric: Numbers instead of texts in a late event.

    Raises:
        NotFoundError: The task is unknown or expired.
    """
    stream = await open_stream(x, task_id, numeric=numeric)
    try:
        async for event in stream:
            yield event
    finally:
        await stream.aclose()


def asgi_app(x: Watched, *, numeric: bool = False) -> Any:
    """Return an ASGI application for ``GET /events/background-task?taskId=…``."""
    from eventbus.contrib.sse import asgi_app

    async def source(task_id: uuid.UUID, last: str | None) -> AsyncIterator[ServerSentEvent]:
        del last
        return await open_stream(x, task_id, numeric=numeric)

    return asgi_app(source)


def aiohttp_handler(x: Watched, *, numeric: bool = False) -> Any:
    """Return an aiohttp handler for ``GET /events/background-task?taskId=…``."""
    from eventbus.contrib.aiohttp import handler_of

    async def source(task_id: uuid.UUID, last: str | None) -> AsyncIterator[ServerSentEvent]:
        del last
        return await open_stream(x, task_id, numeric=numeric)

    return handler_of(source)
