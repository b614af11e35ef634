"""A bus with a signing key: what it publishes is signed, and what is not signed is not let in."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, take
from eventbus import Bus, ConfigError, Event, PayloadTooLarge, connect
from eventbus.testing import eventually

KEY = "the key of this bus, 32 bytes...."
OLD = b"the key that it had before......"
OTHER = "a key of somebody else.........."


@pytest.fixture
async def signing(make_bus: MakeBus) -> Bus:
    """A bus with a key."""
    return await make_bus(signing_key=KEY)


def is_signing(bus: Bus) -> bool:
    """Whether a key has an effect there."""
    return not bus.capabilities["in_process"]


async def broadcast_heard(
    publisher: Bus, receiver: Bus, topic: str, payloads: list[Any]
) -> list[Any]:
    """Return what a subscription hears of some publishes, and of a last one that it must hear."""
    heard: list[Any] = []
    subscription = await receiver.subscribe(topic, lambda event: heard.append(event.payload))
    for payload in payloads:
        await publisher.publish(topic, payload)
    await receiver.publish(topic, "last")
    await eventually(lambda: "last" in heard, timeout=WITHIN)
    await subscription.cancel()
    return heard[:-1]


async def test_what_is_signed_is_heard_and_handled(
    make_bus: MakeBus, signing: Bus, topic: str, group: str
) -> None:
    handled: list[Any] = []
    await signing.consume(topic, lambda event: handled.append(event.payload), group=group)
    publisher = await make_bus(signing_key=KEY)
    assert await broadcast_heard(publisher, signing, topic, [1, {"a": b"x" * 20_000}]) == [
        1,
        {"a": b"x" * 20_000},
    ]
    await eventually(lambda: len(handled) == 3, timeout=WITHIN)
    assert signing.counters["unsigned"] == 0
    assert not await signing.dead_letters(group).list()


async def test_a_bus_without_a_key_reads_what_is_signed(
    make_bus: MakeBus, signing: Bus, topic: str, group: str
) -> None:
    plain = await make_bus()
    handled: list[Event] = []
    await plain.consume(topic, handled.append, group=group)
    assert await broadcast_heard(signing, plain, topic, [1]) == [1]
    await eventually(lambda: len(handled) == 2, timeout=WITHIN)
    assert plain.counters["unsigned"] == 0


@pytest.mark.parametrize("forger", [{}, {"signing_key": OTHER}], ids=["unsigned", "wrong key"])
async def test_broadcasts_without_a_signature_are_counted_and_not_heard(
    make_bus: MakeBus,
    signing: Bus,
    topic: str,
    forger: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    forging = await make_bus(**forger)
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        heard = await broadcast_heard(forging, signing, topic, list(range(50)))
    if not is_signing(signing):
        assert heard == list(range(50))
        return
    assert heard == []
    await eventually(lambda: signing.counters["unsigned"] > 0, timeout=WITHIN)
    assert signing.counters["unsigned"] <= 50
    assert (await signing.health())["counters"]["unsigned"] > 0
    await eventually(lambda: "unsigned: " in caplog.text, timeout=WITHIN)
    assert caplog.text.count("unsigned: ") == 1
    assert KEY not in caplog.text


async def test_queue_entries_without_a_signature_are_dead_letters(
    make_bus: MakeBus, signing: Bus, topic: str, group: str
) -> None:
    if not is_signing(signing):
        pytest.skip("nothing leaves a memory bus")
    told: list[Any] = []
    signing.on_dead_letter = told.append
    handled: list[Any] = []
    forging = await make_bus()
    await signing.declare_group(group, topic)
    for n in range(3):
        await forging.publish(topic, {"forged": n}, key="k" if n else None)
    await signing.consume(topic, lambda event: handled.append(event.payload), group=group)
    await signing.publish(topic, "signed", key="k")
    await eventually(lambda: handled == ["signed"], timeout=WITHIN)
    letters = await signing.dead_letters(group).list()
    assert [letter.reason for letter in letters] == ["unsigned"] * 3
    assert all(letter.event is None and b"forged" in letter.body for letter in letters)
    assert all("signing_key" in letter.error for letter in letters)
    assert signing.counters["unsigned"] == 3
    await eventually(lambda: len(told) == 3, timeout=WITHIN)
    assert {letter.reason for letter in told} == {"unsigned"}
    # Who has no key sees what it is.
    seen = await forging.dead_letters(group).list()
    assert sorted(letter.event.payload["forged"] for letter in seen if letter.event) == [0, 1, 2]


async def test_a_dead_letter_without_signature_is_handled_once_its_key_is_known(
    make_bus: MakeBus, signing: Bus, topic: str, group: str
) -> None:
    if not is_signing(signing):
        pytest.skip("nothing leaves a memory bus")
    other = await make_bus(signing_key=OLD)
    await signing.declare_group(group, topic)
    await other.publish(topic, 7)
    consumer = await signing.consume(topic, lambda event: None, group=group)

    async def is_dead() -> bool:
        return len(await signing.dead_letters(group).list()) == 1

    await eventually(is_dead, timeout=WITHIN)
    await consumer.stop()
    both = await make_bus(signing_key=[KEY, OLD])
    [letter] = await both.dead_letters(group).list()
    assert letter.event is not None
    assert letter.event.payload == 7
    handled: list[Any] = []
    await both.consume(topic, lambda event: handled.append(event.payload), group=group)
    assert await both.dead_letters(group).retry(letter.message_id) == 1
    await eventually(lambda: handled == [7], timeout=WITHIN)


async def test_keys_rotate_without_a_loss(make_bus: MakeBus, topic: str) -> None:
    before = await make_bus(signing_key=OLD)
    # First every process learns the new key, then it signs, then the old one goes.
    learning = await make_bus(signing_key=[OLD, KEY.encode()])
    changed = await make_bus(signing_key=lambda: [KEY, OLD])
    after = await make_bus(signing_key=KEY)
    for publisher, receiver in [(before, learning), (learning, before), (learning, changed)]:
        assert await broadcast_heard(publisher, receiver, topic, [1]) == [1]
    for publisher, receiver in [(changed, learning), (changed, after), (after, changed)]:
        assert await broadcast_heard(publisher, receiver, topic, [2]) == [2]
    if is_signing(after):
        assert await broadcast_heard(before, after, topic, [3]) == []


async def test_a_replay_leaves_out_what_is_not_signed(make_bus: MakeBus, topic: str) -> None:
    signing = await make_bus(signing_key=KEY, retention_max=100)
    forging = await make_bus(retention_max=100)
    for n in range(3):
        await forging.publish(topic, f"forged {n}")
        await signing.publish(topic, n)
    async with signing.stream(topic, since="beginning") as stream:
        expected: list[Any] = [0, 1, 2]
        if not is_signing(signing):
            expected = ["forged 0", 0, "forged 1", 1, "forged 2", 2]
        assert [(await take(stream)).payload for _ in expected] == expected
        await forging.publish(topic, "forged live")
        await signing.publish(topic, "live")
        if not is_signing(signing):
            assert (await take(stream)).payload == "forged live"
        assert (await take(stream)).payload == "live"


async def test_every_verb_signs(make_bus: MakeBus, signing: Bus, topic: str, group: str) -> None:
    publisher = await make_bus(signing_key=KEY)
    heard: list[Any] = []
    handled: list[Any] = []
    await signing.subscribe(f"{topic}:*", lambda event: heard.append(event.payload), pattern="*")
    await signing.consume(
        None, lambda event: handled.append(event.payload), group=group, pattern=f"{topic}:out"
    )

    async def relay(delivery: Any) -> None:
        async with delivery.transaction() as tx:
            tx.publish(f"{topic}:out", "in a handler's transaction")

    out = f"{topic}:out"
    await publisher.publish(out, "publish")
    await publisher.publish(out, "with options", key="k", priority=3, metadata={"a": 1})
    await publisher.publish_many([(out, "many 1"), (out, "many 2")])
    publisher.publish_nowait(out, "nowait")
    await publisher.flush()
    async with publisher.transaction() as tx:
        tx.publish(out, "in a transaction")
        tx.put(f"{topic}:record", 1)
    await publisher.publish(out, "delayed", delay=0.01)
    await publisher.declare_group(f"{group}-in", f"{topic}:in")
    async with publisher.deliveries(f"{topic}:in", group=f"{group}-in") as deliveries:
        await publisher.publish(f"{topic}:in", "in")
        await relay(await take(deliveries))
    expected = {
        "publish",
        "with options",
        "many 1",
        "many 2",
        "nowait",
        "in a transaction",
        "delayed",
        "in a handler's transaction",
    }
    await eventually(lambda: set(handled) == expected, f"{expected ^ set(handled)}", timeout=WITHIN)
    await eventually(lambda: expected - {"delayed"} <= set(heard), timeout=WITHIN)
    assert signing.counters["unsigned"] == 0


async def test_an_event_that_was_received_is_signed_again_where_it_goes_on(
    make_bus: MakeBus, signing: Bus, topic: str
) -> None:
    plain = await make_bus()
    received: list[Event] = []
    await plain.subscribe(topic, received.append)
    await plain.publish(topic, {"from": "outside"})
    await eventually(lambda: received, timeout=WITHIN)
    onward = await make_bus(signing_key=KEY)
    heard: list[Any] = []
    await signing.subscribe(f"{topic}:on", lambda event: heard.append(event.payload))
    await onward.publish(f"{topic}:on", received[0])
    await eventually(lambda: heard == [{"from": "outside"}], timeout=WITHIN)


async def test_the_largest_message_has_room_for_its_signature(
    make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus(signing_key=KEY, max_message_bytes=1000)
    if not is_signing(bus):
        pytest.skip("nothing leaves a memory bus")
    heard: list[int] = []
    await bus.subscribe(topic, lambda event: heard.append(len(event.payload)))
    largest = 0
    for size in range(800, 1000):
        try:
            await bus.publish(topic, b"x" * size)
        except PayloadTooLarge:
            break
        largest = size
    await eventually(lambda: heard and heard[-1] == largest, timeout=WITHIN)
    assert bus.counters["malformed"] == 0


BAD: list[Any] = ["short", b"15 bytes here..", [], [KEY, "short"], 17, [KEY, None], "\ud800" * 16]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: type(bad).__name__)
async def test_a_key_that_cannot_be_used_is_refused_and_not_shown(
    bad: Any, make_bus: MakeBus
) -> None:
    for value in (bad, lambda: bad):
        with pytest.raises(ConfigError, match="at least 16 bytes") as error:
            await make_bus(signing_key=value)
        assert KEY not in str(error.value)
        assert "short" not in str(error.value)


def test_a_key_is_never_shown_nor_taken_from_a_url() -> None:
    key = secrets.token_hex(16)
    for url in ("memory://", "redis://127.0.0.1", "postgresql://127.0.0.1/x"):
        bus = connect(url, signing_key=key)
        assert key not in repr(bus)
        assert key not in repr(vars(bus))
        with pytest.raises(ConfigError, match="must not stand in a URL") as error:
            connect(f"{url}?signing_key={key}")
        assert key not in str(error.value)


def test_options_that_do_not_go_together_are_refused() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("redis://h", {"signing_key": KEY, "wire": "dataknobs"}, "no place for a signature"),
        ("postgresql://h", {"signing_key": KEY, "wire": "dataknobs"}, "no place for a signature"),
        ("postgresql://h", {"accept_unsigned": "sql"}, "signing_key"),
        ("postgresql://h", {"signing_key": KEY, "accept_unsigned": "all"}, "one of sql"),
        ("redis://h", {"signing_key": KEY, "accept_unsigned": "sql"}, "of Postgres only"),
        ("redis://h", {"broadcast_bodies": "table"}, "of Postgres only"),
        ("postgresql://h", {"broadcast_bodies": "nowhere"}, "inline, table"),
        ("postgresql://h", {"broadcast_bodies": "table", "wire": "dataknobs"}, "dataknobs"),
    ]
    for url, options, said in cases:
        with pytest.raises(ConfigError, match=said):
            connect(url, **options)
