"""F3: after a fork the parent goes on, the child is told at once, and a new bus works in it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .support import PREAMBLE, run_script

COMMON = """
import traceback

async def refused(what):
    try:
        await what
    except eventbus.ForkedError as error:
        text = str(error)
        assert str(os.getpid()) in text and str(os.getppid()) in text, text
        assert "child" in text or "after the fork" in text, text
    else:
        raise AssertionError("no ForkedError")

async def all_refused(old):
    await refused(old.connect())
    await refused(old.publish("topic", 1))
    await refused(old.publish_many([("topic", 1)]))
    await refused(old.subscribe("topic", print))
    await refused(old.subscribe("topic", print, delivery="queued"))
    await refused(old.consume("topic", print))
    await refused(anext(old.stream("topic")))
    await refused(anext(old.deliveries("topic")))
    await refused(old.inspect())
    await refused(old.read("key"))

async def new_works():
    seen = []
    async with eventbus.connect("memory://forked") as new:
        async def handler(event):
            await asyncio.sleep(0.001)
            seen.append(event.payload)
        await new.subscribe("topic", handler)
        await new.subscribe("topic", handler, delivery="queued")
        await new.consume("topic", handler, lease=0.2)
        async with new.stream("topic") as stream:
            await new.publish("topic", 1)
            assert (await anext(stream)).payload == 1
        await new.publish("topic", 2, delay=0.01)
        while len(seen) < 4:
            await asyncio.sleep(0.001)
        await new.wait_idle()
    assert sorted(seen) == [1, 1, 1, 2], seen

def child(old):
    async def main():
        await all_refused(old)
        await new_works()
    asyncio.run(main())
    gc.collect()

def ids(count=200):
    return [
        eventbus.Event(type=eventbus.EventType.CUSTOM, topic="t", payload=1).event_id
        for _ in range(count)
    ]

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

CASES = {
    "before connect": """
        bus = eventbus.connect("memory://forked")
        pid = os.fork()
        if pid == 0:
            child(bus)
            sys.exit(0)
        assert code(pid) == 0
        asyncio.run(new_works())
        print("parent")
    """,
    "after connect": """
        bus = eventbus.connect("memory://forked")
        async def main():
            await bus.connect()
            await bus.consume("topic", lambda event: None, group="own")
            await bus.publish("topic", 1)
            await bus.wait_idle()
        asyncio.run(main())
        pid = os.fork()
        if pid == 0:
            child(bus)
            sys.exit(0)
        assert code(pid) == 0
        async def again():
            await bus.publish("topic", 2)
            assert (await bus.inspect())["groups"][0]["accepted"] == 2
        asyncio.run(again())
        print("parent")
    """,
    "inside a handler": """
        async def main():
            seen = []
            async with eventbus.connect("memory://") as bus:
                async with bus.deliveries("held", group="held") as deliveries:
                    await bus.publish("held", 1)
                    delivery = await anext(deliveries)
                    def fork(event):
                        pid = os.fork()
                        if pid == 0:
                            try:
                                child(bus)
                                asyncio.run(refused(delivery.ack()))
                            except BaseException:
                                traceback.print_exc()
                                os._exit(1)
                            os._exit(0)
                        seen.append(code(pid))
                    await bus.subscribe("topic", fork)
                    await bus.consume("topic", fork, group="two")
                    await bus.publish("topic", 1)
                    await bus.wait_idle()
                    await delivery.ack()
            assert seen == [0, 0], seen
        asyncio.run(main())
        print("parent")
    """,
    "while a consumer runs": """
        bus = eventbus.connect("memory://forked")
        end = threading.Event()
        going = threading.Event()
        done = []
        def run():
            async def main():
                async with bus:
                    async def handler(event):
                        await asyncio.sleep(0)
                        done.append(event.payload)
                        going.set()
                    await bus.consume("work", handler, lease=5.0, concurrency=4)
                    number = 0
                    while not end.is_set():
                        await bus.publish("work", number)
                        number += 1
                        await asyncio.sleep(0)
                    await bus.wait_idle()
                    assert sorted(done) == list(range(number))
            asyncio.run(main())
        warnings.simplefilter("ignore", DeprecationWarning)
        thread = threading.Thread(target=run)
        thread.start()
        going.wait()
        pids = []
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                end.set()
                child(bus)
                sys.stdout.flush()
                os._exit(0)
            pids.append(pid)
            before = len(done)
            while len(done) == before:
                time.sleep(0.001)
        assert [code(pid) for pid in pids] == [0] * 6
        end.set()
        thread.join()
        print("parent")
    """,
    "event ids differ": """
        before = ids()
        reading, writing = os.pipe()
        pid = os.fork()
        mine = ids()
        if pid == 0:
            os.write(writing, "\\n".join(map(str, mine)).encode())
            sys.exit(0)
        theirs = os.read(reading, 1 << 16).decode().split("\\n")
        assert code(pid) == 0
        every = [*before, *mine, *theirs]
        assert len(theirs) == 200 and len(set(every)) == len(every)
        print("parent")
    """,
    "twice": """
        pid = os.fork()
        if pid == 0:
            asyncio.run(new_works())
            first = eventbus.connect("memory://")
            grandchild = os.fork()
            if grandchild == 0:
                child(first)
                sys.exit(0)
            assert code(grandchild) == 0
            asyncio.run(new_works())
            sys.exit(0)
        assert code(pid) == 0
        print("parent")
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_a_fork_leaves_the_parent_whole_and_tells_the_child(name: str) -> None:
    run = run_script(COMMON + textwrap.dedent(CASES[name]), 15.0, watchdog=False)
    assert (run.code, run.out, run.err) == (0, "parent\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("connected", [False, True])
def test_multiprocessing_starts_children_that_work(
    tmp_path: Path, method: str, connected: bool
) -> None:
    body = """
    import multiprocessing

    def work(queue):
        asyncio.run(new_works())
        queue.put(ids())

    if __name__ == "__main__":
        warnings.simplefilter("ignore", DeprecationWarning)
        import concurrent.futures
        context = multiprocessing.get_context(METHOD)
        if CONNECTED:
            bus = eventbus.connect("memory://")
            async def main():
                await bus.connect()
                await bus.consume("topic", lambda event: None)
                await bus.publish("topic", 1)
            asyncio.run(main())
        queue = context.SimpleQueue()
        children = [context.Process(target=work, args=(queue,)) for _ in range(2)]
        for one in children:
            one.start()
        found = [*queue.get(), *queue.get(), *ids()]
        for one in children:
            one.join()
        assert [one.exitcode for one in children] == [0, 0]
        assert len(set(found)) == 600
        asyncio.run(new_works())
        print("parent")
    """
    body = textwrap.dedent(body).replace("METHOD", repr(method))
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + COMMON + body.replace("CONNECTED", repr(connected)))
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "parent\n", "")
