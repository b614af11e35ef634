"""DataKnobs contract D26: matching gives the answer of ``fnmatch.fnmatchcase`` for every pair."""

import fnmatch
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventbus.compat.dataknobs import Event, EventType, InMemoryEventBus

EVENT = Event(EventType.CREATED, "of the event")


def run(coroutine: Any) -> Any:
    """Drive a coroutine that never suspends: thousands of examples, no loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it suspended")


def delivered(pattern: str | None, topic: str, subscribed: str = "kept only") -> bool:
    bus = InMemoryEventBus()
    run(bus.connect())
    seen: list[Event] = []
    run(bus.subscribe(subscribed, seen.append, pattern))
    run(bus.publish(topic, EVENT))
    assert len(seen) <= 1
    return bool(seen)


# Small on purpose: random text rarely meets a random pattern.
TEXT = st.text(alphabet="ab:-\n\\*[]!^", max_size=6)
PATTERN = st.text(alphabet="ab:*?[]!^-\\\n&|~", max_size=9)
CLASS = st.builds(
    "{}[{}{}]{}".format,
    st.sampled_from(["", "a", "*", "?"]),
    st.sampled_from(["", "!", "^", "]", "!]"]),
    st.text(alphabet="ab:-]\\^!\n", max_size=5),
    st.sampled_from(["", "b", "*", "?"]),
)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(PATTERN, CLASS), TEXT)
@example("[", "[")
@example("[]", "[]")
@example("[!]", "[!]")
@example("[]]", "]")
@example("[!]]", "a")
@example("[b-a]", "a")
@example("[a-]", "-")
@example("[!b-a]", "a")
@example("[--a]", "Z")
@example("[\\]", "\\")
@example("a[b", "a[b")
@example("[[a]", "[")
@example("[a-c-e]", "-")
@example("[^a]", "^")
@example("[!a]", "\n")
@example("*", "")
@example("**?", "a")
@example("\\*", "\\b")
@example(".", "a")
@example("(a|b)", "a")
@example("a+", "aa")
@example("$", "")
def test_d26_same_answer_as_fnmatchcase(pattern: str, topic: str) -> None:
    expected = fnmatch.fnmatchcase(topic, pattern) if pattern else topic == "kept only"
    assert delivered(pattern, topic) is expected


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=500, deadline=None)
@given(st.one_of(UNICODE, UNICODE.map(lambda text: f"[{text}]*"), st.just("*")), UNICODE)
@example("?", "é")
@example("?", "e\u0301")
@example("[à-ü]", "é")
@example("[😀-😂]", "😁")
@example("\0*", "\0")
@example("straße", "STRASSE")
@example("İ", "i")
def test_d26_same_answer_for_any_text(pattern: str, topic: str) -> None:
    expected = fnmatch.fnmatchcase(topic, pattern) if pattern else topic == "kept only"
    assert delivered(pattern, topic) is expected


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(PATTERN, CLASS), min_size=1, max_size=6), TEXT)
def test_d26_many_patterns_on_one_bus_do_not_disturb_each_other(
    patterns: list[str], topic: str
) -> None:
    bus = InMemoryEventBus()
    run(bus.connect())
    seen: list[int] = []
    for number, pattern in enumerate(patterns):

        def record(event: Event, number: int = number) -> None:
            seen.append(number)

        run(bus.subscribe("x", record, pattern or "[!"))
    run(bus.publish(topic, EVENT))
    assert seen == [
        number
        for number, pattern in enumerate(patterns)
        if fnmatch.fnmatchcase(topic, pattern or "[!")
    ]


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("registry:*", "registry:bots", True),
        ("registry:*", "registry:bots:b1", True),
        ("registry:*", "registry", False),
        ("a?b", "a:b", True),
        ("a*b", "a\nb", True),
        ("[!x]", "y", True),
        ("[!x]", "x", False),
        ("[^x]", "y", False),
        ("[^x]", "^", True),
        ("a\\*", "a\\b", True),
        ("a\\*", "a*", False),
        ("a[", "a[", True),
        ("A*", "ab", False),
        ("*", "", True),
    ],
)
def test_d26_the_cases_of_the_rule(pattern: str, topic: str, expected: bool) -> None:
    assert delivered(pattern, topic) is expected
    assert fnmatch.fnmatchcase(topic, pattern) is expected


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
@example("a*", "ab")
@example("[a]", "a")
@example("", "")
def test_d26_without_pattern_the_topic_is_equality(subscribed: str, topic: str) -> None:
    assert delivered(None, topic, subscribed) is (subscribed == topic)
    assert delivered("", topic, subscribed) is (subscribed == topic)


def test_d26_with_a_pattern_the_topic_is_only_kept() -> None:
    assert delivered("other:*", "t", subscribed="t") is False
    assert delivered("other:*", "other:x", subscribed="t") is True


async def test_d26_the_publish_topic_is_matched_not_that_of_the_event(
    bus: InMemoryEventBus,
) -> None:
    seen: list[str] = []
    await bus.subscribe("registry:*", lambda event: seen.append("publish topic"), "registry:*")
    await bus.subscribe("event:*", lambda event: seen.append("event topic"), "event:*")
    await bus.subscribe("event:x", lambda event: seen.append("event topic"))
    await bus.publish("registry:bots", Event(EventType.CREATED, "event:x"))
    assert seen == ["publish topic"]


async def test_d26_subscribing_and_cancelling_takes_effect_on_topics_seen_before(
    bus: InMemoryEventBus,
) -> None:
    seen: list[str] = []
    await bus.publish("a:b", EVENT)
    subscription = await bus.subscribe("a:*", lambda event: seen.append("late"), "a:*")
    await bus.publish("a:b", EVENT)
    await subscription.cancel()
    await bus.publish("a:b", EVENT)
    assert seen == ["late"]


async def test_d27_the_topic_of_the_event_is_handed_over_unchanged(bus: InMemoryEventBus) -> None:
    seen: list[Event] = []
    await bus.subscribe("registry:bots", seen.append)
    event = Event(EventType.UPDATED, "registry:bots:b1")
    await bus.publish("registry:bots", event)
    assert seen == [event]
    assert seen[0].topic == "registry:bots:b1"
