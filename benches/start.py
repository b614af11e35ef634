"""What it costs to be there: import time, size of the wheel, memory of an idle bus."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from benches.measure import OURS, Case, Result, Target, Workload

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "eventbus"

IMPORT = "from time import {1} as now; begin = now(); import {0}; print((now() - begin) * 1e3)"

MEMORY = """
{}
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024)
"""

IDLE = """
import asyncio
from {module} import create_event_bus
bus = create_event_bus({{"backend": "memory"}})
runner = asyncio.Runner()
runner.run(bus.connect())
"""


def results(rounds: int, *, cpu: bool = False) -> list[Result]:
    """Measure in processes of their own, in turns."""
    rounds = max(3, rounds)
    return [imports(rounds, cpu), memory(rounds), wheel()]


def imports(rounds: int, cpu: bool) -> Result:
    """Return how long the import takes beyond what the interpreter loads anyway."""
    modules = {OURS: "eventbus", "asyncio alone": "asyncio"}
    missing = _peer(modules, "dataknobs_common.events")
    clock = "process_time" if cpu else "perf_counter"
    programs = {peer: IMPORT.format(module, clock) for peer, module in modules.items()}
    load = _workload("import, ms beyond the interpreter", programs, missing, "ms")
    load.targets = [Target(OURS, None, must=60, aim=30, at_most=True)]
    return Result(load, _turns(programs, rounds))


def memory(rounds: int) -> Result:
    """Return the resident memory of an idle bus beyond the bare interpreter's."""
    modules = {OURS: "eventbus"}
    missing = _peer(modules, "dataknobs_common.events")
    programs = {peer: MEMORY.format(IDLE.format(module=name)) for peer, name in modules.items()}
    programs["asyncio alone"] = MEMORY.format("import asyncio\nasyncio.Runner().get_loop()")
    bare = "bare interpreter"
    figures = _turns({**programs, bare: MEMORY.format("")}, rounds)
    floor = figures.pop(bare)
    beyond = {
        peer: [value - base for value, base in zip(values, floor, strict=True)]
        for peer, values in figures.items()
    }
    load = _workload("idle connected bus, MB beyond the interpreter", programs, missing, "MB")
    load.targets = [Target(OURS, None, must=15, aim=7.5, at_most=True)]
    return Result(load, beyond)


def wheel() -> Result:
    """Return the size of the newest wheel in dist/, or what one of this package would have."""
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if wheels:
        peer, size = OURS, wheels[-1].stat().st_size
        title = "size of the wheel in dist/, MB"
    else:
        peer, size = OURS, _zipped()
        title = "package zipped with the stripped extension, MB (no wheel in dist/)"
    load = _workload(title, {peer: ""}, [], "MB")
    load.targets = [Target(peer, None, must=8, aim=4, at_most=True)]
    return Result(load, {peer: [size / 1e6]})


def _peer(modules: dict[str, str], name: str) -> list[str]:
    package = name.partition(".")[0]
    if find_spec(package) is None:
        return [package.replace("_", "-")]
    modules["dataknobs"] = name
    return []


def _workload(title: str, programs: dict[str, str], missing: list[str], unit: str) -> Workload:
    async def never(*_: object) -> None:
        raise NotImplementedError

    return Workload("start", title, 1, [Case(p, never) for p in programs], [], missing, unit)


def _turns(programs: dict[str, str], rounds: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {peer: [] for peer in programs}
    with tempfile.TemporaryDirectory() as folder:
        # Everybody starts from compiled modules, as when installed: the first round writes them.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(-1, rounds):
            for peer, program in programs.items():
                command = [sys.executable, "-c", program]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment
                )
                if number >= 0:
                    figures[peer].append(float(done.stdout))
    return figures


def _zipped() -> int:
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "package.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as package:
            for path in sorted(PACKAGE.rglob("*")):
                if path.suffix in (".py", ".pyi", ".typed"):
                    package.write(path)
                elif path.suffix == ".so":
                    package.write(_stripped(path, Path(folder)))
        return packed.stat().st_size


def _stripped(library: Path, folder: Path) -> Path:
    strip = shutil.which("strip")
    if strip is None:
        return library
    copy = folder / library.name
    subprocess.run([strip, "-o", str(copy), str(library)], check=True)
    return copy
