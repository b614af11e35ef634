"""The benchmark harness runs and counts; no figure is checked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_tiny_run_prints_a_table_and_writes_its_rounds(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benches", "W1", "W1q", "W6"]
    options = ["--quick", "--rounds", "1", "--scale", "0.002", "--json", str(written)]
    done = subprocess.run(
        [*command, *options], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "eventbus is" in done.stdout
    data = json.loads(written.read_text("utf-8"))
    assert {result["workload"] for result in data["results"]} == {"W1", "W1q", "W6"}
    for result in data["results"]:
        assert result["median"]["eventbus"] > 0
        assert {len(turns) for turns in result["rounds"].values()} == {5}


def test_an_unknown_workload_is_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches", "W99"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "W99" in done.stderr


def test_two_checkouts_are_compared_in_turns() -> None:
    command = [sys.executable, "-m", "benches.turns", str(ROOT), "W6"]
    done = subprocess.run(
        [*command, "--turns", "2", "--scale", "0.002"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    assert "eventbus" in done.stdout
    assert "turn 2 of 2" in done.stderr
