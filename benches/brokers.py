"""Turns of the broker workloads: producer, consumers and server are processes, counts are checked.

Every turn has new processes on an emptied server. The clock runs from the first publish to the
moment when the last consumer has seen the last event.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from benches.measure import Case, Result, Stopwatch, Target, Workload, check
from benches.peers import APART, PEERS, missing

ROOT = Path(__file__).parents[1]
# The servers are those of the tests.
sys.path.insert(0, str(ROOT / "tests-py"))

from servers.postgres import PostgresServer  # noqa: E402
from servers.redis_server import RedisServer  # noqa: E402

PATIENCE = 120.0
"""Seconds until a turn that does not come to its end has failed."""

RATE = 500
"""Events a second where latencies are measured."""


class Server(Protocol):
    """A private server that is emptied before each turn."""

    def fresh(self) -> str:
        """Empty it and return its address."""
        ...

    def processor_seconds(self) -> float:
        """Return the processor time that it used."""
        ...

    def close(self) -> None:
        """End it."""


class Redis:
    """A Redis without persistence: what is compared is the clients' work and the server's."""

    def __init__(self) -> None:
        """Start it."""
        self._server = RedisServer().start()

    def fresh(self) -> str:
        """Empty it and return its address."""
        with self._server.client() as client:
            client.flushall()
            client.config_resetstat()
        return self._server.url()

    def processor_seconds(self) -> float:
        """Return the processor time that it used."""
        return self._server.processor_seconds()

    def close(self) -> None:
        """End it."""
        self._server.close()


class Postgres:
    """A PostgreSQL with its default settings, fsync included."""

    def __init__(self) -> None:
        """Start it."""
        self._server = PostgresServer(config={"max_connections": 200}).start()
        self._databases = 0

    def fresh(self) -> str:
        """Make a database and return its address."""
        with suppress(Exception):
            self._server.execute(f"drop database bench{self._databases} with (force)")
        self._databases += 1
        return self._server.create_database(f"bench{self._databases}")

    def processor_seconds(self) -> float:
        """Return the processor time that it used."""
        return self._server.processor_seconds()

    def close(self) -> None:
        """End it."""
        self._server.close()


class Side:
    """A process that sends or receives for a peer."""

    def __init__(self, role: str, peer: str, url: str, name: str = "-") -> None:
        """Start it."""
        self._peer = peer
        self._process = subprocess.Popen(
            [interpreter(peer), "-m", "benches.peers", role, peer, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("EVENTBUS_BENCH_DEBUG") else subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )

    def tell(self, **what: Any) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises:
            AssertionError: The process ended.
        """
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            # Some libraries print to standard output.
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    return found
        raise AssertionError(f"{self._peer}: ended with {self._process.wait()}")

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(**what)
        return self.answer()

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self.end()


def interpreter(peer: str) -> str:
    """Return the interpreter that has a peer."""
    if peer in APART:
        default = str(Path(sys.prefix) / "arq" / "bin" / "python")
        return os.environ.get("EVENTBUS_BENCH_ARQ", default)
    return sys.executable


@dataclass
class Turn:
    """What one turn measured.

    Attributes:
        seconds: From the first publish to the last event seen by the last consumer.
        consumers: Their processor seconds, added up.
        producer: Its processor seconds.
        server: Its processor seconds.
        latencies: Nanoseconds from publish to handler, when events were sent at a rate.
    """

    seconds: float
    consumers: float
    producer: float
    server: float
    latencies: list[int] = field(default_factory=list)


def turn(server: Server, peer: str, count: int, consumers: int = 1, rate: int = 0) -> Turn:
    """Do one turn.

    Raises:
        AssertionError: A consumer saw fewer or more events than were sent.
    """
    url = server.fresh()
    prepared = [interpreter(peer), "-m", "benches.peers", "prepare", peer, url, "-"]
    if PEERS[peer][0] in ("pgqueuers", "procrastinates"):
        subprocess.run(prepared, check=True, cwd=ROOT, capture_output=True)
    receiving = [Side("consumer", peer, url, f"consumer-{number}") for number in range(consumers)]
    sending = Side("producer", peer, url)
    try:
        for side in (*receiving, sending):
            side.answer()
        warm_up(sending, receiving)
        for side in receiving:
            side.ask(expect=count)
        before = server.processor_seconds()
        sent = sending.ask(count=count, **({"rate": rate} if rate else {}))
        found = [side.ask(wait=PATIENCE) for side in receiving]
        used = server.processor_seconds() - before
        for one in found:
            check(peer, one["count"], count)
        for side in receiving:
            # More than was sent would be a fault, too.
            check(peer, side.ask(count=True)["count"], count)
    finally:
        for side in (*receiving, sending):
            side.end()
    return Turn(
        seconds=(max(one["end"] for one in found) - sent["begin"]) / 1e9,
        consumers=sum(one["processor"] for one in found),
        producer=sent["processor"],
        server=used,
        latencies=[took for one in found for took in one["latencies"]],
    )


def warm_up(sending: Side, receiving: list[Side], count: int = 200) -> None:
    """Send until every consumer has received: connections, caches and scripts are there then."""
    for _ in range(100):
        for side in receiving:
            side.ask(expect=count)
        sending.ask(count=count)
        if all(side.ask(wait=2.0)["reached"] for side in receiving):
            return
    raise AssertionError("the consumers never received")


@dataclass
class Entry:
    """One peer in a broker workload.

    Attributes:
        peer: Its name in ``benches.peers``.
        n: Events per turn, when it is too slow for as many as the others.
    """

    peer: str
    n: int | None = None


@dataclass
class BrokerWorkload:
    """Peers that do the same over a server.

    Attributes:
        name: As in PERFORMANCE.
        title: What is done.
        n: Events per turn.
        entries: The peers.
        targets: For the speed.
        consumers: Consumer processes.
        processor_targets: For the processor seconds of the consumers per 100,000 events.
    """

    name: str
    title: str
    n: int
    entries: list[Entry]
    targets: list[Target]
    consumers: int = 1
    processor_targets: list[Target] = field(default_factory=list)


def floods(load: BrokerWorkload, server: Server, rounds: int, scale: float) -> list[Result]:
    """Run a workload in interleaved rounds; returns speed, and processor time of each side."""
    there = [entry for entry in load.entries if missing(entry.peer) is None]
    absent = [f"{missing(one.peer)}" for one in load.entries if missing(one.peer) is not None]
    turns: dict[str, list[Turn]] = {entry.peer: [] for entry in there}
    counts = {entry.peer: max(100, int((entry.n or load.n) * scale)) for entry in there}
    for number in range(rounds):
        # Every other round goes backwards, so that nobody always follows the same neighbour.
        for entry in there if number % 2 else reversed(there):
            count = counts[entry.peer]
            turns[entry.peer].append(turn(server, entry.peer, count, load.consumers))
    cases = [Case(one.peer, _never, None if one.n is None else one.n) for one in there]

    def result(
        title: str, unit: str, targets: list[Target], of: Callable[[str, Turn], float]
    ) -> Any:
        figures = {peer: [of(peer, one) for one in found] for peer, found in turns.items()}
        wanted = [t for t in targets if t.of in figures and (t.peer is None or t.peer in figures)]
        work = Workload(load.name, title, load.n, cases, wanted, absent, unit, slices=1)
        return Result(work, figures)

    def per_event(of: Callable[[Turn], float]) -> Callable[[str, Turn], float]:
        return lambda peer, one: of(one) / counts[peer] * 1e9

    def per_many(of: Callable[[Turn], float]) -> Callable[[str, Turn], float]:
        return lambda peer, one: of(one) / counts[peer] * 1e5

    # A tick of /proc is 10 ms: figures of the server below 0.1 s are rough.
    return [
        result(load.title, "ns", load.targets, per_event(lambda one: one.seconds)),
        result(
            f"{load.title}: processor seconds of the consumers per 100,000 events",
            "s",
            load.processor_targets,
            per_many(lambda one: max(one.consumers, 1e-9)),
        ),
        result(
            f"{load.title}: processor seconds of the producer per 100,000 events",
            "s",
            [],
            per_many(lambda one: max(one.producer, 1e-9)),
        ),
        result(
            f"{load.title}: processor seconds of the server per 100,000 events",
            "s",
            [],
            per_many(lambda one: max(one.server, 1e-9)),
        ),
    ]


def latencies(
    name: str,
    peers: list[str],
    targets: list[Target],
    server: Server,
    *,
    rounds: int,
    scale: float,
) -> list[Result]:
    """Measure the time from publish to handler at a low fixed rate; returns p50 and p99."""
    there = [peer for peer in peers if missing(peer) is None]
    count = max(200, int(1_500 * scale))
    half: dict[str, list[float]] = {peer: [] for peer in there}
    most: dict[str, list[float]] = {peer: [] for peer in there}
    for number in range(rounds):
        for peer in there if number % 2 else reversed(there):
            found = sorted(turn(server, peer, count, rate=RATE).latencies)
            check(peer, len(found), count)
            half[peer].append(statistics.median(found) / 1e3)
            most[peer].append(found[int(len(found) * 0.99)] / 1e3)
    cases = [Case(peer, _never) for peer in there]
    absent = [f"{missing(peer)}" for peer in peers if missing(peer) is not None]
    results = []
    for title, figures, wanted in (("p50", half, targets), ("p99", most, [])):
        kept = [t for t in wanted if t.of in figures and (t.peer is None or t.peer in figures)]
        text = f"from publish to handler at {RATE} events/s, {title}, µs"
        work = Workload(name, text, count, cases, kept, absent, "us", slices=1)
        results.append(Result(work, figures))
    return results


async def _never(_n: int, _watch: Stopwatch) -> None:
    raise NotImplementedError
