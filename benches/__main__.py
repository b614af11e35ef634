"""The command: `python -m benches [W1 W1q W1p W2 W3 W4 W5 W5c W6 dispatcher start] [--quick]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benches import start, w1_fanout, w1p_patterns, w1q_queue, w6_codec
from benches.machine import machine
from benches.measure import Result, measure
from benches.peers import SIGNING
from benches.report import as_data, print_machine, print_result, print_summary

WORKLOADS = {
    "W1": w1_fanout.workloads,
    "W1q": w1q_queue.workloads,
    "W1p": w1p_patterns.workloads,
    "W6": w6_codec.workloads,
}
# Over a server, with producer and consumer in processes of their own.
BROKERS = ("W2", "W3", "W4", "W5", "W5c")
CHOICES = [*WORKLOADS, *BROKERS, "dispatcher", "start"]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(CHOICES))
    parser.add_argument("--quick", action="store_true", help="fewer operations and rounds")
    parser.add_argument("--rounds", type=int, help="rounds per peer (7; quick: 3)")
    parser.add_argument("--scale", type=float, help="factor for the operations (1; quick: 0.2)")
    parser.add_argument(
        "--cpu", action="store_true", help="time the processor, not the wall: for a busy machine"
    )
    parser.add_argument(
        "--signing", action="store_true", help="give eventbus a signing_key over servers"
    )
    parser.add_argument("--gc", action="store_true", help="let the garbage collector run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds to a file")
    given = parser.parse_args()
    unknown = set(given.workloads) - set(CHOICES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CHOICES)}")
    if given.signing:
        # For the processes of both sides.
        os.environ[SIGNING] = "1"
    given.workloads = given.workloads or CHOICES
    given.rounds = given.rounds or (3 if given.quick else 7)
    given.scale = given.scale or (0.2 if given.quick else 1.0)
    return given


def over_broker(name: str, rounds: int, scale: float) -> Iterator[Result]:
    """Return the results of a workload over a server; only then the servers are needed."""
    from benches import w2_redis_broadcast as w2
    from benches import w3_redis_queue as w3
    from benches import w4_postgres_broadcast as w4
    from benches import w5_postgres_queue as w5
    from benches import w5c_postgres_care as w5c

    runs = {"W2": w2.results, "W3": w3.results, "W4": w4.results, "W5": w5.results}
    runs["W5c"] = w5c.results
    return runs[name](rounds, scale)


def main() -> int:
    """Run what was asked for and print it; return 0: a figure is not a test."""
    given = arguments()
    begin = time.monotonic()
    on = machine()
    print_machine(on)
    print(f"{'processor time' if given.cpu else 'wall clock'}, medians of interleaved rounds")
    results: list[Result] = []

    def add(result: Result) -> None:
        results.append(result)
        print_result(result, given.scale)
        sys.stdout.flush()

    for name, workloads in WORKLOADS.items():
        for workload in workloads() if name in given.workloads else ():
            how = {"rounds": given.rounds, "cpu": given.cpu, "collect": given.gc}
            add(measure(workload, scale=given.scale, **how))
    for name in BROKERS:
        if name in given.workloads:
            for result in over_broker(name, given.rounds, given.scale):
                add(result)
    if "dispatcher" in given.workloads:
        from benches import dispatcher

        how = {"cpu": given.cpu, "collect": given.gc}
        for result in dispatcher.results(given.rounds, given.scale, **how):
            add(result)
    if "start" in given.workloads:
        for result in start.results(given.rounds, cpu=given.cpu):
            add(result)
    print_summary(results)
    print(f"{time.monotonic() - begin:.0f} s")
    if given.json:
        data = {
            "machine": on,
            "clock": "cpu" if given.cpu else "wall",
            "results": [as_data(result) for result in results],
        }
        given.json.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
