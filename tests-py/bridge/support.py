"""What the fault tests share: sizes of the two forms, scripts in a child, footprints."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from eventbus import Bus

CANCEL_WITHIN = 200e-6


def sizes(quick: int, full: int, name: str = "count") -> pytest.MarkDecorator:
    """Run a test with a small count in every run, and with the full one in ``make chaos``."""
    return pytest.mark.parametrize(
        name,
        [
            pytest.param(quick, id="quick"),
            pytest.param(full, id="full", marks=pytest.mark.chaos),
        ],
    )


def seeded() -> random.Random:
    """Return a generator whose seed is printed, so that a failure can be run again.

    ``EVENTBUS_SEED`` fixes it.
    """
    seed = int(os.environ.get("EVENTBUS_SEED", random.randrange(2**32)))
    # pytest shows this when the test fails.
    sys.stdout.write(f"EVENTBUS_SEED={seed}\n")
    return random.Random(seed)


@dataclass
class Run:
    """How a script ended."""

    code: int
    out: str
    err: str
    seconds: float


PREAMBLE = """
import asyncio, atexit, faulthandler, gc, logging, os, signal, sys, threading, time, warnings
warnings.simplefilter("error")
import eventbus

"""
# Not where a script forks: the child would wait for the watchdog's thread, which it does not have.
WATCHDOG = "faulthandler.dump_traceback_later(20, exit=True)\n"


def start_script(source: str, watchdog: bool = True) -> subprocess.Popen[str]:
    """Start a script in an interpreter of its own."""
    begin = PREAMBLE + WATCHDOG * watchdog
    # A group of its own: what it forks can be ended with it.
    return subprocess.Popen(
        # Not -X dev: asyncio's debug mode reports slow callbacks on a busy machine.
        [sys.executable, "-X", "faulthandler", "-c", begin + textwrap.dedent(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONMALLOC": "debug"},
        start_new_session=True,
    )


def end_script(process: subprocess.Popen[str], timeout: float = 30.0) -> Run:
    """Wait for a script's end; one that hangs is killed and fails the test."""
    begin = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the script hangs\nstdout: {out}\nstderr: {err}")
    return Run(process.returncode, out, err, time.monotonic() - begin)


def run_script(source: str, timeout: float = 30.0, watchdog: bool = True) -> Run:
    """Run a script in an interpreter of its own, to its end."""
    return end_script(start_script(source, watchdog), timeout)


def rss() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Return how many file descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Footprint:
    """What a process holds: Python blocks, resident bytes, descriptors."""

    blocks: int
    bytes: int
    files: int

    @classmethod
    def now(cls) -> Footprint:
        """Measure after a full collection."""
        gc.collect()
        gc.collect()
        return cls(sys.getallocatedblocks(), rss(), descriptors())


async def until(condition: Callable[[], object], limit: float = 10.0) -> None:
    """Turn the loop until a condition holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true within {limit} s"
        await asyncio.sleep(0)


async def group_of(bus: Bus, name: str) -> dict[str, Any]:
    """Return the figures of one group."""
    return next(one for one in (await bus.inspect())["groups"] if one["group"] == name)


def held(figures: dict[str, Any]) -> int:
    """Return how many messages of a group have not ended well."""
    return int(figures["ready"] + figures["delayed"] + figures["in_flight"] + figures["dead"])
