"""Server-sent events over real HTTP: ASGI, Starlette, FastAPI, aiohttp, and the compat forms."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from conformance.conftest import MakeBus
from contrib.support import PATH, Serve, forever, on_uvicorn, plain, served, steps
from eventbus import connect
from eventbus.background import BackgroundTaskManager, ProgressReporter
from eventbus.testing import eventually


async def lines_of(response: aiohttp.ClientResponse) -> list[str]:
    return (await response.text()).splitlines()


def events_of(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


async def test_a_stream_from_the_start_to_server_close(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    async with serve(manager, 15.0) as url:
        task_id = await manager.start(steps)
        async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert "no-cache" in response.headers["Cache-Control"]
            found = events_of(await response.text())
    assert [one["event"] for one in found[-2:]] == ["task_done", "server_close"]
    assert found[-1]["data"] == "{}"
    assert json.loads(found[-2]["data"])["message"] == "all done"
    assert [one["id"] for one in found[:-1]] == sorted(one["id"] for one in found[:-1])
    assert found[0]["retry"] == "5"


async def test_a_task_of_another_manager_is_served(
    make_bus: MakeBus, unique: Callable[[str], str], client: aiohttp.ClientSession
) -> None:
    prefix = unique("sse").replace(":", "-")
    async with (
        BackgroundTaskManager(await make_bus(), prefix=prefix) as runs,
        BackgroundTaskManager(await make_bus(), prefix=prefix) as serves,
        plain(serves, 15.0) as url,
    ):
        task_id = await runs.start(steps)
        async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
            live = events_of(await response.text())
        async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
            late = events_of(await response.text())
    assert [one["event"] for one in live[-2:]] == ["task_done", "server_close"]
    assert late == live[-2:]


async def test_requests_that_are_refused(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    async with serve(manager, 15.0) as url:
        for query, status in (
            ("", 400),
            ("?taskId=", 400),
            ("?taskId=not-a-uuid", 400),
            ("?task_id=7", 400),
            (f"?taskId={uuid.uuid4()}", 404),
            (f"?task_id={uuid.uuid4()}", 404),
        ):
            async with client.get(url + PATH + query) as response:
                assert response.status == status, query
        async with client.post(f"{url}{PATH}?taskId={uuid.uuid4()}") as response:
            assert response.status == 405


async def test_both_names_of_the_parameter(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    async with serve(manager, 15.0) as url:
        task_id = await manager.start(steps)
        for name in ("taskId", "task_id"):
            async with client.get(f"{url}{PATH}?{name}={task_id}") as response:
                assert "server_close" in await response.text()


async def test_silence_is_filled_with_comments(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    async with serve(manager, 0.05) as url:
        task_id = await manager.start(forever)
        async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
            comments = 0
            async with asyncio.timeout(5):
                async for line in response.content:
                    comments += line == b": keep-alive\n"
                    if comments == 3:
                        break


async def test_a_client_that_leaves_frees_everything(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    async with serve(manager, 60.0) as url:
        task_id = await manager.start(forever)
        response = await client.get(f"{url}{PATH}?taskId={task_id}")
        await response.content.readline()
        await eventually(lambda: manager._watchers)
        response.close()
        await eventually(lambda: not manager._watchers, timeout=2)


async def test_last_event_id_is_honoured(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    go = asyncio.Event()

    async def work(reporter: ProgressReporter) -> None:
        await reporter.update(1, "first")
        await go.wait()

    async with serve(manager, 15.0) as url:
        task_id = await manager.start(work)

        async def updated() -> bool:
            state = await manager.read(task_id)
            return state is not None and state.version == 2

        await eventually(updated)
        headers = {"Last-Event-ID": "2"}
        async with client.get(f"{url}{PATH}?taskId={task_id}", headers=headers) as response:
            await response.content.readline()
            go.set()
            found = events_of("\n" + await response.text())
        assert [one["event"] for one in found] == ["task_done", "server_close"]


async def test_a_manager_that_is_shut_down_ends_streams_without_server_close(
    serve: Serve, manager: BackgroundTaskManager, client: aiohttp.ClientSession
) -> None:
    async with connect("memory://shutdown") as one, connect("memory://shutdown") as two:
        async with BackgroundTaskManager(one) as runs:
            watches = BackgroundTaskManager(two)
            await watches.start_up()
            async with serve(watches, 15.0) as url:
                task_id = await runs.start(forever)
                async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
                    await eventually(lambda: watches._watchers)
                    await watches.shutdown()
                    text = await response.text()
        assert "server_close" not in text


Make = Callable[[], Awaitable[Any]]


@pytest.mark.parametrize("kind", ["asgi", "aiohttp"])
async def test_b48_over_http(kind: str, client: aiohttp.ClientSession) -> None:
    from eventbus.compat.backendai import EventDispatcher, background

    d = await EventDispatcher.new(bus="memory://")
    manager = background.BackgroundTaskManager(d)
    serving = (
        on_uvicorn(background.asgi_app(d))
        if kind == "asgi"
        else served(background.aiohttp_handler(d))
    )
    async with serving as url:
        for query, status in (("taskId=x", 400), (f"taskId={uuid.uuid4()}", 404)):
            async with client.get(f"{url}{PATH}?{query}") as response:
                assert response.status == status
        task_id = await manager.start(steps)
        async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
            live = events_of(await response.text())
        assert [one["event"] for one in live] == [
            *["task_updated"] * 3,
            "task_done",
            "server_close",
        ]
        async with client.get(f"{url}{PATH}?task_id={task_id}") as response:
            late = events_of(await response.text())
        assert json.loads(late[0]["data"])["current_progress"] == "3"
        assert [one["event"] for one in late] == ["task_done", "server_close"]
    await manager.shutdown()
    await d.close()


async def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from eventbus.contrib.aiohttp import handler_of
    from eventbus.contrib.fastapi import background_task_router
    from eventbus.contrib.starlette import background_task_route

    async with connect("memory://") as bus:
        manager = BackgroundTaskManager(bus)
        for module, call in (
            ("starlette.routing", lambda: background_task_route(manager)),
            ("fastapi", lambda: background_task_router(manager)),
            ("aiohttp", lambda: handler_of(None)),  # type: ignore[arg-type]
        ):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, module, None)
                with pytest.raises(ImportError, match="pip install"):
                    call()
