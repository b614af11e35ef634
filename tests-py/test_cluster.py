"""The example with managers and agents, on a Redis of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "examples" / "cluster" / "run.py"


def test_every_claim_of_the_cluster_demo_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 10
    assert "✗" not in done.stdout
    assert "Traceback" not in done.stderr
