"""The checker finds each kind of fault in journals that have it, and none in sound ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus import ConnectError, Gap, OperationTimeout
from servers.checker import Journal, Kind, holes, judge

TESTS = Path(__file__).parents[1]


def journal(folder: Path, *lines: tuple[Kind, int], **more: object) -> None:
    with Journal(folder, "test", sync=False) as one:
        for kind, number in lines:
            one.write(kind, number, **more)


def accepted(folder: Path, *numbers: int) -> None:
    for number in numbers:
        journal(folder, ("attempt", number), ("ok", number))


def handled(folder: Path, *numbers: int, **more: object) -> None:
    for number in numbers:
        journal(folder, ("start", number), ("effect", number), ("done", number), **more)


def test_a_sound_run_has_nothing_wrong(tmp_path: Path) -> None:
    accepted(tmp_path, 1, 2, 3)
    handled(tmp_path, 2, 1, 3)
    verdict = judge(tmp_path)
    assert verdict.ok == {1, 2, 3}
    assert not verdict.lost
    assert not verdict.unexpected
    assert not verdict.duplicates
    assert not verdict.disorder


def test_what_was_accepted_and_never_done_is_lost(tmp_path: Path) -> None:
    accepted(tmp_path, 1, 2)
    journal(tmp_path, ("start", 2), ("effect", 2))
    handled(tmp_path, 1)
    assert judge(tmp_path).lost == {2}


def test_what_was_refused_and_done_is_unexpected(tmp_path: Path) -> None:
    journal(tmp_path, ("attempt", 1), ("fail", 1))
    handled(tmp_path, 1, 9)
    assert judge(tmp_path).unexpected == {1, 9}


def test_an_unknown_outcome_may_be_done_or_not(tmp_path: Path) -> None:
    journal(tmp_path, ("attempt", 1), ("unknown", 1), ("attempt", 2))
    handled(tmp_path, 2)
    verdict = judge(tmp_path)
    assert verdict.unknown == {1, 2}
    assert verdict.recovered == {2}
    assert not verdict.lost
    assert not verdict.unexpected


def test_done_twice_is_a_duplicate(tmp_path: Path) -> None:
    accepted(tmp_path, 1)
    handled(tmp_path, 1, 1)
    verdict = judge(tmp_path)
    assert verdict.duplicates == {1}
    assert verdict.effects == {1: 2}


@pytest.mark.parametrize(
    ("lines", "pairs"),
    [
        ([("start", 1), ("done", 1), ("start", 2), ("done", 2)], []),
        ([("start", 1), ("start", 1), ("done", 1), ("start", 2)], []),
        ([("start", 2), ("done", 2), ("start", 1), ("done", 1)], [(2, 1)]),
        ([("start", 1), ("start", 2), ("done", 1), ("done", 2)], [(1, 2)]),
        # Redelivered after its settle was done: late, but nothing was skipped.
        ([("start", 1), ("done", 1), ("start", 2), ("done", 2), ("start", 1)], []),
    ],
)
def test_the_order_of_a_key_is_checked(
    tmp_path: Path, lines: list[tuple[Kind, int]], pairs: list[tuple[int, int]]
) -> None:
    journal(tmp_path, *lines, key="one")
    assert judge(tmp_path).disorder.get("one", []) == pairs


def test_the_longest_redelivery_is_measured(tmp_path: Path) -> None:
    journal(tmp_path, ("start", 1))
    journal(tmp_path, ("start", 1), ("done", 1))
    verdict = judge(tmp_path)
    assert 0 < verdict.redelivery < 5


async def test_a_publish_is_written_as_it_went(tmp_path: Path) -> None:
    async def fails(error: Exception | None) -> None:
        if error is not None:
            raise error

    with Journal(tmp_path, "publisher") as one:
        assert await one.publish(fails(None), 1)
        assert not await one.publish(fails(ConnectError("no server")), 2)
        assert not await one.publish(fails(OperationTimeout("lost", True)), 3)
    verdict = judge(tmp_path)
    assert (verdict.ok, verdict.failed, verdict.unknown) == ({1}, {2}, {3})


def test_a_journal_survives_the_kill_of_its_writer(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from servers.checker import Journal
journal = Journal(Path({str(tmp_path)!r}), "victim")
for number in range(10**9):
    journal.write("ok", number)
    if number == 200:
        print("go", flush=True)
"""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "python")])
    victim = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert victim.stdout is not None
    victim.stdout.readline()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    verdict = judge(tmp_path)
    assert verdict.torn <= 1
    assert len(verdict.ok) > 200
    assert verdict.ok == set(range(len(verdict.ok)))


def gap(count: int | None) -> Gap:
    return Gap("reconnect", count)


@pytest.mark.parametrize(
    ("items", "silent"),
    [
        ([0, 1, 2, 3, 4], []),
        ([0, 1, gap(None), 4], []),
        ([0, 1, gap(2), 4], []),
        ([0, 1, gap(1), gap(1), 4], []),
        ([0, 1, gap(1), 4], [2]),
        ([0, 1, 4], [2, 3]),
        ([gap(None), 0, 1, 4], [2, 3]),
        ([2, 3, 4], [0, 1]),
        ([0, 1, 2], [3, 4]),
        ([0, 1, 2, gap(None)], []),
    ],
)
def test_each_number_is_seen_or_covered_by_a_gap(items: list[int | Gap], silent: list[int]) -> None:
    assert holes(range(5), items).silent == silent


def test_repeats_and_steps_backwards_are_found() -> None:
    found = holes(range(4), [0, 2, gap(1), 1, 1, 3])
    assert found.repeated == [1]
    assert found.backwards == [(2, 1)]
