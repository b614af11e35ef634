"""Every example runs as a program, with warnings as errors, and prints what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

PRINTED = {
    "01_broadcast.py": """\
created: {'id': 7}
orders:*: orders:created
orders:*: orders:shipped
orders:*: orders:created
""",
    "02_queue.py": """\
order 1 billed, attempt 1
order 2 billed, attempt 2
order 3 is dead: rejected, no address
accepted 3, acked 2, dead 1
""",
    "03_transaction.py": """\
moved: {'amount': 30}
refused: account/ann is at version 2
account/ann 70 version 2
account/bob 30 version 2
""",
    "04_stream.py": """\
sensor:kitchen 20.5
sensor:kitchen 21.0
gap: 7 events lost by overflow
left: [7, 8, 9]
""",
    "05_handlers.py": """\
subscriber: orders:created {'id': 7, 'total': 12.5}
subscriber: orders:shipped {'id': 7}
shipped: {'id': 7}
consumer: 12.50 to pay for order 7
subscriber: orders:created {'id': 'seven'}
dead letter: payload does not fit Order: Expected `int`, got `str` - at `$.id`
""",
    "06_testing.py": """\
passed: test_a_reminder_comes_after_a_day
passed: test_a_failing_handler_is_tried_three_times
""",
}


def run(program: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def test_every_example_is_listed_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTED, "git_history.py"}


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_says(name: str) -> None:
    done = run(EXAMPLES / name)
    assert (done.returncode, done.stdout) == (0, PRINTED[name]), done.stderr
    assert "Traceback" not in done.stderr


def check_account(done: subprocess.CompletedProcess[str]) -> None:
    """Check that the sums of the demo hold, from what it printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) < 40
    assert "\033" not in done.stdout
    sums = re.search(r"✓ accepted ([\d,]+) = handled ([\d,]+) \+ dead (\d+)", done.stdout)
    assert sums is not None, done.stdout
    accepted, handled, dead = (int(figure.replace(",", "")) for figure in sums.groups())
    assert accepted == handled + dead
    assert dead >= 1
    assert "✗" not in done.stdout
    for label in ("publish_many", "subscriber", "tried again", "dead letter", "delayed note"):
        assert label in done.stdout


def test_the_sums_of_the_demo_hold() -> None:
    check_account(run(EXAMPLES / "git_history.py"))


def test_the_demo_finds_another_real_source_without_a_git_history(tmp_path: Path) -> None:
    program = shutil.copy(EXAMPLES / "git_history.py", tmp_path)
    done = run(Path(program), GIT_CEILING_DIRECTORIES=str(tmp_path))
    check_account(done)
    assert done.stdout.startswith(("\npackage log", "\ninstalled python"))


def test_the_demo_takes_the_installed_distributions_at_last(tmp_path: Path) -> None:
    text = (EXAMPLES / "git_history.py").read_text(encoding="utf-8")
    program = tmp_path / "git_history.py"
    program.write_text(text.replace("/var/log/dpkg.log", str(tmp_path / "absent")), "utf-8")
    done = run(program, GIT_CEILING_DIRECTORIES=str(tmp_path))
    check_account(done)
    assert done.stdout.startswith("\ninstalled python")
