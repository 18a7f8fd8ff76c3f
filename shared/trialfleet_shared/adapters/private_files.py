"""Folders and files for this user alone, whatever the umask: what is kept may tell of data, and some of it is secret."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make the folder, and those above it that are missing, mode 0700; one that is there stays as it is. Raises OSError."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)  # somebody else may be making it too
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder")


def private(path: str, flags: int) -> int:
    """An opener for `open` that makes files with mode 0600."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextmanager
def owned_alike(folder: Path) -> Iterator[None]:
    """What root makes in a folder meanwhile belongs to the folder's owner, who could not use it otherwise. Raises OSError.

    That owner may change names in there at the same time: nothing outside is given away by a link.
    """
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            owner = folder.stat()
            if os.geteuid() == 0 and owner.st_uid != 0:
                _give(folder.resolve(), owner)


def _give(folder: Path, owner: os.stat_result) -> None:
    for _, folders, files, within in os.fwalk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):  # a study runs, and is done with it
                status = os.stat(name, dir_fd=within, follow_symlinks=False)
                linked = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
                if status.st_uid == 0 and not linked:
                    os.chown(name, owner.st_uid, owner.st_gid, dir_fd=within, follow_symlinks=False)
