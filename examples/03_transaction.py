"""Transaction: acknowledge, publish and write records together, or nothing of it."""

import asyncio

from eventbus import VersionConflict, connect


async def main() -> None:
    """Move money between two records, once per event."""
    async with connect("memory://") as bus:
        async with bus.transaction() as tx:
            tx.put("account/ann", 100, if_version=0)  # 0: must not exist yet
            tx.put("account/bob", 0, if_version=0)

        async with (
            bus.stream("money:moved") as moved,
            bus.deliveries("money:move", group="teller") as deliveries,
        ):
            await bus.publish("money:move", {"amount": 30})
            delivery = await anext(deliveries)
            amount = delivery.event.payload["amount"]

            ann, bob = await bus.read("account/ann"), await bus.read("account/bob")
            assert ann is not None
            assert bob is not None
            async with delivery.transaction() as tx:  # commits at the end of the block
                tx.put("account/ann", ann.value - amount, if_version=ann.version)
                tx.put("account/bob", bob.value + amount, if_version=bob.version)
                tx.publish("money:moved", {"amount": amount})
            print("moved:", (await anext(moved)).payload)

        try:
            async with bus.transaction() as tx:
                tx.put("account/bob", 1_000_000)
                tx.put("account/ann", 0, if_version=ann.version)  # somebody else was faster
        except VersionConflict as conflict:
            print(f"refused: {conflict.key} is at version {conflict.actual}")
        for record in await bus.scan("account/"):
            print(record.key, record.value, f"version {record.version}")


if __name__ == "__main__":
    asyncio.run(main())
