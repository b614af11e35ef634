"""T14: the interpreter ends as asked, at once and in silence, whatever the bus is doing."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass

import pytest

from bridge.support import Run, end_script, sizes, start_script

AT_A_TIME = 3
LIMIT = 3.0

BUSY = """
async def busy(bus):
    "Everything a bus can be in the middle of."
    async def suspending(event):
        await asyncio.sleep(0)
    async def stuck(event):
        await asyncio.sleep(60)
    await bus.connect()
    await bus.subscribe("topic", suspending)
    await bus.subscribe("topic", suspending, delivery="queued")
    await bus.subscribe("stuck", stuck, delivery="queued")
    await bus.consume("topic", suspending, group="one")
    await bus.consume("stuck", stuck, group="two", concurrency=4)
    tasks = [asyncio.ensure_future(anext(bus.stream("other"))) for _ in range(3)]
    tasks += [asyncio.ensure_future(anext(bus.deliveries("other", group="three")))]
    held = bus.deliveries("topic", group="four")
    await bus.declare_group("four", "topic")
    for number in range(20):
        await bus.publish("topic", number)
        await bus.publish("stuck", number)
    bus.publish_nowait("topic", 1)
    tasks += [await anext(held), held]
    await asyncio.sleep(0)
    return tasks

async def retrieve(tasks):
    "Streams end when their bus does; deliveries do not yet."
    for task in tasks:
        if isinstance(task, asyncio.Future):
            task.cancel()
            await asyncio.wait([task])
            task.cancelled() or task.exception()

bus = eventbus.connect("memory://exit")
"""


@dataclass
class Exit:
    """A way to end, and what it must look like."""

    script: str
    code: int = 0
    out: str = ""
    err: str = ""
    signal: int | None = None


EXITS = {
    "clean": Exit(
        """
        async def main():
            async with bus:
                seen = []
                await bus.subscribe("topic", seen.append)
                await bus.consume("topic", lambda event: None)
                await bus.publish("topic", 1)
                print(len(seen))
        asyncio.run(main())
        """,
        out="1\n",
    ),
    "left open and busy": Exit(
        """
        async def main():
            global kept
            kept = await busy(bus)
        asyncio.run(main())
        print("end")
        """,
        out="end\n",
    ),
    "busy and closed": Exit(
        """
        async def main():
            kept = await busy(bus)
            await bus.drain(0)
            await retrieve(kept)
        asyncio.run(main())
        """,
    ),
    "loop never closed": Exit(
        """
        warnings.simplefilter("ignore", ResourceWarning)
        async def main():
            await bus.connect()
            await bus.publish("topic", 1)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        """,
    ),
    "exception in main": Exit(
        """
        async def main():
            await busy(bus)
            raise ValueError("in main")
        asyncio.run(main())
        """,
        code=1,
        err="ValueError: in main",
    ),
    "sys.exit in an inline handler": Exit(
        """
        async def main():
            await busy(bus)
            await bus.subscribe("end", lambda event: sys.exit(7))
            await bus.publish("end", 1)
        asyncio.run(main())
        """,
        code=7,
    ),
    "sys.exit in a consume handler": Exit(
        """
        logging.disable(logging.WARNING)  # it is told that a crash was counted
        async def main():
            await busy(bus)
            await bus.consume("end", lambda event: sys.exit(7), group="end")
            await bus.publish("end", 1)
            await asyncio.sleep(60)
        asyncio.run(main())
        """,
        code=7,
    ),
    "sys.exit in a queued handler": Exit(
        """
        async def main():
            await busy(bus)
            await bus.subscribe("end", lambda event: sys.exit(7), delivery="queued")
            await bus.publish("end", 1)
            await asyncio.sleep(60)
        asyncio.run(main())
        """,
        code=7,
    ),
    "os._exit": Exit(
        """
        async def main():
            await busy(bus)
            await bus.subscribe("end", lambda event: os._exit(9))
            await bus.publish("end", 1)
        asyncio.run(main())
        """,
        code=9,
    ),
    "SIGINT": Exit(
        """
        async def main():
            await busy(bus)
            print("ready", flush=True)
            await asyncio.sleep(60)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(3)
        """,
        code=3,
        signal=signal.SIGINT,
    ),
    "SIGINT while publishing": Exit(
        """
        async def main():
            await busy(bus)
            print("ready", flush=True)
            while True:
                await bus.publish("topic", 1)
                await asyncio.sleep(0)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(3)
        """,
        code=3,
        signal=signal.SIGINT,
    ),
    "SIGTERM": Exit(
        """
        async def main():
            await busy(bus)
            print("ready", flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
        """,
        code=-signal.SIGTERM,
        signal=signal.SIGTERM,
    ),
    "SIGTERM handled": Exit(
        """
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            kept = await busy(bus)
            print("ready", flush=True)
            await stop.wait()
            await bus.drain(0.1)
            await retrieve(kept)
        asyncio.run(main())
        """,
        signal=signal.SIGTERM,
    ),
    "daemon thread that publishes": Exit(
        """
        ready = threading.Event()
        def run():
            async def main():
                kept = await busy(bus)
                number = 0
                while True:
                    await bus.publish("topic", number)
                    await asyncio.sleep(0)
                    number += 1
                    if number == 20:
                        ready.set()
            asyncio.run(main())
        threading.Thread(target=run, daemon=True).start()
        ready.wait()
        """,
    ),
    "daemon thread inside a long handler": Exit(
        """
        ready = threading.Event()
        def run():
            async def main():
                def spin(event):
                    ready.set()
                    while True:
                        sum(range(1000))
                await bus.connect()
                await bus.subscribe("topic", spin)
                await bus.publish("topic", 1)
            asyncio.run(main())
        threading.Thread(target=run, daemon=True).start()
        ready.wait()
        """,
    ),
    "daemon thread sleeping inside a handler": Exit(
        """
        ready = threading.Event()
        def run():
            async def main():
                def sleep(event):
                    ready.set()
                    while True:
                        time.sleep(0.0001)
                await bus.connect()
                await bus.consume("topic", sleep)
                await bus.publish("topic", 1)
                await asyncio.sleep(60)
            asyncio.run(main())
        threading.Thread(target=run, daemon=True).start()
        ready.wait()
        """,
    ),
    "threads inside publish": Exit(
        """
        end = threading.Event()
        ready = threading.Barrier(4)
        def run():
            async def main():
                await bus.connect()
                await bus.publish("topic", 0)
                ready.wait()
                while not end.is_set():
                    await bus.publish("topic", 1)
            asyncio.run(main())
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        end.set()
        """,
    ),
    "used from atexit": Exit(
        """
        def last():
            async def main():
                async with eventbus.connect("memory://") as own:
                    await own.subscribe("topic", lambda event: print("seen"))
                    await own.consume("topic", lambda event: print("handled"))
                    await own.publish("topic", 1)
                    await own.wait_idle()
            asyncio.run(main())
        atexit.register(last)
        """,
        out="seen\nhandled\n",
    ),
    "used from atexit after the runtime ended": Exit(
        """
        atexit.unregister(eventbus._eventbus._shutdown)
        def last():
            eventbus._eventbus._shutdown()
            async def main():
                await bus.connect()
                await bus.publish("topic", 1)
                try:
                    await anext(bus.stream("topic"))
                except eventbus.BusClosedError as error:
                    print("exit" in str(error))
                try:
                    eventbus.connect("memory://")
                except eventbus.BusClosedError as error:
                    print("exit" in str(error))
            asyncio.run(main())
        atexit.register(last)
        """,
        out="True\nTrue\n",
    ),
    "awaitables kept to the end": Exit(
        """
        kept = []
        async def main():
            kept.extend(await busy(bus))
            kept.append(bus.publish("topic", 1))
            begun = bus.publish("stuck", 1)
            begun.send(None) if False else kept.append(begun)
        asyncio.run(main())
        sys.kept = kept
        """,
    ),
}


def start(one: Exit) -> subprocess.Popen[str]:
    import textwrap

    return start_script(BUSY + textwrap.dedent(one.script))


def finish(one: Exit, process: subprocess.Popen[str]) -> Run:
    if one.signal is not None:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.fail(f"the script did not begin: {end_script(process)}")
        process.send_signal(one.signal)
    return end_script(process)


def ended(one: Exit, count: int) -> list[Run]:
    """Run a script several times at once; none outlives a failure."""
    processes = [start(one) for _ in range(count)]
    try:
        return [finish(one, process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


@sizes(5, 50, "runs")
@pytest.mark.parametrize("name", EXITS)
def test_an_exit_is_quick_and_silent(name: str, runs: int) -> None:
    one = EXITS[name]
    left = runs
    while left:
        batch = min(AT_A_TIME, left)
        left -= batch
        begin = time.monotonic()
        for run in ended(one, batch):
            assert run.code == one.code, run
            assert run.out == one.out, run
            last = run.err.strip().splitlines()[-1:] or [""]
            assert last == [one.err], run.err
            if one.err:
                assert run.err.count("Traceback") == 1, run.err
        # Of the whole batch, start of the interpreter included.
        assert time.monotonic() - begin < LIMIT * batch, name
