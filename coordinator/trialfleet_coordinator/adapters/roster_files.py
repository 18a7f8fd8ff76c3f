"""The roster as one JSON file for each study, which an operator can read."""

import os
from pathlib import Path

import msgspec

from trialfleet_coordinator.roster import Entry
from trialfleet_shared.adapters.private_files import make_private_folder, private
from trialfleet_shared.errors import StoreError
from trialfleet_shared.fingerprint import digest_bytes


class RosterFiles:
    """Implements `trialfleet_coordinator.roster.RosterStore`.

    Args:
        folder: where the files are; made if missing, for this user alone.

    Raises:
        StoreError: it can not be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            make_private_folder(folder)
        except OSError as error:
            raise _failed(folder, error) from error

    def load(self) -> list[Entry]:
        """All entries. Raises StoreError, which names the file that can not be read."""
        return [read_entry(path) for path in sorted(self._folder.glob("*.json"))]

    def save(self, entry: Entry) -> None:
        """Write an entry; after a crash of the machine the old one or the new one is there. Raises StoreError."""
        path = self._path(entry.study)
        half = path.with_suffix(".half")
        try:
            with open(half, "wb", opener=private) as file:
                file.write(msgspec.json.format(msgspec.json.encode(entry), indent=2))
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
            self._sync()
        except OSError as error:
            raise _failed(path, error) from error

    def remove(self, study: str) -> None:
        """Forget an entry, if there is one. Raises StoreError."""
        path = self._path(study)
        try:
            path.unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise _failed(path, error) from error

    def _path(self, study: str) -> Path:
        # A name may hold what a file's name can not.
        return self._folder / f"{digest_bytes(study.encode())}.json"

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_entry(path: Path) -> Entry:
    """The entry in a file. Raises StoreError, which names the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Entry)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: Exception) -> StoreError:
    return StoreError(f"the coordinator's studies can not be kept in {path}: {error}")
