"""The bytes of Backend.AI's wire: a msgpack map of name, source and arguments (B34-B36, B41)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from eventbus import codec
from eventbus.dispatcher import Message
from eventbus.errors import DecodeError, EncodeError
from eventbus.types import Event

__all__ = [
    "NAME_KEYS",
    "ArgsCoding",
    "Era",
    "decode_args",
    "decode_message",
    "encode_args",
    "encode_message",
]

Era = Literal["A", "B"]
"""Whose field names are written: ``event_name, agent_id, args`` or ``name, source, args``."""

NAME_KEYS = ("event_name", "name")
"""What a message begins with in either era: the key of its name."""

# The original has no limits. Its largest messages are heartbeats with compressed lists of images,
# some hundred kB; its deepest are nested a dozen times.
_LIMITS = {"max_bytes": 16 << 20, "max_depth": 128, "max_elements": 1_000_000}

_SCALARS = {str, float, bytes, bool, type(None)}
_MOST, _LEAST = 2**64 - 1, -(2**63)


def _plain(value: Any) -> Any:
    """Return the value with lists for tuples.

    Raises:
        TypeError: The wire has no form for it.
        OverflowError: An integer beyond 64 bits.
    """
    kind = cast("type[object]", type(value))
    if kind in _SCALARS:
        return value
    if kind is int:
        if not _LEAST <= value <= _MOST:
            raise OverflowError(f"integer {value} is beyond 64 bits")
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, bytearray | memoryview):
        return bytes(cast("bytearray", value))
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return _plain(int(value))
    raise TypeError(f"cannot encode {kind.__name__}: {value!r}")


_NESTED = {list, dict}


def _tuples(value: Any) -> Any:
    """Return the value with tuples for lists, at every depth."""
    kind = cast("type[object]", type(value))
    if kind is list:
        # As a rule there is nothing nested.
        if _NESTED.isdisjoint(map(type, value)):
            return tuple(value)
        return tuple([_tuples(one) for one in value])
    if kind is dict:
        return {key: _tuples(one) for key, one in value.items()}
    return value


def _arguments(name: str, args: Any) -> list[Any]:
    # As a rule there is nothing to convert.
    if _SCALARS.issuperset(map(type, args)):
        return list(args)
    plain: list[Any] = []
    for position, one in enumerate(args):
        try:
            plain.append(_plain(one))
        except (TypeError, OverflowError, RecursionError) as error:
            raise type(error)(f"event {name!r}, argument {position}: {error}") from None
    return plain


def _packed(name: str, value: Any) -> bytes:
    try:
        return codec.encode(value, **_LIMITS)
    except EncodeError as error:
        raise TypeError(f"event {name!r}: {error}") from error


def encode_args(message: Message) -> bytes:
    """Return the arguments alone as msgpack.

    Raises:
        TypeError: An argument has no form on this wire; the message holds its position.
        OverflowError: An integer beyond 64 bits.
        PayloadTooLarge: They are over a limit of the wire: 16 MiB, 128 levels, 1,000,000 elements.
    """
    return _packed(message.name, _arguments(message.name, message.args))


def encode_message(message: Message, era: Era, dedup_id: str | None = None) -> bytes:
    """Return a message as an original process writes it.

    Args:
        message: The message.
        era: Which field names are written.
        dedup_id: Added as a fourth key ``id``.

    Raises:
        TypeError: An argument has no form on this wire; the message holds its position.
        OverflowError: An integer beyond 64 bits.
        PayloadTooLarge: It is over a limit of the wire: 16 MiB, 128 levels, 1,000,000 elements.
    """
    name, source = ("event_name", "agent_id") if era == "A" else ("name", "source")
    args = _arguments(message.name, message.args)
    # A str of a class of its own, as AgentId is, goes as what it is.
    fields = {name: str.__str__(message.name), source: str.__str__(message.source), "args": args}
    if dedup_id is not None:
        fields["id"] = dedup_id
    return _packed(message.name, fields)


def _unpacked(data: object) -> Any:
    """Return what a peer has sent, arrays as tuples at every depth.

    Raises:
        DecodeError: It cannot be read, for whatever reason.
    """
    if not isinstance(data, bytes):
        raise DecodeError(f"a message is bytes, not {type(data).__name__}")
    try:
        return _tuples(codec.decode(data, **_LIMITS))
    except DecodeError:
        raise
    except Exception as error:
        # Whatever a peer makes Python raise is the fault of the message and ends nothing here.
        raise DecodeError(f"message cannot be read: {type(error).__name__}: {error}") from error


def decode_args(data: object) -> tuple[Any, ...]:
    """Return arguments from their bytes, arrays as tuples.

    Raises:
        DecodeError: They are none, or over a limit of the wire.
    """
    found = _unpacked(data)
    if not isinstance(found, tuple):
        raise DecodeError(f"not the arguments of an event: {type(found).__name__}")
    arguments: tuple[Any, ...] = found
    return arguments


def decode_message(data: object) -> Message:
    """Return a message of either era; arrays are tuples at every depth, other keys are ignored.

    Raises:
        DecodeError: It is no map, or lacks a key, or holds another type there, or is over a limit
            of the wire.
    """
    found = _unpacked(data)
    if not isinstance(found, dict):
        raise DecodeError(f"message is no map but {_kind(found)}")
    fields: Mapping[Any, Any] = cast("Any", found)
    old = "event_name" in fields
    name: Any = fields.get("event_name" if old else "name")
    source: Any = fields.get("agent_id" if old else "source")
    args: Any = fields.get("args")
    if isinstance(name, str) and isinstance(source, str) and isinstance(args, tuple):
        arguments: tuple[Any, ...] = args
        return Message(name, source, arguments)
    wanted = (("name", name, str), ("source", source, str), ("args", args, tuple))
    key, value = next((key, value) for key, value, kind in wanted if not isinstance(value, kind))
    raise DecodeError(
        f"message has no usable {key}: {'missing' if value is None else _kind(value)}"
    )


def _kind(value: object) -> str:
    """Name what was on the wire, where an array is no tuple."""
    return "list" if isinstance(value, tuple) else type(value).__name__


class ArgsCoding:
    """On other buses: the payload is the msgpack of the arguments, the source that of the event."""

    def encode(self, message: Message) -> object:
        """Return the payload."""
        return encode_args(message)

    def decode(self, name: str, event: Event) -> Message:
        """Return the message of an event."""
        if event.source is None:
            raise DecodeError(f"event {name!r} has no source")
        return Message(name, event.source, decode_args(event.payload))
