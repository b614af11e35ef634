"""`make audit` tells a vulnerability from a database of advisories that could not be had."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What the two programs do: cargo-deny by its subcommand, pip-audit by whether it leaves a report.
CARGO = {
    "clean": "exit 0",
    "vulnerable": 'case "$*" in *check*) echo RUSTSEC-2026-0001; exit 1;; esac',
    "no database": 'case "$*" in *fetch*) exit 1;; *check*) echo not reached; exit 1;; esac',
    "not installed": "exit 101",
}
PIP_AUDIT = {
    "clean": "exit 0",
    "vulnerable": 'while [ "$1" != --output ]; do shift; done; echo PYSEC-1 > "$2"; exit 1',
    "no database": "echo ERROR:pip_audit._cli:connection refused >&2; exit 1",
    "not installed": None,
}


def audit(tmp_path: Path, rust: str, python: str) -> subprocess.CompletedProcess[str]:
    for name, script in (("cargo", CARGO[rust]), ("pip-audit", PIP_AUDIT[python])):
        if script is not None:
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
    return subprocess.run(
        [str(ROOT / "scripts" / "audit"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=60,
    )


@pytest.mark.parametrize("rust", CARGO)
@pytest.mark.parametrize("python", PIP_AUDIT)
def test_an_audit_says_what_it_found_and_what_it_could_not_check(
    tmp_path: Path, rust: str, python: str
) -> None:
    done = audit(tmp_path, rust, python)
    vulnerable = "vulnerable" in (rust, python)
    unchecked = bool({"no database", "not installed"} & {rust, python})
    assert done.returncode == (1 if vulnerable else 3 if unchecked else 0), done.stdout
    assert ("VULNERABLE" in done.stdout) == vulnerable
    assert ("NOT CHECKED" in done.stdout) == unchecked
    assert ("no known vulnerabilities" in done.stdout) == (not vulnerable and not unchecked)
    for wrong, name in ((rust, "RustSec"), (python, "PyPI")):
        named = f"no database: {name}" in done.stdout
        assert named == (wrong in ("no database", "not installed"))
    assert "not reached" not in done.stdout
