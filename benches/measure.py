"""Interleaved rounds: every peer does the same number of operations, in turns."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OURS = "eventbus"


class Stopwatch:
    """Seconds between entering and leaving `running()`, and whether the collector may run."""

    def __init__(self, clock: Callable[[], float], *, collect: bool = False) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._collect = collect

    @contextmanager
    def running(self) -> Iterator[None]:
        """Collect garbage, then time the block; the collector is off in it unless asked for."""
        gc.collect()
        if not self._collect:
            gc.disable()
        begin = self._clock()
        try:
            yield
        finally:
            self.seconds = self._clock() - begin
            gc.enable()


Run = Callable[[int, Stopwatch], Awaitable[None]]


@dataclass
class Case:
    """One peer in one workload.

    Attributes:
        peer: Its name in the table.
        run: Does so many operations while the stopwatch runs, and checks the counts after it.
        n: Operations per round when it cannot do as many as the others; shown in the table.
    """

    peer: str
    run: Run
    n: int | None = None


@dataclass
class Target:
    """What a figure should be.

    Attributes:
        of: The case it is about, as a rule one of eventbus.
        peer: The case it is compared with; `None` = the figure itself.
        must: The bound.
        aim: The bound to aim at.
        at_most: The bound is the highest cost, not the lowest speed.
    """

    of: str
    peer: str | None
    must: float | None = None
    aim: float | None = None
    at_most: bool = False

    def holds(self, value: float, bound: float) -> bool:
        """Tell whether a value is on the right side of a bound."""
        return value <= bound if self.at_most else value >= bound


@dataclass
class Workload:
    """Peers that do the same, and what is expected of eventbus.

    Attributes:
        name: As in PERFORMANCE: W1, W1q, …
        title: What is done.
        n: Operations per round.
        cases: The peers.
        targets: What the ratios should be.
        missing: Peers that are not installed.
        unit: What the figures count: `ns` per operation, or `ms`, `MB` of one value.
        slices: Turns per round. Short turns meet the same disturbances as their neighbours.
    """

    name: str
    title: str
    n: int
    cases: list[Case]
    targets: list[Target] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unit: str = "ns"
    slices: int = 5


@dataclass
class Result:
    """The figures of a workload: one value per round and case."""

    workload: Workload
    rounds: dict[str, list[float]]

    def median(self, peer: str) -> float:
        """Return the median of a case."""
        return statistics.median(self.rounds[peer])

    def best(self, peer: str) -> float:
        """Return the smallest figure of a case: the one with the fewest disturbances."""
        return min(self.rounds[peer])

    def spread(self, peer: str) -> float:
        """Return the distance of the middle half from the median, as a fraction of the median."""
        values = self.rounds[peer]
        if len(values) < 4:
            return (max(values) - min(values)) / 2 / self.median(peer)
        low, _, high = statistics.quantiles(values, n=4)
        return (high - low) / 2 / self.median(peer)

    def ratio(self, of: str, peer: str) -> float:
        """Return how many times faster `of` is than `peer`: the median over the rounds."""
        pairs = zip(self.rounds[of], self.rounds[peer], strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    def value(self, target: Target) -> float:
        """Return the figure that a target is about: speed as a ratio, or cost."""
        if target.peer is None:
            return self.median(target.of)
        ratio = self.ratio(target.of, target.peer)
        return 1 / ratio if target.at_most else ratio


def measure(
    workload: Workload, *, scale: float, rounds: int, cpu: bool = False, collect: bool = False
) -> Result:
    """Run every case `rounds` times in turns, after a short run of each to warm up.

    Args:
        workload: What to run.
        scale: Factor for the number of operations.
        rounds: How many rounds; each has `workload.slices` turns of every case.
        cpu: Time the processor, all threads together, instead of the wall clock.
        collect: Whether the garbage collector may run.
    """
    figures: dict[str, list[float]] = {case.peer: [] for case in workload.cases}
    clock = time.process_time if cpu else time.perf_counter
    scale /= workload.slices
    with asyncio.Runner() as runner:
        for number in range(-1, rounds * workload.slices):
            # Every other round goes backwards, so that nobody always follows the same neighbour.
            for case in workload.cases if number % 2 else reversed(workload.cases):
                n = max(1, int((case.n or workload.n) * scale * (0.1 if number < 0 else 1)))
                watch = Stopwatch(clock, collect=collect)
                runner.run(_one(case, n, watch))
                if number >= 0:
                    figures[case.peer].append(watch.seconds / n * 1e9)
    return Result(workload, figures)


async def _one(case: Case, n: int, watch: Stopwatch) -> None:
    await case.run(n, watch)


def check(peer: str, got: int, wanted: int) -> None:
    """Check a count.

    Raises:
        AssertionError: A figure without its work is none.
    """
    if got != wanted:
        raise AssertionError(f"{peer}: counted {got}, not {wanted}")
