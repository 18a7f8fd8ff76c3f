"""LMDB environments as the study store and the result cache open them.

LMDB leaves five duties to its users, and this module does them once for all:

- A process must not open the same files twice, so all handles of a process on one folder share what is opened.
- A write that does not fit grows the map, and a process whose map another one outgrew follows it. Neither is allowed
  while a transaction is open in the process, so a process runs one transaction at a time.
- An open environment must not be used across fork. Forking waits for open transactions; the child's handles open the
  files anew when they are used first.
- Files must not be replaced while they are open anywhere: whoever has them open holds a shared lock on the file `users`,
  and `exclusive` refuses as long as anybody does.
- A reader that was killed keeps pages from being reused; such readers are cleared before the map grows.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import lmdb

from trialfleet_shared.adapters.lmdb_session import BOOT_ID, Session
from trialfleet_shared.adapters.private_files import make_private_folder
from trialfleet_shared.errors import StoreError, StoreUnavailableError

#: Reader slots of an environment: processes that may read at the same moment.
MAX_READERS = 1024
#: The sub-database that every environment has; its key "format" says what the environment holds.
_META = "meta"

#: How a full disk shows: LMDB reports a write that was cut short as EIO.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
#: How it shows that the files are not for this user to use, which says nothing of what they hold.
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
#: A transaction that returns keys and values as bytes. (Quoted: LMDB's own class takes no parameters at run time.)
Transaction: TypeAlias = "lmdb.Transaction[bytes]"
_Result = TypeVar("_Result")
_Database = lmdb._Database  # noqa: SLF001 -- the type that `open_db` returns has no public name
#: What makes an environment of an earlier layout one of the present one, given its sub-databases by name.
Upgrade = Callable[[Transaction, Mapping[str, _Database]], None]


class _Opened:
    """An environment that is open in this process, and how many handles use it."""

    def __init__(self, environment: lmdb.Environment, layout: str, session: Session | None, use: int) -> None:
        self.environment = environment
        #: Descriptor of the lock that says it is in use.
        self.use = use
        self.databases: dict[str, _Database] = {}
        self.layout = layout
        #: Of an environment whose writes do not wait for the disk.
        self.session = session
        self.users = 0
        #: Whether it belongs to the process that this one was forked from.
        self.inherited = False
        #: Held by whoever has a transaction open, in this process.
        self.lock = threading.RLock()


#: What this process has open, by folder.
_opened: dict[Path, _Opened] = {}
#: Held while `_opened` changes; always taken before an environment's own lock.
_registry_lock = threading.RLock()


class LmdbEnvironment:
    """A handle on one environment, safe to share among threads, and usable after fork.

    Args:
        path: folder of the environment; made if missing, for this user alone.
        layout: what the environment holds, and which version of it, as "study store 1".
        databases: names of its sub-databases.
        map_bytes: address space to begin with; it doubles whenever it is full.
        durable: whether a write has reached the disk when it returns. Otherwise all is lost when the machine crashes, and
            only then (see `lmdb_session`): for what can be computed again.
        earlier: by layout, how an environment of an earlier one becomes one of this, in the transaction that opens it.

    Raises:
        StoreUnavailableError: the folder is not for this user, holds something else or something newer, or is being repaired.
        StoreError: it can not be used for another reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        layout: str,
        databases: Sequence[str],
        map_bytes: int,
        durable: bool = True,
        earlier: Mapping[str, Upgrade] | None = None,
    ) -> None:
        self.path = path.resolve()
        self._layout = layout
        self._earlier = earlier or {}
        self._databases = tuple(databases)
        self._map_bytes = map_bytes
        self._durable = durable or not BOOT_ID.exists()
        self._closed = False
        self._handle: _Opened | None = None
        self._attach()

    def database(self, name: str) -> _Database:
        """The sub-database `name`, for use with a transaction of this environment."""
        return self._attach().databases[name]

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A read transaction: one moment of the environment, whatever is written meanwhile."""
        handle = self._attach()
        with handle.lock:
            try:
                with self._begin(handle, write=False) as transaction:
                    yield transaction
            except lmdb.Error as error:
                raise self._error(error) from error

    def write(self, work: Callable[[Transaction], _Result]) -> _Result:
        """Run `work` in a write transaction, committed when it returns and undone when it raises.

        `work` runs again from the start when the map had to grow: it must not change anything but the transaction.
        """
        handle = self._attach()
        with handle.lock:
            return self._write(handle, work)

    def copy(self, folder: Path) -> None:
        """Write the environment as of one moment, without what is free in it, to `data.mdb` in a folder, which is empty.

        Whatever is written meanwhile goes on. Raises StoreError: the copy can not be written.
        """
        handle = self._attach()
        with handle.lock:
            try:
                handle.environment.copy(str(folder), compact=True)
            except lmdb.Error as error:
                raise StoreError(f"{self.path} can not be copied to {folder}: {error}") from error

    def close(self) -> None:
        """Release the environment; the last handle on it closes it. May be called twice."""
        self._closed = True
        with _registry_lock:
            handle, self._handle = self._handle, None
            if handle is None or _opened.get(self.path) is not handle:
                return
            handle.users -= 1
            if handle.users == 0:
                del _opened[self.path]
                with handle.lock:
                    try:
                        self._sync(handle)
                    finally:
                        handle.environment.close()
                        os.close(handle.use)

    def _attach(self) -> _Opened:
        """What is open on this folder, opened now when this process has not opened it yet."""
        handle = self._handle
        if handle is None or handle.inherited:
            with _registry_lock:
                if self._closed:
                    raise StoreError(f"{self.path} was closed")
                handle = _opened.get(self.path)
                if handle is None:
                    handle = _opened[self.path] = self._open()
                elif handle.layout != self._layout:
                    raise self._other_layout(handle.layout)
                handle.users += 1
                self._handle = handle
        return handle

    def _sync(self, handle: _Opened) -> None:
        """Have what was written without waiting on the disk; nobody is worse off if that fails."""
        if handle.session is not None:
            with suppress(lmdb.Error, OSError), handle.environment.begin(write=True):
                handle.environment.sync(True)
                handle.session.note_synced()

    def _open(self) -> _Opened:
        try:
            make_private_folder(self.path)
            use = _lock(self.path, fcntl.LOCK_SH)
        except OSError as error:
            raise self._error(error) from error
        try:
            if self._durable:
                return self._open_files(None, use)
            session = Session(self.path, ("data.mdb", "lock.mdb"))
            with session.opening():
                return self._open_files(session, use)
        except (lmdb.Error, OSError) as error:
            os.close(use)
            raise self._error(error) from error
        except BaseException:
            os.close(use)
            raise

    def _open_files(self, session: Session | None, use: int) -> _Opened:
        environment = lmdb.open(
            str(self.path),
            map_size=self._map_bytes,
            mode=0o700,  # LMDB takes the execute bits off for its files
            max_dbs=len(self._databases) + 1,
            max_readers=MAX_READERS,
            max_spare_txns=1,  # saves a microsecond per read
            sync=self._durable,
        )
        handle = _Opened(environment, self._layout, session, use)
        try:
            self._write(handle, partial(self._prepare, handle))
        except BaseException:
            environment.close()
            raise
        return handle

    def _write(self, handle: _Opened, work: Callable[[Transaction], _Result]) -> _Result:
        while True:
            try:
                with self._begin(handle, write=True) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                self._grow(handle)
            except lmdb.Error as error:
                raise self._error(error) from error

    def _prepare(self, handle: _Opened, transaction: Transaction) -> None:
        for name in (_META, *self._databases):
            handle.databases[name] = handle.environment.open_db(name.encode(), txn=transaction)
        meta = handle.databases[_META]
        found = transaction.get(b"format", db=meta)
        if found is None:
            transaction.put(b"format", self._layout.encode(), db=meta)
        elif found.decode(errors="replace") in self._earlier:
            self._earlier[found.decode()](transaction, handle.databases)
            transaction.put(b"format", self._layout.encode(), db=meta)
        elif found != self._layout.encode():
            raise self._other_layout(found.decode(errors="replace"))

    def _other_layout(self, found: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.path} holds '{found}'; this trialfleet reads and writes '{self._layout}'. "
            "Name another folder, or use the trialfleet that made this one"
        )

    def _begin(self, handle: _Opened, *, write: bool) -> Transaction:
        try:
            transaction = handle.environment.begin(write=write)
        except lmdb.MapResizedError:
            handle.environment.set_mapsize(0)
            transaction = handle.environment.begin(write=write)
        if write and handle.session is not None:
            try:
                handle.session.begin_write()
            except OSError as error:
                transaction.abort()
                raise self._error(error) from error
        return transaction

    def _grow(self, handle: _Opened) -> None:
        """Make room in the map: of what killed readers hold, else by doubling it."""
        try:
            if not handle.environment.reader_check():
                handle.environment.set_mapsize(2 * handle.environment.info()["map_size"])
        except lmdb.Error as error:
            raise self._error(error) from error

    def _error(self, error: lmdb.Error | OSError) -> StoreError:
        if isinstance(error, BlockingIOError):
            return StoreUnavailableError(f"{self.path} is being repaired or restored; try again when that has ended")
        number = error.code if isinstance(error, lmdb.Error) else error.errno
        if number in _FORBIDDEN:
            return StoreUnavailableError(
                f"{self.path} can not be opened: {os.strerror(number)}; to read it, its lock files are written"
            )
        if isinstance(error, lmdb.Error) and error.code in _DISK_ERRORS:
            return StoreError(f"{self.path}: the disk is full or fails ({error}); nothing of the last write was kept")
        return StoreError(f"{self.path} can not be read or written: {error}")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Be the only one who uses the environment in a folder, to replace its files; they must not be opened meanwhile.

    Raises:
        StoreError: somebody has it open, or the folder can not be used.
    """
    try:
        make_private_folder(path)
        use = _lock(path, fcntl.LOCK_EX)
    except BlockingIOError as error:
        raise StoreError(f"{path} is in use; stop what uses it first") from error
    except OSError as error:
        raise StoreError(f"{path} can not be read or written: {error}") from error
    try:
        yield
    finally:
        os.close(use)


def _lock(folder: Path, kind: int) -> int:
    """A descriptor that holds the lock on the use of a folder. Raises OSError, at once when others are in the way."""
    use = os.open(folder / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(use, kind | fcntl.LOCK_NB)
    except BaseException:
        os.close(use)
        raise
    return use


def _before_fork() -> None:
    _registry_lock.acquire()
    for handle in _opened.values():
        handle.lock.acquire()


def _after_fork_in_parent() -> None:
    for handle in _opened.values():
        handle.lock.release()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    for handle in _opened.values():
        handle.inherited = True
        handle.environment.close()  # in a child this only lets the files be opened again; LMDB's own state stays
        os.close(handle.use)  # the parent's stays locked
        handle.lock.release()
    _opened.clear()
    _registry_lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
