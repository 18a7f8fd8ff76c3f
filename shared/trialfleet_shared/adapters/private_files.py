"""Folders and files for this user alone, whatever the umask: what is kept may tell of data, and some of it is secret."""

import os
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
