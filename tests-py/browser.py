"""Debian's chromium without a window, told what to do over its debugging protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from eventbus.testing import eventually

NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str:
    """Return the browser; one that is missing fails the test, with one clear line."""
    found = os.environ.get("EVENTBUS_TEST_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), None
    )
    if found is None:
        pytest.fail("chromium is not installed: apt-get install -y chromium", pytrace=False)
    return found


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json(timeout=30)
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found

    async def open(self, url: str) -> None:
        await self._call("Page.navigate", url=url)
        await self.until("document.readyState == 'complete' && location.href == " + json.dumps(url))

    async def run(self, script: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        result = await self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, json.dumps(result)
        return result["result"].get("value")

    async def until(self, script: str, timeout: float = 30) -> Any:
        """Wait until an expression is true."""
        return await eventually(lambda: self.run(script), script, timeout=timeout)


@asynccontextmanager
async def opened_page() -> AsyncIterator[Page]:
    """Start a browser with one empty page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program(),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
            *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(folder) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                url = await _debugger(session, port)
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            # What it started itself ends a moment later, and still writes to the folder.
            await asyncio.sleep(0.1)


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    def written() -> str | None:
        assert process.returncode is None, f"chromium ended with status {process.returncode}"
        return file.read_text() if file.exists() else None

    text: str = await eventually(written, "the port of chromium", timeout=60)
    return int(text.splitlines()[0])


async def _debugger(session: aiohttp.ClientSession, port: int) -> str:
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = [one for one in await response.json() if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.05)
