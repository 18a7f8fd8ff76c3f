"""The files of data sets as this process has them mapped.

LMDB lets a process open a file once. Whoever opens it again, another study or another thread, shares what is open, and
the last array that lies in it closes it. A fork may go on reading what its parent had open: a mapping without locks is
nothing but memory.
"""

import math
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import numpy as np
from numpy.typing import NDArray

from trialfleet_shared.errors import DataError
from trialfleet_workers.adapters.data_format import Meta


class _Opened:
    """A file's environment, and the one transaction in which its values stay where they are."""

    def __init__(self, path: Path, key: tuple[Path, int]) -> None:
        self.key = key
        self.users = 0
        try:
            self._environment = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0, create=False
            )
        except lmdb.Error as error:
            raise DataError(f"the data set {path} can not be opened: {error}") from error
        self.transaction = self._environment.begin(buffers=True)

    def close(self) -> None:
        """Unmap it."""
        self.transaction.abort()
        self._environment.close()


#: What this process has open, by path and inode: a data set that was imported again is another file. Changed under the
#: lock alone.
_opened: dict[tuple[Path, int], _Opened] = {}
_lock = threading.Lock()
#: Who has one user less. A mapping may go in the middle of anything, when garbage is collected, even while this thread
#: holds the lock: then whoever uses the lock next closes what is to be closed.
_released: deque[_Opened] = deque()


class Mapping:
    """A file of values, open for as long as this, or an array that came from it, lives.

    Args:
        path: the file.

    Raises:
        DataError: it can not be opened.
    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()
        try:
            key = (path, path.stat().st_ino)
        except OSError as error:
            raise DataError(f"the data set {path} can not be opened: {error.strerror}") from error
        with _lock:
            _close_released()
            opened = _opened.get(key)
            if opened is None:
                opened = _opened[key] = _Opened(path, key)
            opened.users += 1
        self._transaction = opened.transaction
        # Not at exit, where threads may still be reading; the system unmaps it then.
        weakref.finalize(self, _release, opened).atexit = False

    def get(self, name: str) -> memoryview | None:
        """A value, as it lies in the map."""
        value: memoryview | None = self._transaction.get(name.encode())
        return value

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
        """A value as a read-only array that keeps the file open; None when its size is another."""
        value = self.get(name)
        if value is None or len(value) != np.dtype(dtype).itemsize * math.prod(shape):
            return None
        return np.asarray(_View(self, np.frombuffer(value, dtype=dtype).reshape(shape)))


class _View:
    """What numpy takes for the memory of an array: it keeps the mapping while the array, or a view on it, lives."""

    def __init__(self, mapping: Mapping, values: NDArray[Any]) -> None:
        self._mapping = mapping
        self.__array_interface__ = values.__array_interface__


def read_meta(mapping: Mapping, path: Path) -> Meta:
    """What is known of the data set in a mapped file. Raises DataError."""
    stored = mapping.get("meta")
    try:
        return msgspec.json.decode(stored or b"", type=Meta)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"the data set {path} is damaged: its description is not whole; remove the file") from error


def _release(opened: _Opened) -> None:
    _released.append(opened)
    if _lock.acquire(blocking=False):
        try:
            _close_released()
        finally:
            _lock.release()


def _close_released() -> None:
    while _released:
        opened = _released.popleft()
        opened.users -= 1
        if not opened.users:
            del _opened[opened.key]
            opened.close()
