"""The direction rules: who may import whom, in Python and in Rust."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "python" / "eventbus"
RUST = ROOT / "src"


class Import(NamedTuple):
    """One import: the file it stands in, its line, and what it names."""

    file: Path
    line: int
    name: str

    def says(self, rule: str) -> str:
        """Return the message of a violation."""
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}: {rule}"


# Python


def _module(file: Path) -> str:
    """Return the dotted name of a file below eventbus: ``compat.dataknobs``, ``bus``."""
    parts = file.relative_to(PYTHON).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _python_imports(file: Path) -> Iterator[Import]:
    """Yield what a file imports, for the type checker alone too."""

    def walk(node: ast.AST) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: relative import"
                for alias in child.names:
                    # `from eventbus import config` names a module, not an attribute.
                    full = f"{child.module}.{alias.name}"
                    yield Import(file, child.lineno, full)
            yield from walk(child)

    yield from walk(ast.parse(file.read_text(), str(file)))


def _ours(name: str) -> str | None:
    """Return the part of a dotted name below ``eventbus``; ``""`` for the package itself."""
    head, _, rest = name.partition(".")
    return rest if head == "eventbus" else None


PYTHON_FILES = sorted(PYTHON.rglob("*.py"))
PYTHON_IMPORTS = [one for file in PYTHON_FILES for one in _python_imports(file)]

BUS_LAYER = {
    "",
    "batches",
    "bus",
    "codec",
    "consumer",
    "delivery",
    "handlers",
    "joined",
    "migration",
    "outcomes",
    "payloads",
    "redis_client",
    "signing",
    "redis_setup",
    "stream",
    "subscription",
    "types",
}
"""The modules that may use the extension: the package's map and what the bus is made of."""

ABOVE_THE_BUS = {"tasks", "workflow", "background", "dispatcher"}
NOBODY_IMPORTS = {
    "compat": "nobody imports compat: it holds the names of other systems",
    "contrib": "nobody imports contrib: each has a dependency of its own",
    "cli": "nobody imports cli: it is an end",
    "web": "nobody imports web: it is an end",
    "testing": "nobody imports testing but its pytest plugin: it is for tests",
    "pytest_plugin": "nobody imports pytest_plugin: pytest does",
}


def _check_python(one: Import) -> str | None:
    """Return the rule that an import breaks."""
    here, there = _module(one.file), _ours(one.name)
    if there is None:
        return None
    top, target = here.partition(".")[0], there.partition(".")[0]
    if here == "errors":
        return "errors imports nothing of ours"
    if here == "config" and target != "errors":
        return "config imports nothing of ours but errors"
    if target == "_eventbus" and here not in BUS_LAYER:
        return "only the bus layer imports the extension"
    served = (here, target) in {("pytest_plugin", "testing"), ("__main__", "cli")}
    # Names and modules that the DataKnobs contract promises outside of compat (D1).
    served |= here in {"", "redis", "postgres"} and there.startswith("compat.dataknobs")
    # A compat module offers the original's HTTP handlers; contrib imports their package by itself.
    offered = (top, target) == ("compat", "contrib")
    if target in NOBODY_IMPORTS and top != target and not served and not offered:
        return NOBODY_IMPORTS[target]
    if top in ABOVE_THE_BUS and target in ABOVE_THE_BUS and top != target:
        return "what stands above the bus stands side by side"
    if top == "compat" and target == "compat":
        mine, other = (name.split(".")[1] for name in (here + ".", there + "."))
        if other != mine:
            return "one compat module never imports another"
    if top in ABOVE_THE_BUS | {"contrib", "cli", "web", "testing"} and target == "_eventbus":
        return "what stands above the bus uses its public API"
    return None


def test_python_modules_import_only_what_their_layer_may() -> None:
    broken = [one.says(rule) for one in PYTHON_IMPORTS if (rule := _check_python(one))]
    assert not broken, "\n".join(broken)


def test_only_the_promised_names_lead_into_compat() -> None:
    rule = NOBODY_IMPORTS["compat"]
    for file, name in (("redis.py", "eventbus.compat.backendai"), ("joined.py", "eventbus.compat")):
        assert _check_python(Import(PYTHON / file, 1, name)) == rule
    assert _check_python(Import(PYTHON / "redis.py", 1, "eventbus.compat.dataknobs.redis")) is None


STANDARD_ONLY = {"pytest_plugin": {"pytest", "pytest_asyncio"}}


def test_the_package_needs_nothing_but_the_standard_library_to_import() -> None:
    import sys

    broken = []
    for file in PYTHON_FILES:
        allowed = STANDARD_ONLY.get(_module(file), set())
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            for name in names:
                head = name.partition(".")[0]
                if head in sys.stdlib_module_names or head == "eventbus" or head in allowed:
                    continue
                if _module(file).startswith("contrib."):
                    continue
                rule = "optional dependencies are imported where they are used"
                broken.append(Import(file, node.lineno, name).says(rule))
    assert not broken, "\n".join(broken)


def test_nothing_unpickles_or_runs_code_that_came_from_outside() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    rule = "no pickle: payloads are data"
    broken = [one.says(rule) for one in PYTHON_IMPORTS if one.name.partition(".")[0] in forbidden]
    for file in PYTHON_FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                    where = f"{file.relative_to(ROOT)}:{node.lineno}"
                    broken.append(f"{where} calls {name}: no code from data")
    assert not broken, "\n".join(broken)


def test_every_python_file_says_its_job_in_its_first_line() -> None:
    broken = [
        f"{file.relative_to(ROOT)}: no docstring"
        for file in [*PYTHON_FILES, *sorted((ROOT / "tests-py").rglob("*.py"))]
        if not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not broken, "\n".join(broken)


# Rust

RUST_FILES = sorted(RUST.rglob("*.rs"))
PURE = {"topic", "event", "codec", "retry", "config", "signing", "error"}
_USE_CRATE = re.compile(r"\bcrate::(?:(\w+)|\{([^;]*)\})", re.DOTALL)
_IMPURE = {
    r"\btokio\b": "no tokio",
    r"\bpyo3\b": "no pyo3",
    r"\bcrate::clock\b": "no clock",
    r"\bSystemTime\b|\bInstant\b": "no time source",
    r"\brand::|\bnew_v4\b|\bnow_v7\b": "no randomness",
    r"\bstd::(net|fs|process)\b|\bstd::io::std": "no I/O",
}


def _rust_code(file: Path) -> str:
    """Return the code of a file without comments, and without its tests, which stand at its end."""
    text = re.sub(r"//[^\n]*", "", file.read_text())
    return re.split(r"#\[cfg\((?:all\()?test\b", text)[0]


def _rust_module(file: Path) -> tuple[str, ...]:
    """Return the module path of a file: ``("backend", "memory", "claim")``."""
    parts = file.relative_to(RUST).with_suffix("").parts
    return tuple(part for part in parts if part not in {"mod", "lib"})


def _rust_imports(file: Path) -> Iterator[Import]:
    """Yield the modules of ours that a file names, as ``a::b``."""
    code = _rust_code(file)
    for found in _USE_CRATE.finditer(code):
        line = code.count("\n", 0, found.start()) + 1
        if found[1]:
            rest = re.match(r"(?:::(\w+))?", code[found.end() :])
            second = rest[1] if rest and rest[1] else ""
            yield Import(file, line, f"{found[1]}::{second}".removesuffix("::"))
            continue
        for name in re.split(r",(?![^{]*\})", found[2]):
            if name.strip():
                parts = re.match(r"(\w+)(?:::(\w+))?", name.strip())
                assert parts, f"{file}:{line}: {name!r}"
                yield Import(file, line, "::".join(filter(None, parts.groups())))


def _is_test(file: Path) -> bool:
    return file.stem.endswith("_tests") or file.stem == "tests"


RUST_IMPORTS = [one for file in RUST_FILES if not _is_test(file) for one in _rust_imports(file)]


def _check_rust(one: Import) -> str | None:
    """Return the rule that an import breaks."""
    here, there = _rust_module(one.file), tuple(one.name.split("::"))
    top = here[0] if here else ""
    if there[0] == "python" and top != "python":
        return "nobody imports python: the core knows no Python"
    if top == "error":
        return "error imports nothing of ours"
    if top in PURE and there[0] not in PURE:
        return "pure modules import pure modules only"
    if top == "backend" and there[0] in {"bus", "codec"}:
        return "a backend carries bytes: it knows neither bus nor codec"
    if top == "backend" and len(here) > 1 and there[0] == "backend" and len(there) > 1:
        others = {_rust_module(file)[1] for file in (RUST / "backend").rglob("*/*.rs")}
        if there[1] in others - {here[1]}:
            return "a backend never imports another"
    if top in {"ring", "nudge", "shutdown", "telemetry", "clock"} and there[0] in {"bus", "python"}:
        return "what the bus stands on does not know it"
    return None


def test_rust_modules_import_only_what_their_layer_may() -> None:
    broken = [one.says(rule) for one in RUST_IMPORTS if (rule := _check_rust(one))]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("pattern", "rule"), _IMPURE.items(), ids=_IMPURE.values())
def test_pure_rust_modules_are_pure(pattern: str, rule: str) -> None:
    broken = []
    for file in RUST_FILES:
        module = _rust_module(file)
        if not module or module[0] not in PURE or _is_test(file):
            continue
        code = _rust_code(file)
        for found in re.finditer(pattern, code):
            line = code.count("\n", 0, found.start()) + 1
            broken.append(
                f"{file.relative_to(ROOT)}:{line} names {found[0]}: {rule} in pure modules"
            )
    assert not broken, "\n".join(broken)


def test_pyo3_is_named_in_the_bindings_only() -> None:
    broken = [
        f"{file.relative_to(ROOT)} names {found[0]}: only src/python knows Python"
        for file in RUST_FILES
        if _rust_module(file)[:1] != ("python",)
        for found in re.finditer(r"\b(pyo3\w*|pythonize)\b", _rust_code(file))
    ]
    assert not broken, "\n".join(broken)


def test_every_rust_file_says_its_job_in_its_first_line() -> None:
    broken = [
        f"{file.relative_to(ROOT)}: no //! line"
        for file in RUST_FILES
        if not file.read_text().startswith("//!")
    ]
    assert not broken, "\n".join(broken)


# The rules themselves: a rule that matches nothing holds nothing.


@pytest.mark.parametrize(
    ("file", "name", "rule"),
    [
        ("errors.py", "eventbus.config", "errors imports nothing"),
        ("config.py", "eventbus.bus", "config imports nothing"),
        ("connect.py", "eventbus._eventbus.Event", "only the bus layer"),
        ("bus.py", "eventbus.compat.dataknobs", "nobody imports compat"),
        ("bus.py", "eventbus.testing.Recorder", "nobody imports testing"),
        ("compat/ray.py", "eventbus.compat.allura", "never imports another"),
        ("tasks.py", "eventbus._eventbus", "only the bus layer"),
        ("dispatcher/engine.py", "eventbus._eventbus.CoreBus", "only the bus layer"),
        ("background/manager.py", "eventbus.dispatcher.EventDispatcher", "side by side"),
        ("background/sse.py", "eventbus.contrib.sse", "nobody imports contrib"),
        ("contrib/sse.py", "eventbus.compat.backendai.events", "nobody imports compat"),
    ],
)
def test_each_python_rule_catches_its_breach(file: str, name: str, rule: str) -> None:
    assert rule in (_check_python(Import(PYTHON / file, 1, name)) or "")


@pytest.mark.parametrize(
    ("file", "name", "rule"),
    [
        ("bus/mod.rs", "python::mailbox", "nobody imports python"),
        ("error.rs", "topic", "error imports nothing"),
        ("topic.rs", "clock", "pure modules"),
        ("codec/mod.rs", "bus", "pure modules"),
        ("backend/memory/mod.rs", "codec", "a backend carries bytes"),
        ("ring.rs", "bus", "what the bus stands on"),
    ],
)
def test_each_rust_rule_catches_its_breach(file: str, name: str, rule: str) -> None:
    assert rule in (_check_rust(Import(RUST / file, 1, name)) or "")


def test_the_scan_sees_grouped_and_nested_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "use crate::{\n    codec::{self, Limits},\n    event,\n};\nfn f() { crate::bus::open() }"
    monkeypatch.setattr(Path, "read_text", lambda _self: code)
    found = [(one.name, one.line) for one in _rust_imports(RUST / "probe.rs")]
    assert [name for name, _ in found] == ["codec", "event", "bus::open"]
