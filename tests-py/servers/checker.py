"""What was accepted against what was done: journals that outlive kill -9, and their verdict."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from eventbus import Event, EventBusError, Gap

Kind = Literal["attempt", "ok", "fail", "unknown", "start", "effect", "done", "settled"]
"""Publishers write the first four. Handlers write ``start``, ``effect`` (what they do to the
world), ``done`` just before they settle, and ``settled`` when that was accepted: a kill between the
last two leaves a settled message without its line, so only ``done`` can tell what was lost."""


class Journal:
    """A file of one process: what it tried and what became of it, one line each.

    Each line is one write with ``O_APPEND``, on the disk before it returns.
    """

    def __init__(self, folder: Path, name: str, *, sync: bool = True) -> None:
        """Open a file of its own in the folder.

        Args:
            folder: All journals of a run are in one.
            name: Who writes; the process id is added.
            sync: Whether each line waits for the disk. A killed process loses nothing without it
                either, only a machine would.
        """
        self._sync = sync
        self.path = folder / f"{name}-{os.getpid()}-{time.monotonic_ns()}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, kind: Kind, number: int, **more: Any) -> None:
        """Write one line.

        Args:
            kind: What happened.
            number: Names the message in its run.
            **more: ``key`` and whatever helps to understand a failure.
        """
        line = {"kind": kind, "id": number, "at": time.monotonic_ns(), **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        if self._sync:
            os.fdatasync(self._file)

    async def handle(self, event: Event) -> None:
        """Handle an event: write that it was done."""
        self.write("done", event.payload["n"])

    async def publish(self, publishing: Any, number: int, **more: Any) -> bool:
        """Await a publish and write how it went; returns whether it was accepted.

        What fails with an error of the bus is written, not raised.
        """
        self.write("attempt", number, **more)
        try:
            await publishing
        except EventBusError as error:
            kind: Kind = "unknown" if error.outcome_unknown else "fail"
            self.write(kind, number, error=f"{type(error).__name__}: {error}")
            return False
        except BaseException:
            self.write("unknown", number)
            raise
        self.write("ok", number)
        return True

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


@dataclass
class Verdict:
    """What the journals of a run say.

    Attributes:
        attempted: Ids that somebody tried to publish.
        ok: Accepted ids.
        failed: Ids that were refused, and said so.
        unknown: Ids whose publisher does not know.
        done: How often each id was done.
        settled: How often each id was settled, where handlers write that.
        effects: How often each id had its effect, where handlers write that.
        lost: Accepted and never done.
        unexpected: Done although nobody was told that they might be.
        duplicates: Done more than once.
        recovered: Outcome unknown, and done.
        disorder: Per key, pairs of ids that were started in the wrong order or at the same time.
        redelivery: Seconds, the longest time from a start without an end to the next start.
        last_done: Time of the last ``done``, of ``time.monotonic``.
        torn: Lines that a kill cut off.
    """

    attempted: set[int] = field(default_factory=set)
    ok: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)
    settled: dict[int, int] = field(default_factory=dict)
    effects: dict[int, int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    unexpected: set[int] = field(default_factory=set)
    duplicates: set[int] = field(default_factory=set)
    recovered: set[int] = field(default_factory=set)
    disorder: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    redelivery: float = 0.0
    last_done: float = 0.0
    torn: int = 0

    def __str__(self) -> str:
        """Return the figures, and the first ids of what is wrong."""
        wrong = {
            name: sorted(found)[:10]
            for name in ("lost", "unexpected", "duplicates")
            if (found := getattr(self, name))
        }
        return (
            f"{len(self.attempted)} attempted, {len(self.ok)} ok, {len(self.failed)} failed, "
            f"{len(self.unknown)} unknown ({len(self.recovered)} recovered), "
            f"{len(self.done)} done, {len(self.lost)} lost, {len(self.unexpected)} unexpected, "
            f"{len(self.duplicates)} duplicates, {sum(map(len, self.disorder.values()))} out of "
            f"order, longest redelivery {self.redelivery:.1f} s; {wrong}"
        )


def read(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return all lines of a run in the order of their time, and how many were torn."""
    lines: list[dict[str, Any]] = []
    torn = 0
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            if not line:
                continue
            try:
                lines.append(json.loads(line))
            except ValueError:
                torn += 1
    lines.sort(key=lambda line: line["at"])
    return lines, torn


def judge(folder: Path) -> Verdict:
    """Compare what was accepted with what was done, over all journals in a folder."""
    lines, torn = read(folder)
    verdict = Verdict(torn=torn)
    done: dict[int, int] = defaultdict(int)
    effects: dict[int, int] = defaultdict(int)
    settled: dict[int, int] = defaultdict(int)
    for line in lines:
        number, kind = line["id"], line["kind"]
        match kind:
            case "attempt":
                verdict.attempted.add(number)
            case "ok":
                verdict.ok.add(number)
            case "fail":
                verdict.failed.add(number)
            case "unknown":
                verdict.unknown.add(number)
            case "effect":
                effects[number] += 1
            case "settled":
                settled[number] += 1
            case "done":
                done[number] += 1
                verdict.last_done = line["at"] / 1e9
    # A publisher that was killed between the attempt and the answer does not know either.
    answered = verdict.ok | verdict.failed | verdict.unknown
    verdict.unknown |= verdict.attempted - answered
    # What was tried again and accepted is accepted.
    verdict.unknown -= verdict.ok
    verdict.failed -= verdict.ok | verdict.unknown
    verdict.done, verdict.effects, verdict.settled = dict(done), dict(effects), dict(settled)
    verdict.lost = verdict.ok - done.keys()
    verdict.unexpected = done.keys() - verdict.ok - verdict.unknown
    verdict.duplicates = {number for number, times in done.items() if times > 1}
    verdict.recovered = verdict.unknown & done.keys()
    verdict.disorder = _disorder(lines)
    verdict.redelivery = _longest_redelivery(lines)
    return verdict


def _disorder(lines: Iterable[dict[str, Any]]) -> dict[str, list[tuple[int, int]]]:
    """Return per key the pairs that break "one at a time, in the order of acceptance".

    The ids of one key must be published in rising order. A start of an id that was started before
    is a redelivery: it may follow a later id only if it had been done.
    """
    open_now: dict[str, int | None] = defaultdict(lambda: None)
    highest: dict[str, int] = defaultdict(lambda: -1)
    done: set[int] = set()
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in lines:
        key, number = line.get("key"), line["id"]
        if key is None:
            continue
        if line["kind"] == "start":
            before = open_now[key]
            overlaps = before not in (None, number) and before not in done
            backwards = number < highest[key] and number not in done
            if overlaps or backwards:
                found[key].append((highest[key] if before is None else before, number))
            open_now[key] = number
            highest[key] = max(highest[key], number)
        elif line["kind"] == "done":
            done.add(number)
    return dict(found)


def _longest_redelivery(lines: Iterable[dict[str, Any]]) -> float:
    started: dict[int, int] = {}
    longest = 0
    for line in lines:
        number = line["id"]
        if line["kind"] == "start":
            if number in started:
                longest = max(longest, line["at"] - started[number])
            started[number] = line["at"]
        elif line["kind"] == "done":
            started.pop(number, None)
    return longest / 1e9


@dataclass
class Seen:
    """What one broadcast subscriber got, numbers and gaps in the order they came."""

    items: list[int | Gap] = field(default_factory=list)

    def event(self, event: Any) -> None:
        """Remember an event whose payload is its number; a handler."""
        self.items.append(event.payload)

    def gap(self, gap: Gap) -> None:
        """Remember a gap; an ``on_gap``."""
        self.items.append(gap)

    @property
    def numbers(self) -> list[int]:
        """The numbers alone."""
        return [item for item in self.items if isinstance(item, int)]

    @property
    def gaps(self) -> list[Gap]:
        """The gaps alone."""
        return [item for item in self.items if isinstance(item, Gap)]


@dataclass
class Holes:
    """What a subscriber missed.

    Attributes:
        missed: Numbers that were accepted and not seen.
        silent: Those of them that no gap covers.
        repeated: Numbers seen more than once.
        backwards: Pairs that came in the wrong order.
        announced: The counts of all gaps that have one, added up.
    """

    missed: list[int] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    backwards: list[tuple[int, int]] = field(default_factory=list)
    announced: int = 0


def holes(accepted: Sequence[int], items: Iterable[int | Gap]) -> Holes:
    """Check that each number of one publisher was seen or is covered by a gap.

    A gap covers what is missing between the number seen before it and the next one after it, at
    most as many as it counts. Several gaps in one hole add up.

    Args:
        accepted: The accepted numbers, in the order of publishing.
        items: What a subscriber got, in order.
    """
    found = Holes()
    place = {number: index for index, number in enumerate(accepted)}
    seen: set[int] = set()
    last = -1  # the place of the last number
    covers: float = 0

    def hole(until: int) -> None:
        missing = [accepted[index] for index in range(last + 1, until)]
        missing = [number for number in missing if number not in seen]
        found.missed.extend(missing)
        if len(missing) > covers:
            found.silent.extend(missing[: len(missing) - int(covers)])

    for item in items:
        if isinstance(item, Gap):
            covers += float("inf") if item.count is None else item.count
            found.announced += item.count or 0
            continue
        if item in seen:
            found.repeated.append(item)
            continue
        seen.add(item)
        here = place.get(item)
        if here is None:
            continue  # Its outcome was unknown: it may be there.
        if here < last:
            found.backwards.append((accepted[last], item))
            continue
        hole(here)
        last, covers = here, 0
    hole(len(accepted))
    return found
