"""Broadcast: whoever listens sees the event, before `publish` returns."""

import asyncio

from eventbus import Event, connect


async def main() -> None:
    """Publish to a topic and to a pattern."""
    async with connect("memory://") as bus:

        async def on_created(event: Event) -> None:
            print("created:", event.payload)

        def on_anything(event: Event) -> None:  # a plain function is fine
            print("orders:*:", event.topic)

        subscription = await bus.subscribe("orders:created", on_created)
        await bus.subscribe("orders:*", on_anything, pattern="orders:*")

        await bus.publish("orders:created", {"id": 7})  # both handlers have run when this returns
        await bus.publish("orders:shipped", {"id": 7})

        await subscription.cancel()
        await bus.publish("orders:created", {"id": 8})


if __name__ == "__main__":
    asyncio.run(main())
