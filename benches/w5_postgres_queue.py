"""W5: a durable queue over PostgreSQL with fsync, beside a table by hand and the task queues."""

from __future__ import annotations

from collections.abc import Iterator

from benches.brokers import BrokerWorkload, Entry, Postgres, floods, latencies
from benches.measure import Result, Target

OURS = "eventbus queue"
MANY = "eventbus queue, publish_many"
HUNDRED_IN_HAND = "eventbus queue, 100 in hand"
ONE = "asyncpg-vt-1"
HUNDRED = "asyncpg-vt-100"
SLOW = "procrastinate"


def workloads() -> list[BrokerWorkload]:
    """Return one by one and in batches."""
    return [
        BrokerWorkload(
            "W5",
            "Postgres queue, published one by one",
            4_000,
            [Entry(OURS), Entry(ONE), Entry("pgqueuer", 3_000), Entry(SLOW, 1_500)],
            [Target(OURS, ONE, must=0.9, aim=1.2)],
        ),
        BrokerWorkload(
            "W5",
            "Postgres queue, in batches where the peer has them",
            40_000,
            [
                *(
                    Entry(MANY),
                    Entry(HUNDRED_IN_HAND),
                    Entry("eventbus queue, 50 at once"),
                    Entry(HUNDRED),
                ),
                *(Entry("pgqueuer, batches of 100", 10_000), Entry(SLOW, 1_500)),
            ],
            [
                # As many as the peer has in hand; the default is 16.
                Target(HUNDRED_IN_HAND, HUNDRED, must=0.9, aim=1.2),
                Target(MANY, "pgqueuer, batches of 100", must=3.5),
                Target(MANY, SLOW, must=80),
            ],
        ),
    ]


def results(rounds: int, scale: float) -> Iterator[Result]:
    """Run all of W5 on a private PostgreSQL."""
    server = Postgres()
    try:
        for load in workloads():
            yield from floods(load, server, rounds, scale)
        targets = [Target(OURS, None, must=1_000, aim=600, at_most=True)]
        peers = [OURS, ONE, HUNDRED, "pgqueuer"]
        yield from latencies("W5", peers, targets, server, rounds=rounds, scale=scale)
    finally:
        server.close()
