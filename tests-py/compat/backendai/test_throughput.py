"""Rule B65: the bench that compares throughputs runs, and every event of it is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_b65_the_bench_beside_a_plain_loop_counts_every_event(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benches", "dispatcher", "--rounds", "1", "--scale", "0.05"]
    done = subprocess.run(
        [*command, "--json", str(written)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    # It ends with an error when a turn handled fewer or more events than were produced.
    assert done.returncode == 0, done.stderr
    produced, consumed = json.loads(written.read_text("utf-8"))["results"]
    for result in (produced, consumed):
        ours = {name for name in result["rounds"] if name.startswith("eventbus, original wire")}
        plain = {name for name in result["rounds"] if name.startswith("redis-py and msgpack")}
        assert ours
        assert plain
        assert all(turn > 0 for turns in result["rounds"].values() for turn in turns)
        musts = {target["of"]: target["must"] for target in result["targets"]}
        assert musts
    # The bounds of the contract stand in the bench, whatever this machine does at the moment.
    assert {target["must"] for target in produced["targets"]} >= {3}
    assert {target["must"] for target in consumed["targets"]} >= {5}
