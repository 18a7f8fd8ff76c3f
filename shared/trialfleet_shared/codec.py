"""bytes <-> messages. Strict: what is not exactly one of ours raises DecodeError, which keeps the payload.

Every message carries the version of its schema. This trialfleet reads all versions up to its own, `SCHEMA_VERSION`, and
writes its own; a newer one raises NewerSchemaError, so that its reader can leave it to others instead of losing it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from trialfleet_shared.errors import DecodeError, NewerSchemaError
from trialfleet_shared.messages import MOST_IN_BATCH, SCHEMA_VERSION, Evaluation, EvaluationResult, Message

#: Longest payload that is looked at, in bytes.
MAX_PAYLOAD_BYTES = 16 * 2**20
#: Bytes from which on evaluations, or results, are sent in several messages: what one of them adds does not make a payload
#: too long, nor what an envelope adds a message that RabbitMQ refuses (16 MiB by default, from version 4.0 on).
PART_BYTES = 4 * 2**20

_Item = TypeVar("_Item", Evaluation, EvaluationResult)

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as JSON.

    Raises:
        ValueError: a number in it is not finite; JSON has no such numbers, and writing null would lose it silently.
    """
    payload = _ENCODER.encode(message)
    if b"null" in payload:  # which numbers that are not finite become
        _refuse_non_finite(msgspec.to_builtins(message))
    return payload


def parts(items: Sequence[_Item], most: int = MOST_IN_BATCH) -> Iterator[tuple[_Item, ...]]:
    """Evaluations, or results, in runs that fit into one message each: at most so many, and not beyond `PART_BYTES`."""
    part: list[_Item] = []
    size = 0
    for item in items:
        item_size = len(_ENCODER.encode(item))
        if part and (len(part) >= most or size + item_size > PART_BYTES):
            yield tuple(part)
            part, size = [], 0
        part.append(item)
        size += item_size
    if part:
        yield tuple(part)


def decode(payload: bytes) -> Message:
    """The message in `payload`.

    Raises:
        NewerSchemaError: it is of a newer version than this trialfleet reads.
        DecodeError: it is none of ours. Either keeps the payload.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DecodeError(f"message of {len(payload)} bytes; allowed are {MAX_PAYLOAD_BYTES}", payload=payload)
    try:
        message = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse_newer(_version(payload), payload)
        raise DecodeError(f"not a trialfleet message: {error}", payload=payload) from error
    _refuse_newer(message.version, payload)
    return message


class _Versioned(msgspec.Struct):
    """What all versions of all messages have."""

    version: int = 0


def _version(payload: bytes) -> int:
    try:
        return msgspec.json.decode(payload, type=_Versioned).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def _refuse_newer(version: int, payload: bytes) -> None:
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"message of schema version {version}; this trialfleet reads up to {SCHEMA_VERSION}", payload=payload
        )


def _refuse_non_finite(value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} can not be sent")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_non_finite(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_non_finite(item)
