"""Where the command line takes a URL from, and that it repeats nothing that may be a password."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventbus import ConfigError
from eventbus.backends import plan
from eventbus.cli import read_url

ROOT = Path(__file__).parent.parent
SECRET = "S3CR3T-xyz"
NOWHERE = f"postgresql://u:{SECRET}@127.0.0.1:1/x"


def command(*words: str, given: bytes = b"", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: text for key, text in os.environ.items() if key != "EVENTBUS_URL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "eventbus", *words],
        input=given,
        capture_output=True,
        check=False,
        env=environment | variables,
        timeout=60,
    )
    out, error = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, error)


def test_the_url_comes_from_a_file_standard_input_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{NOWHERE}\n")
    for done in (
        command("migrate", "--url-file", str(file)),
        command("migrate", "-", given=NOWHERE.encode()),
        command("migrate", "--url-file", "-", given=f"{NOWHERE}\r\n".encode()),
        command("migrate", EVENTBUS_URL=NOWHERE),
    ):
        assert done.returncode == 1
        assert done.stderr.startswith("eventbus: cannot reach 127.0.0.1:1: ")
        assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "must hold one line"),
        (b"\n\n", "must hold one line"),
        (f"{SECRET}\n{SECRET}\n".encode(), "must hold one line"),
        (SECRET.encode() + b"\xff", "not UTF-8"),
        (SECRET.encode() * 10_000, "at most 65536 bytes"),
        (SECRET.encode(), "must begin with a scheme"),
    ],
)
def test_a_file_that_holds_no_url_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "url"
    file.write_bytes(text)
    for done in (
        command("migrate", "--url-file", str(file)),
        command("migrate", "-", given=text),
    ):
        assert done.returncode == 1
        assert says in done.stderr
        assert SECRET not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_url_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENTBUS_URL", raising=False)
    for url, file, says in ((NOWHERE, "x", "not both"), (None, None, "no URL: set EVENTBUS_URL")):
        with pytest.raises(ConfigError, match=says) as error:
            read_url(argparse.Namespace(url=url, url_file=file))
        assert SECRET not in str(error.value)


MISPLACED = [
    ["migrate", NOWHERE, NOWHERE],
    ["migrate", "--url", NOWHERE],
    ["migrate", f"--url={NOWHERE}"],
    ["migrate", f"--password={SECRET}"],
    ["migrate", f"-p{SECRET}"],
    ["migrate", f"--dry-run={SECRET}"],
    ["migrate", "--url-file", NOWHERE],
    ["migrate", "--schema", NOWHERE],
    ["migrate", f"--schema={NOWHERE}", "postgresql://127.0.0.1:1/x"],
    ["migrate", "--schema", f"me:{SECRET}@h", NOWHERE],
    ["migrate", "--grant-role", NOWHERE, "postgresql://127.0.0.1:1/x"],
    ["migrate", f"postgresql://127.0.0.1:1/x?password=a&{SECRET}=1"],
    ["migrate", f"postgresql://127.0.0.1:1/x?password=a&{SECRET}&{SECRET}"],
    ["migrate", f"postgresql://127.0.0.1:1/x?password=a&{SECRET}%ff"],
    [NOWHERE],
    [f"--url={NOWHERE}", "migrate"],
]


@pytest.mark.parametrize("words", MISPLACED, ids=lambda words: " ".join(words)[:40])
def test_what_stands_in_a_wrong_place_is_not_repeated(words: list[str]) -> None:
    done = command(*words)
    assert done.returncode in (1, 2)
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "eventbus" in done.stderr


def test_a_url_in_the_place_of_an_option_is_not_repeated() -> None:
    for key in ("schema", "sslmode", "host", "queue_size", "op_timeout", "migrate"):
        with pytest.raises(ConfigError) as error:
            plan("postgresql://h/x", {key: f"{NOWHERE},"})
        assert SECRET not in str(error.value), key


def test_no_page_shows_a_password_on_a_command_line() -> None:
    """A URL with a login may stand in code and tables, never behind a command or a prompt."""
    shell = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    login = re.compile(r"://[^\s/@'\"]*:[^\s/@'\"]+@|--password|PGPASSWORD=|-a \S+")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [(page, block) for page in pages for block in shell.findall(page.read_text())]
    assert len(blocks) >= 5
    assert [(page, block) for page, block in blocks if login.search(block)] == []
