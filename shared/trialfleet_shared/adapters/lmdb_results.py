"""The result cache in LMDB: one environment per host, shared by its processes, kept over sessions and studies.

Three sub-databases, all trees; only the last, of a few entries, is ever scanned:

    entries   key (16 bytes)         -> created, used (8 bytes each), checksum (4 bytes), the result as MessagePack
    uses      used (8 bytes) + key   -> nothing; its first entry is the least recently used one
    sizes     size (8 bytes)         -> asked, ttl (8 bytes each): who uses the cache asks for its size

`created`, `used` and `asked` are microseconds since 1970, `ttl` microseconds. The cache keeps as many entries as the
largest size that was asked for within the ttl of whoever asked, and each of them for the longest of those ttls: a study that
wants less than another does not take away what the other kept, it only takes no older entries itself. Once nobody has asked
for so much for that long, the cache shrinks (docs/adr/0011).

The checksum is CRC-32 of key and result: a flipped bit, or a value under another's key, is noticed when it is read, and
the entry counts as missing.

A hit is a read transaction. The uses it makes are written together with the next results (or after `_PENDING_LIMIT`
of them), and only for entries in the older half of the time that the recorded uses span, as the others are in no
danger. So the recorded use of an entry lags behind its last use by less than half that span, and hits of other
processes count once those have written them; otherwise the order is exact.
"""

import itertools
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgspec

from trialfleet_shared.adapters.lmdb_environment import LmdbEnvironment, Transaction
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import StoreError

#: What the environment holds; the number goes up when an older trialfleet could misread it.
_LAYOUT = "result cache 2"
_LAYOUT_1 = "result cache 1"
#: Address space to begin with, in bytes; it grows.
_MAP_BYTES = 256 * 2**20
#: Uses and removals noted by hits before they are written without waiting for new results.
_PENDING_LIMIT = 1000
#: A size is asked for again after this share of the ttl: not with every write, and well before it is forgotten.
_ASK_AGAIN = 1 / 8
#: Entries that one write removes beyond as many as it adds: a cache that was made smaller shrinks in steps.
_REMOVED_PER_WRITE = 1000

_STAMP = struct.Struct(">Q")
_HEADER = struct.Struct(">QQ")
_CHECKSUM = struct.Struct(">I")
#: Header and checksum.
_ENTRY = struct.Struct(">QQI")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(CachedResult)


class CacheStats(NamedTuple):
    """A result cache at one moment; the counts are of this object since it was opened."""

    entries: int
    #: Pages in use, in bytes; the file may be larger.
    bytes: int
    hits: int
    misses: int
    #: Entries removed to keep within the size, least recently used first.
    evictions: int
    #: Entries that were older than `ttl_hours` when they were asked for, and those removed for their age.
    expirations: int
    #: Entries removed because they were damaged.
    corrupt: int
    #: Results not kept, and reads not answered, because the disk was full or failed.
    failures: int


class LmdbResultCache:
    """The result cache of this host (see `trialfleet_shared.caching.ResultCache`).

    Safe to share among threads. A forked child makes its own.

    Args:
        path: folder of the environment; made if missing, for this user alone.
        size: entries kept at most, at least 1, unless others asked for more (see the top).
        ttl_hours: hours after which an entry counts as missing here, and after which this size is forgotten.
        clock: tells the time entries are made and used.

    Raises:
        StoreError: the folder can not be used, or holds something else.
    """

    def __init__(self, path: Path, *, size: int, ttl_hours: float, clock: Clock) -> None:
        self._environment = _environment(path)
        self._size = size
        self._ttl = round(ttl_hours * 3600e6)
        self._clock = clock
        self._lock = threading.Lock()
        #: Entries used since the last write, the one used last at the end.
        self._used: dict[bytes, None] = {}
        #: Entries found expired or corrupt since the last write.
        self._dead: set[bytes] = set()
        self._hits = self._misses = self._evictions = self._expirations = self._corrupt = self._failures = 0
        with suppress(StoreError):  # a full disk; the next write asks as well
            self._environment.write(self._ask)

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        """The entry of each key, None where there is none or it expired."""
        with self._lock:
            try:
                found = self._read(keys)
            except StoreError:
                self._failures += len(keys)
                found = [None] * len(keys)
            hits = sum(result is not None for result in found)
            self._hits += hits
            self._misses += len(keys) - hits
            if len(self._used) + len(self._dead) >= _PENDING_LIMIT:
                self._write([])
            return found

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Keep the entries in one write, which outlives this process; a full disk is counted and otherwise ignored."""
        latest: dict[bytes, CachedResult] = {}
        for key, result in entries:
            latest.pop(key, None)  # so that the key moves to its last place
            latest[key] = result
        with self._lock:
            self._write(list(latest.items())[-self._size :])

    def stats(self) -> CacheStats:
        """How full the cache is and how it did. Raises StoreError when it can not be read."""
        with self._lock, self._environment.read() as transaction:
            pages = 0
            for name in ("entries", "uses"):
                stat = transaction.stat(self._environment.database(name))
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            return CacheStats(
                entries=transaction.stat(self._environment.database("entries"))["entries"],
                bytes=pages * stat["psize"],
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                expirations=self._expirations,
                corrupt=self._corrupt,
                failures=self._failures,
            )

    def close(self) -> None:
        """Write down the uses that are not written yet and release everything. May be called twice."""
        with self._lock:
            if self._used or self._dead:
                self._write([])
            self._environment.close()

    def _now(self) -> int:
        return round(self._clock.time() * 1e6)

    def _read(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        entries, uses = self._environment.database("entries"), self._environment.database("uses")
        now = self._now()
        results: list[CachedResult | None] = []
        with self._environment.read() as transaction:
            cursor = transaction.cursor(uses)
            middle = (_stamp_at(cursor, cursor.first()) + _stamp_at(cursor, cursor.last())) // 2
            for key in keys:
                stored = transaction.get(key, db=entries)
                result = None
                if stored is not None:
                    result = self._decode(key, stored, now, middle)
                results.append(result)
        return results

    def _decode(self, key: bytes, stored: bytes, now: int, middle: int) -> CachedResult | None:
        """The result in `stored`; notes the use if it has to be written, or that the entry has to go."""
        entry = _unpack(key, stored)
        if entry is None or _expired(entry.created, now, self._ttl):
            if key not in self._dead:
                self._dead.add(key)
                self._corrupt += entry is None
                self._expirations += entry is not None
            return None
        if entry.used <= middle:
            self._used.pop(key, None)
            self._used[key] = None
        return entry.result

    def _write(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        """Write what is noted and new, and make room."""
        packed = []
        for key, result in entries:
            try:
                payload = _ENCODER.encode(result)
                packed.append((key, _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(key))) + payload))
            except (TypeError, OverflowError):  # metrics that are no numbers
                self._failures += 1
        try:
            evicted, expired = self._environment.write(lambda transaction: self._apply(transaction, packed))
        except StoreError:
            self._failures += len(packed)
        else:
            self._evictions += evicted
            self._expirations += expired
        self._used.clear()
        self._dead.clear()

    def _apply(self, transaction: Transaction, packed: Sequence[tuple[bytes, bytes]]) -> tuple[int, int]:
        """All changes of one write; returns how many entries were evicted and how many had expired unseen."""
        entries, uses = self._environment.database("entries"), self._environment.database("uses")
        now = self._now()
        size, ttl = self._ask(transaction)
        cursor = transaction.cursor(uses)
        # Later than every other use, also where the clock stood still or was put back.
        stamps = itertools.count(max(now, _stamp_at(cursor, cursor.last()) + 1))
        for key in self._dead:
            stored = transaction.get(key, db=entries)
            entry = None if stored is None else _unpack(key, stored)
            # Another process may have renewed it since, or use it longer.
            if stored is not None and (entry is None or _expired(entry.created, now, ttl)):
                transaction.delete(key, db=entries)
                _drop_use(transaction, uses, key, stored)
        for key in self._used:
            stored = transaction.get(key, db=entries)
            if stored is not None:
                stamp = next(stamps)
                created, used = _HEADER.unpack_from(stored)
                transaction.delete(_STAMP.pack(used) + key, db=uses)
                transaction.put(_STAMP.pack(stamp) + key, b"", db=uses)
                transaction.put(key, _HEADER.pack(created, stamp) + stored[_HEADER.size :], db=entries)
        for key, payload in packed:
            stamp = next(stamps)
            replaced = transaction.replace(key, _HEADER.pack(now, stamp) + payload, db=entries)
            if replaced is not None:
                _drop_use(transaction, uses, key, replaced)
            transaction.put(_STAMP.pack(stamp) + key, b"", db=uses)
        return self._make_room(transaction, size, oldest=now - ttl, limit=len(packed) + _REMOVED_PER_WRITE)

    def _make_room(self, transaction: Transaction, size: int, *, oldest: int, limit: int) -> tuple[int, int]:
        """Remove the least recently used entries that expired or are more than `size`, at most `limit` of them."""
        entries, uses = self._environment.database("entries"), self._environment.database("uses")
        excess = transaction.stat(entries)["entries"] - size
        evicted = expired = 0
        cursor = transaction.cursor(uses)
        while evicted + expired < limit and cursor.first():
            stamp, key = _stamp_at(cursor, True), cursor.key()[_STAMP.size :]
            if stamp <= oldest:  # made even earlier than it was used
                expired += 1
            elif evicted + expired < excess:
                evicted += 1
            else:
                break
            cursor.delete()
            transaction.delete(key, db=entries)
        return evicted, expired

    def _ask(self, transaction: Transaction) -> tuple[int, int]:
        """Have this size known, forget those that nobody asked for lately; return the largest, and the longest ttl."""
        sizes, now = self._environment.database("sizes"), self._now()
        known: dict[int, tuple[int, int]] = {}
        for key, stored in list(transaction.cursor(sizes)):
            asked, ttl = _HEADER.unpack(stored)
            if abs(now - asked) < ttl:
                known[_STAMP.unpack(key)[0]] = (asked, ttl)
            else:
                transaction.delete(key, db=sizes)
        asked, ttl = known.get(self._size, (0, 0))
        if ttl < self._ttl or abs(now - asked) >= _ASK_AGAIN * ttl:
            transaction.put(_STAMP.pack(self._size), _HEADER.pack(now, max(ttl, self._ttl)), db=sizes)
        return max([self._size, *known]), max([self._ttl, *(ttl for _, ttl in known.values())])


def _drop_use(transaction: Transaction, uses: Any, key: bytes, stored: bytes) -> None:
    """Remove the use of what stood under a key: left behind, it would take the key's next entry away."""
    if len(stored) >= _HEADER.size:
        transaction.delete(_STAMP.pack(_HEADER.unpack_from(stored)[1]) + key, db=uses)


def _expired(created: int, now: int, ttl: int) -> bool:
    # An entry from the future was made before the clock was put back; by more than the ttl, nobody knows its age.
    return abs(now - created) >= ttl


def examine_results(path: Path, *, repair: bool) -> tuple[int, int]:
    """Read all entries of the cache at `path`; how many there are, and how many of them are damaged.

    Args:
        path: folder of the environment.
        repair: remove those that are. Else they go when they are asked for.

    Raises:
        StoreError: the cache can not be read.
    """
    environment = _environment(path)
    try:
        with environment.read() as transaction:
            entries = environment.database("entries")
            count = transaction.stat(entries)["entries"]
            damaged = [key for key, stored in transaction.cursor(entries) if _unpack(key, stored) is None]

        def remove(transaction: Transaction) -> None:
            for key in damaged:
                stored = transaction.get(key, db=entries)
                if stored is not None and _unpack(key, stored) is None:  # nobody renewed it since
                    transaction.delete(key, db=entries)
                    _drop_use(transaction, environment.database("uses"), key, stored)

        if repair and damaged:
            environment.write(remove)
    finally:
        environment.close()
    return count, len(damaged)


def _environment(path: Path) -> LmdbEnvironment:
    return LmdbEnvironment(
        path,
        layout=_LAYOUT,
        databases=("entries", "uses", "sizes"),
        map_bytes=_MAP_BYTES,
        durable=False,  # docs/adr/0012
        earlier={_LAYOUT_1: _empty},
    )


def _empty(transaction: Transaction, databases: Mapping[str, Any]) -> None:
    """Drop what an earlier layout kept: it can be computed again."""
    for name in ("entries", "uses", "sizes"):
        transaction.drop(databases[name], delete=False)


def _stamp_at(cursor: "lmdb.Cursor[bytes]", found: bool) -> int:
    """The stamp of the use that the cursor is at; 0 when it found none."""
    return int(_STAMP.unpack_from(cursor.key())[0]) if found else 0


class _Entry(NamedTuple):
    created: int
    used: int
    result: CachedResult


def _unpack(key: bytes, stored: bytes) -> _Entry | None:
    """The entry, None when it is not as it was written."""
    try:
        created, used, checksum = _ENTRY.unpack_from(stored)
        payload = stored[_ENTRY.size :]
        if zlib.crc32(payload, zlib.crc32(key)) != checksum:
            return None
        return _Entry(created, used, _DECODER.decode(payload))
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError):
        return None
