"""W2: broadcast over Redis, acknowledged, beside redis-py by hand, faststream and dataknobs."""

from __future__ import annotations

from collections.abc import Iterator

from benches.brokers import BrokerWorkload, Entry, Redis, floods, latencies
from benches.measure import OURS, Result, Target

HAND = "redis-py"
GATHER = "redis-py, 50 at once"
PIPE = "redis-py, pipeline of 100"
OUR_GATHER = "eventbus, 50 at once"
MANY = "eventbus, publish_many"
NOWAIT = "eventbus, publish_nowait"


def workloads() -> list[BrokerWorkload]:
    """Return one by one, 50 at once, and pipelined to one and to four subscribers."""
    return [
        BrokerWorkload(
            "W2",
            "Redis broadcast, 1 subscriber, published one by one",
            20_000,
            [Entry(OURS), Entry(HAND), Entry("faststream"), Entry("dataknobs")],
            [Target(OURS, HAND, must=0.85, aim=1.2)],
        ),
        BrokerWorkload(
            "W2",
            "Redis broadcast, 1 subscriber, 50 publishes at once",
            60_000,
            [Entry(OUR_GATHER), Entry(GATHER, 30_000)],
            [Target(OUR_GATHER, GATHER, must=7, aim=10)],
        ),
        BrokerWorkload(
            "W2",
            "Redis broadcast, 1 subscriber, in batches",
            200_000,
            [Entry(MANY), Entry(NOWAIT), Entry(PIPE), Entry(HAND, 20_000)],
            [Target(MANY, PIPE, must=2.5, aim=4), Target(MANY, HAND, must=20)],
            processor_targets=[Target(MANY, None, must=0.3, aim=0.2, at_most=True)],
        ),
        BrokerWorkload(
            "W2",
            "Redis broadcast, 4 subscribers, in batches",
            100_000,
            [Entry(MANY), Entry(NOWAIT), Entry(PIPE)],
            [Target(MANY, PIPE, must=2, aim=3.5)],
            consumers=4,
        ),
    ]


def results(rounds: int, scale: float) -> Iterator[Result]:
    """Run all of W2 on a private Redis."""
    server = Redis()
    try:
        for load in workloads():
            yield from floods(load, server, rounds, scale)
        targets = [Target(OURS, HAND, must=1.0, aim=0.8, at_most=True)]
        peers = [OURS, HAND, "faststream", "dataknobs"]
        yield from latencies("W2", peers, targets, server, rounds=rounds, scale=scale)
    finally:
        server.close()
