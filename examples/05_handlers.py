"""Decorated handlers with typed payloads: what the annotation asks for is what arrives."""

import asyncio
from dataclasses import dataclass

from eventbus import Event, Registry, connect

handlers = Registry()  # or the decorator `eventbus.event_handler` and `bus.include(module)`


@dataclass
class Order:
    """The payload of the orders topics."""

    id: int
    total: float


@handlers.event_handler(pattern="orders:*")
async def watch(event: Event) -> None:
    """Without a group: a subscriber."""
    print("subscriber:", event.topic, event.payload)


@handlers.event_handler("orders:created", group="billing", concurrency=2)
async def bill(order: Order) -> None:
    """With a group: a consumer."""
    print(f"consumer: {order.total:.2f} to pay for order {order.id}")


@handlers.event_handler("orders:shipped", calls="payload")
def shipped(payload: dict[str, object]) -> None:
    """The calling convention is part of the registration."""
    print("shipped:", payload)


async def main() -> None:
    """Start the handlers and publish what fits and what does not."""
    async with connect("memory://") as bus:
        await bus.include(handlers)
        await bus.publish("orders:created", {"id": 7, "total": 12.5})
        await bus.publish("orders:shipped", {"id": 7})
        await bus.wait_idle()

        await bus.publish("orders:created", {"id": "seven"})
        await bus.wait_idle()
        for letter in await bus.dead_letters("billing").list():
            print("dead letter:", letter.error)


if __name__ == "__main__":
    asyncio.run(main())
