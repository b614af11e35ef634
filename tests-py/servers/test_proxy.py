"""The fault proxy does to an echo server's connections what it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from servers.proxy import FaultProxy


class Echo:
    """Answers each line with the same line, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.ends: list[BaseException | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        error: BaseException | None = None
        try:
            while line := await reader.readline():
                self.got.append(line)
                writer.write(line)
                await writer.drain()
        except OSError as raised:
            error = raised
        self.ends.append(error)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, FaultProxy]]:
    one = Echo()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    with FaultProxy(server.sockets[0].getsockname()[1], seed=7) as proxy:
        yield one, proxy
    server.close()
    await asyncio.sleep(0.05)


async def opened(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def ask(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes, within: float = 5.0
) -> bytes:
    reader, writer = connection
    writer.write(line)
    async with asyncio.timeout(within):
        return await reader.readline()


async def test_without_a_fault_it_forwards(echo: tuple[Echo, FaultProxy]) -> None:
    _, proxy = echo
    one, two = await opened(proxy), await opened(proxy)
    big = b"x" * 60_000 + b"\n"
    assert await ask(one, b"one\n") == b"one\n"
    assert await ask(two, big) == big
    assert proxy.connections == 2
    for _, writer in (one, two):
        writer.close()


async def test_a_delay_is_kept_in_each_direction(echo: tuple[Echo, FaultProxy]) -> None:
    _, proxy = echo
    one = await opened(proxy)
    proxy.slow(delay=0.1, jitter=0.01)
    begin = time.monotonic()
    await ask(one, b"line\n")
    assert time.monotonic() - begin >= 0.18
    proxy.heal()
    begin = time.monotonic()
    await ask(one, b"line\n")
    assert time.monotonic() - begin < 0.15
    one[1].close()


async def test_a_throttle_limits_the_bytes_a_second(echo: tuple[Echo, FaultProxy]) -> None:
    _, proxy = echo
    one = await opened(proxy)
    proxy.slow("down", throttle=100_000)
    line = b"x" * 30_000 + b"\n"
    begin = time.monotonic()
    assert await ask(one, line) == line
    assert 0.2 < time.monotonic() - begin < 2.0
    one[1].close()


async def test_held_bytes_arrive_after_the_release(echo: tuple[Echo, FaultProxy]) -> None:
    server, proxy = echo
    one = await opened(proxy)
    await ask(one, b"before\n")
    proxy.hold("down")
    with pytest.raises(TimeoutError):
        await ask(one, b"held\n", within=0.2)
    assert server.got[-1] == b"held\n"
    assert proxy.connections == 1
    proxy.release()
    async with asyncio.timeout(5):
        assert await one[0].readline() == b"held\n"
    one[1].close()


async def test_a_cut_comes_inside_the_answer(echo: tuple[Echo, FaultProxy]) -> None:
    server, proxy = echo
    one = await opened(proxy)
    await ask(one, b"whole\n")
    proxy.cut_after(3)
    one[1].write(b"partial\n")
    async with asyncio.timeout(5):
        assert await one[0].read() == b"par"
    assert server.got[-1] == b"partial\n"
    assert proxy.count("cut") == 1
    one[1].close()


async def test_a_reset_is_no_orderly_end(echo: tuple[Echo, FaultProxy]) -> None:
    _, proxy = echo
    one = await opened(proxy)
    await ask(one, b"line\n")
    assert proxy.cut(rst=True) == 1
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(5):
            await one[0].read()
    one[1].close()


async def test_a_dropped_reply_means_that_the_command_ran(echo: tuple[Echo, FaultProxy]) -> None:
    server, proxy = echo
    proxy.drop_replies(0.3, lambda chunk: chunk.startswith(b"count"))
    answered = 0
    for number in range(100):
        one = await opened(proxy)
        answered += await ask(one, b"count %d\n" % number) != b""
        assert await ask(one, b"other\n") in (b"other\n", b"")
        one[1].close()
    dropped = proxy.count("drop_reply")
    assert 15 <= dropped <= 50
    assert answered == 100 - dropped
    assert len([line for line in server.got if line.startswith(b"count")]) == 100


async def test_refused_connections_end_at_once(echo: tuple[Echo, FaultProxy]) -> None:
    _, proxy = echo
    proxy.refuse()

    async def use() -> None:
        # The reset may come while it is still being opened.
        reader, writer = await opened(proxy)
        with closing(writer):
            await reader.readexactly(1)

    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(use(), 5)
    proxy.heal()
    one = await opened(proxy)
    assert await ask(one, b"line\n") == b"line\n"
    one[1].close()


async def test_the_same_seed_drops_the_same(echo: tuple[Echo, FaultProxy]) -> None:
    first = [FaultProxy(1, seed=3)._random.random() for _ in range(3)]
    assert first == [FaultProxy(1, seed=3)._random.random() for _ in range(3)]


async def test_new_connections_are_led_to_another_server_and_open_ones_stay(
    echo: tuple[Echo, FaultProxy],
) -> None:
    first, proxy = echo
    second = Echo()
    server = await asyncio.start_server(second.serve, "127.0.0.1", 0)
    before = await opened(proxy)
    assert await ask(before, b"one\n") == b"one\n"
    proxy.retarget(server.sockets[0].getsockname()[1])
    after = await opened(proxy)
    assert await ask(after, b"two\n") == b"two\n"
    assert await ask(before, b"three\n") == b"three\n"
    assert (first.got, second.got) == ([b"one\n", b"three\n"], [b"two\n"])
    for _, writer in (before, after):
        writer.close()
    server.close()
