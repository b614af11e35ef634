"""Consumers: a fixed set of worker tasks that handle the deliveries of a group."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from eventbus._asyncio import HandlerPlace, calling_task, is_own_cancellation
from eventbus._eventbus import Runner
from eventbus.batches import BatchWorker
from eventbus.delivery import Delivery, _current, describe_error
from eventbus.errors import (
    BusClosedError,
    EventBusError,
    InvalidArgumentError,
    LeaseLost,
    NotFoundError,
    Reject,
    Retry,
)
from eventbus.handlers import calling
from eventbus.names import shown
from eventbus.signatures import handler_name
from eventbus.subscription import Handler
from eventbus.threads import Threads
from eventbus.timeouts import limited
from eventbus.types import Event

if TYPE_CHECKING:
    from eventbus._eventbus import CoreConsumer, CoreDelivery
    from eventbus.bus import Bus
    from eventbus.config import ConsumeOptions

__all__ = ["ConsumeHandler", "Consumer", "Deliveries"]

log = logging.getLogger("eventbus.consumer")


class _WithDelivery(Protocol):
    def __call__(self, event: Any, delivery: Delivery, /) -> object: ...


class _WithNamedDelivery(Protocol):
    def __call__(self, event: Any, /, *, delivery: Delivery) -> object: ...


ConsumeHandler = Handler | _WithDelivery | _WithNamedDelivery
"""What ``consume`` calls: with the event, its payload, the delivery, or the first two and that."""

# After an error of the backend itself, a worker tries again after this many seconds.
_BACKEND_PAUSE = 1.0


class Consumer:
    """The running handler of a group; made by ``Bus.consume``.

    Attributes:
        group: The group.
        handler: The handler.
        options: How it claims and runs.
        bindings: The topics and patterns whose messages it claims.
    """

    bindings: frozenset[str] = frozenset()

    def __init__(
        self, bus: Bus, core: CoreConsumer, handler: Callable[..., Any], options: ConsumeOptions
    ) -> None:
        """Start the worker tasks on the running loop."""
        self._bus = bus
        self._core = core
        self.handler = handler
        self.options = options
        self.group = options.group
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._leading = False
        self._nudged = False
        self._followers: deque[asyncio.Future[None]] = deque()
        self._taken_back: set[int] = set()
        self._batches: BatchWorker | None = None
        self._threads: Threads | None = None
        self._told_held = False
        if options.run_in == "thread":
            most = 1 if options.batch is not None else options.concurrency
            self._threads = Threads(f"eventbus-{self.group}", most)
        create = self._loop.create_task
        self._workers: dict[asyncio.Task[None], Runner | None] = {}
        if options.batch is not None:
            place = HandlerPlace(self._context)
            self._context = place.context
            batches = self._batches = BatchWorker(self, options.batch)
            task = create(batches.work(), name=f"eventbus-{self.group}")
            self._workers[task] = None
            place.runs_in(task, lambda: bool(batches.in_hand))
        else:
            call, whole = calling(handler, bus._converter(handler))
            call = self._calling(call)
            for number in range(options.concurrency):
                place = HandlerPlace(self._context)
                runner = Runner(
                    bus,
                    core,
                    call,
                    whole,
                    place.context,
                    _current,
                    self._nudge_once,
                    self._late,
                    self._held,
                )
                task = create(self._work(runner), name=f"eventbus-{self.group}-{number}")
                self._workers[task] = runner
                place.runs_in(task, _handling(runner))
        for task in self._workers:
            # The task holds its runner and the runner this consumer: it must not be kept for ever.
            task.add_done_callback(self._forget)
        self._watcher = create(self._watch_leases(), name=f"eventbus-{self.group}-leases")

    def _calling(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the call with the limit on its time, in a thread if the options ask for one."""
        limit = self.options.timeout
        if self._threads is not None:
            return self._threads.calling(call, limit, self.handler, self._describe)
        return call if limit is None else limited(call, limit, self.handler)

    def _describe(self, argument: CoreDelivery | Event | list[Event]) -> str:
        """Say in a log line what a handler was called with."""
        if isinstance(argument, list):
            return f"group={self.group} events={len(argument)}"
        event = argument if isinstance(argument, Event) else argument.event
        return f"group={self.group} topic={shown(event.topic)} event_id={event.event_id}"

    async def _work(self, runner: Runner) -> None:
        """Handle deliveries one after the other; the runner asks back when one goes wrong."""
        try:
            while not self._stopping:
                try:
                    failed = await runner
                    if failed is None:
                        await self._wait()
                        continue
                except (BusClosedError, NotFoundError) as error:
                    self._end(error)
                    return
                except EventBusError:
                    log.exception("cannot claim group=%s", self.group)
                    await asyncio.sleep(_BACKEND_PAUSE)
                    continue
                await self._failed(*failed)
        finally:
            # Also when this very worker is cancelled: another one must look for more.
            self._nudge()

    def _end(self, error: EventBusError) -> None:
        if isinstance(error, BusClosedError):
            # Nothing is wrong: the bus, or the interpreter under a thread of its own, ends.
            log.debug("consumer ends group=%s reason=%s", self.group, error)
        elif not self._stopping:
            log.error("consumer ends group=%s reason=%s", self.group, error)

    async def _wait(self) -> None:
        """Wait for something to claim; one worker asks the backend, the others wait for it."""
        if not self._leading:
            self._leading = True
            try:
                await self._core.wait()
            finally:
                self._leading = False
            return
        nudge: asyncio.Future[None] = self._loop.create_future()
        self._followers.append(nudge)
        try:
            await nudge
        finally:
            self._nudged = False

    def _nudge_once(self) -> None:
        """Let another worker look for more; called when a handler suspends."""
        if not self._nudged:
            self._nudge()

    def _nudge(self) -> None:
        while self._followers:
            follower = self._followers.popleft()
            if not follower.done():
                self._nudged = True
                follower.set_result(None)
                return

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._workers.pop(task, None)

    def _forgive(self, core: CoreDelivery) -> bool:
        """Undo the cancellation of a handler whose lease was lost; return whether there was one.

        Not the worker was cancelled but its handler, whatever that made of it.
        """
        if core.fencing_token not in self._taken_back:
            return False
        self._taken_back.discard(core.fencing_token)
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return True

    async def _failed(self, core: CoreDelivery, error: BaseException) -> None:
        """Settle a delivery whose handler raised.

        Raises:
            BaseException: The error, when it is not the handler's own: the worker is cancelled, or
                the interpreter ends. The delivery is released, no attempt is counted.
        """
        lost = self._forgive(core)
        if isinstance(error, asyncio.CancelledError):
            if lost:
                token = core.fencing_token
                log.warning("handler cancelled, lease lost group=%s token=%s", self.group, token)
                return
            foreign = not is_own_cancellation(error)
        else:
            foreign = not isinstance(error, Exception)
        if foreign:
            if not core.settled:
                await self._settle(core, core.settle_release)
            raise error
        self._bus._count(0, 1, 0, 0)
        if core.settled:
            self._bus._handler_failed(self.group, error)
        elif isinstance(error, Reject):
            await self._settle(core, lambda: core.settle_dead("rejected", str(error.reason)))
        elif isinstance(error, Retry):
            await self._settle(core, lambda: self._retry(core, error))
        else:
            self._bus._handler_failed(self.group, error)
            text = describe_error(error)
            await self._settle(core, lambda: core.settle_failed(text))

    def _retry(self, core: CoreDelivery, asked: Retry) -> Any:
        """Settle as ``Retry`` asks; one that cannot be used is an error of the handler."""
        try:
            reason = str(asked.reason or "retry asked for by the handler")
            return core.settle_failed(reason, asked.after)
        except (TypeError, InvalidArgumentError) as error:
            self._bus._handler_failed(self.group, error)
            return core.settle_failed(describe_error(error))

    def _held(self, seconds: float, calls: int) -> None:
        """Say once that handlers held the loop too long; called by the runner."""
        if self._told_held:
            return
        self._told_held = True
        log.warning(
            "handler held the event loop, where nothing else could run group=%s handler=%s "
            "seconds=%.1f calls=%d: a plain function that blocks belongs in run_in='thread'",
            self.group,
            handler_name(self.handler),
            seconds,
            calls,
        )

    def _late(self, core: CoreDelivery, error: BaseException) -> None:
        """Report an acknowledgement that changed nothing; called by the runner, in its task."""
        self._forgive(core)
        log.warning(
            "acknowledged too late group=%s topic=%s reason=%s", self.group, core.topic, error
        )

    async def _settle(self, core: CoreDelivery, settle: Callable[[], Any]) -> None:
        try:
            pending = settle()
            if pending is not None:
                await pending
        except LeaseLost:
            log.warning("settled too late, lease lost group=%s topic=%s", self.group, core.topic)
        except EventBusError:
            log.exception("cannot settle group=%s topic=%s", self.group, core.topic)

    async def _watch_leases(self) -> None:
        """Cancel handlers whose lease was lost; their worker tasks go on."""
        while lost := await self._core.lost():
            for token in lost:
                if self._threads is not None:
                    # A thread cannot be cancelled; what it returns comes too late.
                    log.warning("lease lost, a thread goes on group=%s token=%s", self.group, token)
                    continue
                for task, runner in self._workers.items():
                    if runner is not None and runner.token == token:
                        self._taken_back.add(token)
                        task.cancel("lease lost")
                if self._batches is not None and self._batches.lose(token):
                    (task,) = self._workers
                    task.cancel("lease lost")

    @property
    def idle(self) -> bool:
        """Whether no delivery is in hand."""
        return self._core.in_hand == 0

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is one of its workers: then it is inside a handler."""
        return task in self._workers

    async def finish(self, task: asyncio.Task[Any], timeout: float) -> None:
        """Wait until a worker that stopped its own consumer is done and has settled its work."""
        await asyncio.wait([task], timeout=timeout)
        await self._core.release()

    async def stop(self, timeout: float | None = None) -> None:
        """Claim nothing more, let running handlers finish, give the rest back. Idempotent.

        Args:
            timeout: Seconds for running handlers; then they are cancelled and their deliveries
                released without counting an attempt. ``None`` waits for them.
        """
        await self._stop(timeout, calling_task())

    async def _stop(self, timeout: float | None, current: asyncio.Task[Any] | None) -> None:
        """Stop for a caller, who is not waited for: it may be one of the handlers."""
        self._stopping = True
        failure: EventBusError | None = None
        try:
            await self._core.stop()
        except EventBusError as error:
            failure = error
        await self._end_workers(timeout, current)
        if current not in self._workers:
            try:
                await self._core.release()
            except EventBusError as error:
                failure = error
        if self._threads is not None:
            self._threads.close()
        self._bus._consumers.discard(self)
        if failure is not None:
            # All the same it has stopped; what it could not give back comes back by itself.
            raise failure

    def _is_waiting(self, runner: Runner | None) -> bool:
        """Return whether a worker is in no handler."""
        if runner is not None:
            return runner.token is None
        return self._batches is None or not self._batches.in_hand

    async def _end_workers(self, timeout: float | None, current: asyncio.Task[Any] | None) -> None:
        """Let handlers that run finish, and cancel those that are late."""
        own = self._loop is asyncio.get_running_loop()
        workers = [task for task in self._workers if task is not current and not task.done()]
        if own:
            for task in workers:
                runner = self._workers[task]
                if self._is_waiting(runner):
                    task.cancel()
            if workers:
                _, late = await asyncio.wait(workers, timeout=timeout)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late, timeout=1.0)
            self._watcher.cancel()
            await asyncio.wait([self._watcher], timeout=1.0)
        else:
            for task in [*workers, self._watcher]:
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(task.cancel)

    def __repr__(self) -> str:
        """Return group and handler."""
        return f"Consumer(group={self.group!r}, handler={self.handler!r})"


class Deliveries:
    """The deliveries of a group as an async iterator; made by ``Bus.deliveries``.

    The group is declared by ``async with`` or the first ``__anext__``. Leaving by any way releases
    what was not handed over. A cancelled ``__anext__`` loses nothing.
    """

    def __init__(self, bus: Bus, bindings: list[tuple[str, bool]], options: ConsumeOptions) -> None:
        """Remember what to claim."""
        self._bus = bus
        self._bindings = bindings
        self._options = options
        self.group = options.group
        self.bindings = frozenset(text for text, _ in bindings)
        self._core: CoreConsumer | None = None
        self._closed = False

    async def _start(self) -> CoreConsumer | None:
        """Return the core; None when this was closed while it started."""
        if self._core is not None:
            return self._core
        # Whoever closes the bus meanwhile closes this as well.
        self._bus._deliveries.add(self)
        try:
            core = await self._bus._consume(self._bindings, self._options, False)
            self._bus._tell_limits()
        except BaseException as error:
            if self._core is None:
                self._bus._deliveries.discard(self)
            if self._closed and isinstance(error, BusClosedError):
                return None
            raise
        return await self._keep(core)

    async def _keep(self, core: CoreConsumer) -> CoreConsumer | None:
        if self._closed:
            await core.stop()
            return None
        if self._core is not None:
            # Another reader was quicker while the group was declared.
            await core.stop()
            return self._core
        self._core = core
        return core

    async def __aenter__(self) -> Self:
        """Declare the group."""
        if await self._start() is None:
            raise BusClosedError("the deliveries were closed before they started")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release what was not handed over."""
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Delivery]:
        """Return the iterator itself."""
        return self

    async def __anext__(self) -> Delivery:
        """Return the next delivery; waits for it.

        Raises:
            StopAsyncIteration: When it or its bus was closed.
            BusClosedError: When the bus was closed before.
            NotFoundError: When the group was deleted.
        """
        if self._closed:
            raise StopAsyncIteration
        core = await self._start()
        if core is None:
            raise StopAsyncIteration
        while True:
            try:
                delivery = core.take(self._bus)
                if delivery is None:
                    await core.wait()
            except BusClosedError:
                raise StopAsyncIteration from None
            if delivery is not None:
                return Delivery(delivery)

    def ready(self) -> Delivery | None:
        """Return the next delivery when it is in hand already, ``None`` when it has to be awaited.

        Begins nothing: the first delivery comes from ``__anext__``.
        """
        if self._closed or self._core is None:
            return None
        try:
            delivery = self._core.take(self._bus)
        except BusClosedError:
            return None
        return None if delivery is None else Delivery(delivery)

    async def aclose(self) -> None:
        """End: what was not handed over is released, what was stays with its holder. Idempotent."""
        self._closed = True
        self._bus._deliveries.discard(self)
        if self._core is not None:
            await self._core.stop()


def _handling(runner: Runner) -> Callable[[], bool]:
    """Return what tells whether the runner is inside a handler, when asked outside of its task."""

    def is_handling() -> bool:
        try:
            return runner.token is not None
        except RuntimeError:
            # Asked by another thread in the middle of a step.
            return True

    return is_handling
