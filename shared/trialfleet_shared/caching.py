"""The result cache port, which coordinator and workers share."""

from collections.abc import Sequence
from typing import Protocol

import msgspec


class CachedResult(msgspec.Struct, frozen=True, array_like=True):
    """What the result cache keeps of an evaluation."""

    value: float
    metrics: dict[str, float]
    wall_seconds: float
    cpu_seconds: float


class ResultCache(Protocol):
    """Results of earlier evaluations by `fingerprint.result_key`; loses nothing that can not be computed again."""

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key, None where there is none or it expired."""
        ...

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries; a full disk or a broken entry is no error."""
        ...

    def close(self) -> None:
        """Release everything. May be called twice."""
        ...
