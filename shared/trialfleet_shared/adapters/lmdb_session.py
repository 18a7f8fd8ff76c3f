"""Whether files that were written without waiting for the disk can be trusted.

What a process wrote survives its death, as the kernel has it; a crash of the machine may leave any part of it on the disk,
which LMDB does not notice. So whoever writes without waiting leaves two notes beside the files:

    boot     the kernel's boot that they were last written in
    synced   is there when all of them reached the disk and nothing was written since

Files of another boot that are not noted as synced are removed. Both notes change under a lock that excludes all writers,
and `synced` is gone from the disk before anything is written. Files without `boot` were never written this way.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trialfleet_shared.adapters.private_files import private

#: What identifies a boot of this kernel: random(4).
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Session:
    """The notes in one folder.

    Args:
        folder: where the files are.
        files: their names.
    """

    def __init__(self, folder: Path, files: tuple[str, ...]) -> None:
        self._folder = folder
        self._files = files
        self._boot = folder / "boot"
        self._synced = folder / "synced"

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Open the files inside this: they can be trusted then. Raises OSError when the notes can not be kept."""
        now = BOOT_ID.read_text()
        with open(self._folder / "open.lock", "a", opener=private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self._boot.read_text() if self._boot.exists() else now
            if found != now and not self._synced.exists():
                for name in self._files:
                    (self._folder / name).unlink(missing_ok=True)
            if found != now or not self._boot.exists():
                self._note_boot(now)
            yield

    def begin_write(self) -> None:
        """Call this inside of a write transaction, before it changes anything."""
        if self._synced.exists():
            self._synced.unlink()
            self._sync_folder()

    def note_synced(self) -> None:
        """Call this inside of a write transaction that changes nothing, after the files were synced."""
        self._synced.touch(mode=0o600)

    def _note_boot(self, now: str) -> None:
        """Whole or not at all: a note that is cut short would have the next one who opens the files remove them."""
        part = self._boot.with_suffix(".part")
        with open(part, "w", opener=private) as boot:
            boot.write(now)
        part.replace(self._boot)
        self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
