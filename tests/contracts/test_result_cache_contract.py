"""What every result cache must do; the one in LMDB and the one in memory pass the same suite."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulated import SimulatedClock
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.adapters.memory_results import MemoryResultCache
from trialfleet_shared.caching import CachedResult, ResultCache

SIZE = 3
TTL_HOURS = 2.0

Make = Callable[[], ResultCache]


def key(name: int) -> bytes:
    return name.to_bytes(16, "little")


def entry(name: int, value: float | None = None) -> tuple[bytes, CachedResult]:
    return key(name), CachedResult(float(name) if value is None else value, {"loss": 0.5, "f1": 1.0}, 2.5, 2.25)


class ResultCacheContract:
    """Subclasses give the fixture `make`, which makes a cache of `SIZE` entries that live `TTL_HOURS`."""

    @pytest.fixture
    def clock(self) -> SimulatedClock:
        return SimulatedClock()

    @pytest.fixture
    def cache(self, make: Make) -> ResultCache:
        return make()

    def kept(self, cache: ResultCache, *names: int) -> list[int]:
        """Which of the entries are there, asked for in this order."""
        found = cache.get_many([key(name) for name in names])
        return [name for name, result in zip(names, found, strict=True) if result is not None]

    def test_an_unknown_key_is_a_miss(self, cache: ResultCache) -> None:
        assert cache.get_many([key(1), key(2)]) == [None, None]
        assert cache.get_many([]) == []

    def test_answers_are_in_the_order_of_the_keys(self, cache: ResultCache) -> None:
        cache.put_many([entry(1), entry(2)])
        assert cache.get_many([key(2), key(9), key(1), key(2)]) == [entry(2)[1], None, entry(1)[1], entry(2)[1]]

    def test_the_last_result_of_a_key_counts(self, cache: ResultCache) -> None:
        cache.put_many([entry(1, 0.1), entry(2), entry(1, 0.2)])
        assert cache.get_many([key(1)]) == [entry(1, 0.2)[1]]
        cache.put_many([entry(1, 0.3)])
        assert cache.get_many([key(1)]) == [entry(1, 0.3)[1]]

    def test_entries_expire(self, cache: ResultCache, clock: SimulatedClock) -> None:
        cache.put_many([entry(1)])
        clock.now += TTL_HOURS * 3600 - 1
        cache.put_many([entry(2)])
        assert self.kept(cache, 1, 2) == [1, 2]
        clock.now += 1
        assert self.kept(cache, 1, 2) == [2]

    def test_a_use_does_not_make_an_entry_younger(self, cache: ResultCache, clock: SimulatedClock) -> None:
        cache.put_many([entry(1)])
        clock.now += TTL_HOURS * 3600 - 1
        assert self.kept(cache, 1) == [1]
        cache.put_many([entry(2)])
        clock.now += 1
        assert self.kept(cache, 1) == []

    def test_a_renewed_entry_lives_again(self, cache: ResultCache, clock: SimulatedClock) -> None:
        cache.put_many([entry(1, 0.1)])
        clock.now += TTL_HOURS * 3600
        assert self.kept(cache, 1) == []
        cache.put_many([entry(1, 0.2)])
        assert cache.get_many([key(1)]) == [entry(1, 0.2)[1]]

    def test_a_clock_that_was_put_back_a_little_loses_nothing(self, cache: ResultCache, clock: SimulatedClock) -> None:
        cache.put_many([entry(1)])
        clock.now -= 60
        assert self.kept(cache, 1) == [1]

    def test_the_least_recently_used_go_first(self, cache: ResultCache, clock: SimulatedClock) -> None:
        for name in (1, 2, 3):
            clock.now += 1
            cache.put_many([entry(name)])
        clock.now += 1
        assert self.kept(cache, 1) == [1]
        clock.now += 1
        cache.put_many([entry(4)])
        assert self.kept(cache, 2, 1, 3, 4) == [1, 3, 4]

    def test_the_order_holds_where_the_clock_stands_still(self, cache: ResultCache) -> None:
        cache.put_many([entry(1), entry(2), entry(3)])
        assert self.kept(cache, 1) == [1]
        cache.put_many([entry(4)])
        assert self.kept(cache, 2, 1, 3, 4) == [1, 3, 4]

    def test_more_entries_than_fit_at_once(self, cache: ResultCache) -> None:
        cache.put_many([entry(0)])
        cache.put_many([entry(name) for name in range(1, 10)])
        assert self.kept(cache, *range(10)) == [7, 8, 9]

    def test_closing_twice_is_allowed(self, cache: ResultCache) -> None:
        cache.close()
        cache.close()


class TestLmdbResultCache(ResultCacheContract):
    @pytest.fixture
    def make(self, tmp_path: Path, clock: SimulatedClock) -> Iterator[Make]:
        caches: list[LmdbResultCache] = []

        def make() -> LmdbResultCache:
            caches.append(LmdbResultCache(tmp_path / "results", size=SIZE, ttl_hours=TTL_HOURS, clock=clock))
            return caches[-1]

        yield make
        for cache in caches:
            cache.close()


class TestMemoryResultCache(ResultCacheContract):
    @pytest.fixture
    def make(self, clock: SimulatedClock) -> Make:
        return lambda: MemoryResultCache(size=SIZE, ttl_hours=TTL_HOURS, clock=clock)


class Put(NamedTuple):
    names: list[int]
    #: Whether to look at once: looking is a use, so not always.
    look: bool


class Get(NamedTuple):
    names: list[int]


class Wait(NamedTuple):
    seconds: float


class Reopen(NamedTuple):
    pass


NAMES = st.lists(st.integers(0, 7), max_size=5)
STEPS = st.lists(
    st.one_of(
        st.builds(Put, NAMES, st.booleans()),
        st.builds(Get, NAMES),
        st.builds(Wait, st.sampled_from([0.0, 1.0, 1800.0, 3600.0, 7200.0])),
        st.builds(Reopen),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(deadline=None, max_examples=60)
def test_the_cache_on_disk_answers_as_a_dictionary_would(steps: list[Put | Get | Wait | Reopen]) -> None:
    """Against a model: what was put last within the ttl, unless evicted.

    Which entries go first is exact only in part (see the module's docstring), so the model asks for what must hold:
    never a wrong or expired result, never more entries than `SIZE`, and what was put last is kept.
    """
    clock = SimulatedClock()
    model: dict[int, tuple[float, float]] = {}
    #: The last put of keys, each once, in the order of their last places.
    latest: list[int] = []
    count = 0.0
    with TemporaryDirectory() as folder:

        def connect() -> LmdbResultCache:
            return LmdbResultCache(Path(folder), size=SIZE, ttl_hours=TTL_HOURS, clock=clock)

        cache = connect()
        for step in steps:
            match step:
                case Put(names, look):
                    entries = []
                    for name in names:
                        count += 1.0
                        entries.append(entry(name, count))
                        model[name] = (clock.now, count)
                    cache.put_many(entries)
                    latest = sorted(set(names), key=lambda name: model[name][1])[-SIZE:] or latest
                    if look and names:
                        found = cache.get_many([key(name) for name in latest])
                        assert [each and each.value for each in found] == [model[name][1] for name in latest]
                case Get(names):
                    for name, result in zip(names, cache.get_many([key(name) for name in names]), strict=True):
                        made, value = model.get(name, (-1e9, 0.0))
                        fresh = clock.now - made < TTL_HOURS * 3600
                        assert result is None or (fresh and result.value == value)
                        assert result is not None or not fresh or name not in latest
                case Wait(seconds):
                    clock.now += seconds
                case Reopen():
                    cache.close()
                    cache = connect()
            assert cache.stats().entries <= SIZE
        cache.close()
