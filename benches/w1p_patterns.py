"""W1p: publishing beside 10,000 pattern subscriptions that do not match."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from benches.measure import Case, Stopwatch, Target, Workload, check
from benches.payload import PAYLOAD
from benches.w1_fanout import CREATED, counting
from eventbus import Event, connect

PATTERNS = 10_000

# What the patterns look like. Those with a leading star cannot be found by how a topic begins.
SHAPES = {
    "prefixes": lambda number: f"tenant-{number}:*",
    "prefixes, suffixes, infixes": lambda number: (
        f"tenant-{number}:*",
        f"*:user-{number}",
        f"*region-{number}*",
    )[number % 3],
}


def workloads() -> list[Workload]:
    """Return one topic again and again, and a fresh topic for each event."""
    return [among_patterns(fresh) for fresh in (False, True)]


def among_patterns(fresh: bool) -> Workload:
    """Return the workload with one topic, or a fresh one per event."""
    none = "eventbus, no patterns"
    cases = [Case(none, eventbus(None, fresh))]
    targets = []
    for name, shape in SHAPES.items():
        ours = f"eventbus, {PATTERNS:,} {name}"
        cases.append(Case(ours, eventbus(shape, fresh)))
        targets.append(Target(ours, none, must=2.0, aim=1.2, at_most=True))
    missing = ["dataknobs-common"]
    if find_spec("dataknobs_common"):
        missing = []
        shape = SHAPES["prefixes"]
        cases.append(Case("dataknobs, no patterns", dataknobs(None, fresh)))
        cases.append(Case(f"dataknobs, {PATTERNS:,} prefixes", dataknobs(shape, fresh), n=100))
    title = f"publish to {'always fresh topics' if fresh else 'one topic'}, 1 handler"
    # Subscribing to so many patterns takes longer than publishing: fewer turns.
    return Workload("W1p", title, 20_000, cases, targets, missing, slices=2)


def topics_of(n: int, fresh: bool) -> list[str]:
    """Return the topic of each publish."""
    return [f"orders:{number}" if fresh else "orders:created" for number in range(n)]


def eventbus(shape: Any, fresh: bool) -> Any:
    """Publish one event; the one subscription that matches checks the count."""

    async def run(n: int, watch: Stopwatch) -> None:
        calls, [handler] = counting(1)
        event = Event(CREATED, "orders:created", PAYLOAD)
        topics = topics_of(n, fresh)
        async with connect("memory://") as bus:
            for number in range(PATTERNS if shape else 0):
                await bus.subscribe("x", handler, shape(number))
            await bus.subscribe("orders:*", handler, "orders:*")
            publish = bus.publish
            with watch.running():
                for topic in topics:
                    await publish(topic, event)
        check("eventbus", calls(), n)

    return run


def dataknobs(shape: Any, fresh: bool) -> Any:
    """Do the same on the original in-memory bus."""
    from dataknobs_common import events

    async def run(n: int, watch: Stopwatch) -> None:
        calls, [handler] = counting(1)
        event = events.Event(events.EventType.CREATED, "orders:created", PAYLOAD)
        topics = topics_of(n, fresh)
        bus = events.InMemoryEventBus()
        await bus.connect()
        for number in range(PATTERNS if shape else 0):
            await bus.subscribe("x", handler, shape(number))
        await bus.subscribe("orders:*", handler, "orders:*")
        publish = bus.publish
        with watch.running():
            for topic in topics:
                await publish(topic, event)
        check("dataknobs", calls(), n)

    return run
