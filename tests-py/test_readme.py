"""Every Python block of the README and the documentation runs and prints what stands below it.

A block is a program of its own; one with `await` outside of a function runs as in
`python -m asyncio`, one with `def test_…` is run by pytest. A `text` block right after it, with at
most one line between them, is what it prints.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers.shared import shared_postgres

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n+(?:[^\n`]+\n+)?^```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)

# What `python -m asyncio` does, without its prompt.
AS_IN_ASYNCIO = """\
import ast, asyncio, pathlib, sys, types
text = pathlib.Path(sys.argv[1]).read_text("utf-8")
code = compile(text, sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(types.FunctionType(code, sys.modules["__main__"].__dict__)())
"""


@dataclass(frozen=True)
class Block:
    """A Python block, where it stands and what it prints."""

    page: Path
    line: int
    code: str
    printed: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def command(self, folder: Path) -> list[str]:
        """Write the block to a file and return how to run it."""
        python = [sys.executable, "-W", "error"]
        if re.search(r"^ *(async )?def test_", self.code, re.MULTILINE):
            program = folder / "test_block.py"
            program.write_text(self.code, "utf-8")
            options = ["-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
            return [*python, "-m", "pytest", *options, str(program)]
        program = folder / "block.py"
        program.write_text(self.code, "utf-8")
        if re.search(r"^(async (with|for)|.*\bawait\b)", self.outside_of_functions(), re.MULTILINE):
            return [*python, "-c", AS_IN_ASYNCIO, str(program)]
        return [*python, str(program)]

    def outside_of_functions(self) -> str:
        """Return the block without functions and classes that begin in the first column."""
        kept, inside = [], False
        for line in self.code.splitlines():
            if line and not line[0].isspace():
                inside = bool(re.match(r"(async def|def|class)\b", line))
            if not inside:
                kept.append(line)
        return "\n".join(kept)


def blocks_of(page: Path) -> list[Block]:
    """Return the Python blocks of a page."""
    text = page.read_text("utf-8")
    return [
        Block(page, text[: match.start()].count("\n") + 1, match["code"], match["printed"])
        for match in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


_databases = itertools.count(1)


def environment(block: Block) -> dict[str, str]:
    """Return the variables of a block: one that asks for a database gets one of its own."""
    variables = dict(os.environ)
    if "DATABASE_URL" in block.code:
        name = f"docs_{os.getpid()}_{next(_databases)}"
        variables["DATABASE_URL"] = shared_postgres().create_database(name)
    return variables


def test_no_python_block_is_overlooked() -> None:
    marks = sum(page.read_text("utf-8").count("```python") for page in PAGES)
    assert len(BLOCKS) == marks
    assert len(blocks_of(ROOT / "README.md")) >= 4


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        block.command(tmp_path),
        check=False,
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment(block),
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    if block.printed is not None:
        assert done.stdout == block.printed


def test_the_output_of_the_demo_has_the_shape_of_the_shown_one() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"```text\n(git history: .*?)```", text, re.DOTALL)
    assert shown is not None
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "git_history.py")],
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    printed = labels(done.stdout)
    assert labels(shown[1]) <= printed | {label for label in labels(shown[1]) if "/" in label}


def labels(account: str) -> set[str]:
    """Return the labels of the rows of the demo's account."""
    return set(re.findall(r"^ {2}( {0,2}\S+(?: \S+)?)  ", account, re.MULTILINE))
