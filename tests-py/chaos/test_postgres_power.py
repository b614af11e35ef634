"""T16: a PostgreSQL that lost its power at any moment under load has all that it acknowledged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bridge.support import seeded, sizes
from chaos.load import Load, drained, soon
from eventbus import Bus, Delivery, Event, connect
from servers.brokers import QUICK
from servers.checker import Journal, Verdict, judge
from servers.postgres import PostgresServer

TOPIC = "work"
WORKED = "worked"
"""A group whose events are handled while the power goes."""
KEPT = "kept"
"""A group that nobody consumes: everything accepted must be in it."""


async def handle_under_load(bus: Bus, journal: Journal) -> None:
    """Handle what comes and write down what is certainly settled."""

    async def handle(event: Event, delivery: Delivery) -> None:
        number = event.payload["n"]
        journal.write("done", number)
        await delivery.ack()
        journal.write("settled", number)

    await bus.consume(TOPIC, handle, group=WORKED, concurrency=8, lease=5.0)


async def check_image(image: PostgresServer, known: Verdict) -> None:
    """Start a server on the image and compare what is in it with what was told before."""
    again: dict[str, list[int]] = {WORKED: [], KEPT: []}
    with image:
        async with connect(image.url(), **QUICK) as bus:
            for group, seen in again.items():
                await bus.consume(
                    TOPIC,
                    lambda event, seen=seen: seen.append(event.payload["n"]),
                    group=group,
                    lease=5.0,
                )
            for group in again:
                figures = await drained(bus, group, 15 + len(known.ok) / 1_000)
                assert figures["acked"] == figures["accepted"], figures
                assert figures["dead"] == 0
            assert not set(known.ok) - set(again[KEPT]), "accepted, and not there any more"
            assert len(again[KEPT]) == len(set(again[KEPT])) == figures["accepted"]
            back = set(known.settled) & set(again[WORKED])
            assert not back, f"acknowledged, and there again: {sorted(back)[:10]}"
            # It works on.
            await bus.publish(TOPIC, {"n": -1})
            assert await soon(lambda: -1 in again[KEPT] and -1 in again[WORKED], 10)


@sizes(2, 20, "times")
async def test_a_crash_image_has_everything_that_was_acknowledged(
    times: int, tmp_path: Path
) -> None:
    rng = seeded()
    # The settings are those of a fresh installation: durability is no option that one must find.
    with PostgresServer() as server:
        async with connect(server.url(), **QUICK) as bus, connect(server.url(), **QUICK) as worker:
            await bus.declare_group(KEPT, TOPIC)
            journal = Journal(tmp_path, "consumer", sync=False)
            await handle_under_load(worker, journal)
            load = Load(bus, TOPIC, tmp_path)
            loading = asyncio.create_task(load.run(lanes=8))
            for _ in range(times):
                await asyncio.sleep(rng.uniform(0.2, 1.0))
                known = judge(tmp_path)
                image = await asyncio.get_running_loop().run_in_executor(None, server.crash_image)
                assert len(known.ok) > 20
                await check_image(image, known)
            load.stop()
            await loading
            # Standing still for a moment, as the server did, loses nothing either.
            await drained(bus, WORKED, 15 + len(judge(tmp_path).ok) / 500)
        verdict = judge(tmp_path)
        assert not verdict.lost, str(verdict)
        assert not verdict.failed, str(verdict)
