"""A manager: moves sessions from step to step, sees every event, and runs background tasks."""

import asyncio
import random
from typing import Any

from common import AGENTS, LEASE, PREFIX, arguments, tell

from eventbus import VersionConflict, connect
from eventbus.background import BackgroundTaskManager, ProgressReporter
from eventbus.bus import Bus
from eventbus.dispatcher import EventDispatcher

STEPS = ["enqueued", "scheduled", "running", "succeeded", "terminated"]


class Sessions:
    """The states of sessions: records, so that every manager knows the same."""

    def __init__(self, bus: Bus) -> None:
        """Use a bus."""
        self._bus = bus

    async def advance(self, session: str, step: str, **changes: Any) -> dict[str, Any]:
        """Move a session to a step, unless it is there or beyond; return its state."""
        while True:
            found = await self._bus.read(f"cluster/session/{session}")
            assert found is not None, session
            state = found.value
            if STEPS.index(state["step"]) >= STEPS.index(step):
                return dict(state)
            state = {**state, **changes, "step": step}
            try:
                async with self._bus.transaction() as tx:
                    tx.put(f"cluster/session/{session}", state, if_version=found.version)
            except VersionConflict:
                continue
            return state


class Manager:
    """The handlers of one manager.

    Every handler may run twice for an event, and then says again what follows from it.
    """

    def __init__(self, name: str, bus: Bus) -> None:
        """Use a bus."""
        self.name = name
        self.sessions = Sessions(bus)
        self.tasks = BackgroundTaskManager(bus, prefix=f"{PREFIX}-task", lease=LEASE)
        self.events = EventDispatcher(
            bus, prefix=PREFIX, source=name, lease=LEASE, concurrency=16, drain_timeout=5
        )

    async def register(self) -> None:
        """Register the handlers, before the first event is taken."""
        await self.events.consume("session_enqueued", self.enqueued)
        await self.events.consume("kernel_started", self.kernel_started)
        await self.events.consume("session_success", self.success)
        await self.events.consume("kernel_terminated", self.kernel_terminated)
        await self.events.consume("agent_heartbeat", self.heartbeat)
        await self.events.consume(f"run_task.{self.name}", self.run_task)
        for step in ("scheduled", "started", "terminated"):
            await self.events.subscribe(f"session_{step}", self.saw)
        await self.events.subscribe("watch_task", self.watch_task)

    def handled(self, event: str, session: str) -> None:
        """Tell it to the timeline."""
        tell(self.name, "handled", event=event, session=session)

    async def enqueued(self, context: object, source: str, event: str, session: str) -> None:
        """Choose an agent."""
        self.handled(event, session)
        await asyncio.sleep(0.1)  # time to be killed in
        agent = random.choice(AGENTS)
        state = await self.sessions.advance(session, "scheduled", agent=agent)
        await self.events.produce_event("session_scheduled", (session,))
        await self.events.produce_event(f"create_kernel.{state['agent']}", (session,))

    async def kernel_started(self, context: object, source: str, event: str, session: str) -> None:
        """Let a batch session run its command; end any other."""
        self.handled(event, session)
        state = await self.sessions.advance(session, "running")
        await self.events.produce_event("session_started", (session,))
        follows = "run_start_up" if state["batch"] else "destroy_kernel"
        await self.events.produce_event(f"{follows}.{state['agent']}", (session,))

    async def success(
        self, context: object, source: str, event: str, session: str, exit_code: int
    ) -> None:
        """End a batch session whose command has run."""
        self.handled(event, session)
        state = await self.sessions.advance(session, "succeeded", exit_code=exit_code)
        await self.events.produce_event(f"destroy_kernel.{state['agent']}", (session,))

    async def kernel_terminated(
        self, context: object, source: str, event: str, session: str
    ) -> None:
        """Note the end."""
        self.handled(event, session)
        await self.sessions.advance(session, "terminated")
        await self.events.produce_event("session_terminated", (session,))

    async def heartbeat(self, context: object, source: str, event: str, info: object) -> None:
        """Note that an agent lives."""
        tell(self.name, "heartbeat", agent=source)

    async def saw(self, context: object, source: str, event: str, session: str) -> None:
        """See what every manager sees."""
        tell(self.name, "saw", event=event, session=session)

    async def run_task(self, context: object, source: str, event: str, label: str) -> None:
        """Start a background task here."""
        task_id = await self.tasks.start(rescan, label)
        tell(self.name, "task started", label=label, task=str(task_id))
        await self.events.produce_event("watch_task", (label, str(task_id)))

    async def watch_task(
        self, context: object, source: str, event: str, label: str, task_id: str
    ) -> None:
        """Watch a background task, wherever it runs."""
        async for state in self.tasks.watch(task_id):
            if state.is_final or state.current % 10 == 0:
                percent = round(100 * state.current / (state.total or 1))
                tell(self.name, "task seen", label=label, status=state.status, percent=percent)


async def rescan(reporter: ProgressReporter) -> str:
    """Pretend to look at some images."""
    reporter.total_progress = 40
    for number in range(40):
        await asyncio.sleep(0.1)
        await reporter.update(1, f"image {number + 1}")
    return "40 images"


async def main() -> None:
    """Run until killed."""
    options = arguments()
    async with connect(options.url) as bus:
        manager = Manager(options.name, bus)
        await manager.register()
        async with manager.tasks, manager.events:
            tell(options.name, "started")
            await asyncio.Event().wait()


asyncio.run(main())
