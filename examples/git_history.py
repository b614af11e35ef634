"""The demo (`make demo`): this repository's git history as events on the memory bus.

Every file change becomes an event. Without a git history it reads the system's package log, and
without one the installed Python distributions: the input is always real.
"""

import asyncio
import logging
import os
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path, PurePath

from eventbus import (
    Bus,
    Delivery,
    Event,
    RetryPolicy,
    Stream,
    VersionConflict,
    connect,
    event_handler,
)

MOST = 1_000  # changes: what one publish_many takes
DELAY = 0.15
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


@dataclass(frozen=True)
class Change:
    """The payload: something of a kind changed, by so many lines."""

    kind: str
    name: str
    lines: int


def git_history() -> list[Change]:
    """Read which files the commits of this repository changed, newest first."""
    here = str(Path(__file__).resolve().parent)
    git = ["git", "-C", here, "log", f"-{MOST}", "--numstat", "--no-renames", "--format=@%h"]
    changes, commit = [], ""
    log = subprocess.run(git, capture_output=True, check=True, encoding="utf-8").stdout
    for line in log.split("\n"):
        if line.startswith("@"):
            commit = line[1:]
        elif line:
            added, deleted, path = line.split("\t", 2)
            lines = sum(int(count) for count in (added, deleted) if count.isdigit())
            kind = PurePath(path).suffix.lstrip(".") or "other"
            changes.append(Change(kind, f"{commit} {path}", lines))
    return changes


def package_log() -> list[Change]:
    """Count the lines of the system's package log by action and package."""
    words = [
        line.split() for line in Path("/var/log/dpkg.log").read_text(encoding="utf-8").splitlines()
    ]
    found = Counter((word[2], word[4 if word[2] == "status" else 3]) for word in words)
    return [Change(action, package, lines) for (action, package), lines in found.items()]


def installed_python() -> list[Change]:
    """List the installed distributions, with the number of lines of their metadata."""
    metadata = [(one.name, one.read_text("METADATA") or "") for one in distributions()]
    return [Change("metadata", name, text.count("\n")) for name, text in metadata]


def read_changes() -> tuple[str, list[Change]]:
    """Return the name of the first source that has changes, and the changes."""
    for source in (git_history, package_log):
        try:
            if changes := source():
                return source.__name__.replace("_", " "), changes[:MOST]
        except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
            continue
    return "installed python", installed_python()[:MOST]


class Review:
    """The handlers; `bus.include` starts them."""

    def __init__(self, bus: Bus, poison: Change) -> None:
        """Begin with nothing seen."""
        self.bus, self.poison = bus, poison
        self.seen: Counter[str] = Counter()
        self.lost_races = 0
        self.noted = 0.0

    @event_handler(pattern="change:*")
    def see_all(self, _event: Event) -> None:
        """Broadcast: called inside `publish`, for whoever wants to see it now."""
        self.seen["change:*"] += 1

    @event_handler(pattern="change:[m-z]*")
    def see_some(self, _event: Event) -> None:
        """Another subscriber with a narrower pattern."""
        self.seen["change:[m-z]*"] += 1

    @event_handler(
        pattern="change:*",
        group="review",
        concurrency=4,
        retry=RetryPolicy(max_attempts=3, base=0.1),
    )
    async def review(self, change: Change, delivery: Delivery) -> None:
        """Queue: whatever a handler raises means "again later", three times at most."""
        if change == self.poison:
            raise ValueError(f"{change.lines:,} lines are too many to review")
        if zlib.crc32(change.name.encode()) % 8 == 0 and delivery.attempt == 1:
            raise ConnectionError("the reviewer was out for coffee")
        while not await self.count(change, delivery):
            self.lost_races += 1

    async def count(self, change: Change, delivery: Delivery) -> bool:
        """Transaction: acknowledge, count and announce together, or nothing of it."""
        record = await self.bus.read(f"lines/{change.kind}")
        lines, version = (record.value, record.version) if record else (0, 0)
        await asyncio.sleep(0)  # room for another review to count first: then we look again
        try:
            async with delivery.transaction() as tx:
                tx.put(f"lines/{change.kind}", lines + change.lines, if_version=version)
                tx.publish("reviewed", {"lines": change.lines})
        except VersionConflict:
            return False
        return True

    @event_handler("note", group="notes")
    def note(self, _event: Event) -> None:
        """Delayed: the group gets it when it is due."""
        self.noted = time.perf_counter()


async def add_up(reviewed: Stream) -> int:
    """Stream: iterate over what the transactions announce."""
    total = 0
    async for event in reviewed:
        if event.payload["lines"] is None:
            break
        total += event.payload["lines"]
    return total


async def all_settled(bus: Bus) -> None:
    """Wait until nothing waits in a group, now or for later, and nothing is being handled."""
    while True:
        groups = (await bus.inspect())["groups"]
        if not any(one["ready"] or one["delayed"] or one["in_flight"] for one in groups):
            return
        await asyncio.sleep(0.01)


def row(label: str, text: str, colour: int = 0) -> None:
    """Print a line of the account."""
    print(f"  {label:<20}", f"\033[{colour}m{text}\033[0m" if COLOURS and colour else text)


async def main() -> int:
    """Publish, handle, and print an account that adds up; return the exit code."""
    logging.getLogger("eventbus").setLevel(logging.CRITICAL)  # the account shows the failures
    source, changes = read_changes()
    poison = max(changes, key=lambda change: change.lines)
    async with connect("memory://") as bus, bus.stream("reviewed") as reviewed:
        adding = asyncio.create_task(add_up(reviewed))
        review = Review(bus, poison)
        await bus.include(review)

        begin = time.perf_counter()
        await bus.publish("note", {"text": "still here"}, delay=DELAY)
        await bus.publish_many([(f"change:{one.kind}", asdict(one)) for one in changes])
        published = time.perf_counter() - begin
        await all_settled(bus)
        await bus.publish("reviewed", {"lines": None})
        streamed = await adding
        took = time.perf_counter() - begin

        figures = {group["group"]: group for group in (await bus.inspect())["groups"]}["review"]
        dead = await bus.dead_letters("review").list()
        records = await bus.scan("lines/")

    print(f"\n{source}: {len(changes):,} changes through the memory bus\n")
    row("publish_many", f"{len(changes):,} events in {published * 1e3:.1f} ms, in one transaction")
    for pattern, count in review.seen.items():
        row("subscriber", f"{pattern:<14} saw {count:,}")
    row("group", f"review         {figures['accepted']:,} accepted, 4 at a time")
    row("  handled", f"{figures['acked']:,}", 32)
    row("  tried again", f"{figures['retried']:,}", 33)
    for letter in dead:
        name = letter.event.payload["name"] if letter.event else "?"
        error = letter.error.strip().splitlines()[-1]
        row("  dead letter", f"{name}, after {letter.attempts} attempts\n{'':23}{error}", 31)
    row("delayed note", f"asked for {DELAY:.2f} s, came after {review.noted - begin:.2f} s")
    row("records", f"{len(records)} counters; {review.lost_races:,} lost races were repeated")
    for record in sorted(records, key=lambda record: -record.value)[:6]:
        bar = "█" * max(1, 30 * record.value // max(one.value for one in records))
        row(f"  {record.key}", f"{record.value:>7,}  v{record.version:<4} {bar}", 36)

    counted = sum(record.value for record in records)
    expected = sum(one.lines for one in changes) - sum(poison.lines for _ in dead)
    exact = figures["accepted"] == figures["acked"] + len(dead) and counted == streamed == expected
    sums = f"accepted {figures['accepted']:,} = handled {figures['acked']:,} + dead {len(dead)}"
    lines = f"lines in records {counted:,} = in the stream {streamed:,} = handled {expected:,}"
    print(f"\n{'✓' if exact else '✗'} {sums}\n{'✓' if exact else '✗'} {lines}; {took:.2f} s\n")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
