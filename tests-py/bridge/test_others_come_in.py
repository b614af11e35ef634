"""Memory safety where the collector or another thread comes in while values are converted."""

from __future__ import annotations

import dataclasses
import gc
import re
import subprocess
import sys
import sysconfig
import textwrap
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from eventbus import codec
from eventbus.errors import EncodeError

ROOT = Path(__file__).resolve().parents[2]

LOOKERS = {
    # Reads every list that the collector shows, half-filled ones too.
    "objects": """
        for found in gc.get_objects():
            if type(found) in (list, tuple, set, frozenset, dict):
                for item in list(found):
                    type(item)
    """,
    "referrers": """
        for found in gc.get_referrers(uuid.UUID, *gc.get_objects()[-50:]):
            if type(found) in (list, tuple, set, frozenset, dict):
                for item in list(found):
                    type(item)
    """,
    "collect": """
        gc.collect()
    """,
}

PAYLOADS = {
    "lists": "[[uuid.uuid4() for _ in range(50)] for _ in range(20)]",
    "tuples": "[tuple(uuid.uuid4() for _ in range(50)) for _ in range(20)]",
    "sets": "[{uuid.uuid4() for _ in range(50)} for _ in range(20)]",
    "frozensets": "[frozenset(uuid.uuid4() for _ in range(50)) for _ in range(20)]",
    "keys": "[{uuid.uuid4(): [uuid.uuid4()] for _ in range(50)} for _ in range(20)]",
}

PROGRAM = """
import gc, sys, threading, uuid
from eventbus import codec

raw = codec.encode({payload})
stop = threading.Event()
looks = 0

def look():
    global looks
    while not stop.is_set():
        try:
{look}
        except RuntimeError:
            pass  # something changed size: as in any program
        looks += 1

# The conversion of a UUID runs Python code: other threads get their turn in the middle of a list.
sys.setswitchinterval(1e-6)
looker = threading.Thread(target=look)
looker.start()
done = 0
while done < 100 or looks < 20:
    codec.decode(raw)
    done += 1
stop.set()
looker.join()
print("whole")
"""


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("look", LOOKERS)
def test_who_looks_at_every_object_while_values_are_decoded_sees_whole_ones(
    look: str, payload: str
) -> None:
    looker = textwrap.indent(textwrap.dedent(LOOKERS[look]), " " * 12)
    program = PROGRAM.format(payload=PAYLOADS[payload], look=looker)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-2000:]


def test_a_list_is_known_to_the_collector_once_it_is_full() -> None:
    for value in ([], [1], [[uuid.uuid4()], []], {"a": [1, [2]]}):
        found = codec.decode(codec.encode(value))
        lists = [one for one in (found, *_inside(found)) if isinstance(one, list)]
        assert all(gc.is_tracked(one) for one in lists)


def _inside(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value
    return [*parts, *(deeper for one in parts if isinstance(one, list) for deeper in _inside(one))]


def test_a_list_that_fails_half_way_is_dropped() -> None:
    whole = codec.encode([[uuid.uuid4(), "x"] for _ in range(100)])
    broken = whole[:-1] + b"\xc1"
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        with pytest.raises(Exception, match="payload"):
            codec.decode(broken)
    gc.collect()
    assert len(gc.get_objects()) < before + 100


def test_a_container_that_another_thread_changes_is_encoded_whole_or_refused() -> None:
    """Encoding a UUID runs Python code, so that the other thread gets its turn there."""
    values: list[Any] = [[], set(), {}]
    stop = threading.Event()

    def change() -> None:
        items = [uuid.uuid4() for _ in range(300)]
        while not stop.is_set():
            for item in items:
                values[0].append(item)
                values[1].add(item)
                values[2][item] = item
            values[0].clear()
            values[1].clear()
            values[2].clear()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    changer = threading.Thread(target=change)
    changer.start()
    try:
        for number in range(3000):
            try:
                raw = codec.encode(values[number % 3])
            except EncodeError as error:
                assert "changed size" in str(error)  # noqa: PT017 - only sometimes raised
            else:
                codec.decode(raw)
    finally:
        stop.set()
        changer.join()
        sys.setswitchinterval(before)


def test_a_set_that_its_own_item_changes_is_encoded() -> None:
    target: set[Any] = set()

    @dataclasses.dataclass(frozen=True)
    class Item:
        number: int

        def __getattribute__(self, name: str) -> Any:
            if name == "number" and len(target) < 100:
                target.add(object.__hash__(self) + len(target))
            return super().__getattribute__(name)

    target.add(Item(1))
    assert len(codec.encode(target)) > 1


def test_the_module_uses_the_gil() -> None:
    """A free-threaded interpreter turns its GIL on for it, and says so."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        program = "import sys, eventbus; print(sys._is_gil_enabled())"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "True\n"
    module = (ROOT / "src" / "python" / "mod.rs").read_text()
    assert re.findall(r"#\[pymodule\((.*)\)\]", module) == ["gil_used = true"]
