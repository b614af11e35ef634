"""A page with a progress bar for a background task: `python server.py`, then open the address.

Two managers share a bus: one runs the task, the page watches it through the other one. With a bus
between machines (`--url redis://…`) they may be two processes. Needs `pip install aiohttp`.
"""

import argparse
import asyncio
import contextlib
from pathlib import Path

from aiohttp import web

from eventbus import connect
from eventbus.background import BackgroundTaskManager, ProgressReporter
from eventbus.contrib.aiohttp import background_task_handler

PAGE = Path(__file__).with_name("index.html").read_text("utf-8")
STEPS = 20


async def rescan(reporter: ProgressReporter, pause: float) -> str:
    """Pretend to look at some images."""
    reporter.total_progress = STEPS
    for number in range(1, STEPS + 1):
        await asyncio.sleep(pause)
        await reporter.update(1, f"image {number} of {STEPS}")
    return f"{STEPS} images found"


def application(
    runs: BackgroundTaskManager, watches: BackgroundTaskManager, pause: float
) -> web.Application:
    """Return the site: the page, the start of a task, and its events."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def start(request: web.Request) -> web.Response:
        task_id = await runs.start(lambda reporter: rescan(reporter, pause), "rescan")
        return web.json_response({"task_id": str(task_id)})

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_post("/start", start)
    app.router.add_get("/events/background-task", background_task_handler(watches))
    return app


async def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="memory://progress", help="the bus")
    parser.add_argument("--port", type=int, default=8080, help="0 = any free one")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds per step")
    options = parser.parse_args()
    async with (
        connect(options.url) as one,
        connect(options.url) as two,
        BackgroundTaskManager(one) as runs,
        BackgroundTaskManager(two) as watches,
    ):
        runner = web.AppRunner(application(runs, watches, options.pause), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        print(f"open http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await watches.shutdown()  # open streams end, so that the server need not wait for them
            await runner.cleanup()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
