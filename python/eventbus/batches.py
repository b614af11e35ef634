"""The worker of a consumer whose handler gets lists of events."""

from __future__ import annotations

import asyncio
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal, cast

from eventbus._eventbus import Invoke
from eventbus.errors import BatchError, BusClosedError, NotFoundError, Reject, Retry, is_outcome
from eventbus.outcomes import leave
from eventbus.payloads import Convert

if TYPE_CHECKING:
    from eventbus._eventbus import CoreDelivery
    from eventbus.consumer import Consumer

__all__ = ["BatchOutcome", "BatchWorker"]

# Seconds after which a call that holds the loop is reported.
_HELD_TOO_LONG = 1.0

BatchOutcome = Literal[True] | Retry | Reject | BaseException | None
"""What a batch handler may return for each event: ``None`` or ``True`` acknowledges it, an
exception is what its handler raised."""


class BatchWorker:
    """Claims up to ``size`` deliveries, calls the handler with their events, and settles them.

    Attributes:
        in_hand: The deliveries of the call that runs.
    """

    def __init__(self, consumer: Consumer, size: int, context: Context) -> None:
        """Begin with nothing in hand; handlers run in copies of the context."""
        self._consumer = consumer
        self._context = context
        self._size = size
        self._convert = consumer._bus._converter(consumer.handler, of_list=True)
        self._call = consumer._calling(consumer.handler)
        self._result: object = None
        self.in_hand: list[CoreDelivery] = []

    async def work(self) -> None:
        """Handle batches until the consumer stops."""
        consumer = self._consumer
        while not consumer._stopping:
            try:
                batch = self._claim()
                if not batch:
                    await consumer._wait()
                    continue
                self.in_hand = batch
                await self._handle(batch, self._convert)
                self.in_hand = []
                consumer._calm()
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                # Somebody may mean a handler that has ended meanwhile: that is no stop.
                if not consumer._supervisor.absorb():
                    raise
                self.in_hand = []
            except (BusClosedError, NotFoundError) as error:
                consumer._end(error)
                return

    def _claim(self) -> list[CoreDelivery]:
        consumer = self._consumer
        batch: list[CoreDelivery] = []
        while len(batch) < self._size and (core := consumer._core.take(consumer._bus)) is not None:
            batch.append(core)
        return batch

    def lose(self, token: int) -> bool:
        """Note a lost lease; return whether the handler has to be cancelled for it."""
        taken_back = self._consumer._taken_back
        if not any(core.fencing_token == token for core in self.in_hand):
            return False
        first = not any(core.fencing_token in taken_back for core in self.in_hand)
        taken_back.add(token)
        return first

    async def _handle(self, batch: list[CoreDelivery], convert: Convert | None) -> None:
        consumer = self._consumer
        events: list[Any] = []
        fitting: list[CoreDelivery] = []
        for core in batch:
            try:
                events.append(core.event if convert is None else convert(core.event))
            except Exception as error:  # noqa: BLE001 - it settles the delivery
                await consumer._decide(core, error)
            else:
                fitting.append(core)
        if not fitting:
            return
        self._result = None
        try:
            await Invoke(self._run, events, self._context)
            outcomes = read_outcomes(self._result, len(fitting))
        except BatchError as error:
            try:
                outcomes = named_outcomes(error, len(fitting))
            except ValueError as wrong:
                await self._failed(fitting, wrong)
                return
        except BaseException as error:  # noqa: BLE001 - it settles the batch or is raised again
            await self._failed(fitting, error)
            return
        for core, failure in zip(fitting, outcomes, strict=True):
            if failure is not None:
                await consumer._decide(core, failure)
                continue
            consumer._bus._count(1, 0, 0, 0)
            if not core.settled:
                await consumer._acknowledge(core)

    async def _run(self, events: list[Any]) -> None:
        """Call the handler and keep what it returned."""
        since = time.monotonic()
        result = self._call(events)
        held = time.monotonic() - since
        if held > _HELD_TOO_LONG:
            self._consumer._held(held, 1)
        self._result = await result if asyncio.iscoroutine(result) else result

    async def _failed(self, batch: list[CoreDelivery], error: BaseException) -> None:
        consumer = self._consumer
        if isinstance(error, SystemExit | KeyboardInterrupt):
            for core in batch:
                leave(core, error)
            raise error
        lost = [core for core in batch if core.fencing_token in consumer._taken_back]
        if isinstance(error, asyncio.CancelledError) and lost:
            await consumer._failed(lost[0], error)
            consumer._taken_back.difference_update(core.fencing_token for core in lost)
            # The lease of a neighbour is no failure of theirs: they go back uncounted.
            for core in batch:
                if core not in lost and not core.settled:
                    await consumer._release(core)
            return
        for core in batch:
            await consumer._decide(core, error)


def read_outcomes(result: object, count: int) -> list[BaseException | None]:
    """Return what came of each event of a batch; ``None`` = handled.

    Only a list or a tuple speaks of single events; with anything else all are handled.

    Args:
        result: What the handler returned.
        count: How many events it was given.

    Raises:
        ValueError: It does not have one outcome per event.
        TypeError: One of them is no outcome.
    """
    outcomes = _listed(result)
    if outcomes is None:
        return [None] * count
    if len(outcomes) != count:
        raise ValueError(
            f"the batch handler returned {len(outcomes)} outcomes for {count} events; return one "
            "per event, or None when all were handled"
        )
    return [_outcome(index, item) for index, item in enumerate(outcomes)]


def _listed(result: Any) -> list[object] | None:
    if isinstance(result, list | tuple):
        return list(cast("list[object] | tuple[object, ...]", result))
    return None


def _outcome(index: int, item: object) -> BaseException | None:
    if item is None or item is True:
        return None
    if isinstance(item, BaseException) and is_outcome(item):
        return item
    raise TypeError(
        f"the batch handler returned {item!r} for event {index}; an outcome is None or True "
        "(acknowledged), Retry(...), Reject(...) or an exception"
    )


def named_outcomes(error: BatchError, count: int) -> list[BaseException | None]:
    """Return what came of each event when the handler raised ``BatchError``.

    Raises:
        ValueError: It names an event that the batch does not have.
    """
    strange = sorted(index for index in error.errors if not 0 <= index < count)
    if strange:
        raise ValueError(
            f"BatchError names the indexes {strange}, but the batch had {count} events: "
            f"0 to {count - 1}"
        ) from error
    return [error.errors.get(index) for index in range(count)]
