"""Consumers: a fixed set of worker tasks that handle the deliveries of a group."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from eventbus._asyncio import HandlerPlace, calling_task, is_own_cancellation
from eventbus._eventbus import Runner
from eventbus.batches import BatchWorker
from eventbus.delivery import Delivery, _current, _done
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
from eventbus.outcomes import bury, fail, is_undecodable, leave, reject, tell_dead
from eventbus.signatures import handler_name
from eventbus.subscription import Handler
from eventbus.supervisor import Supervisor
from eventbus.texts import describe_error, storable
from eventbus.threads import Threads
from eventbus.timeouts import limited
from eventbus.types import DeadLetter, Event

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


_claiming: weakref.WeakSet[CoreConsumer] = weakref.WeakSet()
"""What claims in this process."""


@atexit.register
def _give_back_at_exit() -> None:
    """Give back what is in hand when a process ends without closing its buses.

    The runtime does it, for a moment at most: the exit hook of the extension, which was registered
    earlier and so runs later, waits for it.
    """
    for core in list(_claiming):
        core.abandon(True)


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
        _claiming.add(core)
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
        self._failure: EventBusError | None = None
        self._workers: dict[asyncio.Task[None], Runner | None] = {}
        self._supervisor = Supervisor(
            f"consumer group={shown(self.group)}", bus._replaced, partial(core.abandon, False)
        )
        if options.batch is not None:
            self._supervisor.keep(partial(self._begin_batches, options.batch))
        else:
            call, whole = calling(handler, bus._converter(handler))
            call = self._calling(call)
            for number in range(options.concurrency):
                self._supervisor.keep(partial(self._begin, call, whole, number))
        self._supervisor.keep(self._begin_watching)

    def _begin(self, call: Callable[[Any], Any], whole: bool, number: int) -> asyncio.Task[None]:
        place = HandlerPlace(self._context)
        runner = Runner(
            self._bus,
            self._core,
            call,
            whole,
            place.context,
            _current,
            self._nudge_once,
            self._late,
            self._held,
        )
        task = self._start(self._work(runner), runner, f"{self.group}-{number}")
        place.runs_in(task, _handling(runner))
        return task

    def _begin_batches(self, size: int) -> asyncio.Task[None]:
        place = HandlerPlace(self._context)
        batches = self._batches = BatchWorker(self, size, place.context)
        task = self._start(batches.work(), None, self.group)
        place.runs_in(task, lambda: bool(batches.in_hand))
        return task

    def _start(
        self, work: Coroutine[Any, Any, None], runner: Runner | None, name: str
    ) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=f"eventbus-{name}")
        self._workers[task] = runner
        # The task holds its runner and the runner this consumer: it must not be kept for ever.
        task.add_done_callback(self._forget)
        return task

    def _begin_watching(self) -> asyncio.Task[None]:
        self._watcher = self._loop.create_task(self._watch(), name=f"eventbus-{self.group}-leases")
        return self._watcher

    def _calling(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the call with the limit on its time, in a thread if the options ask for one."""
        limit = self.options.timeout
        if self._threads is not None:
            return self._threads.calling(
                call, limit, self.handler, self._describe, lambda: self._supervisor.is_over
            )
        return call if limit is None else limited(call, limit, self.handler)

    def _describe(self, argument: CoreDelivery | Event | list[Event]) -> str:
        """Say in a log line what a handler was called with."""
        if isinstance(argument, list):
            return f"group={self.group} events={len(argument)}"
        event = argument if isinstance(argument, Event) else argument.event
        return f"group={shown(self.group)} topic={shown(event.topic)} event_id={event.event_id}"

    async def _work(self, runner: Runner) -> None:
        """Handle deliveries one after the other; the runner asks back when one goes wrong."""
        try:
            while not self._stopping:
                try:
                    decision = await runner
                    if decision is None:
                        await self._wait()
                    elif decision[1] is None:
                        self._swallowed(decision[0])
                    else:
                        await self._decide(decision[0], decision[1])
                except asyncio.CancelledError:
                    # Somebody may mean a handler that has ended meanwhile: that is no stop.
                    if not self._supervisor.absorb():
                        raise
                except (BusClosedError, NotFoundError) as error:
                    self._end(error)
                    return
                except EventBusError:
                    log.exception("cannot claim group=%s", shown(self.group))
                    await asyncio.sleep(_BACKEND_PAUSE)
        finally:
            # Also when this very worker is cancelled: another one must look for more.
            self._nudge()

    def _swallowed(self, core: CoreDelivery) -> None:
        """Undo the cancellation of a handler that returned all the same, and is acknowledged."""
        self._forgive(core)
        self._calm()

    def _calm(self) -> None:
        """Undo a cancellation that the handler swallowed, or the next one would suffer from it."""
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            return
        if not (self._supervisor.absorb() or self._stopping):
            raise asyncio.CancelledError("the loop ends")

    def _end(self, error: EventBusError) -> None:
        if isinstance(error, BusClosedError):
            # Nothing is wrong: the bus, or the interpreter under a thread of its own, ends.
            log.debug("consumer ends group=%s reason=%s", shown(self.group), error)
        elif not self._stopping and self._failure is None:
            self._failure = error
            log.error("consumer ends group=%s reason=%s", shown(self.group), error)

    def trouble(self) -> str | None:
        """Return what is wrong when no task is left that would run the handler."""
        if self._workers or self._supervisor.is_over:
            return None
        reason = "" if self._failure is None else f": {self._failure}"
        return f"the consumer of group {shown(self.group)!r} has no worker{reason}"

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
        """Settle a delivery whose handler raised, whatever that is.

        Raises:
            BaseException: The error, when it is not the handler's own: the consumer stops, or the
                loop or the process ends. No attempt is counted.
        """
        if isinstance(error, SystemExit | KeyboardInterrupt):
            leave(core, error)
            raise error
        lost = self._forgive(core)
        if isinstance(error, asyncio.CancelledError):
            if lost:
                log.warning(
                    "handler cancelled, lease lost group=%s topic=%s event=%s",
                    shown(self.group),
                    shown(core.topic),
                    shown(core.event.event_id),
                )
                return
            # From outside, to abort this job; or its consumer stops, or its loop ends.
            if not (is_own_cancellation(error) or self._supervisor.absorb()):
                if not core.settled:
                    await self._release(core)
                raise error
        if is_undecodable(error) and not core.settled:
            self._bus._undecodable(core.topic, error)
            await self._settle(core, lambda: bury(core, error))
            return
        self._bus._count(0, 1, 0, 0)
        if core.settled:
            self._bus._consumer_failed(core, error)
        elif isinstance(error, Reject):
            await self._settle(core, lambda: reject(core, error.reason))
        elif isinstance(error, Retry):
            await self._retry(core, error)
        else:
            await self._fail(core, error)

    async def _decide(self, core: CoreDelivery, error: BaseException) -> None:
        """Do so; what goes wrong on our side counts as a crash, and ends the worker."""
        try:
            await self._failed(core, error)
        except Exception:
            # The traceback of the exception refers to the delivery and would keep it in hand.
            core.settle_last(True)
            raise

    async def _fail(self, core: CoreDelivery, error: BaseException) -> None:
        self._bus._consumer_failed(core, error)
        text = describe_error(error)
        await self._settle(core, lambda: fail(core, text))

    async def _retry(self, core: CoreDelivery, asked: Retry) -> None:
        """Settle as ``Retry`` asks; one that cannot be used is an error of the handler."""
        reason = storable(asked.reason) or "retry asked for by the handler"
        try:
            core.next_attempt(asked.after)
        except (TypeError, InvalidArgumentError) as error:
            await self._fail(core, error)
            return
        await self._settle(core, lambda: fail(core, reason, asked.after))

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
            "acknowledged too late group=%s topic=%s reason=%s",
            shown(self.group),
            shown(core.topic),
            error,
        )

    async def _settle(
        self, core: CoreDelivery, settle: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Settle; an error of the backend is logged, and the delivery comes back with its lease."""
        while True:
            try:
                await settle()
            except asyncio.CancelledError:
                # The handler has ended: nobody's job is aborted by this.
                if core.settled or not self._supervisor.absorb():
                    raise
                continue
            except LeaseLost:
                where = shown(self.group), shown(core.topic)
                log.warning("settled too late, lease lost group=%s topic=%s", *where)
            except EventBusError:
                where = shown(self.group), shown(core.topic)
                log.exception("cannot settle group=%s topic=%s", *where)
            return

    async def _acknowledge(self, core: CoreDelivery) -> None:
        await self._settle(core, partial(_acknowledge, core))

    async def _release(self, core: CoreDelivery) -> None:
        await self._settle(core, partial(_release, core))

    async def _watch(self) -> None:
        """Cancel handlers whose lease was lost, and tell what died without a word of theirs."""
        while True:
            try:
                lost, dead = await self._core.news()
            except asyncio.CancelledError:
                if not self._supervisor.absorb():
                    raise
                continue
            if not lost and not dead:
                return
            self._cancel_lost(lost)
            for letter in dead:
                tell_dead(self._bus, DeadLetter(**letter))

    def _cancel_lost(self, lost: list[int]) -> None:
        """Cancel handlers whose lease was lost; their worker tasks go on."""
        for token in lost:
            if self._threads is not None:
                # A thread cannot be cancelled; what it returns comes too late.
                group = shown(self.group)
                log.warning("lease lost, a thread goes on group=%s token=%s", group, token)
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
        self._supervisor.stop()
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
        _claiming.add(core)
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
                    for letter in core.dead():
                        tell_dead(self._bus, DeadLetter(**letter))
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


async def _acknowledge(core: CoreDelivery) -> None:
    await _done(core.settle_ack())


async def _release(core: CoreDelivery) -> None:
    await _done(core.settle_release())


def _handling(runner: Runner) -> Callable[[], bool]:
    """Return what tells whether the runner is inside a handler, when asked outside of its task."""

    def is_handling() -> bool:
        try:
            return runner.token is not None
        except RuntimeError:
            # Asked by another thread in the middle of a step.
            return True

    return is_handling
