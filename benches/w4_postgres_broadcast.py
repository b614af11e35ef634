"""W4: broadcast over PostgreSQL, beside NOTIFY by hand and dataknobs."""

from __future__ import annotations

from collections.abc import Iterator

from benches.brokers import BrokerWorkload, Entry, Postgres, floods, latencies
from benches.measure import OURS, Result, Target

HAND = "asyncpg"
BATCH = "asyncpg-batch"
ORIGINAL = "dataknobs on Postgres"
GATHER = "eventbus, 50 at once"
MANY = "eventbus, publish_many"


def workloads() -> list[BrokerWorkload]:
    """Return one by one, and what shares round trips."""
    return [
        BrokerWorkload(
            "W4",
            "Postgres broadcast, 1 subscriber, published one by one",
            10_000,
            [Entry(OURS), Entry(HAND), Entry(ORIGINAL)],
            [Target(OURS, HAND, must=0.9, aim=1.1)],
        ),
        BrokerWorkload(
            "W4",
            "Postgres broadcast, 1 subscriber, 50 at once or in batches",
            50_000,
            [Entry(GATHER), Entry(MANY), Entry(BATCH), Entry(ORIGINAL, 10_000)],
            [Target(GATHER, BATCH, must=0.9, aim=1.1), Target(GATHER, ORIGINAL, must=15)],
        ),
        BrokerWorkload(
            "W4",
            "Postgres broadcast, 4 subscribers, in batches",
            30_000,
            [Entry(GATHER), Entry(MANY), Entry(BATCH)],
            [],
            consumers=4,
        ),
    ]


def results(rounds: int, scale: float) -> Iterator[Result]:
    """Run all of W4 on a private PostgreSQL."""
    server = Postgres()
    try:
        for load in workloads():
            yield from floods(load, server, rounds, scale)
        peers = [OURS, HAND, ORIGINAL]
        yield from latencies("W4", peers, [], server, rounds=rounds, scale=scale)
    finally:
        server.close()
