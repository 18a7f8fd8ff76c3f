"""The result cache on a real disk: sessions, processes, damage, and what it costs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.simulated import SimulatedClock
from trialfleet_coordinator.adapters.lmdb_layout import StudyTables
from trialfleet_shared.adapters import lmdb_results, lmdb_session
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.errors import StoreError

Connect = Callable[..., LmdbResultCache]
RESULT = CachedResult(0.5, {"loss": 0.25}, 1.5, 1.25)


def keys(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(count)]


def fill(cache: LmdbResultCache, names: list[bytes]) -> None:
    cache.put_many([(name, RESULT) for name in names])


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def connect(tmp_path: Path, clock: SimulatedClock) -> Iterator[Connect]:
    caches: list[LmdbResultCache] = []

    def connect(size: int = 100, ttl_hours: float = 1.0) -> LmdbResultCache:
        caches.append(LmdbResultCache(tmp_path / "results", size=size, ttl_hours=ttl_hours, clock=clock))
        return caches[-1]

    yield connect
    for cache in caches:
        cache.close()


def write_raw(cache: LmdbResultCache, key: bytes, stored: bytes) -> None:
    environment = cache._environment
    environment.write(lambda transaction: transaction.put(key, stored, db=environment.database("entries")))


def writes(cache: LmdbResultCache) -> int:
    """The number of the last write to the environment."""
    with cache._environment.read() as transaction:
        return transaction.id()


def test_entries_outlive_the_session(connect: Connect, clock: SimulatedClock) -> None:
    cache = connect()
    fill(cache, keys(3))
    cache.close()
    clock.now += 1800
    assert connect().get_many(keys(4)) == [RESULT, RESULT, RESULT, None]


def test_a_crash_of_the_machine_empties_it_unless_all_of_it_was_on_the_disk(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot, folder, crashed = tmp_path / "boot_id", tmp_path / "results", tmp_path / "crashed"
    boot.write_text("first")
    monkeypatch.setattr(lmdb_session, "BOOT_ID", boot)
    cache = connect()
    fill(cache, keys(1))
    shutil.copytree(folder, crashed)
    cache.close()
    boot.write_text("second")
    assert connect().get_many(keys(1)) == [RESULT]
    emptied = LmdbResultCache(crashed, size=100, ttl_hours=1.0, clock=SimulatedClock())
    assert emptied.get_many(keys(1)) == [None]
    emptied.close()


def test_uses_outlive_the_session(connect: Connect) -> None:
    cache = connect(3)
    fill(cache, keys(3))
    cache.get_many(keys(1))
    cache.close()
    cache = connect(3)
    fill(cache, [b"n" * 16])
    assert cache.get_many(keys(3)) == [RESULT, None, RESULT]


def test_a_clock_that_was_put_back_does_not_make_new_entries_the_oldest(
    connect: Connect, clock: SimulatedClock
) -> None:
    cache = connect(3)
    fill(cache, keys(3))
    clock.now -= 600
    fill(cache, [b"n" * 16])
    assert cache.get_many([b"n" * 16, *keys(3)]) == [RESULT, None, RESULT, RESULT]


def test_processes_share_it(connect: Connect, tmp_path: Path) -> None:
    cache = connect()
    fill(cache, keys(1))
    script = """
import sys
from pathlib import Path
from tests.integration.test_lmdb_results import RESULT, fill, keys
from tests.support.simulated import SimulatedClock
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
cache = LmdbResultCache(Path(sys.argv[1]), size=100, ttl_hours=1.0, clock=SimulatedClock())
assert cache.get_many(keys(2)) == [RESULT, None]
fill(cache, keys(3)[2:])
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "results")],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert cache.get_many(keys(3)) == [RESULT, None, RESULT]


def test_stats_count_what_happened(connect: Connect, clock: SimulatedClock) -> None:
    cache = connect(3)
    fill(cache, keys(5))
    fill(cache, keys(2))
    cache.get_many(keys(4))
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.evictions) == (3, 2, 2, 2)
    assert stats.bytes > 0
    clock.now += 3600
    cache.get_many(keys(2))
    assert (cache.stats().expirations, cache.stats().misses) == (2, 4)
    clock.now += 1
    fill(cache, [b"n" * 16])
    assert (cache.stats().entries, cache.stats().expirations) == (1, 3), "what was never asked for expired as well"
    assert (cache.stats().corrupt, cache.stats().failures) == (0, 0)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"short",
        bytes(16),
        bytes(16) + b"\xc1",
        lmdb_results._HEADER.pack(1_000_000_000, 1) + b"\x94\xa1x\x80\x01\x01",
        lmdb_results._HEADER.pack(1_000_000_000, 1) + b"\x94\xcb\x00",
    ],
    ids=["empty", "short", "no result", "no MessagePack", "another type", "cut off"],
)
def test_a_damaged_entry_is_a_miss_and_goes(connect: Connect, damage: bytes) -> None:
    cache = connect()
    fill(cache, keys(2))
    write_raw(cache, keys(1)[0], damage)
    assert cache.get_many(keys(2)) == [None, RESULT]
    assert cache.get_many(keys(1)) == [None]
    assert (cache.stats().corrupt, cache.stats().entries) == (1, 2)
    fill(cache, [b"n" * 16])
    assert cache.stats().entries == 2
    fill(cache, keys(1))
    assert cache.get_many(keys(1)) == [RESULT]


def test_a_damaged_entry_that_was_renewed_stays(connect: Connect) -> None:
    cache, other = connect(), connect()
    write_raw(cache, keys(1)[0], b"damage")
    assert cache.get_many(keys(1)) == [None]
    fill(other, keys(1))
    cache.close()
    assert other.get_many(keys(1)) == [RESULT]


def test_what_can_not_be_encoded_is_left_out(connect: Connect) -> None:
    cache = connect()
    odd = CachedResult(0.5, {"loss": object()}, 1.0, 1.0)  # type: ignore[dict-item]  # an objective may return anything
    cache.put_many([(keys(2)[0], odd), (keys(2)[1], RESULT)])
    assert cache.get_many(keys(2)) == [None, RESULT]
    assert cache.stats().failures == 1


def test_hits_of_recent_entries_write_nothing(connect: Connect, clock: SimulatedClock) -> None:
    cache = connect()
    for name in keys(10):
        clock.now += 1
        fill(cache, [name])
    before = writes(cache)
    for _ in range(lmdb_results._PENDING_LIMIT):
        cache.get_many(keys(10)[6:])
    cache.close()
    assert writes(connect()) == before


def test_hits_of_old_entries_are_written_in_bulk(
    connect: Connect, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_results, "_PENDING_LIMIT", 4)
    cache = connect()
    for name in keys(10):
        clock.now += 1
        fill(cache, [name])
    before = writes(cache)
    for name in keys(4):
        cache.get_many([name])
    assert writes(cache) == before + 1
    cache.get_many(keys(4))
    assert writes(cache) == before + 1, "their uses are recent now"


def test_a_cache_that_was_made_smaller_shrinks_in_steps(
    connect: Connect, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_results, "_REMOVED_PER_WRITE", 10)
    connect(50).close()
    clock.now += 1800
    cache = connect(5)
    for name in keys(50):
        fill(cache, [name])
    clock.now += 1801
    sizes = []
    for number in range(1, 7):
        fill(cache, [bytes([number]) * 16])
        sizes.append(cache.stats().entries)
    assert sizes == [40, 30, 20, 10, 5, 5]


def test_a_smaller_size_takes_nothing_from_who_asked_for_more(connect: Connect, clock: SimulatedClock) -> None:
    thorough = connect(20)
    fill(thorough, keys(20))
    thorough.close()
    clock.now += 1800
    fast = connect(5)
    fill(fast, [b"n" * 16])
    assert fast.stats().entries == 20, "the host keeps as many as the largest size of late"
    assert fast.get_many(keys(20)[1:]) == [RESULT] * 19
    clock.now += 1801
    fill(fast, [bytes([number]) * 16 for number in range(5)])
    assert fast.stats().entries == 5, "nobody has asked for more within the time to live"


def test_a_shorter_time_to_live_takes_nothing_from_who_keeps_entries_longer(
    connect: Connect, clock: SimulatedClock
) -> None:
    long, short = connect(), connect(ttl_hours=0.1)
    fill(long, keys(5))
    clock.now += 1800
    assert short.get_many(keys(5)) == [None] * 5, "too old for a study that asks for six minutes"
    fill(short, [b"n" * 16])
    assert long.get_many(keys(5)) == [RESULT] * 5
    clock.now += 3600
    fill(short, [b"m" * 16])
    assert short.stats().entries == 1, "nobody keeps the others any more"


def test_a_size_in_use_is_not_forgotten(connect: Connect, clock: SimulatedClock) -> None:
    thorough = connect(20)
    for name in keys(20):
        clock.now += 600
        fill(thorough, [name])
    fast = connect(5)
    for number in range(9):
        fill(fast, [bytes([number]) * 16])
    assert fast.stats().entries == 6 + 9, "all that are less than an hour old"


def test_a_full_disk_costs_the_entries_and_nothing_else(connect: Connect, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    fill(connect(), keys(1))
    script = """
import resource, sys
from pathlib import Path
from tests.integration.test_lmdb_results import RESULT, fill, keys
from tests.support.simulated import SimulatedClock
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
cache = LmdbResultCache(Path(sys.argv[1]), size=10**6, ttl_hours=1.0, clock=SimulatedClock())
resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))
fill(cache, keys(5000)[1:])
assert cache.stats().failures == 4999
assert cache.get_many(keys(2)) == [RESULT, None]
cache.close()
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "results")],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert connect().get_many(keys(2)) == [RESULT, None]


def test_a_closed_cache_answers_nothing(connect: Connect) -> None:
    cache = connect()
    fill(cache, keys(1))
    cache.close()
    cache.put_many([(keys(1)[0], RESULT)])
    assert cache.get_many(keys(1)) == [None]


def test_a_study_store_is_not_taken_for_a_cache(tmp_path: Path, clock: SimulatedClock) -> None:
    tables = StudyTables(tmp_path)
    with pytest.raises(StoreError, match="holds 'study store 2'; this trialfleet reads and writes 'result cache 2'"):
        LmdbResultCache(tmp_path, size=10, ttl_hours=1.0, clock=clock)
    tables.environment.close()
