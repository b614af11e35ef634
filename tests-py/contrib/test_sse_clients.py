"""Server-sent events: who may watch, and what clients may cost, over real sockets."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp
import pytest

from contrib.support import PATH, Serve, forever, opened
from eventbus import ConnectError, NotFoundError
from eventbus.background import BackgroundTaskManager, ProgressReporter, ServerSentEvent
from eventbus.contrib.streams import StreamLimits, Streams
from eventbus.errors import InvalidArgumentError
from eventbus.testing import eventually

KNOWN = uuid.UUID("11111111-1111-4111-8111-111111111111")


class Events:
    """A source that counts what is asked of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = 0
        self.open = 0
        self.error = error

    async def __call__(self, task_id: uuid.UUID, last: str | None) -> AsyncIterator[Any]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if task_id != KNOWN:
            raise NotFoundError("no such task")
        return self.events()

    async def events(self) -> AsyncGenerator[ServerSentEvent]:
        self.open += 1
        try:
            yield ServerSentEvent("task_updated", "{}")
            await asyncio.Event().wait()
        finally:
            self.open -= 1


# Who may watch


def no(scope: Any, task_id: uuid.UUID) -> bool:
    return False


async def no_later(scope: Any, task_id: uuid.UUID) -> bool:
    await asyncio.sleep(0)
    return False


def fails(scope: Any, task_id: uuid.UUID) -> bool:
    raise LookupError("no such user")


async def fails_later(scope: Any, task_id: uuid.UUID) -> bool:
    raise NotFoundError("no such user")


def forgets_to_return(scope: Any, task_id: uuid.UUID) -> Any:
    return None


def means_something_else(scope: Any, task_id: uuid.UUID) -> Any:
    return "denied"


@pytest.mark.parametrize(
    "authorize", [no, no_later, fails, fails_later, forgets_to_return, means_something_else]
)
async def test_who_may_not_watch_learns_nothing_and_nothing_is_read(
    serve: Serve, client: aiohttp.ClientSession, authorize: Any
) -> None:
    source = Events()
    answers = []
    async with serve(source, authorize=authorize) as url:
        for task_id in (KNOWN, uuid.uuid4()):
            async with client.get(f"{url}{PATH}?taskId={task_id}") as response:
                headers = {key: text for key, text in response.headers.items() if key != "Date"}
                answers.append((response.status, headers, await response.text()))
    assert answers[0] == answers[1]
    assert answers[0][0] == 403
    assert source.asked == 0


async def test_who_may_watch_is_asked_with_the_request(
    serve: Serve, client: aiohttp.ClientSession
) -> None:
    seen: list[tuple[str, uuid.UUID]] = []

    async def authorize(scope: Any, task_id: uuid.UUID) -> bool:
        if isinstance(scope, aiohttp.web.Request):
            key = scope.headers["X-Key"]
        else:
            key = dict(scope["headers"])[b"x-key"].decode()
        seen.append((key, task_id))
        return key == "mine"

    async with serve(Events(), authorize=authorize) as url:
        for key, status in (("mine", 200), ("other", 403)):
            request = client.get(f"{url}{PATH}?taskId={KNOWN}", headers={"X-Key": key})
            async with request as response:
                assert response.status == status
    assert seen == [("mine", KNOWN), ("other", KNOWN)]


async def test_an_answer_names_no_server(serve: Serve, client: aiohttp.ClientSession) -> None:
    source = Events(ConnectError("cannot reach db.internal:5432 as app_owner"))
    async with (
        serve(source) as url,
        client.get(f"{url}{PATH}?taskId={KNOWN}") as response,
    ):
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert "internal" not in await response.text()


# What clients may cost


async def test_clients_per_task_and_per_process_are_capped(
    serve: Serve, client: aiohttp.ClientSession, manager: BackgroundTaskManager
) -> None:
    tasks = [await manager.start(forever) for _ in range(3)]

    async def get(url: str, task: int) -> aiohttp.ClientResponse:
        response = await client.get(f"{url}{PATH}?taskId={tasks[task]}")
        if response.status == 200:
            await response.content.readline()
        else:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            await response.read()
        return response

    limits = StreamLimits(max_clients=3, max_clients_per_task=2)
    async with serve(manager, **limits) as url, serve(manager, **limits) as other:
        first, second = await get(url, 0), await get(other, 0)
        assert [first.status, second.status] == [200, 200]
        assert (await get(url, 0)).status == 503
        third = await get(url, 1)
        assert third.status == 200
        assert [(await get(one, 2)).status for one in (url, other)] == [503, 503]
        assert sum(map(len, manager._watchers.values())) == 3
        first.close()

        async def again() -> bool:
            response = await get(url, 0)
            response.close()
            return response.status == 200

        await eventually(again)
        second.close()
        third.close()
        await eventually(lambda: not manager._watchers)


async def test_refused_requests_hold_no_place(serve: Serve, client: aiohttp.ClientSession) -> None:
    source = Events()
    async with serve(source, max_clients=1) as url:
        for _ in range(3):
            async with client.get(f"{url}{PATH}?taskId={uuid.uuid4()}") as response:
                assert response.status == 404
            async with client.head(f"{url}{PATH}?taskId={KNOWN}") as response:
                assert response.status == 200
                assert await response.read() == b""
        async with client.get(f"{url}{PATH}?taskId={KNOWN}") as response:
            assert response.status == 200
            await response.content.readline()
            await eventually(lambda: source.open == 1)
        await eventually(lambda: source.open == 0)


async def test_a_client_that_never_reads_is_closed_and_costs_little(
    serve: Serve, manager: BackgroundTaskManager
) -> None:
    large = "x" * 500_000
    go = asyncio.Event()

    async def work(reporter: ProgressReporter) -> None:
        while not go.is_set():
            await reporter.update(1, large)
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    async with serve(manager, send_timeout=0.5) as url:
        task_id = await manager.start(work)
        async with opened(url, task_id, room=4096) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # that of a socket
            await eventually(lambda: manager._watchers)
            (watcher,) = manager._watchers[str(task_id)]
            most = 0

            def closed() -> bool:
                nonlocal most
                most = max(most, len(watcher.states))
                return not manager._watchers and not url.connections()

            await eventually(closed, timeout=30)
            go.set()
            assert 0 < most <= 100


async def test_a_client_that_reads_slowly_gets_the_last_word(
    serve: Serve, manager: BackgroundTaskManager
) -> None:
    large = "x" * 100_000
    steps = 400

    async def work(reporter: ProgressReporter) -> str:
        for _ in range(steps):
            await reporter.update(1, large)
        return "all done"

    started = asyncio.Event()

    async def waits(reporter: ProgressReporter) -> str:
        await started.wait()
        return await work(reporter)

    async with serve(manager) as url:
        task_id = await manager.start(waits)
        async with opened(url, task_id, b"Connection: close", room=4096) as (reader, _):
            await eventually(lambda: manager._watchers)
            started.set()
            await eventually(lambda: not manager.ongoing_tasks, timeout=30)
            answer = await reader.read()
    assert answer.count(b"event: task_updated") < steps
    assert answer.count(b"event: task_done") == 1
    assert answer.count(b"event: server_close") == 1


@pytest.mark.parametrize(
    "limits",
    [
        {"max_clients": 0},
        {"max_clients": True},
        {"max_clients_per_task": "5"},
        {"send_timeout": 0},
        {"keep_alive": -1},
        {"authorize": "yes"},
    ],
    ids=str,
)
def test_limits_that_are_none_are_refused(limits: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(limits))):
        Streams(Events(), **limits)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="authorise"):
        Streams(Events(), authorise=no)  # type: ignore[call-arg]
