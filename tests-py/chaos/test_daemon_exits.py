"""T14: daemon threads that are busy with a bus when the interpreter ends do not disturb its end."""

from __future__ import annotations

import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.support import Run, end_script, run_script, sizes, start_script
from servers.brokers import Broker

AT_A_TIME = 2

THREADS = """
# A hook that was registered before ours runs after it: the gap before the interpreter ends is wide.
atexit.unregister(eventbus._eventbus._shutdown)
atexit.register(time.sleep, 0.02)
atexit.register(eventbus._eventbus._shutdown)

bus = eventbus.connect(URL)

def start(main):
    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()

def at(number, ready):
    "Say that a thread is in full swing."
    if number == 20:
        ready.wait()

async def publishing():
    async def suspending(event):
        await asyncio.sleep(0)
    await bus.connect()
    await bus.subscribe("mine", lambda event: None)
    await bus.subscribe("mine", suspending)
    number = 0
    while True:
        await bus.publish("mine", number)
        at(number, ready)
        number += 1

async def consuming():
    seen = []
    async def handle(event):
        seen.append(event)
        at(len(seen), ready)
        await asyncio.sleep(0)
    await bus.connect()
    await bus.consume("queue", handle, concurrency=4)
    while True:
        await bus.publish_many([("queue", number) for number in range(10)])
        await asyncio.sleep(0)

async def subscribing():
    seen = []
    def handle(event):
        seen.append(event)
        at(len(seen), ready)
    await bus.connect()
    await bus.subscribe("queued", handle, delivery="queued")
    while True:
        await bus.publish("queued", 1)
        await asyncio.sleep(0)
"""


def busy(url: str, *kinds: str) -> str:
    """Return a script that ends while a daemon thread of each kind works."""
    begin = f"URL = {url!r}\nready = threading.Barrier({len(kinds) + 1})\n"
    starts = "".join(f"start({kind})\n" for kind in kinds)
    return begin + THREADS + starts + "ready.wait()\n"


def run_many(script: str, count: int) -> None:
    """Run a script again and again, two at a time; each must end well and in silence."""

    def run(_number: int) -> Run:
        return end_script(start_script(script))

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for run_number, one in enumerate(pool.map(run, range(count))):
            assert (one.code, one.out, one.err) == (0, "", ""), f"run {run_number}: {one}"


@sizes(4, 1000, "runs")
@pytest.mark.parametrize("kind", ["publishing", "consuming", "subscribing"])
def test_an_exit_is_clean_while_a_daemon_thread_works(kind: str, runs: int) -> None:
    run_many(busy("memory://exit", kind), runs)


@sizes(4, 1000, "runs")
def test_an_exit_is_clean_while_daemon_threads_work_with_a_broker(
    broker: Broker, runs: int
) -> None:
    run_many(busy(broker.url(), "publishing", "consuming", "subscribing"), runs)


STAY = """
bus = eventbus.connect("memory://exit")
ready = threading.Event()

def start(main):
    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()

def stay():
    "Ask for the GIL again and again, below frames of the extension."
    ready.set()
    while True:
        time.sleep(0.0001)

class Last:
    def __del__(self):
        stay()
"""

# What runs Python code below a frame of the extension, and does not come back.
INSIDE = {
    "an inline handler": """
        await bus.subscribe("topic", lambda event: stay())
        await bus.publish("topic", 1)
    """,
    "the coroutine of an inline handler": """
        async def handler(event):
            await asyncio.sleep(0)
            stay()
        await bus.subscribe("topic", handler)
        await bus.publish("topic", 1)
    """,
    "the handler of a queued subscription": """
        await bus.subscribe("topic", lambda event: stay(), delivery="queued")
        await bus.publish("topic", 1)
        await asyncio.sleep(60)
    """,
    "the handler of a consumer": """
        async def handler(event):
            await asyncio.sleep(0)
            stay()
        await bus.consume("topic", handler)
        await bus.publish("topic", 1)
        await asyncio.sleep(60)
    """,
    "the handler of a consumer in a thread of its own": """
        await bus.consume("topic", lambda event: stay(), run_in="thread")
        await bus.publish("topic", 1)
        await asyncio.sleep(60)
    """,
    "a generator that publish_many iterates over": """
        def items():
            yield "topic", 1
            stay()
        await bus.publish_many(items())
    """,
    "the destructor of a handler's result": """
        await bus.subscribe("topic", lambda event: Last())
        await bus.publish("topic", 1)
    """,
    "the destructor of a consumer's result": """
        await bus.consume("topic", lambda event: Last())
        await bus.publish("topic", 1)
        await asyncio.sleep(60)
    """,
    "the destructor of a payload": """
        await bus.publish("topic", {"last": Last()})
    """,
    "the destructor of an event that another thread drops": """
        def drop():
            event = events.pop()
            del event
        events = [eventbus.Event(eventbus.EventType.CUSTOM, "topic", {"last": Last()})]
        threading.Thread(target=drop, daemon=True).start()
        await asyncio.sleep(60)
    """,
    "the collector of garbage": """
        gc.disable()
        gc.set_threshold(1, 1, 1)
        last = Last()
        last.itself = last
        del last
        gc.enable()
        await bus.publish("topic", 1)
    """,
    "an argument of the codec": """
        class Size:
            def __index__(self):
                stay()
        from eventbus import codec
        codec.encode(1, max_bytes=Size())
    """,
}


@sizes(1, 50, "runs")
@pytest.mark.parametrize("name", INSIDE)
def test_a_thread_that_stays_inside_the_extension_does_not_abort_the_exit(
    name: str, runs: int
) -> None:
    body = textwrap.indent(textwrap.dedent(INSIDE[name]), "    ")
    main = f"async def main():\n    await bus.connect()\n{body}\nstart(main)\nready.wait()\n"
    run_many(STAY + main, runs)


def test_a_handler_that_holds_the_lock_of_logging_comes_to_its_end_before_the_exit() -> None:
    run = run_script(
        STAY
        + """
async def main():
    def handler(event):
        with logging._lock:
            ready.set()
            time.sleep(0.3)
        os.write(1, b"released")
    await bus.connect()
    await bus.subscribe("topic", handler)
    while True:
        await bus.publish("topic", 1)

start(main)
ready.wait()
"""
    )
    assert (run.code, run.out, run.err) == (0, "released", "")


@sizes(5, 200, "runs")
def test_handlers_that_write_and_log_all_the_time_leave_the_streams_usable(runs: int) -> None:
    script = (
        STAY
        + """
logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    number = 0
    def handler(event):
        nonlocal number
        number += 1
        print("printed\\n", end="", flush=True)
        logging.warning("logged")
        if number == 20:
            ready.set()
    await bus.connect()
    await bus.subscribe("topic", handler)
    while True:
        await bus.publish("topic", 1)

start(main)
ready.wait()
"""
    )
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for run in pool.map(lambda _: end_script(start_script(script)), range(runs)):
            assert (run.code, run.err) == (0, ""), run
            assert set(run.out.splitlines()) == {"printed", "logged"}, run


def test_a_hook_that_waits_for_a_thread_held_back_delays_the_exit_and_does_not_hang_it() -> None:
    begin = time.monotonic()
    run = run_script(
        STAY
        + """
end = threading.Event()

async def main():
    await bus.connect()
    while not end.is_set():
        await bus.publish("topic", 1)
        ready.set()

def last():
    end.set()
    thread.join()
    print("joined")

# Runs after the hook of the bus, as one does that was registered before the import.
atexit.unregister(eventbus._eventbus._shutdown)
atexit.register(last)
atexit.register(eventbus._eventbus._shutdown)
thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
thread.start()
ready.wait()
"""
    )
    assert (run.code, run.out, run.err) == (0, "joined\n", "")
    assert time.monotonic() - begin < 20


def test_threads_that_end_before_the_exit_leave_no_trace_in_it() -> None:
    run = run_script(
        STAY
        + """
async def main():
    await bus.connect()
    await bus.publish("topic", 1)

for _ in range(50):
    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
    )
    assert (run.code, run.out, run.err) == (0, "", "")
