"""Canonical digests: equal things have equal digests in every process, on every host, in every session."""

import hashlib
from typing import Any

import msgspec

from trialfleet_shared.space import Params

_ENCODER = msgspec.json.Encoder(order="sorted")
#: Bytes of a result key: 16 bytes make a collision among 10^9 entries less likely than 10^-20.
KEY_BYTES = 16
#: Part of every result key: goes up when a key comes to mean another evaluation, so that older entries answer nothing.
_KEYS = 2


def digest_bytes(*parts: bytes) -> str:
    """Hexadecimal BLAKE2b-128 digest of the parts, each length-prefixed so that boundaries count."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def digest_json(value: Any) -> str:
    """Digest of JSON types or msgspec structs, independent of key order."""
    return digest_bytes(_ENCODER.encode(value))


def canonical_params(params: Params) -> bytes:
    """`params` as canonical JSON: keys sorted, 1.0 written as 1 (and -0.0 as 0), True kept apart from 1.

    It tells which draws are the same point of a space. What an objective makes of a point may depend on the type too:
    see `result_key`.
    """
    return _ENCODER.encode(
        {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in params.items()
        }
    )


def result_key(*, objective: str, data: str, fraction: float, fold: int, seed: int, params: Params) -> bytes:
    """The result cache's key of one evaluation, `KEY_BYTES` long.

    Args:
        objective: digest of the objective's name and code.
        data: digest of the data set and its layout; empty without data.
        fraction: share of the training rows.
        fold: index of the fold.
        seed: the study's evaluation seed.
        params: the trial's parameters; 1, 1.0 and True are different ones.
    """
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    state.update(f"{_KEYS}\0{objective}\0{data}\0{fraction!r}\0{fold}\0{seed}\0".encode())
    state.update(_ENCODER.encode(params))
    return state.digest()
