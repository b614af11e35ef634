"""The progress of one background task as server-sent events (B48)."""

from __future__ import annotations

import asyncio
import logging
import uuid
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from eventbus.background import ServerSentEvent
from eventbus.background.sse import close_event, json_text
from eventbus.background.state import STATUSES, Number
from eventbus.compat.backendai import dispatcher as era_a
from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai.base import BaseDispatcher
from eventbus.compat.backendai.task_manager import BackgroundTaskManager
from eventbus.errors import DecodeError, NotFoundError

if TYPE_CHECKING:
    from eventbus.contrib.streams import StreamLimits

__all__ = ["aiohttp_handler", "asgi_app", "open_stream", "sse_events"]

log = logging.getLogger("eventbus.compat.backendai")

_WATCHED = 100  # events buffered per stream; older ones may go, the last one never does


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
    return ServerSentEvent(name, json_text(data))


def _late(family: str, task_id: str, found: dict[str, str], numeric: bool) -> ServerSentEvent:
    status = found.get("status")
    if status not in STATUSES:
        raise DecodeError(
            f"task {task_id} has status {status!r:.100}; valid: {', '.join(STATUSES)}"
        )
    current: object = found.get("current", "0")
    total: object = found.get("total", "0")
    if numeric:
        current, total = _number(str(current)), _number(str(total))
    data = {
        "task_id": task_id,
        "status": status,
        "current_progress": current,
        "total_progress": total,
        "message": found.get("msg", ""),
    }
    return ServerSentEvent(f"{family}_{status}", json_text(data))


def _number(text: str) -> Number:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise DecodeError(f"progress of a task is no number: {text!r:.100}")


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
                try:
                    event = _live(name, args)
                except Exception as error:  # noqa: BLE001 - it concerns this announcement only
                    log.warning("malformed announcement skipped event=%s reason=%s", name, error)
                    # It may have been the last one: the hash knows.
                    watcher.doubtful = True
                    continue
                if name.endswith("_updated"):
                    return event
                self._last = [event, close_event()]
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


def asgi_app(x: Watched, *, numeric: bool = False, **limits: Unpack[StreamLimits]) -> Any:
    """Return an ASGI application for ``GET /events/background-task?taskId=…``.

    The limits are those of ``eventbus.contrib.sse.asgi_app``.
    """
    from eventbus.contrib.sse import asgi_app

    async def source(task_id: uuid.UUID, last: str | None) -> AsyncIterator[ServerSentEvent]:
        del last
        return await open_stream(x, task_id, numeric=numeric)

    return asgi_app(source, **limits)


def aiohttp_handler(x: Watched, *, numeric: bool = False, **limits: Unpack[StreamLimits]) -> Any:
    """Return an aiohttp handler for ``GET /events/background-task?taskId=…``.

    The limits are those of ``eventbus.contrib.sse.asgi_app``.
    """
    from eventbus.contrib.aiohttp import handler_of

    async def source(task_id: uuid.UUID, last: str | None) -> AsyncIterator[ServerSentEvent]:
        del last
        return await open_stream(x, task_id, numeric=numeric)

    return handler_of(source, **limits)
