"""Servers of the four frameworks, and tasks to watch."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Self, Unpack

from aiohttp import web

from eventbus.background import BackgroundTaskManager, ProgressReporter
from eventbus.contrib.streams import Source, StreamLimits
from eventbus.testing import eventually

PATH = "/events/background-task"
Watched = BackgroundTaskManager | Source
Serve = Callable[..., contextlib.AbstractAsyncContextManager["Url"]]


class Url(str):
    """Where a server listens, and how many connections it has."""

    __slots__ = ("connections",)
    connections: Callable[[], int]

    def __new__(cls, text: str, connections: Callable[[], int]) -> Self:
        made = super().__new__(cls, text)
        made.connections = connections
        return made


@contextlib.asynccontextmanager
async def on_uvicorn(app: Any) -> AsyncIterator[Url]:
    import uvicorn

    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Url(f"http://127.0.0.1:{port}", lambda: len(server.server_state.connections))
    finally:
        server.should_exit = True
        server.force_exit = True
        await serving


@contextlib.asynccontextmanager
async def plain(
    manager: Watched, keep_alive: float = 15.0, **limits: Unpack[StreamLimits]
) -> AsyncIterator[Url]:
    from eventbus.contrib.sse import asgi_app

    async with on_uvicorn(asgi_app(manager, keep_alive=keep_alive, **limits)) as url:
        yield url


@contextlib.asynccontextmanager
async def starlette(
    manager: Watched, keep_alive: float = 15.0, **limits: Unpack[StreamLimits]
) -> AsyncIterator[Url]:
    from starlette.applications import Starlette

    from eventbus.contrib.starlette import background_task_route

    app = Starlette(routes=[background_task_route(manager, keep_alive=keep_alive, **limits)])
    async with on_uvicorn(app) as url:
        yield url


@contextlib.asynccontextmanager
async def fastapi(
    manager: Watched, keep_alive: float = 15.0, **limits: Unpack[StreamLimits]
) -> AsyncIterator[Url]:
    from fastapi import FastAPI

    from eventbus.contrib.fastapi import background_task_router

    app = FastAPI()
    app.include_router(background_task_router(manager, keep_alive=keep_alive, **limits))
    async with on_uvicorn(app) as url:
        yield url


@contextlib.asynccontextmanager
async def served(handler: Any) -> AsyncIterator[Url]:
    app = web.Application()
    app.router.add_get(PATH, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        server = runner.server
        assert server is not None
        yield Url(f"http://127.0.0.1:{runner.addresses[0][1]}", lambda: len(server.connections))
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def on_aiohttp(
    manager: Watched, keep_alive: float = 15.0, **limits: Unpack[StreamLimits]
) -> AsyncIterator[Url]:
    from eventbus.contrib.aiohttp import handler_of

    async with served(handler_of(manager, keep_alive=keep_alive, **limits)) as url:
        yield url


SERVERS = [plain, starlette, fastapi, on_aiohttp]


async def steps(reporter: ProgressReporter) -> str:
    reporter.total_progress = 3
    for number in range(3):
        await asyncio.sleep(0.02)
        await reporter.update(1, f"step {number}")
    return "all done"


async def forever(reporter: ProgressReporter) -> None:
    await asyncio.sleep(1000)


@contextlib.asynccontextmanager
async def opened(
    url: Url, task_id: uuid.UUID, header: bytes = b"X: y", room: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request over a socket of our own."""
    raw = socket.socket()
    if room:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    raw.setblocking(False)
    host, _, port = url.removeprefix("http://").partition(":")
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 16)
    writer.write(f"GET {PATH}?taskId={task_id} HTTP/1.1\r\nHost: h\r\n".encode())
    writer.write(header + b"\r\n\r\n")
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
