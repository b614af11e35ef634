"""A worker process of the fault tests: consumes a group and writes a journal.

``python -m servers.worker URL FOLDER '{"topic": …}'``; the last argument is the JSON of ``Orders``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventbus import Delivery, Event, LeaseLost, RetryPolicy, connect
from servers.checker import Journal


@dataclass
class Orders:
    """What a worker does.

    Attributes:
        topic: What it consumes.
        group: As which group.
        concurrency: Handlers at a time.
        lease: Seconds.
        work: Seconds that a handler sleeps.
        block: Seconds that a handler holds its thread.
        transaction: Settle by a transaction that counts a record per id.
        suicide_on: The id at which it kills itself.
        max_deliveries: Deliveries without an answer until an event is dead.
        options: Of ``connect``.
    """

    topic: str
    group: str
    concurrency: int = 8
    lease: float = 2.0
    work: float = 0.0
    block: float = 0.0
    transaction: bool = False
    suicide_on: int | None = None
    max_deliveries: int = 50
    options: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Handles the events of a group and writes down what it does."""

    def __init__(self, folder: Path, orders: Orders) -> None:
        """Open its journal."""
        self._orders = orders
        self._journal = Journal(folder, "worker", sync=False)
        self._refused = folder / f"refused-{os.getpid()}"

    async def handle(self, event: Event, delivery: Delivery) -> None:
        """Handle one event: start, work, effect, done, and settled once that is certain."""
        number, orders = event.payload["n"], self._orders
        more = {"token": delivery.fencing_token, "pid": os.getpid()}
        if delivery.key is not None:
            more["key"] = delivery.key
        self._journal.write("start", number, **more)
        if number == orders.suicide_on:
            os.kill(os.getpid(), signal.SIGKILL)
        if orders.work:
            await asyncio.sleep(orders.work)
        if orders.block:
            time.sleep(orders.block)  # noqa: ASYNC251 - a handler that holds its loop
        self._journal.write("effect", number, **more)
        self._journal.write("done", number, **more)
        try:
            if orders.transaction:
                async with delivery.transaction() as tx:
                    tx.put(f"{orders.group}/{number:06}", {"by": os.getpid()}, if_version=0)
            else:
                await delivery.ack()
        except LeaseLost:
            with self._refused.open("a") as file:
                file.write(f"{number}\n")
            raise
        self._journal.write("settled", number, **more)


async def main() -> None:
    """Consume until SIGTERM."""
    url, folder, orders = sys.argv[1], Path(sys.argv[2]), Orders(**json.loads(sys.argv[3]))
    worker = Worker(folder, orders)
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    async with connect(url, **orders.options) as bus:
        await bus.consume(
            orders.topic,
            worker.handle,
            group=orders.group,
            concurrency=orders.concurrency,
            lease=orders.lease,
            retry=RetryPolicy(
                max_attempts=50, max_deliveries=orders.max_deliveries, base=0.05, cap=0.5
            ),
        )
        (folder / f"ready-{os.getpid()}").touch()
        await end.wait()


if __name__ == "__main__":
    asyncio.run(main())
