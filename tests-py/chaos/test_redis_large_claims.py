"""Claims whose answers a server does not send: nothing is lost, nothing counts as a crash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chaos.load import drained, group_of, soon
from eventbus import Bus, Delivery, Event, RetryPolicy, connect
from servers.brokers import QUICK
from servers.proxy import FaultProxy
from servers.redis_server import RedisServer

OPTIONS = {**QUICK, "drain_timeout": 2.0}
# The first crash that is counted makes a dead letter.
ONCE = RetryPolicy(max_attempts=1, max_deliveries=1)
Connect = Callable[..., Awaitable[Bus]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as one:
        yield one


@pytest.fixture
async def connected(server: RedisServer) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def make(url: str | None = None, **options: Any) -> Bus:
            bus = connect(url or server.url(), **{**OPTIONS, **options})
            return await stack.enter_async_context(bus)

        yield make


def is_claim(chunk: bytes) -> bool:
    """Whether a chunk to the server has a claim, be it sent for the first time or again."""
    return any(b"$5\r\n" + kind in chunk for kind in (b"first", b"again", b"defer"))


class Handled:
    """Notes what was handled, and what was counted against it."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.counted: list[tuple[int, int]] = []

    async def __call__(self, event: Event, delivery: Delivery) -> None:
        self.numbers.append(event.payload["n"])
        self.counted.append((delivery.attempt, delivery.crashes))


@pytest.mark.parametrize("key", [None, "key"], ids=["plain", "keyed"])
@pytest.mark.parametrize(
    "limits",
    [
        {"client-output-buffer-limit": "normal 262144 0 0"},
        {"maxmemory-clients": "1mb"},
    ],
    ids=lambda limits: next(iter(limits)),
)
async def test_a_queue_larger_than_the_output_limit_is_handled_whole(
    limits: dict[str, str], key: str | None, server: RedisServer, connected: Connect
) -> None:
    publisher = await connected()
    await publisher.declare_group("group", "work")
    for number in range(100):
        own = None if key is None else f"{key} {number}"
        await publisher.publish("work", {"n": number, "text": "x" * 100_000}, key=own)
    with server.client() as client:
        for name, value in limits.items():
            client.config_set(name, value)
    handled, consumer = Handled(), await connected()
    await consumer.consume("work", handled, group="group", concurrency=64, retry=ONCE)
    figures = await drained(consumer, "group", 30)
    assert (figures["dead"], figures["expired_leases"]) == (0, 0)
    assert sorted(handled.numbers) == list(range(100))
    assert {crashes for _, crashes in handled.counted} == {0}


async def test_one_answer_has_at_most_a_mebibyte_of_messages_but_one_at_least(
    server: RedisServer, connected: Connect
) -> None:
    bus = await connected(max_message_bytes=8 << 20)
    await bus.declare_group("group", "work")
    sizes = [300_000] * 10 + [3_000_000] * 2 + [10] * 50
    for number, size in enumerate(sizes):
        await bus.publish("work", {"n": number, "text": "x" * size})
    taken: list[int] = []
    async with bus.deliveries("work", group="group", prefetch=100) as deliveries:
        first = await anext(deliveries)
        in_flight = (await group_of(bus, "group"))["in_flight"]
        assert in_flight == 3, "three of 300,000 bytes"
        taken.append(first.event.payload["n"])
        await first.ack()
        async for delivery in deliveries:
            taken.append(delivery.event.payload["n"])
            await delivery.ack()
            if len(taken) == len(sizes):
                break
    assert taken == list(range(len(sizes))), "the order is kept"


async def test_a_message_that_no_answer_can_bring_waits_and_does_not_hold_up_the_rest(
    server: RedisServer, connected: Connect
) -> None:
    bus = await connected()
    await bus.declare_group("group", "work")
    await bus.publish("work", {"n": -1, "text": "x" * 700_000}, priority=5)
    async with bus.deliveries("work", group="group", prefetch=1) as deliveries:
        head = await anext(deliveries)
        large = head.event.event_id
        await head.release()
    for number in range(20):
        await bus.publish("work", {"n": number})
    with server.client() as client:
        client.config_set("client-output-buffer-limit", "normal 262144 0 0")
    handled = Handled()
    await bus.consume("work", handled, group="group", retry=ONCE)
    assert await soon(lambda: sorted(handled.numbers) == list(range(20)), 20)
    figures = await group_of(bus, "group")
    assert (figures["delayed"], figures["dead"], figures["expired_leases"]) == (1, 0, 0)
    warnings = (await bus.health())["warnings"]
    assert any("client-output-buffer-limit" in one for one in warnings), warnings
    # Once the operator has raised the limit, it is handled as if nothing had been.
    with server.client() as client:
        client.config_set("client-output-buffer-limit", "normal 0 0 0")
    assert await bus.promote_message(large, group="group") == 1
    assert await soon(lambda: -1 in handled.numbers, 10)
    assert set(handled.counted) == {(1, 0)}
    await drained(bus, "group", 10)


async def test_a_claim_that_nobody_saw_is_given_back_without_a_crash(
    server: RedisServer, connected: Connect
) -> None:
    publisher = await connected()
    await publisher.declare_group("group", "work")
    handled = Handled()
    with FaultProxy(server.port) as proxy:
        consumer = await connected(f"redis://127.0.0.1:{proxy.port}/0", op_timeout=1.0)
        await consumer.consume("work", handled, group="group", lease=20.0, retry=ONCE)
        await publisher.publish("work", {"n": 0})
        assert await soon(lambda: handled.numbers == [0], 5)
        # Claims arrive, their answers do not; longer than an operation waits for one.
        sent: list[bytes] = []

        def answered_by_nobody(chunk: bytes) -> bool:
            sent.append(chunk)
            return is_claim(chunk)

        proxy.drop_replies(1.0, answered_by_nobody)
        await publisher.publish("work", {"n": 1})

        # It is asked for until the operation's time is over, and then given back.
        assert await soon(lambda: any(b"$4\r\nvoid" in one for one in sent), 15)
        proxy.heal()
        assert await soon(lambda: handled.numbers == [0, 1], 10), handled.numbers
    assert handled.counted == [(1, 0), (1, 0)]
    figures = await drained(publisher, "group", 10)
    assert (figures["dead"], figures["expired_leases"]) == (0, 0)
