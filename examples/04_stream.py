"""Stream: iterate over events; a full buffer announces what was lost."""

import asyncio

from eventbus import Gap, connect


async def main() -> None:
    """Read a few events, then let a small buffer overflow."""
    async with connect("memory://") as bus:
        async with bus.stream(pattern="sensor:*") as events:
            for degrees in (20.5, 21.0):
                await bus.publish("sensor:kitchen", {"degrees": degrees})
            await bus.publish("sensor:off", None)
            async for event in events:
                if event.topic == "sensor:off":
                    break
                print(event.topic, event.payload["degrees"])

        def on_gap(gap: Gap) -> None:
            print(f"gap: {gap.count} events lost by {gap.cause}")

        async with bus.stream("tick", buffer=3, on_gap=on_gap) as events:
            for number in range(10):
                await bus.publish("tick", number)
            print("left:", [(await anext(events)).payload for _ in range(3)])


if __name__ == "__main__":
    asyncio.run(main())
