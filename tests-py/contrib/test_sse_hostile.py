"""Server-sent events against hostile clients and hostile states, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrib.support import PATH, Serve, Url, forever, on_aiohttp, plain
from eventbus import ConnectError, NotFoundError, connect
from eventbus.background import BackgroundTaskManager, ProgressReporter, ServerSentEvent
from eventbus.background.state import TaskState
from eventbus.contrib.streams import StreamLimits, Streams, last_event_id_of
from eventbus.errors import InvalidArgumentError
from eventbus.testing import eventually

KNOWN = uuid.UUID("11111111-1111-4111-8111-111111111111")
ENDS = ["\n", "\r", "\r\n", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


def parsed(raw: bytes) -> list[dict[str, str]]:
    """Read a stream as a browser does."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    for line in re.split(r"\r\n|\r|\n", raw.decode())[:-1]:
        if not line:
            if fields:
                found.append(fields)
            fields = {}
            continue
        name, _, value = line.partition(":")
        if name:
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return found


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


# What gets into a stream


@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_a_name_or_an_id_stays_on_its_line(end: str) -> None:
    for event in (
        ServerSentEvent(f"a{end}event: evil", "{}"),
        ServerSentEvent(f"a{end}", "{}"),
        ServerSentEvent(end, "{}"),
        ServerSentEvent("a", "{}", id=f"1{end}data: evil"),
        ServerSentEvent("a", "{}", retry=f"1{end}data: evil"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidArgumentError):
            event.encode()


@pytest.mark.parametrize("retry", [-1, True, 1.5, 2**70, "5"])
def test_retry_is_a_number_of_milliseconds(retry: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="retry"):
        ServerSentEvent("a", "{}", retry=retry).encode()


@given(st.text(alphabet=st.one_of(st.sampled_from("\r\n:\0 \u2028ad"), st.characters())))
def test_data_of_any_text_is_one_event(text: str) -> None:
    found = parsed(ServerSentEvent("name", text, id="7").encode())
    data = re.sub(r"\r\n|\r", "\n", text).encode(errors="replace").decode()
    assert found == [{"event": "name", "data": data, "id": "7", "retry": "5"}]


async def put(bus: Any, task_id: uuid.UUID, /, **changed: Any) -> None:
    value = TaskState(task_id=str(task_id)).to_dict() | changed
    async with bus.transaction() as tx:
        tx.put(f"background/task/{task_id}", value)


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "done\n\nevent: evil\ndata: {}\n\n"},
        {"status": "evil"},
        {"status": None},
        {"status": ["done"]},
        {"task_id": {"a": 1}},
    ],
    ids=str,
)
async def test_a_forged_state_is_refused(
    serve: Serve, client: aiohttp.ClientSession, changed: dict[str, Any]
) -> None:
    async with connect("memory://") as bus, BackgroundTaskManager(bus) as manager:
        await put(bus, KNOWN, **changed)
        async with (
            serve(manager) as url,
            client.get(f"{url}{PATH}?taskId={KNOWN}") as response,
        ):
            assert response.status == 503
            assert "evil" not in await response.text()


async def test_a_forged_announcement_is_skipped(client: aiohttp.ClientSession) -> None:
    async with connect("memory://") as bus, BackgroundTaskManager(bus) as manager:
        task_id = await manager.start(forever)
        async with (
            plain(manager) as url,
            client.get(f"{url}{PATH}?taskId={task_id}") as response,
        ):
            await response.content.readuntil(b"\n\n")
            evil = TaskState(task_id=str(task_id)).to_dict() | {"status": "x\n\nevent: evil\n\n"}
            for version in (7, "8", "9" * 5000, None, 2**70):
                payload = {"state": evil, "version": version}
                await bus.publish(f"background:{task_id}", payload)
            await manager.shutdown()
            assert b"evil" not in await response.read()


@pytest.mark.parametrize(
    "changed",
    [
        {"current": float("nan"), "total": float("inf")},
        {"current": 10**5000, "total": -(10**400)},
        {"current": "x\n\n", "total": [1]},
        {"message": b"\xff\n\nevent: evil\n\n"},
        {"message": {"a": {1, 2}}},
        {"message": "a\r\rdata: evil\u2028\ud800"},
    ],
    ids="-".join,
)
async def test_every_stored_state_is_json_for_a_browser(
    client: aiohttp.ClientSession, changed: dict[str, Any]
) -> None:
    def strict(text: str) -> None:
        raise AssertionError(text)

    async with connect("memory://") as bus, BackgroundTaskManager(bus) as manager:
        await put(bus, KNOWN, status="done", **changed)
        async with (
            plain(manager) as url,
            client.get(f"{url}{PATH}?taskId={KNOWN}") as response,
        ):
            found = parsed(await response.read())
    assert [one["event"] for one in found] == ["task_done", "server_close"]
    data = json.loads(found[0]["data"], parse_constant=strict)
    assert data["task_id"] == str(KNOWN)


LAST = [
    b"-1",
    b"0",
    b"99999",
    b"1e3",
    b"9" * 5000,
    b"\xff\xfe\x80",
    b"\xc3\xa9",
    b"a b\tc",
    b"x" * 10_000,
    b"9" * 10_000,
    "\u0663".encode(),
]


@pytest.mark.parametrize("server", [plain, on_aiohttp], ids=lambda one: one.__name__)
async def test_last_event_id_of_any_content_is_harmless(
    server: Serve, manager: BackgroundTaskManager
) -> None:
    task_id = await manager.start(forever)
    async with server(manager) as url:
        for last in LAST:
            answer = b""
            header = b"Last-Event-ID: " + last
            async with asyncio.timeout(10), opened(url, task_id, header) as (reader, _):
                while not re.search(rb"event: task_updated|HTTP/1.. 4", answer):
                    read = await reader.read(4096)
                    assert read, (last[:20], answer)
                    answer += read
            # aiohttp itself refuses lines above 8,190 bytes.
            assert b"200 OK" in answer or (len(last) > 8190 and b" 400 " in answer), last[:20]


def test_what_cannot_be_the_id_of_an_event_is_ignored() -> None:
    assert [one for one in LAST if last_event_id_of(one) is not None] == LAST[:4]
    for text in (None, "", "\udcff", "a\n", "\0", "x" * 65):
        assert last_event_id_of(text) is None


# What clients may cost


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
