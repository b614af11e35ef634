"""The threads in which the plain function of a consumer runs."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from eventbus.signatures import handler_name
from eventbus.timeouts import timeout_text

__all__ = ["Threads"]

log = logging.getLogger("eventbus.consumer")

# Seconds after which a thread that has nothing to do ends.
_IDLE = 10.0


class _Job:
    """One call: what to run where, and what came of it."""

    def __init__(self, call: Callable[[Any], Any], argument: Any) -> None:
        self.call = call
        self.argument = argument
        self.context = contextvars.copy_context()
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.started_at: float | None = None
        self.seconds = 0.0
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call in this thread, and tell the loop."""
        if self.abandoned:
            return
        process = os.getpid()
        self.started_at = time.monotonic()
        try:
            self.value = self.context.run(self._call)
        except BaseException as error:  # noqa: BLE001 - it is raised on the loop
            self.error = error
        self.seconds = time.monotonic() - self.started_at
        if os.getpid() != process:
            # The function forked: nobody waits in the child.
            return
        try:
            self.loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            # The loop was closed meanwhile: the delivery is given back with this job.
            log.warning("a handler's thread ended after its loop name=%s", handler_name(self.call))

    def _call(self) -> Any:
        value = self.call(self.argument)
        if asyncio.iscoroutine(value):
            value.close()
            raise TypeError(
                f"{handler_name(self.call)} returned a coroutine in its thread, which nothing "
                "awaits; leave run_in='thread' out"
            )
        return value

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Threads:
    """At most so many daemon threads, started when they are needed.

    No thread can be cancelled: a call that takes too long keeps its thread until the function
    returns. The end of the interpreter does not wait for them.
    """

    def __init__(self, name: str, most: int) -> None:
        """Begin without threads.

        Args:
            name: What their names begin with.
            most: How many there may be.
        """
        self._name = name
        self._most = most
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._count = 0
        self._started = 0
        self._idle = 0
        self._closed = False

    def calling(
        self,
        call: Callable[[Any], Any],
        limit: float | None,
        handler: object,
        describe: Callable[[Any], str],
        is_over: Callable[[], bool],
    ) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        """Return a coroutine function that runs a plain one in a thread.

        Context variables are copied. Cancelling the coroutine lets go of the thread at once when
        its consumer is over; nothing takes notice of what the function does afterwards. Else it is
        cancelled as soon as the function has ended: until then the slot, the lease and the key are
        in use.

        Args:
            call: What is called.
            limit: Seconds after which the call has failed, whatever the function returns; it is
                waited for all the same. ``None`` = no limit.
            handler: What messages name.
            describe: Says in a log line what an argument is.
            is_over: Whether the consumer stops or its loop ends.
        """

        async def call_in_thread(argument: Any) -> Any:
            job = _Job(call, argument)
            self._submit(job)
            cancelled: asyncio.CancelledError | None = None
            while not job.ended.done():
                try:
                    await _ended(job, limit, lambda: (handler_name(handler), describe(argument)))
                except asyncio.CancelledError as asked:
                    job.abandoned = is_over()
                    if job.started_at is not None and (job.abandoned or cancelled is None):
                        log.warning(
                            "cannot cancel a thread, its result will be dropped handler=%s %s",
                            handler_name(handler),
                            describe(argument),
                        )
                    if job.abandoned:
                        raise
                    cancelled = asked
            if cancelled is not None:
                raise cancelled
            error, job.error = job.error, None
            try:
                late = limit is not None and job.seconds >= limit
                if limit is not None and late and (error is None or isinstance(error, Exception)):
                    raise TimeoutError(timeout_text(handler, limit)) from error
                if error is not None:
                    raise error
                return job.value
            finally:
                # The traceback holds this frame: no circle.
                del error

        return call_in_thread

    def close(self) -> None:
        """Let idle threads end now and the others when their function returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            if self._idle:
                # Counted off here: it may not wake before the next job comes.
                self._idle -= 1
                self._changed.notify()
                return
            if self._count == self._most:
                return
            self._started += 1
            name = f"{self._name}-thread-{self._started}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system has no more threads. One that is busy takes the job later.
                if not self._count:
                    self._jobs.remove(job)
                    raise
            else:
                self._count += 1

    def _serve(self) -> None:
        process = os.getpid()
        while os.getpid() == process:
            job = self._next()
            if job is None:
                return
            job.run()
            # Not kept while the thread waits for the next.
            del job

    def _next(self) -> _Job | None:
        """Wait for a job; ``None`` when the thread is to end."""
        with self._changed:
            if self._jobs:
                return self._jobs.popleft()
            self._idle += 1
            while not self._jobs:
                woken = not self._closed and self._changed.wait(_IDLE)
                if not woken and not self._jobs:
                    self._idle -= 1
                    self._count -= 1
                    return None
            return self._jobs.popleft()


async def _ended(job: _Job, limit: float | None, names: Callable[[], tuple[str, str]]) -> None:
    """Wait until a call has ended; say once that it takes too long."""
    while not job.ended.done():
        if limit is None:
            # Not awaited itself: a cancel would end the future, not the function.
            await asyncio.wait([job.ended])
            return
        since = job.started_at
        left = limit if since is None else since + limit - time.monotonic()
        if left > 0 or job.seconds:
            await asyncio.wait([job.ended], timeout=max(left, 0.01))
            continue
        log.warning(
            "handler timed out, waiting for its thread handler=%s %s seconds=%g", *names(), limit
        )
        limit = None
