"""The example with the progress bar, in a real browser."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from browser import opened_page

SERVER = Path(__file__).parent.parent / "examples" / "background_progress" / "server.py"


@pytest.fixture
async def site() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", str(SERVER), "--port", "0", "--pause", "0.05"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    assert line.startswith("open http://"), line
    yield line.split()[1]
    process.terminate()
    await process.wait()


async def test_the_bar_moves_to_its_end_in_a_browser(site: str) -> None:
    async with opened_page() as page:
        await page.open(site)
        assert await page.run("document.getElementById('state').textContent") == "not started"
        await page.run(
            "window.values = []; new MutationObserver(() => values.push(bar.value))"
            ".observe(document.getElementById('state'), {childList: true});"
            "document.getElementById('start').click()"
        )
        await page.until("state.textContent.startsWith('done')")
        await page.until("log.textContent.includes('server_close')")
        assert await page.run("state.textContent") == "done: 20 images found"
        assert await page.run("[bar.value, bar.max]") == [20, 20]
        values = await page.run("values")
        assert values == sorted(values)
        assert len(set(values)) > 10
        names = await page.run("[...log.children].map(item => item.textContent.split(' ')[0])")
        assert names[-2:] == ["task_done", "server_close"]
        assert set(names[:-2]) == {"task_updated"}
        # The stream was closed by the page, and is not opened again.
        requests = "performance.getEntriesByType('resource').filter(e => e.name.includes('events'))"
        assert await page.run(f"{requests}.length") <= 1
        assert await page.run("document.getElementById('start').disabled") is False


async def test_a_page_opened_later_shows_the_same_task(site: str) -> None:
    async with opened_page() as page:
        await page.open(site)
        task = await page.run(
            "fetch('/start', {method: 'POST'}).then(a => a.json()).then(a => a.task_id)"
        )
        await asyncio.sleep(0.3)
        await page.open("about:blank#")
        await page.open(f"{site}#{task}")
        await page.until("state.textContent == 'done: 20 images found'")
        # Late: the task is over.
        await page.open("about:blank#")
        await page.open(f"{site}#{task}")
        await page.until("state.textContent == 'done: 20 images found'")
        assert await page.run("log.children.length") == 2
