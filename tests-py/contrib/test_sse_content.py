"""Server-sent events: what hostile states and names can get into a stream, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrib.support import PATH, Serve, forever, on_aiohttp, opened, plain
from eventbus import connect
from eventbus.background import BackgroundTaskManager, ServerSentEvent
from eventbus.background.state import TaskState
from eventbus.contrib.streams import last_event_id_of
from eventbus.errors import InvalidArgumentError

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
