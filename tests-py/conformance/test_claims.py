"""Claims and leases: redelivery after a silent end, fencing, renewal, crashes."""

from __future__ import annotations

import asyncio
import gc

import pytest

from conformance.conftest import MakeBus
from conformance.support import (
    AT_ONCE,
    QUIET,
    SHORT_LEASE,
    WITHIN,
    figures,
    figures_become,
    nothing_from,
    take,
    take_all,
)
from eventbus import Bus, Event, LeaseLost, RetryPolicy
from eventbus.testing import Recorder, eventually

OUTLIVED = {"lease": SHORT_LEASE, "max_lease": SHORT_LEASE}
"""A delivery that is not renewed: its holder looks dead after a moment."""


async def test_an_outlived_delivery_is_delivered_again_and_counts_a_crash(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    async with (
        bus.deliveries(topic, group=group, **OUTLIVED) as sleepy,
        other.deliveries(topic, group=group) as fresh,
    ):
        await bus.publish(topic, 1)
        # Whoever of the two claims first is the one that falls asleep.
        old = await take(sleepy)
        new = await take(fresh)
        assert new.message_id == old.message_id
        assert new.fencing_token > old.fencing_token
        assert (old.crashes, new.crashes, new.attempt) == (0, 1, 1)
        await new.ack()
    found = await figures(bus, group)
    assert (found["expired_leases"], found["acked"]) == (1, 1)


async def test_every_stale_settle_is_refused_and_changes_nothing(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    key = f"{topic}:record"
    async with (
        bus.deliveries(topic, group=group, **OUTLIVED) as sleepy,
        other.deliveries(topic, group=group) as fresh,
        bus.stream(topic + ":out") as out,
    ):
        await bus.publish_many([(topic, number) for number in range(5)])
        old = await take_all(sleepy, 5)
        new = await take_all(fresh, 5)
        settles = [old[0].ack, old[1].retry, old[2].reject, old[3].release]
        for settle in settles:
            with pytest.raises(LeaseLost, match="lease lost"):
                await settle()
        tx = old[4].transaction()
        tx.publish(topic + ":out", 1)
        tx.put(key, 1)
        with pytest.raises(LeaseLost):
            await tx.commit()
        assert await bus.read(key) is None
        await nothing_from(out)
        found = await figures(bus, group)
        assert (found["in_flight"], found["acked"], found["dead"]) == (5, 0, 0)
        for delivery in new:
            await delivery.ack()


async def test_a_delivery_settles_once(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, 1)
        delivery = await take(deliveries)
        await delivery.ack()
        for settle in (delivery.ack, delivery.retry, delivery.reject, delivery.release):
            with pytest.raises(LeaseLost):
                await settle()
    assert (await figures(bus, group))["acked"] == 1


async def test_a_running_handler_keeps_its_lease(make_bus: MakeBus, topic: str, group: str) -> None:
    bus, other = await make_bus(), await make_bus()
    go = asyncio.Event()
    seen = Recorder(lambda _event: go.wait())
    await bus.consume(topic, seen, group=group, lease=SHORT_LEASE)
    async with other.deliveries(topic, group=group) as neighbour:
        await bus.publish(topic, 1)
        taken = asyncio.ensure_future(anext(neighbour))
        done, _ = await asyncio.wait([taken], timeout=QUIET)
        if done:  # The neighbour was first: give it back to the handler and leave it alone.
            await taken.result().release()
        else:
            taken.cancel()
    await seen.wait_for(1, WITHIN)
    await asyncio.sleep(SHORT_LEASE * 4)
    found = await figures(bus, group)
    assert (found["in_flight"], found["expired_leases"]) == (1, 0)
    go.set()
    await figures_become(bus, group, acked=1, in_flight=0)
    assert len(seen) == 1


async def test_a_held_delivery_keeps_its_lease(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, lease=SHORT_LEASE) as deliveries:
        await bus.publish(topic, 1)
        delivery = await take(deliveries)
        await asyncio.sleep(SHORT_LEASE * 4)
        await nothing_from(deliveries)
        await delivery.ack()
    assert (await figures(bus, group))["expired_leases"] == 0


async def test_a_handler_whose_lease_is_lost_is_cancelled_and_its_worker_goes_on(
    bus: Bus, topic: str, group: str
) -> None:
    ends: list[str] = []

    async def handle(event: Event) -> None:
        if event.payload == "good":
            ends.append("good")
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    await bus.consume(
        topic, handle, group=group, concurrency=1, retry=RetryPolicy(max_deliveries=1), **OUTLIVED
    )
    await bus.publish(topic, "hangs")
    await bus.publish(topic, "good")
    await eventually(lambda: "good" in ends, timeout=WITHIN)
    assert ends == ["cancelled", "good"]
    await figures_become(bus, group, acked=1, dead=1, in_flight=0)
    assert bus.counters["leases_lost"] == 1


async def test_a_message_that_is_never_answered_becomes_a_dead_letter(
    bus: Bus, topic: str, group: str
) -> None:
    tokens: list[int] = []
    async with bus.deliveries(topic, group=group, retry=AT_ONCE, **OUTLIVED) as deliveries:
        await bus.publish(topic, 1)
        held = []
        for _ in range(AT_ONCE.max_deliveries):
            held.append(await take(deliveries))
            tokens.append(held[-1].fencing_token)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT_LEASE * 3):
                await anext(deliveries)
        await figures_become(bus, group, dead=1, in_flight=0, ready=0)
        (letter,) = await bus.dead_letters(group).list()
        assert (letter.reason, letter.crashes, letter.attempts) == ("crashed", 3, 0)
        assert tokens == sorted(set(tokens))


async def test_a_release_keeps_the_place_and_counts_nothing(
    bus: Bus, topic: str, group: str
) -> None:
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        await bus.publish_many([(topic, 1), (topic, 2)])
        for _ in range(10):
            delivery = await take(deliveries)
            assert (delivery.event.payload, delivery.attempt, delivery.crashes) == (1, 1, 0)
            await delivery.release()
        await (await take(deliveries)).ack()


async def test_a_forgotten_delivery_is_released(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        await bus.publish(topic, 1)
        delivery = await take(deliveries)
        token = delivery.fencing_token
        del delivery
        gc.collect()
        again = await take(deliveries)
        assert again.fencing_token > token
        assert (again.attempt, again.crashes) == (1, 0)
        await again.ack()


async def test_no_two_hold_the_same_message(make_bus: MakeBus, topic: str, group: str) -> None:
    buses = [await make_bus() for _ in range(3)]
    ids: list[str] = []

    async def work(bus: Bus) -> None:
        async with bus.deliveries(topic, group=group, prefetch=3) as deliveries:
            ready.release()
            async for delivery in deliveries:
                ids.append(delivery.message_id)
                await asyncio.sleep(0)
                await delivery.ack()

    ready = asyncio.Semaphore(0)
    workers = [asyncio.create_task(work(bus)) for bus in buses]
    for _ in workers:
        await ready.acquire()
    await buses[0].publish_many([(topic, number) for number in range(200)])
    await figures_become(buses[0], group, acked=200, ready=0, in_flight=0)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert len(ids) == len(set(ids)) == 200
