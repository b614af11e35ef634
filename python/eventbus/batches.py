"""The worker of a consumer whose handler gets lists of events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from eventbus._eventbus import Invoke
from eventbus.delivery import Delivery
from eventbus.errors import BusClosedError, NotFoundError
from eventbus.payloads import Convert, parameters

if TYPE_CHECKING:
    from eventbus._eventbus import CoreDelivery
    from eventbus.consumer import Consumer

__all__ = ["BatchWorker"]


class BatchWorker:
    """Claims up to ``size`` deliveries, calls the handler with their events, and settles them.

    Attributes:
        in_hand: The deliveries of the call that runs.
    """

    def __init__(self, consumer: Consumer, size: int) -> None:
        """Check the handler.

        Raises:
            TypeError: The handler wants a ``Delivery``.
        """
        if any(hint is Delivery for _, hint in parameters(consumer.handler)):
            raise TypeError(
                f"batch={size} gives the handler a list of events, so it cannot take a "
                "Delivery; leave one of the two out"
            )
        self._consumer = consumer
        self._size = size
        self._convert = consumer._bus._converter(consumer.handler, of_list=True)
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
            except (BusClosedError, NotFoundError) as error:
                consumer._end(error)
                return
            self.in_hand = batch
            await self._handle(batch, self._convert)
            self.in_hand = []
            await asyncio.sleep(0)

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
                await consumer._failed(core, error)
            else:
                fitting.append(core)
        if not fitting:
            return
        try:
            async with asyncio.timeout(consumer.options.timeout):
                await Invoke(consumer.handler, events, consumer._context)
        except BaseException as error:  # noqa: BLE001 - it settles the batch or is raised again
            await self._failed(fitting, error)
        else:
            for core in fitting:
                if not core.settled:
                    await consumer._settle(core, core.settle_ack)

    async def _failed(self, batch: list[CoreDelivery], error: BaseException) -> None:
        consumer = self._consumer
        lost = [core for core in batch if core.fencing_token in consumer._taken_back]
        if isinstance(error, asyncio.CancelledError) and lost:
            await consumer._failed(lost[0], error)
            consumer._taken_back.difference_update(core.fencing_token for core in lost)
            # The lease of a neighbour is no failure of theirs: they go back uncounted.
            for core in batch:
                if core not in lost and not core.settled:
                    await consumer._settle(core, core.settle_release)
            return
        for core in batch:
            await consumer._failed(core, error)
