"""Patterns: which topics they match, for subscriptions and for groups."""

from __future__ import annotations

import pytest

from conformance.support import WITHIN, figures, nothing_from, settled, take_all
from eventbus import Bus
from eventbus.testing import Recorder

CASES = [
    ("*", "a:b:c", True),
    ("a:*", "a:b:c", True),
    ("a:*", "a:", True),
    ("a:*", "a", False),
    ("*:c", "a:b:c", True),
    ("a:*:c", "a:c", False),
    ("a:?:c", "a:b:c", True),
    ("a:?:c", "a:bb:c", False),
    ("a?b", "a:b", True),
    ("a:[bc]", "a:c", True),
    ("a:[!bc]", "a:c", False),
    ("a:[!bc]", "a:d", True),
    ("a:[b-d]x", "a:cx", True),
    ("A:*", "a:b", False),
    ("a:b", "a:b", True),
    ("a:[", "a:[", True),
    ("ü:*", "ü:ö", True),
    ("*b*", "abc", True),
]


@pytest.mark.parametrize(("pattern", "name", "matches"), CASES)
async def test_a_pattern_matches_as_fnmatch_does(
    bus: Bus, pattern: str, name: str, matches: bool
) -> None:
    seen, all_ = Recorder(), Recorder()
    await bus.subscribe(pattern, seen, pattern=pattern)
    await bus.subscribe("*", all_, pattern="*")
    await bus.publish(name, 1)
    await all_.wait_for(1, WITHIN)
    await bus.wait_idle(WITHIN)
    assert len(seen) == matches


@pytest.mark.parametrize(("pattern", "name", "matches"), CASES)
async def test_a_group_is_bound_by_pattern_as_a_subscription_is(
    bus: Bus, group: str, pattern: str, name: str, matches: bool
) -> None:
    await bus.declare_group(group, pattern=pattern)
    await bus.publish(name, 1)
    assert (await figures(bus, group))["ready"] == matches


async def test_a_topic_is_never_a_pattern(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    star = f"{topic}:*"
    await bus.subscribe(star, seen)
    await bus.declare_group(group, star)
    await bus.publish(f"{topic}:x", 1)
    await bus.publish(star, 2)
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == [2]
    assert (await figures(bus, group))["ready"] == 1


async def test_overlapping_subscriptions_are_each_called_once(bus: Bus, topic: str) -> None:
    recorders = [Recorder() for _ in range(3)]
    await bus.subscribe(topic, recorders[0])
    await bus.subscribe(topic, recorders[1], pattern=topic + "*")
    await bus.subscribe(topic, recorders[2], pattern="*")
    await bus.publish(topic, 1)
    for recorder in recorders:
        await recorder.wait_for(1, WITHIN)
    await bus.wait_idle(WITHIN)
    assert [len(recorder) for recorder in recorders] == [1, 1, 1]


async def test_each_binding_of_a_group_gets_one_copy(bus: Bus, topic: str, group: str) -> None:
    async with bus.deliveries(topic, pattern=topic + "*", group=group) as deliveries:
        await bus.publish(topic, 1)
        taken = await take_all(deliveries, 2)
        assert {one.event.payload for one in taken} == {1}
        assert len({one.message_id for one in taken}) == 1
        await settled(taken)
        await nothing_from(deliveries)


async def test_a_topic_that_comes_up_later_is_matched(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.publish(topic, "known before the pattern")
    subscription = await bus.subscribe(topic, seen, pattern=topic + "*")
    await bus.publish(topic, 1)
    await bus.publish(topic + ":new", 2)
    await seen.wait_for(2, WITHIN)
    await subscription.cancel()
    await bus.publish(topic, 3)
    await bus.wait_idle(WITHIN)
    assert seen.payloads == [1, 2]
