"""bytes <-> messages. Strict: what is not exactly one of ours raises DecodeError, which keeps the payload."""

import math

import msgspec

from trialfleet_shared.errors import DecodeError
from trialfleet_shared.messages import SCHEMA_VERSION, Message

#: Longest payload that is looked at, in bytes.
MAX_PAYLOAD_BYTES = 16 * 2**20

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message as JSON.

    Raises:
        ValueError: a number in it is not finite; JSON has no such numbers, and writing null would lose it silently.
    """
    _refuse_non_finite(msgspec.to_builtins(message))
    return _ENCODER.encode(message)


def decode(payload: bytes) -> Message:
    """The message in `payload`. Raises DecodeError, which keeps the payload."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DecodeError(f"message of {len(payload)} bytes; allowed are {MAX_PAYLOAD_BYTES}", payload=payload)
    try:
        message = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a trialfleet message: {error}", payload=payload) from error
    if message.version != SCHEMA_VERSION:
        raise DecodeError(
            f"message of schema version {message.version}; this trialfleet speaks {SCHEMA_VERSION}",
            payload=payload,
        )
    return message


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
