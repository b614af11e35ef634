"""Subscriptions: who sees a broadcast, inline or through a bounded buffer of its own."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from eventbus._asyncio import HandlerPlace, is_own_cancellation
from eventbus._eventbus import Invoke
from eventbus.errors import BusClosedError
from eventbus.names import shown
from eventbus.supervisor import Supervisor
from eventbus.types import Event, Gap

if TYPE_CHECKING:
    from eventbus._eventbus import CoreSubscription
    from eventbus.bus import Bus

__all__ = ["GapHandler", "Handler", "Subscription"]

log = logging.getLogger("eventbus.subscription")


class _WithPayload(Protocol):
    def __call__(self, payload: Any, /) -> object: ...


Handler = Callable[[Event], object] | _WithPayload
"""What ``subscribe`` calls: with the event, or with its payload as the annotation asks."""

GapHandler = Callable[[Gap], object]
"""What is called when events of a subscription were lost."""


@dataclass(eq=False, repr=False)
class Subscription:
    """An active subscription (contract D12).

    Attributes:
        subscription_id: The text of a UUID.
        topic: The topic given to ``subscribe``.
        handler: The object given to ``subscribe``.
        pattern: The pattern given to ``subscribe``, or ``None``.
        created_at: When, aware, in UTC.
    """

    subscription_id: str
    topic: str
    handler: Handler
    pattern: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _cancel_callback: Callable[[str], Awaitable[None] | None] | None = None

    async def cancel(self) -> None:
        """End the subscription: no handler call starts after this returned.

        A call that is running ends normally; buffered events are dropped. Idempotent; works after
        ``close()``, inside a handler and from another loop.
        """
        if self._cancel_callback is not None:
            result = self._cancel_callback(self.subscription_id)
            if result is not None:
                await result

    def __repr__(self) -> str:
        """Return id, topic and pattern."""
        return (
            f"Subscription(id={self.subscription_id!r}, "
            f"topic={self.topic!r}, pattern={self.pattern!r})"
        )


class QueuedReceiver:
    """Runs a subscription's handler in a task of its own, one event at a time, in order."""

    def __init__(
        self,
        bus: Bus,
        core: CoreSubscription,
        subscription_id: str,
        text: str,
        handler: Handler,
        on_gap: GapHandler | None,
    ) -> None:
        """Start the task on the running loop; it keeps the caller's context variables.

        Args:
            bus: Counts and logs.
            core: The buffer.
            subscription_id: Names the subscription.
            text: Its topic or pattern.
            handler: Called with each event.
            on_gap: Called with each gap.
        """
        self._bus = bus
        self._core = core
        self._id = subscription_id
        self._text = text
        self._handler = handler
        self._on_gap = on_gap
        place = HandlerPlace(contextvars.copy_context())
        self._context = place.context
        self._loop = asyncio.get_running_loop()
        self.busy = False
        self._place = place
        name = f"subscription {subscription_id} topic={shown(text)}"
        self._supervisor = Supervisor(name, bus._replaced)
        self._supervisor.keep(self._begin)

    def _begin(self) -> asyncio.Task[None]:
        self.task = self._loop.create_task(self._serve(), name=f"eventbus-sub-{self._id}")
        self._place.runs_in(self.task, lambda: self.busy)
        return self.task

    @property
    def idle(self) -> bool:
        """Whether nothing is buffered or still to be replayed, and no handler runs."""
        return not self.busy and self._core.idle()

    def stop(self) -> None:
        """Take nothing more; what is buffered is still handled."""
        self._core.stop()

    def cancel(self) -> None:
        """Take nothing more and drop what is buffered; a running call ends normally."""
        self._bus._count(0, 0, self._core.cancel(), 0)

    def abort(self) -> None:
        """Cancel the call that runs and end."""
        self._supervisor.stop()
        self.task.cancel()

    def trouble(self) -> str | None:
        """Return what is wrong when nobody would run the handler."""
        if self._supervisor.running or self._supervisor.is_over:
            return None
        return f"the subscription to {shown(self._text)!r} has no task that runs its handler"

    async def _serve(self) -> None:
        goes_on = False
        try:
            while True:
                try:
                    await self._serve_events()
                except asyncio.CancelledError:
                    # Somebody may mean a handler that has ended meanwhile: that is no stop.
                    if not self._supervisor.absorb():
                        raise
                    self.busy = False
                else:
                    return
        except Exception as error:
            goes_on = not (self._supervisor.is_over or isinstance(error, BusClosedError))
            raise
        finally:
            self.busy = False
            if not goes_on:
                # The loop ends or the bus closes: what comes now is dropped and counted.
                self._bus._count(0, 0, self._core.abandon(), 0)

    async def _serve_events(self) -> None:
        core, handler, context = self._core, self._handler, self._context
        since_pause = 0
        while True:
            item = core.take()
            if item is None:
                if core.ended():
                    return
                since_pause = 0
                await core.wait()
                continue
            self.busy = True
            if isinstance(item, tuple):
                await self._tell_gap(Gap(*item))
            else:
                try:
                    await Invoke(handler, item, context)
                except (SystemExit, KeyboardInterrupt, GeneratorExit):
                    raise
                except BaseException as error:  # noqa: BLE001 - it is logged and told to the hook
                    self._failed(error)
                else:
                    self._bus._count(1, 0, 0, 0)
            self.busy = False
            since_pause += 1
            if since_pause >= 128:
                since_pause = 0
                await asyncio.sleep(0)

    def _failed(self, error: BaseException) -> None:
        """Report what a handler raised; a cancellation of this task by others is a failure too."""
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if is_cancelled and not (is_own_cancellation(error) or self._supervisor.absorb()):
            raise error
        self._bus._handler_failed(self._id, error)
        self._bus._count(0, 1, 0, 0)

    async def _tell_gap(self, gap: Gap) -> None:
        self._bus._count(0, 0, 0, 1)
        await tell_gap(self._on_gap, gap, self._text, self._id)


async def tell_gap(on_gap: GapHandler | None, gap: Gap, topic: str, name: str = "") -> None:
    """Announce a gap: a warning, and the callback.

    Args:
        on_gap: The callback.
        gap: The gap.
        topic: The topic or pattern of the subscription or stream.
        name: The id of the subscription.
    """
    where = f"{shown(topic)} subscription={name}" if name else shown(topic)
    log.warning("gap topic=%s cause=%s count=%s", where, gap.cause, gap.count)
    if on_gap is None:
        return
    try:
        result = on_gap(gap)
        if asyncio.iscoroutine(result):
            await result
    except Exception:
        log.exception("error in gap callback topic=%s", where)
