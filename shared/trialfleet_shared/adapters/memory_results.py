"""The result cache in memory: for tests, simulations and benchmarks."""

from collections import OrderedDict
from collections.abc import Sequence

from trialfleet_shared.caching import CachedResult
from trialfleet_shared.clock import Clock


class MemoryResultCache:
    """Results of this process (see `trialfleet_shared.caching.ResultCache`), least recently used first out.

    Args:
        size: entries kept at most, at least 1.
        ttl_hours: hours after which an entry counts as missing.
        clock: tells the time entries are made.
    """

    def __init__(self, *, size: int, ttl_hours: float, clock: Clock) -> None:
        self._size = size
        self._ttl = ttl_hours * 3600
        self._clock = clock
        #: Time made and result by key, least recently used first.
        self._entries: OrderedDict[bytes, tuple[float, CachedResult]] = OrderedDict()

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key, None where there is none or it expired."""
        return [self._get(key) for key in keys]

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries."""
        now = self._clock.time()
        for key, result in entries:
            self._entries[key] = (now, result)
            self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def close(self) -> None:
        """Nothing to release."""

    def _get(self, key: bytes) -> CachedResult | None:
        if key not in self._entries:
            return None
        made, result = self._entries[key]
        if abs(self._clock.time() - made) >= self._ttl:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return result
