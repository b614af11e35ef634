"""W6: encode and decode, of a small event and of ten kilobytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from itertools import repeat
from typing import Any

from benches.measure import OURS, Case, Stopwatch, Target, Workload
from benches.payload import ENVELOPE, TEN_KILOBYTES
from eventbus import codec

Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
BASELINE = "msgspec.msgpack"


def workloads() -> list[Workload]:
    """Return both sizes, together and each way alone."""
    found, missing = codecs()
    made = []
    for value, size, n in ((ENVELOPE, "306 B", 60_000), (TEN_KILOBYTES, "10 kB", 2_000)):
        for way in ("encode + decode", "encode", "decode"):
            cases = [Case(peer, both(one, value, way)) for peer, one in found.items()]
            wanted = way == "encode + decode" and BASELINE in found
            targets = [Target(OURS, BASELINE, must=0.8, aim=1.0)] if wanted else []
            made.append(Workload("W6", f"codec, {way}, {size}", n, cases, targets, missing))
    return made


def codecs() -> tuple[dict[str, Codec], list[str]]:
    """Return the codecs that are installed, and the names of those that are not."""
    found: dict[str, Codec] = {OURS: (codec.encode, codec.decode)}
    missing = []

    def add(name: str, module: str, make: Callable[[Any], Codec]) -> None:
        try:
            found[name] = make(import_module(module))
        except ImportError:
            missing.append(module.partition(".")[0])

    add(BASELINE, "msgspec.msgpack", lambda m: (m.Encoder().encode, m.Decoder().decode))
    add("ormsgpack", "ormsgpack", lambda m: (m.packb, m.unpackb))
    add("msgpack", "msgpack", lambda m: (m.packb, m.unpackb))
    found["json"] = (lambda value: json.dumps(value).encode(), json.loads)
    return found, missing


def both(one: Codec, value: Any, way: str) -> Any:
    """Encode and decode n times."""
    encode, decode = one
    data = encode(value)
    if decode(data) != value:
        raise AssertionError("the value changed on its way")

    async def run(n: int, watch: Stopwatch) -> None:
        if way == "encode":
            with watch.running():
                for _ in repeat(None, n):
                    encode(value)
        elif way == "decode":
            with watch.running():
                for _ in repeat(None, n):
                    decode(data)
        else:
            with watch.running():
                for _ in repeat(None, n):
                    decode(encode(value))

    return run
