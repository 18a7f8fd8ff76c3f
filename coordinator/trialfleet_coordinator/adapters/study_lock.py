"""The lock on a study: one coordinator at a time. The kernel releases it when its process ends, however it ends.

Its file goes with the study. Whoever opened the file before that, and gets the lock on it after, holds nothing: another one
may have made a new file meanwhile. So it counts only if the file is still in its place.
"""

import fcntl
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path

import msgspec

from trialfleet_shared.adapters.private_files import make_private_folder
from trialfleet_shared.errors import StoreError, StudyLockedError
from trialfleet_shared.fingerprint import digest_bytes


class _Holder(msgspec.Struct, frozen=True):
    """What a lock file says of who holds it (or held it last: the file stays as long as the study)."""

    pid: int
    host: str


class StudyLock:
    """An exclusive lock on the study `name` in the store at `folder`, held from now until `release`.

    A forked child does not hold its parent's lock, and does not keep it from being released.

    Raises:
        StudyLockedError: another process holds it; the message says which.
        StoreError: the lock file can not be made.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / "locks" / f"{digest_bytes(name.encode())}.lock"
        self._file: int | None = None
        try:
            make_private_folder(self._path.parent)
            while self._file is None:
                self._file = _lock(self._path, name)
        except OSError as error:
            raise StoreError(f"{self._path} can not be locked: {error}") from error
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None

    def remove_file(self) -> None:
        """Take the file away, with the lock held: the study is deleted."""
        with suppress(OSError):  # a file too many does no harm
            self._path.unlink()

    def release(self) -> None:
        """Give the lock up. May be called twice."""
        _held.discard(self)
        if self._file is not None:
            os.close(self._file)
            self._file = None


#: The locks of this process.
_held: "weakref.WeakSet[StudyLock]" = weakref.WeakSet()


def _lock(path: Path, name: str) -> int | None:
    """A descriptor that holds the lock; None: the file was taken away before that. Raises StudyLockedError, OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file).st_nlink:
            os.close(file)
            return None
        os.ftruncate(file, 0)
        os.pwrite(file, msgspec.json.encode(_Holder(os.getpid(), socket.gethostname())), 0)
    except BlockingIOError as error:
        holder = _holder(os.pread(file, 1000, 0))
        os.close(file)
        raise StudyLockedError(
            f"study {name!r} is being run by {holder}; stop that first, or run under another name"
        ) from error
    except OSError:
        os.close(file)
        raise
    return file


def _holder(content: bytes) -> str:
    try:
        holder = msgspec.json.decode(content, type=_Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):  # it holds the lock, but has not written who it is yet
        return "another process"
    if holder == _Holder(os.getpid(), socket.gethostname()):
        return "this process"
    return f"process {holder.pid} on {holder.host}"


def _release_inherited() -> None:
    # Closing the child's copy leaves the parent's lock alone; keeping it would hold the lock beyond the parent's end.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_inherited)
