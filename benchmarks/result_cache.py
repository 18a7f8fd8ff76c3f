"""Microseconds of the result cache at a million entries, against diskcache and SQLite kept the same way.

    python benchmarks/result_cache.py [--quick]

Three caches hold the same results under the same keys, least recently used out first, files on the same disk:

- trialfleet: `LmdbResultCache`.
- diskcache: `diskcache.Cache` with its least-recently-used policy, groups in one transaction. It limits bytes instead of
  entries, so its limit is set to what it holds when it is full.
- sqlite: what a careful user would write: one table with an index on the last use, write-ahead log, `synchronous=NORMAL`,
  uses noted in memory and written with the next group.

Each cache is filled in groups of 100, then asked for single keys that are there (drawn evenly from all), for groups of
100, and for keys that are not there; then new results are put in groups of 100, each of which has to evict. At last, four
processes do so at once. A crash of the machine empties trialfleet's; of the others, it may undo the last writes. Every
process starts with a warm page cache, as it has just been written.
"""

import argparse
import multiprocessing
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Protocol

import diskcache
import msgspec

from measuring.results import save
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.clock import SystemClock

GROUP = 100
PROCESSES = 4
#: Goals, microseconds per entry.
HIT_GOAL, PUT_GOAL = 20, 100

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(CachedResult)


class Cache(Protocol):
    """What is measured."""

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key."""
        ...

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class DiskCache:
    """diskcache, holding results as MessagePack."""

    def __init__(self, folder: Path, *, size_limit: int) -> None:
        self._cache = diskcache.Cache(
            str(folder),
            eviction_policy="least-recently-used",
            size_limit=size_limit,
            cull_limit=10,
            sqlite_cache_size=2**13,
        )

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key."""
        found = [self._cache.get(key) for key in keys]
        return [None if payload is None else _DECODER.decode(payload) for payload in found]

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries in one transaction."""
        with self._cache.transact():
            for key, result in entries:
                self._cache.set(key, _ENCODER.encode(result))

    def volume(self) -> int:
        """Bytes, as diskcache counts them."""
        return int(self._cache.volume())

    def close(self) -> None:
        """Release everything."""
        self._cache.close()


class SqliteCache:
    """One table, last uses indexed."""

    def __init__(self, folder: Path, *, size: int) -> None:
        folder.mkdir(exist_ok=True)
        self._size = size
        self._used: set[bytes] = set()
        self._connection = sqlite3.connect(folder / "cache.sqlite", timeout=60, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = NORMAL",
            "PRAGMA cache_size = -65536",
            "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, used INTEGER, result BLOB) WITHOUT ROWID",
            "CREATE INDEX IF NOT EXISTS uses ON entries (used)",
            "CREATE TABLE IF NOT EXISTS total (entries INTEGER)",
            "INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total)",
        ):
            self._connection.execute(statement)

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key."""
        results: list[CachedResult | None] = []
        for key in keys:
            row = self._connection.execute("SELECT result FROM entries WHERE key = ?", (key,)).fetchone()
            results.append(None if row is None else _DECODER.decode(row[0]))
            if row is not None:
                self._used.add(key)
        return results

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries in one transaction, and the uses since the last; evict what is too much."""
        now = time.time_ns()
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        self._connection.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in self._used])
        added = self._connection.executemany(
            "INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
            [(key, now, _ENCODER.encode(result)) for key, result in entries],
        ).rowcount
        (total,) = execute("SELECT entries FROM total").fetchone()
        excess = max(total + added - self._size, 0)
        if excess:
            execute("DELETE FROM entries WHERE key IN (SELECT key FROM entries ORDER BY used LIMIT ?)", (excess,))
        execute("UPDATE total SET entries = ?", (total + added - excess,))
        execute("COMMIT")
        self._used.clear()

    def close(self) -> None:
        """Release everything."""
        self._connection.close()


def make(kind: str, folder: Path, limit: int) -> Cache:
    """A cache; `limit` is in entries, of diskcache in bytes."""
    if kind == "diskcache":
        return DiskCache(folder, size_limit=limit)
    if kind == "sqlite":
        return SqliteCache(folder, size=limit)
    return LmdbResultCache(folder, size=limit, ttl_hours=24, clock=SystemClock())


def key_of(number: int) -> bytes:
    """As evenly spread as digests are, for numbers below 2**64."""
    return (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).to_bytes(16, "big")


def entry_of(number: int) -> tuple[bytes, CachedResult]:
    """A result as evaluations give them."""
    score = number % 997 / 997
    return key_of(number), CachedResult(score, {"accuracy": score, "loss": 1 - score}, 1.5 + score, 1.25 + score)


def timed(calls: Sequence[Callable[[], Any]], per: int = 1) -> dict[str, float]:
    """Microseconds of the calls: mean and quantiles per entry, and the slowest call whole, in milliseconds."""
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - started))
    ordered = sorted(times)
    return {
        "mean": statistics.fmean(times) / per,
        "median": ordered[len(ordered) // 2] / per,
        "p99": ordered[int(0.99 * (len(ordered) - 1))] / per,
        "call_p999_ms": ordered[int(0.999 * (len(ordered) - 1))] / 1000,
        "call_max_ms": ordered[-1] / 1000,
    }


def hits(cache: Cache, entries: int, calls: int, *, group: int, seed: int) -> list[Callable[[], Any]]:
    """Calls that ask for entries that are there. Keys are drawn beforehand."""
    draw = random.Random(seed)
    wanted = [[key_of(draw.randrange(entries)) for _ in range(group)] for _ in range(calls)]
    return [lambda keys=keys: cache.get_many(keys) for keys in wanted]  # type: ignore[misc]  # lambdas bind their keys


def puts(cache: Cache, first: int, calls: int) -> list[Callable[[], Any]]:
    """Calls that put groups of new entries."""
    groups = [[entry_of(number) for number in range(start, start + GROUP)] for start in _starts(first, calls)]
    return [lambda group=group: cache.put_many(group) for group in groups]  # type: ignore[misc]  # see above


def _starts(first: int, calls: int) -> range:
    return range(first, first + calls * GROUP, GROUP)


def at_once(
    kind: str, folder: Path, limit: int, entries: int, calls: int, number: int, ready: Barrier, answers: Any
) -> None:
    """One of several processes."""
    cache = make(kind, folder, limit)
    asks = hits(cache, entries, calls, group=1, seed=number)
    news = puts(cache, (number + 2) * 2 * entries, calls // GROUP)
    asks[0]()
    ready.wait()
    hit = timed(asks)
    ready.wait()
    put = timed(news, GROUP)
    ready.wait()
    cache.close()
    answers.put({"hit": hit, "put": put})


def several(kind: str, folder: Path, limit: int, entries: int, calls: int) -> dict[str, dict[str, float]]:
    """The mean over processes of what each measured, and the slowest call of all."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=at_once, args=(kind, folder, limit, entries, calls, number, ready, answers))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    parts = [answers.get(timeout=1800) for _ in processes]
    for process in processes:
        process.join()
    return {
        what: {
            name: (max if name.startswith("call_") else statistics.fmean)([part[what][name] for part in parts])
            for name in parts[0][what]
        }
        for what in ("hit", "put")
    }


def measure(kind: str, folder: Path, entries: int, calls: int) -> dict[str, Any]:
    """Everything of one cache."""
    cache = make(kind, folder, 2**50 if kind == "diskcache" else entries)
    started = time.perf_counter()
    for call in puts(cache, 0, entries // GROUP):
        call()
    results: dict[str, Any] = {"fill": 1e6 * (time.perf_counter() - started) / entries}
    limit = cache.volume() if isinstance(cache, DiskCache) else entries
    cache.close()
    cache = make(kind, folder, limit)
    assert cache.get_many([key_of(entries - 1)]) == [entry_of(entries - 1)[1]]
    timed(hits(cache, entries, calls // 4, group=1, seed=99))  # maps the pages in
    results["hit"] = timed(hits(cache, entries, calls, group=1, seed=0))
    results["hit_in_groups"] = timed(hits(cache, entries, calls // GROUP, group=GROUP, seed=1), GROUP)
    results["miss"] = timed([lambda n=n: cache.get_many([key_of(n)]) for n in range(entries, entries + calls)])  # type: ignore[misc]  # see above
    results["put"] = timed(puts(cache, entries, calls // GROUP), GROUP)
    cache.close()
    results["processes"] = several(kind, folder, limit, entries, calls // 2)
    return results


def main() -> None:
    """Read the command line, print the table, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 entries instead of a million")
    parser.add_argument("--only", choices=("trialfleet", "sqlite", "diskcache"), help="measure this one alone")
    quick, only = (arguments := parser.parse_args()).quick, arguments.only
    entries, calls = (50_000, 4_000) if quick else (1_000_000, 100_000)
    results = {}
    print(f"microseconds per entry, {entries:,} entries, evicting; 4x: by four processes at once")
    print(f"{'':12}{'hit':>7}{'p99':>7}{'grouped':>9}{'miss':>7}{'put':>7}{'p99.9':>9}{'longest':>9}", end="")
    print(f"{'4x hit':>9}{'4x put':>9}{'4x longest':>13}")
    for kind in [only] if only else ["trialfleet", "sqlite", "diskcache"]:
        with tempfile.TemporaryDirectory() as folder:
            found = results[kind] = measure(kind, Path(folder) / "cache", entries, calls)
        put, many = found["put"], found["processes"]
        print(f"{kind:12}{found['hit']['median']:7.1f}{found['hit']['p99']:7.1f}", end="")
        print(f"{found['hit_in_groups']['mean']:9.1f}{found['miss']['median']:7.1f}{put['mean']:7.1f}", end="")
        print(f"{put['call_p999_ms']:6.1f} ms{put['call_max_ms']:6.1f} ms", end="")
        print(
            f"{many['hit']['median']:9.1f}{many['put']['mean']:9.1f}{many['put']['call_max_ms']:10.1f} ms", flush=True
        )
    print(f"goals: hit {HIT_GOAL}, put {PUT_GOAL}, no pause while evicting")
    if only is None:
        settings = {"entries": entries, "group": GROUP, "processes": PROCESSES, "calls": calls}
        save("result_cache", settings=settings, results=results, quick=quick, packages=("trialfleet", "diskcache"))


if __name__ == "__main__":
    main()
