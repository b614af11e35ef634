"""The example with managers and agents: on a Redis of its own, and on Postgres by one URL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers.shared import shared_postgres

PROGRAM = Path(__file__).parent.parent / "examples" / "cluster" / "run.py"


@pytest.mark.parametrize("where", ["redis", "postgres"])
def test_every_claim_of_the_cluster_demo_holds(where: str) -> None:
    options = []
    if where == "postgres":
        options = ["--url", shared_postgres().create_database(f"cluster_{os.getpid()}")]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), *options],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 10
    assert "✗" not in done.stdout
    assert "Traceback" not in done.stderr
