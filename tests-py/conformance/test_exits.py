"""A handler that ends its process: a crash that is counted, or an interrupt that is not."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from conformance.conftest import Backend
from conformance.support import WITHIN, figures, figures_become
from eventbus import connect
from servers.shared import shared_postgres, shared_redis

_schemas = itertools.count(1)

CHILD = """
import asyncio, os, signal, sys
from eventbus import RetryPolicy, connect

url, how, ends = sys.argv[1:]

def handle(event):
    print("handling", flush=True)
    if how == "interrupt":
        # The default handler of the interpreter raises KeyboardInterrupt here.
        signal.raise_signal(signal.SIGINT)
    raise SystemExit(7)

async def main(bus):
    await bus.connect()
    await bus.consume("t", handle, group="g", lease=60.0, retry=RetryPolicy(max_deliveries=3))
    try:
        await asyncio.sleep(float(os.environ["SECONDS"]))
    finally:
        if ends == "drain":
            await bus.drain()

bus = connect(url)
if how == "interrupt":
    # asyncio.run would turn the first signal into a cancellation of the main task.
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main(bus))
else:
    asyncio.run(main(bus))
"""


def run_child(url: str, how: str, ends: str, seconds: float = WITHIN * 3) -> tuple[int, int]:
    """Run a consumer until its handler ends it; return its exit code and its handler calls."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, url, how, ends],
        env={**os.environ, "SECONDS": str(seconds)},
        capture_output=True,
        text=True,
        timeout=WITHIN * 6,
        check=False,
    )
    return done.returncode, done.stdout.count("handling")


@pytest.fixture
def url(backend: Backend, unique: Callable[[str], str]) -> str:
    """The address of a backend that outlives a process."""
    if "redis" in backend.url:
        return f"{shared_redis().url()}?prefix={unique('bus').replace(':', '-')}"
    if "postgres" in backend.url:
        return f"{shared_postgres().url()}?schema=test_exit_{os.getpid()}_{next(_schemas)}"
    pytest.skip("what memory holds ends with its process; see the test in one process")


@pytest.mark.parametrize("ends", ["drain", "leave"])
async def test_an_exit_is_a_crash_that_is_counted_and_frees_the_delivery_at_once(
    url: str, ends: str
) -> None:
    async with connect(url) as bus:
        await bus.declare_group("g", "t")
        await bus.publish("t", 1)
        for _ in range(3):
            code, calls = await asyncio.to_thread(run_child, url, "exit", ends)
            assert (code, calls) == (7, 1)
            # Not only when the lease of a minute ends.
            assert (await figures(bus, "g"))["in_flight"] == 0
        code, calls = await asyncio.to_thread(run_child, url, "exit", ends, 1.0)
        assert (code, calls) == (0, 0)
        await figures_become(bus, "g", dead=1, ready=0, in_flight=0)
        (letter,) = await bus.dead_letters("g").list()
        assert (letter.reason, letter.attempts, letter.crashes) == ("crashed", 0, 3)


async def test_an_interrupt_releases_the_delivery_and_counts_nothing(url: str) -> None:
    async with connect(url) as bus:
        await bus.declare_group("g", "t")
        await bus.publish("t", 1)
        for _ in range(4):
            code, calls = await asyncio.to_thread(run_child, url, "interrupt", "leave")
            assert code != 0
            assert calls == 1
            assert (await figures(bus, "g"))["in_flight"] == 0
        async with bus.deliveries("t", group="g") as deliveries:
            delivery = await asyncio.wait_for(anext(deliveries), WITHIN)
            assert (delivery.attempt, delivery.crashes) == (1, 0)
            await delivery.ack()


IN_ONE_PROCESS = """
import asyncio
from eventbus import RetryPolicy, connect
from eventbus.testing import eventually

calls, raised, error = [], [], {error}

def handle(got):
    calls.append(1)
    if len(calls) <= 5:
        raise error()

async def begin():
    bus = connect("memory://")
    await bus.connect()
    await bus.consume(
        "t", handle, group="g", concurrency=2, retry=RetryPolicy(max_deliveries=3), {batch}
    )
    return bus

async def settled():
    if not calls:
        await bus.publish("t", 1)
    await eventually(is_done, timeout=10.0)

async def is_done():
    (group,) = (await bus.inspect())["groups"]
    return group["acked"] + group["dead"] == 1

loop = asyncio.new_event_loop()
bus = loop.run_until_complete(begin())
for _ in range(20):
    try:
        loop.run_until_complete(settled())
        break
    except (SystemExit, KeyboardInterrupt) as error_seen:
        raised.append(type(error_seen).__name__)
(group,) = loop.run_until_complete(bus.inspect())["groups"]
letters = loop.run_until_complete(bus.dead_letters("g").list())
crashes = [(one.reason, one.crashes) for one in letters]
print(len(calls), raised, group["acked"], group["in_flight"], crashes)
loop.run_until_complete(bus.drain(1.0))
"""


@pytest.mark.parametrize("batch", ["", "batch=2"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("SystemExit", f"3 {['SystemExit'] * 3} 0 0 [('crashed', 3)]"),
        ("KeyboardInterrupt", f"6 {['KeyboardInterrupt'] * 5} 1 0 []"),
    ],
)
async def test_a_loop_that_goes_on_after_an_exit_goes_on_consuming(
    error: str, expected: str, batch: str
) -> None:
    code = IN_ONE_PROCESS.format(error=error, batch=batch)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=WITHIN * 6,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr


async def test_the_child_of_a_fork_does_not_wait_for_its_parents_last_words() -> None:
    code = """
import os, sys, time
from eventbus import connect
import asyncio
async def main():
    async with connect("memory://") as bus:
        await bus.publish("t", 1)
asyncio.run(main())
if (pid := os.fork()) == 0:
    asyncio.run(main())
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    assert (await asyncio.to_thread(run)).strip() == "5"
