"""Three managers and two agents that share nothing but a bus (`make demo-cluster`).

`python run.py --url redis://…` or `--url postgresql://…`; without `--url` it starts a
redis-server of its own. Sessions go from enqueued to terminated, batch sessions run their command
once, a task is watched through managers that do not run it, and one manager is killed half-way.
"""

import argparse
import asyncio
import contextlib
import json
import math
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import AGENTS, LEASE, PREFIX

from eventbus import connect
from eventbus.bus import Bus
from eventbus.dispatcher import EventDispatcher
from eventbus.testing import eventually

HERE = Path(__file__).parent
MANAGERS = ("manager-1", "manager-2", "manager-3")
VICTIM = "manager-3"
SESSIONS = 60
ENQUEUED = "session_enqueued"
Line = dict[str, Any]


class Cluster:
    """The processes and what they told."""

    def __init__(self, url: str) -> None:
        """Use a bus."""
        self.url = url
        self.lines: list[Line] = []
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def start(self, program: str, name: str) -> None:
        """Start a process."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(HERE / program), "--url", self.url, "--name", name),
            stdout=asyncio.subprocess.PIPE,
        )
        self.processes[name] = process
        self._readers.append(asyncio.create_task(self._read(process)))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for text in process.stdout:
            self.add(json.loads(text))

    def add(self, line: Line) -> None:
        """Add to the timeline."""
        self.lines.append(line)
        self._changed.set()

    def find(self, what: str, **wanted: object) -> list[Line]:
        """Return lines of a kind."""
        return [
            line
            for line in self.lines
            if line["what"] == what and all(line.get(key) == wanted[key] for key in wanted)
        ]

    async def until(self, condition: Callable[[], object], what: str, timeout: float = 60) -> None:
        """Wait for a condition on the lines."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise SystemExit(f"cluster: waited {timeout:g} s for {what}") from None

    async def stop(self) -> None:
        """End every process."""
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
        for process in self.processes.values():
            await process.wait()
        for reader in self._readers:
            await reader


@contextlib.asynccontextmanager
async def redis_of_our_own() -> AsyncIterator[str]:
    """Start a redis-server on a free port, in a folder that goes with it."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("cluster: no redis-server; install it, or give --url")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            program,
            *("--port", str(port), "--dir", folder, "--appendonly", "yes", "--save", ""),
            *("--bind", "127.0.0.1"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            await eventually(lambda: answers(port), "redis-server", timeout=20)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            await process.wait()


async def answers(port: int) -> bool:
    """Whether a server takes connections."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def enqueue(bus: Bus, events: EventDispatcher, number: int) -> str:
    """Store a session and announce it."""
    session = f"s-{number:02}-{uuid.uuid4().hex[:6]}"
    async with bus.transaction() as tx:
        state = {"step": "enqueued", "batch": number % 2 == 1}
        tx.put(f"cluster/session/{session}", state, if_version=0)
    await events.produce_event(ENQUEUED, (session,))
    return session


async def play(cluster: Cluster, bus: Bus) -> tuple[list[str], float]:
    """Play the story; return the sessions, and when the manager was killed."""
    async with EventDispatcher(bus, prefix=PREFIX, group="demo", source="demo") as events:
        for name in MANAGERS:
            await cluster.start("manager.py", name)
        for name in AGENTS:
            await cluster.start("agent.py", name)
        everybody = len(MANAGERS) + len(AGENTS)
        await cluster.until(lambda: len(cluster.find("started")) == everybody, "the processes")

        await events.produce_event("run_task.manager-1", ("rescan",))
        await events.produce_event(f"run_task.{VICTIM}", ("doomed",))
        await cluster.until(lambda: len(cluster.find("task started")) == 2, "the tasks")
        text = f"enqueues {SESSIONS} sessions, every other one with a start-up command"
        cluster.add({"at": time.time(), "who": "demo", "what": text})
        sessions = []
        killed = 0.0
        for number in range(SESSIONS):
            sessions.append(await enqueue(bus, events, number))
            await asyncio.sleep(0.02)
            if number >= SESSIONS // 2 and not killed and in_hand(cluster, VICTIM):
                cluster.processes[VICTIM].send_signal(signal.SIGKILL)
                killed = time.time()
                cluster.add({"at": killed, "who": "demo", "what": f"kills {VICTIM} with -9"})
        if not killed:
            raise SystemExit(f"cluster: {VICTIM} never had a session in hand")
        for survivor in MANAGERS[:-1]:
            await cluster.until(
                partial(saw_every_end, cluster, survivor, set(sessions)),
                f"{survivor} to see every end",
            )
        return sessions, killed


def in_hand(cluster: Cluster, manager: str, until: float = math.inf) -> set[str]:
    """Return the sessions that a manager was to schedule and that nobody had scheduled by then."""
    told = {line["session"] for line in cluster.find("handled", who=manager, event=ENQUEUED)}
    scheduled = cluster.find("saw", event="session_scheduled")
    return told - {line["session"] for line in scheduled if line["at"] < until}


def seen(cluster: Cluster, manager: str, event: str) -> list[Line]:
    """Return what a manager saw of an event."""
    return cluster.find("saw", who=manager, event=event)


def saw_every_end(cluster: Cluster, manager: str, sessions: set[str]) -> bool:
    """Whether a manager saw every session and both tasks end."""
    ended = {line["session"] for line in seen(cluster, manager, "session_terminated")}
    tasks = [("rescan", "done"), ("doomed", "failed")]
    return ended >= sessions and all(
        cluster.find("task seen", who=manager, label=label, status=status)
        for label, status in tasks
    )


WORDS = {
    "started": "started",
    "handled": "handles {event} of {session}",
    "saw": "sees {event} of {session}",
    "start-up command run": "runs the start-up command of {session}",
    "start-up asked for again": "is asked again for the start-up command of {session}",
    "task started": "starts the background task {label!r}",
    "task seen": "sees the task {label!r}: {status}, {percent} %",
    "log": "logs: {text}",
}


def timeline(cluster: Cluster, sessions: list[str], lost: set[str]) -> None:
    """Print what happened: some sessions whole, and everything about processes and tasks."""
    # A batch session, and one that was in the hands of the manager that died.
    shown = {sessions[1], *sorted(lost)[:1]}
    began = min(line["at"] for line in cluster.lines)
    scheme = cluster.url.partition(":")[0]
    print(
        f"{len(MANAGERS)} managers and {len(AGENTS)} agents share nothing but a bus on {scheme}.\n"
        f"Of {len(sessions)} sessions two are shown: {', '.join(sorted(shown))}.\n\n"
        "seconds  who        what"
    )
    for line in sorted(cluster.lines, key=lambda one: one["at"]):
        what: str = line["what"]
        if what == "heartbeat" or line.get("session", sessions[1]) not in shown:
            continue
        text = WORDS.get(what, what).format(**line)
        print(f"{line['at'] - began:7.2f}  {line['who']:<10} {text}")


def taken_over(cluster: Cluster, lost: set[str], killed: float) -> dict[str, float]:
    """Return the sessions that others scheduled instead of the dead manager, and how late."""
    late: dict[str, float] = {}
    for line in cluster.find("handled", event=ENQUEUED):
        if line["session"] in lost and line["who"] != VICTIM:
            late.setdefault(line["session"], line["at"] - killed)
    return late


def summary(
    cluster: Cluster, sessions: list[str], lost: set[str], killed: float, states: list[Any]
) -> bool:
    """Print what was claimed and what was counted; return whether all of it holds."""
    steps = (ENQUEUED, "kernel_started", "session_success", "kernel_terminated")
    handled = Counter((line["event"], line["session"]) for line in cluster.find("handled"))
    batch = sessions[1::2]
    expected = {
        (step, one) for step in steps for one in sessions if one in batch or step != steps[2]
    }
    missing = expected - set(handled)
    twice = sum(count - 1 for count in handled.values())
    runs = Counter(line["session"] for line in cluster.find("start-up command run"))
    again = len(cluster.find("start-up asked for again"))
    by: dict[str, int] = defaultdict(int)
    for line in cluster.find("handled"):
        by[line["who"]] += 1
    ended = [state["step"] for state in states]
    survivors = MANAGERS[:-1]
    saw = [
        len({one["session"] for one in seen(cluster, name, "session_terminated")})
        for name in survivors
    ]
    beats = Counter(line["agent"] for line in cluster.find("heartbeat"))
    failed = min(one["at"] for one in cluster.find("task seen", label="doomed", status="failed"))
    watched = [one["percent"] for one in cluster.find("task seen", who="manager-2", label="rescan")]
    late = taken_over(cluster, lost, killed)
    checks = [
        (
            not missing,
            f"{len(expected)} events, each handled at least once; missing {len(missing)}",
        ),
        (
            bool(lost) and set(late) == lost and max(late.values()) <= LEASE + 5,
            f"{len(lost)} of them in {VICTIM}'s hands when it was killed, taken over by others "
            f"within {max(late.values(), default=0):.1f} s, at most {LEASE + 5:g}",
        ),
        (twice <= 16, f"handled twice because of the kill: {twice}, at most 16"),
        (min(by.values()) > 0, "handled by " + ", ".join(f"{k} {by[k]}" for k in sorted(by))),
        (
            ended == ["terminated"] * len(sessions),
            f"{len(ended)} of {SESSIONS} sessions terminated",
        ),
        (
            set(runs) == set(batch) and set(runs.values()) == {1},
            f"{len(runs)} batch sessions, their command run once each; asked again {again}",
        ),
        (saw == [SESSIONS] * len(survivors), f"every surviving manager saw {saw} sessions end"),
        (len(beats) == len(AGENTS), f"heartbeats handled: {dict(sorted(beats.items()))}"),
        (
            watched == sorted(watched) and watched[-1] == 100,
            f"manager-2 saw manager-1's task at {watched} %",
        ),
        (
            failed - killed <= LEASE + 5,
            f"the dead manager's task was marked failed after {failed - killed:.1f} s, "
            f"at most {LEASE + 5:g}",
        ),
    ]
    print("\nWhat this run shows:")
    for holds, text in checks:
        print("✓" if holds else "✗", text)
    return all(holds for holds, _ in checks)


async def main() -> int:
    """Run the demo; 0 when every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="the bus; by default a redis-server of its own")
    options = parser.parse_args()
    async with contextlib.AsyncExitStack() as stack:
        url = options.url or await stack.enter_async_context(redis_of_our_own())
        bus = await stack.enter_async_context(connect(url))
        cluster = Cluster(url)
        stack.push_async_callback(cluster.stop)
        sessions, killed = await play(cluster, bus)
        records = [await bus.read(f"cluster/session/{one}") for one in sessions]
    lost = in_hand(cluster, VICTIM, until=killed + LEASE / 2)
    timeline(cluster, sessions, lost)
    found = [one.value for one in records if one]
    return 0 if summary(cluster, sessions, lost, killed, found) else 1


sys.exit(asyncio.run(main()))
