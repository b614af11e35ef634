"""One side of a peer in a process of its own: commands come as JSON lines, and so do answers."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from benches import peers
from benches.payload import PAYLOAD
from benches.peers.role import Counter, Payload

_answers = os.fdopen(os.dup(1), "w")


def answer(**what: Any) -> None:
    """Answer the command."""
    _answers.write(json.dumps(what) + "\n")
    _answers.flush()


def processor() -> float:
    """Return the processor time of this process and its children, in seconds."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def payloads(count: int) -> Iterator[Payload]:
    """Make events without a time of sending."""
    for number in range(count):
        # Each differs: a server may drop what is equal.
        yield {**PAYLOAD, "order_id": number, "sent": 0}


async def produce(peer: str, url: str) -> None:
    """Send what is asked for."""
    producer = await peers.producer(peer, url)
    loop = asyncio.get_running_loop()
    answer(ready=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what = json.loads(line)
        before, begin = processor(), time.monotonic_ns()
        if "rate" in what:
            await at_rate(producer, what["count"], what["rate"])
        else:
            await producer.flood(payloads(what["count"]))
        end = time.monotonic_ns()
        answer(begin=begin, end=end, processor=processor() - before)
    await producer.close()


async def at_rate(producer: Any, count: int, rate: float) -> None:
    """Send one event at a time, so many a second."""
    begin = time.monotonic()
    for number in range(count):
        pause = begin + number / rate - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        await producer.one({**PAYLOAD, "order_id": number, "sent": time.monotonic_ns()})


def command(counter: Counter) -> None:
    """Answer what is asked of a consumer; in a thread of its own, then end the process."""
    before = 0.0
    for line in sys.stdin:
        what = json.loads(line)
        if "expect" in what:
            before = processor()
            counter.expect(what["expect"])
            answer(expecting=what["expect"])
        elif "wait" in what:
            reached, end, latencies = counter.wait(what["wait"])
            used = processor() - before
            figures = {"reached": reached, "end": end, "count": counter.count}
            answer(**figures, processor=used, latencies=latencies)
        else:
            answer(count=counter.count)
    os._exit(0)


async def consume(peer: str, url: str, name: str) -> None:
    """Receive and count until told to end."""
    counter = Counter()

    def ready() -> None:
        answer(ready=True)
        threading.Thread(target=command, args=(counter,), daemon=True).start()

    one = peers.consumer(peer, url, name)
    threads = getattr(one, "threads", False)
    await one.run(counter.seen_by_threads if threads else counter.seen, ready)


def main() -> None:
    """Be what the arguments say."""
    role, peer, url, name = sys.argv[1:]
    match role:
        case "prepare":
            asyncio.run(peers.prepare(peer, url))
        case "producer":
            asyncio.run(produce(peer, url))
        case _:
            asyncio.run(consume(peer, url, name))


if __name__ == "__main__":
    main()
