"""Handlers in threads at the edges: the end of the loop, of the process, and a fork."""

from __future__ import annotations

import pytest

from .support import run_script

SETUP = """
def blocking(seconds):
    def handle(event):
        entered.set()
        time.sleep(seconds)
        print("ended", flush=True)
    return handle

entered = threading.Event()

async def started(bus, handler, **options):
    await bus.consume("t", handler, group="g", run_in="thread", **options)
    await bus.publish("t", 1)
    while not entered.is_set():
        await asyncio.sleep(0.001)
"""


def test_a_drained_bus_lets_the_process_end_beside_a_thread_that_never_does() -> None:
    run = run_script(
        SETUP
        + """
async def main():
    async with eventbus.connect("memory://", drain_timeout=0.2) as bus:
        await started(bus, blocking(3600))
    print("drained")

asyncio.run(main())
"""
    )
    assert (run.code, run.out) == (0, "drained\n"), run.err
    assert "cannot cancel a thread" in run.err
    assert run.seconds < 15


def test_a_bus_that_nobody_drains_lets_the_process_end_beside_a_thread_that_never_does() -> None:
    run = run_script(
        SETUP
        + """
async def main():
    bus = eventbus.connect("memory://")
    await bus.connect()
    await started(bus, blocking(3600))

asyncio.run(main())
"""
    )
    assert (run.code, run.out) == (0, ""), run.err
    assert "Traceback" not in run.err
    assert run.seconds < 15


def test_a_thread_that_ends_after_its_loop_says_so_and_gives_its_event_back() -> None:
    run = run_script(
        SETUP
        + """
bus = eventbus.connect("memory://")
async def main():
    await bus.connect()
    await started(bus, blocking(0.5))

async def again():
    await bus.consume("t", lambda event: print("again", event.payload), group="g", lease=1.0)
    await bus.wait_idle()

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
# The worker is not cancelled: it is left in the middle of its wait.
loop.close()
while any("thread" in one.name for one in threading.enumerate()):
    gc.collect()
    time.sleep(0.05)
"""
    )
    assert run.code == 0, run.err
    assert run.out == "ended\n"
    assert "a handler's thread ended after its loop" in run.err
    assert "Traceback" not in run.err.replace("Task was destroyed", "")


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()"])
def test_an_exit_in_a_thread_ends_the_program_as_on_the_loop(error: str) -> None:
    run = run_script(
        SETUP
        + f"""
def handle(event):
    raise {error}

async def main():
    async with eventbus.connect("memory://") as bus:
        await bus.consume("t", handle, group="g", run_in="thread")
        await bus.publish("t", 1)
        await asyncio.sleep(20)

asyncio.run(main())
"""
    )
    assert run.code == (3 if "3" in error else -2), run.err


def test_a_child_forked_in_a_thread_settles_nothing() -> None:
    run = run_script(
        SETUP
        + """
warnings.simplefilter("default")

def handle(event):
    if os.fork() == 0:
        return  # the child's thread ends, and with it the child
    os.write(1, b"parent\\n")

async def main():
    async with eventbus.connect("memory://") as bus:
        await bus.consume("t", handle, group="g", run_in="thread")
        for number in range(3):
            await bus.publish("t", number)
        await bus.wait_idle()
        print(bus.counters["delivered"], flush=True)

asyncio.run(main())
""",
        watchdog=False,
    )
    assert (run.code, run.out) == (0, "parent\nparent\nparent\n3\n"), run.err
