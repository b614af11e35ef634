"""Subscriptions: who sees a broadcast, inline or through a bounded buffer of its own."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from eventbus._asyncio import HandlerPlace, is_own_cancellation, report_failure
from eventbus._eventbus import Invoke
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
        handler: Handler,
        on_gap: GapHandler | None,
    ) -> None:
        """Start the task on the running loop; it keeps the caller's context variables."""
        self._bus = bus
        self._core = core
        self._id = subscription_id
        self._handler = handler
        self._on_gap = on_gap
        place = HandlerPlace(contextvars.copy_context())
        self._context = place.context
        self._loop = asyncio.get_running_loop()
        self.busy = False
        self.task = self._loop.create_task(self._serve(), name=f"eventbus-sub-{subscription_id}")
        self.task.add_done_callback(report_failure)
        place.runs_in(self.task, lambda: self.busy)

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

    async def _serve(self) -> None:
        core, handler, context = self._core, self._handler, self._context
        since_pause = 0
        try:
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
                    except Exception as error:  # noqa: BLE001 - it is logged and told to the hook
                        self._bus._handler_failed(self._id, error)
                        self._bus._count(0, 1, 0, 0)
                    except asyncio.CancelledError as error:
                        if not is_own_cancellation(error):
                            raise
                        self._bus._handler_failed(self._id, error)
                        self._bus._count(0, 1, 0, 0)
                    else:
                        self._bus._count(1, 0, 0, 0)
                self.busy = False
                since_pause += 1
                if since_pause >= 128:
                    since_pause = 0
                    await asyncio.sleep(0)
        finally:
            # The loop ends or the bus closes: what comes now is dropped and counted.
            self.busy = False
            self._bus._count(0, 0, core.abandon(), 0)

    async def _tell_gap(self, gap: Gap) -> None:
        self._bus._count(0, 0, 0, 1)
        await tell_gap(self._on_gap, gap, self._id)


async def tell_gap(on_gap: GapHandler | None, gap: Gap, name: str) -> None:
    """Announce a gap: a warning, and the callback."""
    log.warning("gap subscription=%s cause=%s count=%s", name, gap.cause, gap.count)
    if on_gap is None:
        return
    try:
        result = on_gap(gap)
        if asyncio.iscoroutine(result):
            await result
    except Exception:
        log.exception("error in gap callback subscription=%s", name)
