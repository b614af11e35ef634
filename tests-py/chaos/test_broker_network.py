"""T5, T6: networks that hold, cut or swallow answers: noticed, announced, nothing done twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from bridge.support import sizes
from chaos.conftest import Connect
from chaos.load import Load, Markers, all_done, drained, group_of, soon
from eventbus import BusClosedError, Delivery, Event, EventBusError, LeaseLost
from servers.brokers import QUICK, Broker
from servers.checker import Journal, Seen, holes, judge
from servers.proxy import FaultProxy

GROUP = "group"
TOPIC = "work"


async def test_a_half_open_connection_is_given_up_after_two_heartbeats(
    connected: Connect, proxy: FaultProxy
) -> None:
    listener, publisher = await connected(proxy.port), await connected()
    seen = Seen()
    await listener.subscribe("news", seen.event, on_gap=seen.gap)
    markers = Markers(listener, "markers")
    await markers.start()
    await markers.alive(publisher)
    opened, held = proxy.count("open"), time.monotonic()
    proxy.hold()
    told = []
    while proxy.count("open") == opened:
        await publisher.publish("news", len(told))
        told.append(len(told))
        await asyncio.sleep(0.02)
        assert time.monotonic() - held < 5.0, "nobody noticed"
    # Two heartbeats of silence, and the time to notice it.
    assert time.monotonic() - held < 2 * QUICK["heartbeat"] + 1.0
    proxy.release()
    await markers.alive(publisher)
    found = holes(told, [*seen.items])
    assert not found.silent or seen.gaps, found
    await asyncio.sleep(0.2)
    assert not holes(told, seen.items).silent


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_network_that_is_dead_in_one_direction_is_noticed(
    way: str, connected: Connect, proxy: FaultProxy
) -> None:
    listener, publisher = await connected(proxy.port), await connected()
    markers = Markers(listener, "markers")
    await markers.start()
    await markers.alive(publisher)
    opened, held = proxy.count("open"), time.monotonic()
    proxy.hold(way)  # type: ignore[arg-type]
    while proxy.count("open") == opened:
        await asyncio.sleep(0.02)
        assert time.monotonic() - held < 2 * QUICK["heartbeat"] + 1.5, "nobody noticed"
    proxy.heal()
    await markers.alive(publisher)


async def test_publishes_under_way_survive_a_half_open_connection(
    connected: Connect, proxy: FaultProxy, tmp_path: Path
) -> None:
    publisher, consumer = await connected(proxy.port, op_timeout=10.0), await connected()
    await consumer.declare_group(GROUP, TOPIC)
    load = Load(publisher, TOPIC, tmp_path)
    loading = asyncio.create_task(load.run())
    await asyncio.sleep(0.3)
    opened, held = proxy.count("open"), time.monotonic()
    proxy.hold()
    assert await soon(lambda: proxy.count("open") > opened, 10)
    # Waiting for answers is silence too.
    assert time.monotonic() - held < 2 * QUICK["heartbeat"] + 1.0
    proxy.heal()
    accepted = load.published
    assert await soon(lambda: load.published > accepted + 20, 2 * QUICK["heartbeat"] + 2.0)
    load.stop()
    await loading
    verdict = judge(tmp_path)
    assert not verdict.failed, str(verdict)
    assert not verdict.unknown, str(verdict)
    assert (await group_of(consumer, GROUP))["accepted"] == len(verdict.ok)


@sizes(300, 10_000)
async def test_lost_answers_to_publishes_double_nothing(
    count: int, connected: Connect, proxy: FaultProxy, tmp_path: Path
) -> None:
    publisher, consumer = await connected(proxy.port), await connected()
    await consumer.declare_group(GROUP, TOPIC)
    proxy.drop_replies(0.1, is_work)
    load = Load(publisher, TOPIC, tmp_path)
    await load.many(count, lanes=4)
    proxy.heal()
    assert proxy.count("drop_reply") >= count // 100

    journal = Journal(tmp_path, "consumer", sync=False)
    await consumer.consume(TOPIC, journal.handle, group=GROUP)
    await drained(consumer, GROUP, 30)
    verdict = judge(tmp_path)
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected, str(verdict)
    assert not verdict.duplicates, str(verdict)
    # The bus tries again by itself: hardly any caller has to know of it.
    assert len(verdict.ok) >= count * 0.98, str(verdict)


@sizes(300, 10_000)
async def test_a_publish_with_an_unknown_outcome_can_be_repeated_by_its_id(
    count: int, connected: Connect, proxy: FaultProxy, tmp_path: Path
) -> None:
    publisher = await connected(proxy.port, op_timeout=0.5)
    consumer = await connected()
    await consumer.declare_group(GROUP, TOPIC)
    proxy.drop_replies(0.1, is_work)

    async def until_accepted(number: int) -> None:
        for _ in range(50):
            try:
                await publisher.publish(TOPIC, {"n": number}, dedup_id=f"id-{number}")
            except EventBusError as error:
                assert error.is_retryable, error  # noqa: PT017
            else:
                return
        raise AssertionError(f"{number} was never accepted")

    left = iter(range(count))

    async def lane() -> None:
        for number in left:
            await until_accepted(number)

    await asyncio.gather(*(lane() for _ in range(4)))
    assert (await group_of(consumer, GROUP))["accepted"] == count
    assert proxy.count("drop_reply") >= count // 100


@sizes(200, 5_000)
async def test_lost_answers_to_settles_and_transactions_double_nothing(
    count: int, connected: Connect, proxy: FaultProxy, tmp_path: Path
) -> None:
    publisher, consumer = await connected(), await connected(proxy.port)
    journal = Journal(tmp_path, "consumer", sync=False)
    load = Load(publisher, TOPIC, tmp_path)
    await publisher.declare_group(GROUP, TOPIC)
    await publisher.declare_group("next", "next")
    await load.many(count)
    proxy.drop_replies(0.1, is_work)

    async def handle(event: Event, delivery: Delivery) -> None:
        number = event.payload["n"]
        journal.write("start", number)
        journal.write("done", number)
        try:
            async with delivery.transaction() as tx:
                tx.put(f"record/{number}", number)
                tx.publish("next", number)
        except LeaseLost:
            return
        journal.write("settled", number)

    await consumer.consume(TOPIC, handle, group=GROUP, concurrency=4, lease=2.0)
    verdict = await all_done(tmp_path, 60)
    assert not verdict.lost, str(verdict)
    await drained(publisher, GROUP, 30)
    proxy.heal()
    assert proxy.count("drop_reply") >= count // 100
    # Acknowledgement, record and publication happened together, once each.
    records = await publisher.scan("record/", limit=count + 1)
    assert len(records) == count
    assert {record.version for record in records} == {1}
    assert (await group_of(publisher, "next"))["accepted"] == count
    figures = await group_of(publisher, GROUP)
    assert (figures["acked"], figures["dead"]) == (count, 0)


@sizes(20, 1_000, "cuts")
async def test_a_cut_inside_an_answer_to_a_claim_strands_nothing(
    cuts: int, connected: Connect, proxy: FaultProxy, tmp_path: Path
) -> None:
    publisher, consumer = await connected(), await connected(proxy.port)
    journal = Journal(tmp_path, "consumer", sync=False)
    load = Load(publisher, TOPIC, tmp_path)
    await consumer.consume(TOPIC, journal.handle, group=GROUP, concurrency=8, lease=1.0)
    for number in range(cuts):
        proxy.cut_after(1 + (number * 37) % 700)
        await load.many(5)
        await asyncio.sleep(0.02)
    proxy.heal()
    verdict = await all_done(tmp_path, 15)
    assert not verdict.lost, str(verdict)
    figures = await drained(publisher, GROUP, 10)
    assert figures["acked"] == figures["accepted"]


async def test_a_bus_closes_without_its_server(connected: Connect, proxy: FaultProxy) -> None:
    publisher, bus = await connected(), await connected(proxy.port, op_timeout=1.0)
    began = asyncio.Event()

    async def handle(event: Event) -> None:
        began.set()
        await asyncio.sleep(60)

    await bus.consume(TOPIC, handle, group=GROUP, lease=2.0)
    await publisher.publish(TOPIC, {"n": 0})
    await asyncio.wait_for(began.wait(), 10)
    proxy.refuse()
    proxy.cut(rst=True)
    await asyncio.wait_for(bus.drain(0.1), 20)
    assert bus.state == "closed"
    # What it held comes back by itself.
    again = asyncio.Event()
    await publisher.consume(TOPIC, lambda event: again.set(), group=GROUP, lease=2.0)
    await asyncio.wait_for(again.wait(), 10)


async def test_a_call_under_way_says_that_the_bus_was_closed(
    connected: Connect, proxy: FaultProxy
) -> None:
    bus = await connected(proxy.port, op_timeout=20.0)
    await bus.declare_group(GROUP, TOPIC)
    proxy.hold("down")
    loop = asyncio.get_running_loop()
    began = loop.time()
    calls = [
        asyncio.ensure_future(call)
        for call in (bus.declare_group("other", TOPIC), bus.read("key"), bus.inspect())
    ]
    waiting = asyncio.ensure_future(anext(bus.deliveries(TOPIC, group=GROUP), None))
    await asyncio.sleep(0.1)
    await bus.close()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in ended] == [BusClosedError] * len(calls), ended
    assert await waiting is None
    assert loop.time() - began < 10


async def test_a_reset_of_every_connection_is_survived(
    broker: Broker, connected: Connect, proxy: FaultProxy, tmp_path: Path
) -> None:
    bus = await connected(proxy.port)
    journal = Journal(tmp_path, "consumer", sync=False)
    load = Load(bus, TOPIC, tmp_path)
    await bus.consume(TOPIC, journal.handle, group=GROUP, lease=1.0)
    for _ in range(5):
        loading = asyncio.create_task(load.many(50))
        await asyncio.sleep(0.02)
        # Between two of its connections a bus has none.
        assert await soon(lambda: proxy.cut(rst=True), 5)
        await loading
    verdict = await all_done(tmp_path, 15)
    assert not verdict.lost, str(verdict)
    assert not verdict.unexpected, str(verdict)
    assert not verdict.failed, str(verdict)


async def test_a_slow_network_only_makes_it_slow(connected: Connect, proxy: FaultProxy) -> None:
    bus = await connected(proxy.port)
    proxy.slow(delay=0.05, jitter=0.04)
    seen = Seen()
    await bus.subscribe("news", seen.event, on_gap=seen.gap)
    await asyncio.gather(*(bus.publish("news", number) for number in range(100)))
    await soon(lambda: len(seen.numbers) >= 100, 10)
    assert sorted(seen.numbers) == list(range(100))
    assert not seen.gaps


def is_work(chunk: bytes) -> bool:
    """Tell whether a chunk carries a command that changes something, not a heartbeat."""
    heartbeat = b"PING" in chunk[:64] or len(chunk) < 40
    setup = any(word in chunk for word in (b"HELLO", b"CLIENT", b"SUBSCRIBE", b"SCRIPT"))
    return not heartbeat and not setup
