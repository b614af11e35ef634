"""A manager as a process of its own: notes each event it handled, and may be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from eventbus.compat.backendai import EventDispatcher


async def main(url: str, wire: str, note: str) -> None:
    file = os.open(note, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    d = await EventDispatcher.new(bus=url, wire=wire, lease=2.0, concurrency=16)

    async def handle(context: Any, agent_id: str, name: str, number: int) -> None:
        await asyncio.sleep(0.002)
        os.write(file, b"%d\n" % number)

    d.consume("e", None, handle)
    await d.connection.transport.bound()
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
