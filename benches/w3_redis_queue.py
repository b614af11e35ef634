"""W3: a queue over Redis, at least once, beside streams by hand and the task queues."""

from __future__ import annotations

from collections.abc import Iterator

from benches.brokers import BrokerWorkload, Entry, Redis, floods, latencies
from benches.measure import Result, Target

OURS = "eventbus queue"
GATHER = "eventbus queue, 50 at once"
MANY = "eventbus queue, publish_many"
HUNDRED_IN_HAND = "eventbus queue, 100 in hand"
STREAM = "stream-100"
PIPE = "stream-100-pipe"
SLOW = ("celery", "dramatiq", "arq", "streaq")
TASKIQ = "taskiq stream"


def workloads() -> list[BrokerWorkload]:
    """Return one by one and in batches; the task queues have no batches."""
    return [
        BrokerWorkload(
            "W3",
            "Redis queue, published one by one",
            15_000,
            [Entry(OURS), Entry(STREAM), Entry("faststream stream", 6_000)],
            [
                Target(OURS, STREAM, must=0.9, aim=1.5),
                Target(OURS, "faststream stream", must=1.5),
            ],
        ),
        BrokerWorkload(
            "W3",
            "Redis queue, in batches where the peer has them",
            100_000,
            [
                Entry(MANY),
                Entry(HUNDRED_IN_HAND),
                Entry(GATHER),
                Entry(PIPE),
                Entry("celery", 2_000),
                Entry(TASKIQ, 4_000),
                Entry("dramatiq", 3_000),
                Entry("arq", 1_000),
                Entry("streaq", 3_000),
            ],
            [
                # As many as the peer has in hand (taskiq reads 100 at once); the default is 16.
                Target(HUNDRED_IN_HAND, PIPE, must=1, aim=2),
                Target(HUNDRED_IN_HAND, TASKIQ, must=30),
                *(Target(MANY, peer, must=30) for peer in SLOW),
            ],
        ),
    ]


def results(rounds: int, scale: float) -> Iterator[Result]:
    """Run all of W3 on a private Redis."""
    server = Redis()
    try:
        for load in workloads():
            yield from floods(load, server, rounds, scale)
        peers = [OURS, STREAM, "faststream stream", TASKIQ, "celery", "streaq"]
        yield from latencies("W3", peers, [], server, rounds=rounds, scale=scale)
    finally:
        server.close()
