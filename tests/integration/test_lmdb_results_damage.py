"""A result cache whose bytes change: an entry is as it was written, or it is missing and computed again."""

import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from support.flipping import Died, flipped, flips, seen_by_child, write_alone
from support.simulated import SimulatedClock

from trialfleet_shared.adapters.lmdb_results import LmdbResultCache, examine_results
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.errors import StoreError

KEYS = [bytes([number]) * 16 for number in range(100)]
RESULTS = [CachedResult(number / 7, {"loss": number / 3}, 1.0, 0.5) for number in range(100)]


def opened(path: Path) -> LmdbResultCache:
    return LmdbResultCache(path, size=1000, ttl_hours=24, clock=SimulatedClock())


def change(path: Path, work: Callable[[lmdb.Transaction, object], object]) -> None:
    """Change the entries behind the cache's back."""
    with lmdb.open(str(path), max_dbs=4) as environment:
        entries = environment.open_db(b"entries")
        with environment.begin(write=True) as transaction:
            work(transaction, entries)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a cache with 100 entries."""
    folder = tmp_path_factory.mktemp("whole") / "results"
    cache = opened(folder)
    cache.put_many(list(zip(KEYS, RESULTS, strict=True)))
    cache.close()
    return (folder / "data.mdb").read_bytes()


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    cache = opened(tmp_path / "results")
    cache.put_many([(KEYS[0], RESULTS[0]), (KEYS[1], RESULTS[1])])
    cache.close()

    def double(transaction: lmdb.Transaction, entries: object) -> None:
        stored = transaction.get(KEYS[0], db=entries)
        value = struct.pack(">d", RESULTS[0].value)
        assert value in stored
        transaction.put(KEYS[0], stored.replace(value, struct.pack(">d", 2.0)), db=entries)

    change(tmp_path / "results", double)
    cache = opened(tmp_path / "results")
    assert cache.get_many(KEYS[:2]) == [None, RESULTS[1]]
    assert cache.stats().corrupt == 1
    cache.put_many([(KEYS[0], RESULTS[0])])
    assert cache.get_many(KEYS[:1]) == [RESULTS[0]]
    cache.close()


def test_an_entry_is_right_for_its_key_alone(tmp_path: Path) -> None:
    cache = opened(tmp_path / "results")
    cache.put_many([(KEYS[0], RESULTS[0]), (KEYS[1], RESULTS[1])])
    cache.close()
    change(
        tmp_path / "results",
        lambda transaction, entries: transaction.put(KEYS[0], transaction.get(KEYS[1], db=entries), db=entries),
    )
    cache = opened(tmp_path / "results")
    assert cache.get_many(KEYS[:2]) == [None, RESULTS[1]]
    cache.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flip=flips(4096 * 12))
def test_a_flipped_byte_never_gives_another_value(content: bytes, tmp_path: Path, flip: tuple[int, int]) -> None:
    write_alone(tmp_path / "results", flipped(content, (flip[0] % len(content), flip[1])))

    def look() -> list[float | None] | str:
        try:
            cache = opened(tmp_path / "results")
            found = [None if each is None else each.value for each in cache.get_many(KEYS)]
            cache.put_many([(KEYS[0], RESULTS[0])])  # noticed or not, it goes on
            cache.close()
        except StoreError as error:
            return str(error)
        return found

    seen = seen_by_child(look)
    if not isinstance(seen, Died | str):
        assert all(value in (None, result.value) for value, result in zip(seen, RESULTS, strict=True))


def test_a_cache_of_the_first_layout_is_emptied(tmp_path: Path) -> None:
    cache = opened(tmp_path / "results")
    cache.put_many([(KEYS[0], RESULTS[0])])
    cache.close()
    file = tmp_path / "results" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"result cache 2", b"result cache 1"))
    cache = opened(tmp_path / "results")
    assert cache.stats().entries == 0
    cache.put_many([(KEYS[1], RESULTS[1])])
    cache.close()
    cache = opened(tmp_path / "results")
    assert cache.get_many(KEYS[:2]) == [None, RESULTS[1]]
    cache.close()


def test_what_repair_removes_takes_no_later_entry_with_it(tmp_path: Path) -> None:
    clock, path = SimulatedClock(), tmp_path / "results"

    def put(key: bytes) -> list[CachedResult | None]:
        cache = LmdbResultCache(path, size=1000, ttl_hours=24, clock=clock)
        cache.put_many([(key, RESULTS[0])])
        found = cache.get_many(KEYS[:1])
        cache.close()
        return found

    put(KEYS[0])
    change(
        path,
        lambda transaction, entries: transaction.put(KEYS[0], transaction.get(KEYS[0], db=entries)[:-1], db=entries),
    )
    assert examine_results(path, repair=True) == (1, 1)
    clock.now += 23 * 3600
    assert put(KEYS[0]) == [RESULTS[0]]
    clock.now += 2 * 3600
    assert put(KEYS[1]) == [RESULTS[0]], "the entry is two hours old, the one that was removed would be twenty-five"
