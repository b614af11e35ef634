"""Rules B35, B39 and B40: every event of both eras keeps its values and types."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
import uuid
from typing import Any

import attr
import pytest

from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai.codec import decode_message, encode_message
from eventbus.compat.backendai.types import LogSeverity
from eventbus.dispatcher import AbstractEvent, Message

from .conftest import World
from .support import Seen

ID = uuid.UUID("11111111-1111-1111-1111-111111111111")
TEXT = str(ID)
INFO = {
    "ip": "10.0.0.1",
    "resource_slots": {"cpu": ("count", "4"), "mem": ("bytes", "1024")},
    "images": b"\x00\xffsnappy",
    "load": 0.5,
    "region": "é",
    "extra": None,
    "up": True,
}
PROGRESS = {"task_id": TEXT, "message": "half", "current_progress": 1, "total_progress": 2}
ENDED = {"task_id": TEXT, "message": "", "current_progress": None, "total_progress": None}

ERA_A: list[tuple[str, tuple[Any, ...]]] = [
    ("instance_started", ("self-started",)),
    ("instance_terminated", ("agent-lost",)),
    ("instance_heartbeat", (INFO,)),
    ("instance_stats", ({"k": {"cpu": 1.5}},)),
    ("agent_error", ("message", "traceback")),
    ("kernel_enqueued", (TEXT,)),
    ("kernel_preparing", (TEXT, "c")),
    ("kernel_creating", (TEXT, "c")),
    ("kernel_started", (TEXT, "c")),
    ("kernel_pulling", (TEXT, "c", "image:1")),
    ("kernel_terminating", (TEXT, "user")),
    ("kernel_terminated", (TEXT, "user", None)),
    ("kernel_cancelled", (TEXT, "user")),
    ("kernel_success", (TEXT, 0)),
    ("kernel_failure", (TEXT, 1)),
    ("kernel_stat_sync", (f"{TEXT},{TEXT}",)),
    ("kernel_log", (TEXT, "container")),
    ("session_enqueued", (TEXT, "c")),
    ("session_scheduled", (TEXT, "c")),
    ("session_started", (TEXT, "c")),
    ("session_cancelled", (TEXT, "c", "user")),
    ("session_terminated", (TEXT, "user")),
    ("session_success", (TEXT, 0, "done")),
    ("session_failure", (TEXT, -2, "timeout")),
    *((f"execution_{one}", (TEXT,)) for one in ("started", "finished", "timeout", "cancelled")),
    ("do_schedule", ()),
    ("do_idle_check", ()),
    ("do_terminate_session", (TEXT, "idle")),
    ("task_updated", (PROGRESS,)),
    *((f"task_{one}", (ENDED,)) for one in ("done", "failed", "cancelled")),
]

_CREATION = ["Enqueued", "Preparing", "Pulling", "Creating", "Started"]
ERA_B: list[tuple[Any, str, tuple[Any, ...]]] = [
    (era_b.DoScheduleEvent(), "do_schedule", ()),
    (era_b.DoPrepareEvent(), "do_prepare", ()),
    (era_b.DoIdleCheckEvent(), "do_idle_check", ()),
    (era_b.DoTerminateSessionEvent(ID, "idle"), "do_terminate_session", (TEXT, "idle")),
    (era_b.AgentStartedEvent(), "agent_started", ("",)),
    (era_b.AgentTerminatedEvent(reason="shutdown"), "agent_terminated", ("shutdown",)),
    (era_b.AgentErrorEvent("m"), "agent_error", ("m", None, None, {}, "error")),
    (
        era_b.AgentErrorEvent("m", "tb", "u", {"a": 1}, LogSeverity.CRITICAL),
        "agent_error",
        ("m", "tb", "u", {"a": 1}, "critical"),
    ),
    (era_b.AgentHeartbeatEvent(INFO), "agent_heartbeat", (INFO,)),
    (era_b.AgentStatsEvent({"k": 1}), "agent_stats", ({"k": 1},)),
    (era_b.KernelCancelledEvent(ID, "user"), "kernel_cancelled", (TEXT, "user", -1)),
    (era_b.KernelCancelledEvent(ID, "user", 7), "kernel_cancelled", (TEXT, "user", 7)),
    (era_b.KernelCancelledEvent(ID, "c", "user"), "kernel_cancelled", (TEXT, "c", "user")),
    *(
        (getattr(era_b, f"Kernel{one}Event")(ID, "c"), f"kernel_{one.lower()}", (TEXT, "c", ""))
        for one in _CREATION
    ),
    (era_b.KernelTerminatingEvent(ID), "kernel_terminating", (TEXT, "", -1)),
    (era_b.KernelTerminatedEvent(ID, "user", 0), "kernel_terminated", (TEXT, "user", 0)),
    *(
        (getattr(era_b, f"Session{one}Event")(ID, "c"), f"session_{one.lower()}", (TEXT, "c", ""))
        for one in ("Enqueued", "Scheduled", "Preparing", "Cancelled", "Started")
    ),
    (era_b.SessionTerminatedEvent(ID, "x"), "session_terminated", (TEXT, "x")),
    (era_b.SessionSuccessEvent(ID, "done", 0), "session_success", (TEXT, "done", 0)),
    (era_b.SessionFailureEvent(ID), "session_failure", (TEXT, "", -1)),
    (era_b.DoSyncKernelLogsEvent(ID, "cid"), "do_sync_kernel_logs", (TEXT, "cid")),
    (era_b.DoSyncKernelStatsEvent([ID, ID]), "do_sync_kernel_stats", ([TEXT, TEXT],)),
    *(
        (getattr(era_b, f"Execution{one}Event")(ID), f"execution_{one.lower()}", (TEXT,))
        for one in ("Started", "Finished", "Timeout", "Cancelled")
    ),
    (era_b.BgtaskUpdatedEvent(ID, 1, 2.5), "bgtask_updated", (TEXT, 1, 2.5, None)),
    (era_b.BgtaskDoneEvent(ID), "bgtask_done", (TEXT, None)),
    (era_b.BgtaskCancelledEvent(ID, "x"), "bgtask_cancelled", (TEXT, "x")),
    (era_b.BgtaskFailedEvent(task_id=ID, message="x"), "bgtask_failed", (TEXT, "x")),
]


async def test_b39_every_row_of_era_a_keeps_values_and_types(world: World) -> None:
    d, consumed, seen = await world.a(), Seen(), Seen()
    for name, _ in ERA_A:
        d.consume(name, None, consumed)
        d.subscribe(name, None, seen)
    for name, args in ERA_A:
        await d.produce_event(name, args, agent_id="i-a")
    await consumed.count(len(ERA_A))
    await seen.count(len(ERA_A))
    expected = [(None, "i-a", name, *args) for name, args in ERA_A]
    assert consumed == expected
    assert seen == expected
    assert list(seen[[name for name, _ in ERA_A].index("task_updated")][3]) == list(PROGRESS)


def test_b40_the_table_is_complete() -> None:
    covered = {type(event).__name__ for event, _, _ in ERA_B}
    classes = {name for name in era_b.__all__ if name.endswith("Event")} - {"AbstractEvent"}
    assert covered == classes


@pytest.mark.parametrize(("event", "name", "args"), ERA_B, ids=lambda one: type(one).__name__)
def test_b40_classes_of_era_b(event: Any, name: str, args: tuple[Any, ...]) -> None:
    assert type(event).name == name
    assert event.serialize() == args
    data = encode_message(Message(name, "i-a", event.serialize()), "B")
    again = type(event).deserialize(decode_message(data).args)
    assert again == event
    for field in ("kernel_id", "session_id", "task_id"):
        assert isinstance(getattr(again, field, ID), uuid.UUID)


def test_b40_results_fed_with_the_order_of_era_a() -> None:
    event = era_b.SessionSuccessEvent.deserialize((TEXT, 0, "done"))
    assert (event.session_id, event.reason, event.exit_code) == (ID, "done", 0)
    event = era_b.SessionFailureEvent.deserialize((TEXT, -2))
    assert (event.reason, event.exit_code) == ("", -2)


def test_b36_shorter_tuples_get_the_defaults_of_the_class() -> None:
    assert era_b.KernelStartedEvent.deserialize((TEXT, "c")).reason == ""
    assert era_b.KernelTerminatedEvent.deserialize((TEXT,)).exit_code == -1
    assert era_b.AgentErrorEvent.deserialize(("m", "tb")).severity is LogSeverity.ERROR
    assert era_b.BgtaskUpdatedEvent.deserialize((TEXT, 1, 2)).message is None


def test_b40_ids_on_the_wire_are_text_and_stats_are_a_tuple() -> None:
    event = era_b.DoSyncKernelStatsEvent.deserialize(((TEXT, TEXT),))
    assert event.kernel_ids == (ID, ID)


def test_b40_a_cancelled_kernel_is_told_in_the_forms_of_both_versions() -> None:
    cancelled = era_b.KernelCancelledEvent
    earlier = cancelled(ID, "user", 7)
    assert (earlier.reason, earlier.exit_code, earlier.creation_id) == ("user", 7, None)
    later = cancelled(ID, "c", "user")
    assert (later.reason, later.creation_id) == ("user", "c")
    assert cancelled(ID) == cancelled(kernel_id=ID, reason="", exit_code=-1)
    assert cancelled(ID, "user", None).serialize() == (TEXT, "user", None)
    assert cancelled(ID, creation_id="c", reason="user") == later
    assert cancelled(ID, "c", reason="user") == later
    assert cancelled(ID, exit_code=7, reason="user") == earlier
    # Era A sends two arguments, or three with None for the exit code.
    assert cancelled.deserialize((TEXT, "user")) == cancelled(ID, "user")
    assert cancelled.deserialize((TEXT, "user", 7)) == earlier
    assert cancelled.deserialize((TEXT, "c", "user", "more")) == later
    assert pickle.loads(pickle.dumps(later)) == later
    wrong: Any = cancelled
    for args, named in [(("a", "b", "c"), {}), (("a",), {"code": 1}), (("a", 1), {"reason": "b"})]:
        with pytest.raises(TypeError, match="kernel_id, creation_id, reason"):
            wrong(ID, *args, **named)


def test_a_severity_is_its_text_and_the_old_text_form_is_read() -> None:
    assert LogSeverity.ERROR == "error"
    assert json.dumps({"severity": LogSeverity.ERROR}) == '{"severity": "error"}'
    assert str(LogSeverity.ERROR) == "LogSeverity.ERROR"
    event = era_b.AgentErrorEvent.deserialize(("m", "tb", None, {}, "LogSeverity.WARNING"))
    assert event.severity is LogSeverity.WARNING
    with pytest.raises(ValueError, match="loud"):
        LogSeverity("loud")


@pytest.mark.parametrize(("event", "name", "args"), ERA_B, ids=lambda one: type(one).__name__)
def test_attrs_sees_the_fields_of_every_event(event: Any, name: str, args: tuple[Any, ...]) -> None:
    del name, args
    shown = dataclasses.fields(event) if dataclasses.is_dataclass(event) else ()
    names = [one.name for one in shown]
    assert [one.name for one in attr.fields(type(event))] == names
    assert attr.asdict(event, recurse=False) == {one: getattr(event, one) for one in names}
    assert attr.evolve(event) == event
    if "reason" in names:
        assert attr.evolve(event, reason="other").reason == "other"


def test_an_attrs_class_over_the_arguments_of_an_event_has_their_fields() -> None:
    @attr.s(frozen=True)
    class Moved(era_b.GenericAgentEventArgs, AbstractEvent):
        name = "agent_moved"
        region = attr.ib(default="")

    event: Any = Moved("restart", "east")  # type: ignore[call-arg]
    assert attr.asdict(event) == {"reason": "restart", "region": "east"}


def test_the_arguments_of_a_session_event_are_an_event_themselves() -> None:
    assert issubclass(era_b.GenericSessionEventArgs, AbstractEvent)

    class Renamed(era_b.GenericSessionEventArgs):
        name = "session_renamed"

    assert Renamed.deserialize(Renamed(ID).serialize()) == Renamed(ID)


async def test_handle_runs_one_handler_as_its_coalescing_options_say(world: World) -> None:
    d, plain, last = await world.b(), Seen(), Seen()
    handler = d.consume(era_b.KernelStartedEvent, None, plain)
    await d.handle("CONSUMER", handler, "i-a", (TEXT, "c"))
    assert plain == [(None, "i-a", era_b.KernelStartedEvent(ID, "c"))]
    opts = era_b.CoalescingOptions(max_wait=10.0, max_batch_size=3)
    bursts = d.subscribe(era_b.KernelStartedEvent, None, last, opts)
    burst = [
        asyncio.create_task(d.handle("SUBSCRIBER", bursts, "i-a", (TEXT, text))) for text in "abc"
    ]
    await asyncio.gather(*burst)
    assert [event.creation_id for _, _, event in last] == ["c"]

    async def broken(context: object, source: str, event: object) -> None:
        raise LookupError(source)

    with pytest.raises(LookupError, match="i-a"):
        await d.handle("CONSUMER", d.consume(era_b.DoScheduleEvent, None, broken), "i-a", ())


async def test_a_burst_may_begin_in_the_middle() -> None:
    state = era_b.CoalescingState(batch_size=2)
    assert (state.last_added, state.last_handle, state.fut_sync) == (0.0, None, None)
    assert await state.rate_control({"max_wait": 10.0, "max_batch_size": 3}) is True
    assert state.batch_size == 0


async def test_b35_arrays_are_tuples_at_every_depth(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.consume("e", None, seen)
    d.subscribe("e", None, seen)
    value = {"list": [1, [2, {"k": [3]}]], "bytes": b"\0\xff", "é": None, "f": 1.5, "b": True}
    await d.produce_event("e", (value, [1, [2]]))
    await seen.count(2)
    for call in seen:
        assert call[3:] == (
            {"list": (1, (2, {"k": (3,)})), "bytes": b"\0\xff", "é": None, "f": 1.5, "b": True},
            (1, (2,)),
        )
        assert type(call[3]["bytes"]) is bytes
        assert call[3]["b"] is True
