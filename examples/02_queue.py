"""Queue: each group handles every event once, retries what failed, keeps what cannot be handled."""

import asyncio

from eventbus import Delivery, Event, Reject, Retry, RetryPolicy, connect


async def bill(event: Event, delivery: Delivery) -> None:
    """Fail for order 2 at first, and for order 3 for good."""
    number = event.payload["id"]
    if number == 2 and delivery.attempt == 1:
        raise Retry(after=0.05, reason="the bank is busy")
    if number == 3:
        raise Reject("no address")
    print(f"order {number} billed, attempt {delivery.attempt}")


async def main() -> None:
    """Publish before anybody consumes, then consume, then look at what is left."""
    async with connect("memory://") as bus:
        # From here on the group keeps what is published, whether or not a consumer is there.
        await bus.declare_group("billing", "orders:created")
        await bus.publish_many([("orders:created", {"id": number}) for number in (1, 2, 3)])

        consumer = await bus.consume(
            "orders:created",
            bill,
            group="billing",
            concurrency=4,
            retry=RetryPolicy(max_attempts=3, base=0.1),
        )
        await asyncio.sleep(0.2)
        await consumer.stop()

        for letter in await bus.dead_letters("billing").list():
            assert letter.event is not None
            print(f"order {letter.event.payload['id']} is dead: {letter.reason}, {letter.error}")
        [group] = (await bus.inspect())["groups"]
        print(f"accepted {group['accepted']}, acked {group['acked']}, dead {group['dead']}")


if __name__ == "__main__":
    asyncio.run(main())
