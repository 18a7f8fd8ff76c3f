"""Backups of a home: its studies and the coordinator's roster. Caches can be computed again, and a token is made anew.

    backup.json               when it was made, and size and BLAKE2b-128 digest of every other file
    store/data.mdb            the store, as of one moment
    coordinator/studies/…     the roster, from just before

A backup is a folder that appears when it is whole. The roster is copied first: an entry that says less than the record is
caught up by the coordinator; one that says more is not.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.examination import apart
from trialfleet.home import Home
from trialfleet_coordinator.adapters.lmdb_layout import StudyTables
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_shared.adapters.lmdb_environment import exclusive
from trialfleet_shared.adapters.private_files import make_private_folder, owned_alike, private
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError, StoreError

#: What says that a folder is a backup; goes up when an earlier trialfleet could not restore it.
FORMAT = 1
#: How the names begin of folders that are there while something is restored: one that a killed restore left is removed.
BESIDE = ".trialfleet-restore-"
_MANIFEST = "backup.json"
_STORE = Path("store", "data.mdb")
_ROSTER = Path("coordinator", "studies")


class Kept(msgspec.Struct, frozen=True):
    """A file of a backup."""

    size: int
    digest: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup says of itself."""

    format: int
    #: Seconds since 1970.
    made_at: float
    #: Studies in its store.
    studies: list[str]
    #: By path within the backup.
    files: dict[str, Kept]


def back_up(home: Home, target: Path, *, now: float) -> Manifest:
    """Copy the home's studies to the new folder `target`, while they may be running.

    Raises:
        ConfigurationError: there is something at `target`, or nothing to copy.
        StoreError: the store is damaged, or the copy can not be written.
    """
    if not (home.path / _STORE).exists():
        raise ConfigurationError(f"{home.path} has no studies")
    parent = target.absolute().parent
    try:
        if target.exists():
            raise _taken(target)
        make_private_folder(parent)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
        try:
            manifest = _write(home, part, now)
            _appear(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _sync(parent)
    except OSError as error:
        raise StoreError(f"{target} can not be written: {error.strerror or error}") from error
    return manifest


def _appear(part: Path, target: Path) -> None:
    """Have a folder be at the target. Raises ConfigurationError, when something has come to be there meanwhile, and OSError."""
    try:
        part.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _taken(target) from error
        raise


def _taken(target: Path) -> ConfigurationError:
    return ConfigurationError(f"{target} is there; a backup is a new folder")


def _write(home: Home, folder: Path, now: float) -> Manifest:
    """Copy the home's studies to a folder, which is empty. Raises OSError, and StoreError as `back_up`."""
    make_private_folder(folder / _STORE.parent)
    make_private_folder(folder / _ROSTER)
    for file in sorted((home.path / _ROSTER).glob("*.json")):
        with suppress(FileNotFoundError):  # deleted just now
            _copy(file, folder / _ROSTER / file.name)
    with owned_alike(home.path):
        tables = StudyTables(home.store)
        try:
            tables.environment.copy(folder / _STORE.parent)
        finally:
            tables.environment.close()
    (folder / _STORE).chmod(0o600)
    studies = _whole_studies(folder / _STORE)
    manifest = Manifest(FORMAT, now, studies, {str(name): kept for name, kept in _files(folder)})
    with open(folder / _MANIFEST, "wb", opener=private) as out:
        out.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    for path in (folder, *folder.rglob("*")):
        _sync(path)
    return manifest


def restore(home: Home, source: Path, *, force: bool) -> Manifest:
    """Put the backup in `source` into the home, as the home's owner's; it is there whole, or nothing has changed.

    Args:
        home: where; nobody may use it meanwhile.
        source: a backup.
        force: replace the studies that are there.

    Raises:
        ConfigurationError: `source` is no backup, or is in what it would replace; or there are studies and `force` is
            False.
        StoreError: the backup is damaged, the home is in use, or can not be written.
    """
    manifest = _checked(source)
    files = CoordinatorFiles(home.path)
    if source.resolve().is_relative_to(files.studies.resolve()):
        raise ConfigurationError(f"{source} is in {files.studies}, which is replaced; move it out of there")
    try:
        with owned_alike(home.path), files.locked(), exclusive(home.store), _beside(home.path, keep=source) as beside:
            if (home.path / _STORE).exists() and not force:
                raise ConfigurationError(f"{home.path} has studies; give --force to put the backup in their place")
            _copy(source / _STORE, beside / "data.mdb")
            _renew_identity(beside)
            make_private_folder(beside / "studies")
            for name in manifest.files:
                if Path(name).parent == _ROSTER:
                    _copy(source / name, beside / "studies" / Path(name).name)
            for path in beside.rglob("*"):
                _sync(path)
            # A study that is recorded and not in the roster is no harm; the other way round, it could never be run.
            shutil.rmtree(files.studies, ignore_errors=True)
            (beside / "data.mdb").replace(home.path / _STORE)
            (home.store / "lock.mdb").unlink(missing_ok=True)
            (beside / "studies").rename(files.studies)
            for folder in (home.store, files.studies.parent):
                _sync(folder)
    except OSError as error:
        raise StoreError(f"{home.path} can not be written: {error.strerror or error}") from error
    return manifest


def _renew_identity(store: Path) -> None:
    """What was answered to studies after the backup was made, as of trials that it does not have, is not for these."""
    renewed = LmdbStudyStore(store, clock=SystemClock())
    try:
        renewed.renew_identity()
    finally:
        renewed.close()


def _checked(source: Path) -> Manifest:
    """What the backup says of itself, once that is true of every file."""
    try:
        manifest = msgspec.json.decode((source / _MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{source} is no backup: {_MANIFEST}: {words}") from error
    if manifest.format > FORMAT:
        raise ConfigurationError(
            f"{source} is a backup of format {manifest.format}; this trialfleet restores up to {FORMAT}"
        )
    found = {str(name): kept for name, kept in _files(source)}
    changed = sorted(name for name in found | manifest.files if found.get(name) != manifest.files.get(name))
    if changed or str(_STORE) not in found:
        raise StoreError(f"the backup {source} is damaged: {', '.join(changed) or _STORE} is not what was written")
    return manifest


def _whole_studies(store: Path) -> list[str]:
    """The names of the studies in a copied store, each whole. Raises StoreError."""
    with _beside(store.parent, keep=store) as beside:  # opening it would leave locks in the backup
        shutil.copyfile(store, beside / store.name)
        studies = apart("store", str(beside))
    for name, _, trouble in studies:
        if trouble:
            raise StoreError(f"study {name!r} is damaged, and can not be backed up: {trouble}; see `trialfleet doctor`")
    return [name for name, _, _ in studies]


@contextmanager
def _beside(folder: Path, *, keep: Path) -> Iterator[Path]:
    """A folder in `folder`, gone afterwards; those that were left there go too, but for one that `keep` is or is in."""
    for left in folder.glob(f"{BESIDE}*"):
        if not keep.resolve().is_relative_to(left.resolve()):
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=BESIDE, dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> Iterator[tuple[Path, Kept]]:
    """All files of a backup but what says what they are."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name != Path(_MANIFEST):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            yield name, Kept(path.stat().st_size, digest.hexdigest())


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, open(target, "xb", opener=private) as write:
        shutil.copyfileobj(read, write)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
