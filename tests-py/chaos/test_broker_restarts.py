"""T3, T4: a server that dies under load loses nothing it acknowledged, and everybody comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.support import seeded, sizes
from chaos.conftest import Connect
from chaos.load import Load, Markers, all_done, drained, group_of
from eventbus import Bus, ConnectError, Delivery, Event, EventBusError, OperationTimeout
from servers.brokers import Broker
from servers.checker import Journal, Seen, holes, judge

GROUP = "group"
TOPIC = "work"


async def in_thread(work: Any) -> Any:
    """Do something with the server without holding the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


@dataclass
class Crew:
    """A publisher, a consumer and a subscriber, each with a bus of its own."""

    publisher: Bus
    consumer: Bus
    subscriber: Bus
    load: Load
    journal: Journal
    news: Seen
    told: list[int]
    markers: Markers

    @classmethod
    async def made(cls, connected: Connect, folder: Path) -> Crew:
        """Start consuming and listening."""
        publisher, consumer, subscriber = [await connected(queue_size=200_000) for _ in range(3)]
        load = Load(publisher, TOPIC, folder)
        crew = cls(
            *(publisher, consumer, subscriber, load, Journal(folder, "consumer", sync=False)),
            *(Seen(), [], Markers(subscriber, "markers")),
        )
        await consumer.consume(TOPIC, crew.handle, group=GROUP, concurrency=8, lease=2.0)
        await subscriber.subscribe("news", crew.news.event, on_gap=crew.news.gap)
        await crew.markers.start()
        return crew

    async def handle(self, event: Event, delivery: Delivery) -> None:
        """Handle one event of the group."""
        number = event.payload["n"]
        self.journal.write("start", number)
        await asyncio.sleep(0.001)
        self.journal.write("done", number)
        await delivery.ack()
        self.journal.write("settled", number)

    async def broadcast(self) -> None:
        """Publish the news, one after the other; what failed is not told."""
        number = 0
        while not self.load._stopping:
            try:
                await self.publisher.publish("news", number)
                self.told.append(number)
            except EventBusError as error:
                assert error.is_retryable, error  # noqa: PT017
            number += 1
            await asyncio.sleep(0.002)


@sizes(1, 10, "times")
async def test_what_was_acknowledged_survives_the_death_of_the_server(
    times: int, broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    rng = seeded()
    crew = await Crew.made(connected, tmp_path)
    tasks = [asyncio.create_task(crew.load.run()), asyncio.create_task(crew.broadcast())]
    slowest = 0.0
    for end in [broker.crash, broker.stop] * times:
        await asyncio.sleep(rng.uniform(0.3, 1.0))
        await in_thread(end)
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        await in_thread(broker.start)
        slowest = max(slowest, await crew.markers.alive(crew.publisher))
    await asyncio.sleep(0.3)
    crew.load.stop()
    await asyncio.gather(*tasks)
    verdict = await all_done(tmp_path, 15)
    assert not verdict.lost, str(verdict)
    await drained(crew.publisher, GROUP, 15)
    verdict = judge(tmp_path)
    assert len(verdict.ok) > 50, str(verdict)
    assert not verdict.unexpected, str(verdict)
    figures = await group_of(crew.publisher, GROUP)
    assert figures["acked"] == figures["accepted"]
    assert figures["acked"] == len(verdict.done)
    await asyncio.sleep(0.2)
    found = holes(crew.told, crew.news.items)
    assert not found.silent, f"{found}\n{crew.news.gaps}"
    assert not found.repeated
    assert not found.backwards
    # Nobody had to do anything, and the waiting is bounded.
    assert slowest <= 5.0
    print(f"{verdict}; live again within {slowest:.1f} s; {len(found.missed)} missed")  # noqa: T201


@sizes(5, 50, "times")
async def test_a_subscription_comes_back_whenever_its_session_is_ended(
    times: int, broker: Broker, connected: Connect
) -> None:
    listener, publisher = await connected(), await connected()
    markers = Markers(listener, "markers")
    await markers.start()
    await markers.alive(publisher)
    for _ in range(times):
        assert broker.cut_listeners() >= 1
        await markers.alive(publisher)
    assert len(markers.gaps) >= times
    assert {gap.cause for gap in markers.gaps} == {"reconnect"}


@sizes(4, 20, "times")
async def test_every_session_ended_under_load_changes_no_figure(
    times: int, broker: Broker, connected: Connect, tmp_path: Path
) -> None:
    crew = await Crew.made(connected, tmp_path)
    loading = asyncio.create_task(crew.load.run())
    for _ in range(times):
        await asyncio.sleep(0.3)
        if broker.name == "redis":
            with broker.server.client() as client:  # type: ignore[attr-defined]
                client.client_kill_filter(_type="normal", skipme=True)
        broker.cut_listeners()
    crew.load.stop()
    await loading
    verdict = await all_done(tmp_path, 10)
    await drained(crew.publisher, GROUP, 10)
    verdict = judge(tmp_path)
    assert not verdict.lost, str(verdict)
    assert not verdict.failed, str(verdict)
    figures = await group_of(crew.publisher, GROUP)
    assert figures["accepted"] == figures["acked"] == len(verdict.done)


async def test_a_publish_during_an_outage_waits_and_then_says_that_it_can_be_tried_again(
    broker: Broker, connected: Connect
) -> None:
    bus = await connected(op_timeout=1.0)
    await bus.declare_group(GROUP, TOPIC)
    await bus.publish(TOPIC, 1)
    await in_thread(broker.crash)
    begin = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await bus.publish(TOPIC, 2)
    took = time.monotonic() - begin
    assert caught.value.is_retryable
    assert 0.5 < took < 2.5
    # A publish that waits when the server comes back is carried out.
    waiting = [asyncio.create_task(connected_publish(bus, number)) for number in range(3, 6)]
    await asyncio.sleep(0.2)
    await in_thread(broker.start)
    assert await asyncio.gather(*waiting) == [True, True, True]
    figures = await group_of(bus, GROUP)
    assert figures["accepted"] in (4, 5)


async def test_the_first_failures_of_an_outage_say_what_the_last_attempt_to_connect_answered(
    broker: Broker, connected: Connect
) -> None:
    bus = await connected(op_timeout=1.5)
    await bus.declare_group(GROUP, TOPIC)
    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.publish(TOPIC, 1),
        lambda: bus.publish(TOPIC, 2, key="k"),
        lambda: bus.publish_many([(TOPIC, 3)]),
        lambda: bus.read("record"),
        bus.inspect,
        lambda: bus.purge(GROUP),
    ]
    # Several at a time, so that some are on their way when the server dies.
    failing = [asyncio.create_task(first_failure(verb)) for verb in verbs * 4]
    await in_thread(broker.crash)
    errors = await asyncio.gather(*failing)
    for error in errors:
        assert isinstance(error, ConnectError), error
        assert "refused" in str(error).lower(), error
    if broker.name == "redis":
        # Postgres tells of a session that ended under a call as of one that could not be made.
        assert any(isinstance(error, OperationTimeout) for error in errors), errors


async def first_failure(verb: Callable[[], Awaitable[object]]) -> EventBusError:
    """Call until it fails; return the error."""
    while True:
        try:
            await verb()
        except EventBusError as error:
            return error


async def connected_publish(bus: Bus, number: int) -> bool:
    """Publish until it is accepted."""
    for _ in range(20):
        try:
            await bus.publish(TOPIC, number)
        except ConnectError:
            continue
        return True
    return False


async def test_a_bus_closes_in_time_though_its_server_is_gone(
    broker: Broker, connected: Connect
) -> None:
    bus = await connected(drain_timeout=2.0)
    release = asyncio.Event()

    async def handle(event: Event) -> None:
        await release.wait()

    await bus.consume(TOPIC, handle, group=GROUP)
    await bus.subscribe("news", print)
    await bus.publish(TOPIC, 1)
    await in_thread(broker.crash)
    release.set()
    begin = time.monotonic()
    await bus.close()
    assert time.monotonic() - begin < 8.0
    assert bus.state == "closed"


async def test_a_stopped_server_is_noticed_and_survived(broker: Broker, connected: Connect) -> None:
    publisher, listener = await connected(op_timeout=1.0), await connected(op_timeout=1.0)
    markers = Markers(listener, "markers")
    await markers.start()
    await markers.alive(publisher)
    broker.pause()
    with pytest.raises(ConnectError) as caught:
        await publisher.publish("markers", 0)
    assert caught.value.is_retryable
    await asyncio.sleep(1.5)
    broker.resume()
    await markers.alive(publisher)
    assert markers.gaps, "nobody told of what may be missing"


async def test_connecting_to_nothing_fails_in_time_and_names_the_server(
    broker: Broker, connected: Connect
) -> None:
    await in_thread(broker.stop)
    begin = time.monotonic()
    with pytest.raises(ConnectError, match=str(broker.port)) as caught:
        await connected(connect_timeout=1.0)
    assert time.monotonic() - begin < 3.0
    assert caught.value.is_retryable
