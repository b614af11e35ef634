"""An agent: starts and ends kernels when it is told to, runs start-up commands, and beats."""

import asyncio

from common import LEASE, PREFIX, arguments, tell

from eventbus import VersionConflict, connect
from eventbus.dispatcher import EventDispatcher


async def main() -> None:
    """Run until killed."""
    options = arguments()
    name = options.name
    async with connect(options.url) as bus:
        # Commands for one agent have names of its own: nobody else takes them.
        events = EventDispatcher(bus, prefix=PREFIX, group=name, source=name, lease=LEASE)

        async def create(context: object, source: str, event: str, session: str) -> None:
            await asyncio.sleep(0.03)
            await events.produce_event("kernel_started", (session,))

        async def start_up(context: object, source: str, event: str, session: str) -> None:
            # An event may come twice; the record makes its effect happen once.
            try:
                async with bus.transaction() as tx:
                    tx.put(f"cluster/ran/{session}", {"agent": name}, if_version=0)
            except VersionConflict:
                tell(name, "start-up asked for again", session=session)
            else:
                tell(name, "start-up command run", session=session)
            await events.produce_event("session_success", (session, 0))

        async def destroy(context: object, source: str, event: str, session: str) -> None:
            await asyncio.sleep(0.03)
            await events.produce_event("kernel_terminated", (session,))

        await events.consume(f"create_kernel.{name}", create)
        await events.consume(f"run_start_up.{name}", start_up)
        await events.consume(f"destroy_kernel.{name}", destroy)
        async with events:
            await events.produce_event("agent_started")
            tell(name, "started")
            while True:
                await events.produce_event("agent_heartbeat", ({"kernels": 0},))
                await asyncio.sleep(0.5)


asyncio.run(main())
