"""Fixtures that every test shares: names of its own, waiting, no leaked tasks."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from functools import partial
from typing import Any

import pytest

from eventbus import testing

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Undo what the environment does to tests: signals that shells ignore, and a URL."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where the bus of whoever runs the tests is, is nothing to them.
    os.environ.pop("EVENTBUS_URL", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in what a test logged: processes of one run tell it in UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a function that makes a name no other test uses, on a shared server either."""
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60]
    mark = f"{os.getpid()}-{next(_numbers)}"
    return lambda name: f"{name}:{test}:{mark}"


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    """Wait until something is true, for ten seconds at most."""
    return partial(testing.eventually, timeout=10.0)


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fail a test that leaves tasks of the bus behind on its loop; ask for it before the bus."""
    before = asyncio.all_tasks()
    yield
    left = {
        task
        for task in asyncio.all_tasks() - before - {asyncio.current_task()}
        if task.get_name().startswith("eventbus-")
    }
    if left:
        await asyncio.wait(left, timeout=2.0)
    assert not [task for task in left if not task.done()]
