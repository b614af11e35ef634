"""Records: versions, preconditions, time to live, scans."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN
from eventbus import Bus, Record, VersionConflict
from eventbus.testing import eventually


async def _put(bus: Bus, key: str, value: Any, **options: Any) -> int:
    async with bus.transaction() as tx:
        tx.put(key, value, **options)
    return tx.versions[key]


async def _delete(bus: Bus, key: str, **options: Any) -> None:
    async with bus.transaction() as tx:
        tx.delete(key, **options)


async def test_versions_start_at_one_and_count_writes(bus: Bus, topic: str) -> None:
    assert await bus.read(topic) is None
    for version in (1, 2, 3):
        assert await _put(bus, topic, {"n": version}) == version
        assert await bus.read(topic) == Record(topic, version, {"n": version})


async def test_a_version_is_never_used_again(bus: Bus, topic: str) -> None:
    await _put(bus, topic, 1)
    await _put(bus, topic, 2)
    await _delete(bus, topic)
    assert await bus.read(topic) is None
    assert await _put(bus, topic, 3) > 2


async def test_every_native_value_is_kept(bus: Bus, topic: str) -> None:
    value = {"t": (1, 2), "b": b"\x00", "big": 2**80, 1: None, "s": {1}, "f": 0.5}
    await _put(bus, topic, value)
    found = await bus.read(topic)
    assert found is not None
    assert found.value == value
    assert type(found.value["t"]) is tuple


async def test_preconditions_are_checked_by_name(bus: Bus, topic: str) -> None:
    assert await _put(bus, topic, "a", if_version=0) == 1
    with pytest.raises(VersionConflict) as caught:
        await _put(bus, topic, "b", if_version=0)
    assert (caught.value.key, caught.value.expected, caught.value.actual) == (topic, 0, 1)
    assert topic in str(caught.value)
    assert await _put(bus, topic, "b", if_version=1) == 2
    with pytest.raises(VersionConflict) as caught:
        await _put(bus, topic, "c", if_version=1)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    with pytest.raises(VersionConflict):
        await _put(bus, topic + ":none", "c", if_version=3)
    with pytest.raises(VersionConflict):
        await _delete(bus, topic, if_version=1)
    await _delete(bus, topic, if_version=2)
    await _delete(bus, topic)


async def test_a_time_to_live_ends_a_record(bus: Bus, topic: str) -> None:
    await _put(bus, topic, 1, ttl=0.1)
    assert await bus.read(topic) is not None

    async def gone() -> bool:
        return await bus.read(topic) is None

    await eventually(gone, timeout=WITHIN)
    assert await bus.scan(topic) == []
    assert await _put(bus, topic, 2, if_version=0) > 1


async def test_a_new_value_replaces_the_time_to_live(bus: Bus, topic: str) -> None:
    await _put(bus, topic, 1, ttl=0.05)
    await _put(bus, topic, 2)
    await _put(bus, topic + ":short", 1, ttl=0.05)

    async def gone() -> bool:
        return await bus.read(topic + ":short") is None

    await eventually(gone, timeout=WITHIN)
    assert await bus.read(topic) == Record(topic, 2, 2)


async def test_a_scan_is_ordered_and_paged(bus: Bus, topic: str) -> None:
    keys = [f"{topic}/{number:02}" for number in range(10)]
    for key in reversed(keys):
        await _put(bus, key, key[-2:])
    await _put(bus, topic, "not below the prefix")
    await _put(bus, topic + "0", "neither")
    found, after = [], None
    while page := await bus.scan(f"{topic}/", after=after, limit=3):
        assert len(page) <= 3
        found += [record.key for record in page]
        after = page[-1].key
    assert found == keys
    assert [one.value for one in await bus.scan(f"{topic}/", limit=2)] == ["00", "01"]


async def test_keys_with_odd_characters_are_found_exactly(bus: Bus, topic: str) -> None:
    suffixes = ["%", "_", "*", "[a]", "\\", "'", "\N{SNOWMAN}", "a b", "{x}"]
    for suffix in suffixes:
        await _put(bus, f"{topic}/{suffix}", suffix)
    for suffix in suffixes:
        found = await bus.scan(f"{topic}/{suffix}")
        assert [record.value for record in found] == [suffix]


async def test_records_are_shared_between_buses(make_bus: MakeBus, topic: str) -> None:
    one, two = await make_bus(), await make_bus()
    await _put(one, topic, 1)
    with pytest.raises(VersionConflict):
        await _put(two, topic, 2, if_version=0)
    assert await two.read(topic) == Record(topic, 1, 1)
