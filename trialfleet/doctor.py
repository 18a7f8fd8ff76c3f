"""Looks whether a home is as it was written, and mends what can be mended: `examine`.

Caches can be computed again: what is damaged in them is removed. Of the store, studies that are whole are written into a new
one, and the damaged one is kept beside it. All can be looked at while studies run; a store, or a cache that can not even be
read, is mended only while nobody uses it.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.examination import apart
from trialfleet.home import Home
from trialfleet_coordinator.adapters.roster_files import read_entry
from trialfleet_shared.adapters.lmdb_environment import exclusive
from trialfleet_shared.adapters.private_files import owned_alike
from trialfleet_shared.errors import StoreError, StoreUnavailableError

Kind = Literal["files", "study", "store", "results", "data", "roster"]
#: What is said of a study that was.
_LEFT_OUT = "; left out of the store"
#: Modes that let others in.
_OTHERS = 0o077


class Item(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    kind: Kind
    name: str
    #: "unreadable": nothing is known of it.
    state: Literal["ok", "damaged", "repaired", "unreadable"]
    #: What is wrong, or was done; for a thing that is whole, how large it is.
    detail: str = ""


def examine(home: Home, *, repair: bool) -> Iterator[Item]:
    """Look at everything in the home, thing by thing. What root makes there belongs to the home's owner."""
    try:
        with owned_alike(home.path):
            yield from _looks(home, repair=repair)
    except OSError as error:
        why = f"what root has made here can not be given to the home's owner: {_words(error)}"
        yield Item("files", str(home.path), "damaged", why)


def _looks(home: Home, *, repair: bool) -> Iterator[Item]:
    roster = CoordinatorFiles(home.path).studies
    looks: Sequence[tuple[Kind, Path, Iterator[Item]]] = (
        ("files", home.path, _files(home, repair=repair)),
        ("store", home.store, _store(home, repair=repair)),
        ("roster", roster, _roster(roster, repair=repair)),
        ("results", home.results, _results(home.results, repair=repair)),
        ("data", home.data, _data(home.data, repair=repair)),
    )
    for kind, path, items in looks:
        try:
            yield from items
        except (OSError, StoreUnavailableError) as error:
            yield Item(kind, str(path), "unreadable", _words(error))


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _not_repaired(error: Exception) -> str:
    return f"; not repaired: {_words(error)}"


def _attempt(repair: Callable[[], object]) -> str:
    """Repair something; what is to be said, after what is wrong with it, when that can not be done."""
    try:
        repair()
    except OSError as error:
        return _not_repaired(error)
    return ""


def _mended(*, repair: bool, failed: str) -> Literal["damaged", "repaired"]:
    return "repaired" if repair and not failed else "damaged"


def _everything(folder: Path) -> Iterator[Path]:
    """The folder and what is below it, but for what goes away meanwhile or may not be entered. Raises OSError for the rest."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | PermissionError):
            raise error

    yield folder
    for below, folders, files in os.walk(folder, onerror=fail):
        yield from (Path(below, name) for name in (*folders, *files))


def _files(home: Home, *, repair: bool) -> Iterator[Item]:
    """Whether others can read or enter anything."""
    found, failed = 0, ""
    for path in _everything(home.path):
        try:
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or not mode & _OTHERS:
                continue
            found += 1
        except FileNotFoundError:  # a study runs, and is done with it
            continue
        if repair:
            try:
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
            except FileNotFoundError:  # as above
                continue
            except OSError as error:
                failed = _not_repaired(error)
    if not found:
        yield Item("files", str(home.path), "ok", "for their user alone")
    else:
        state = _mended(repair=repair, failed=failed)
        yield Item("files", str(home.path), state, f"{found} are open to other users{failed}")


def _store(home: Home, *, repair: bool) -> Iterator[Item]:
    if not (home.store / "data.mdb").exists():
        return
    try:
        studies = apart("store", str(home.store))
    except StoreUnavailableError:
        raise
    except StoreError as error:
        yield Item("store", str(home.store), "damaged", f"{error}; restore a backup")
        return
    damaged = [(name, number, trouble) for name, number, trouble in studies if trouble]
    for name, _, trouble in studies:
        if not trouble:
            yield Item("study", name, "ok")
    done = _without(home.store) if damaged and repair else ""
    for name, number, trouble in damaged:
        state = _mended(repair=done.startswith(_LEFT_OUT), failed="")
        yield Item("study" if number >= 0 else "store", name, state, f"{trouble}{done}")


def _without(store: Path) -> str:
    """Leave the damaged studies out of the store; what is to be said of it."""
    try:
        return f"{_LEFT_OUT}; the whole file is kept as {_salvage(store)}"
    except StoreError as error:
        return _not_repaired(error)


def _salvage(store: Path) -> Path:
    """Put a store of the whole studies in place of a damaged one, which is kept. Raises StoreError."""
    with exclusive(store):
        new = store / "salvaged"
        shutil.rmtree(new, ignore_errors=True)
        number = 1
        while (kept := store / f"damaged-{number}.mdb").exists():
            number += 1
        # The process has a copy to read: what is opened here would be in use.
        old = store / "examined"
        shutil.rmtree(old, ignore_errors=True)
        try:
            old.mkdir(mode=0o700)
            shutil.copy2(store / "data.mdb", old / "data.mdb")
            apart("salvage", str(old), str(new))
            (store / "data.mdb").rename(kept)
            (new / "data.mdb").rename(store / "data.mdb")
            (store / "lock.mdb").unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{store} can not be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(new, ignore_errors=True)
    return kept


def _roster(folder: Path, *, repair: bool) -> Iterator[Item]:
    for path in sorted(folder.glob("*.json")):
        try:
            entry = read_entry(path)
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                yield Item("roster", path.name, "unreadable", str(error))
                continue
            failed = _attempt(partial(path.rename, path.with_suffix(".damaged"))) if repair else ""
            yield Item("roster", path.name, _mended(repair=repair, failed=failed), f"{error}{failed}")
        else:
            yield Item("roster", entry.study, "ok", entry.state.value)


def _results(path: Path, *, repair: bool) -> Iterator[Item]:
    if not (path / "data.mdb").exists():
        return
    try:
        count, damaged = apart("results", str(path), "repair" if repair else "look")
    except StoreUnavailableError:
        raise
    except StoreError as error:
        if repair:
            try:
                with exclusive(path):
                    for name in ("data.mdb", "lock.mdb"):
                        (path / name).unlink(missing_ok=True)
            except (StoreError, OSError) as why:
                yield Item("results", str(path), "damaged", f"{error}{_not_repaired(why)}")
                return
        yield Item("results", str(path), "repaired" if repair else "damaged", str(error))
        return
    if damaged:
        words = f"{damaged} of {count} entries are not what was written"
        yield Item("results", str(path), "repaired" if repair else "damaged", words)
    else:
        yield Item("results", str(path), "ok", f"{count} entries")


def _data(folder: Path, *, repair: bool) -> Iterator[Item]:
    from trialfleet_workers.adapters.checksums import damage, sums_file  # noqa: PLC0415  # with data alone

    def remove(data: Path) -> None:
        # Whoever has it open goes on reading what is open; whoever wants it next imports it.
        data.unlink(missing_ok=True)
        sums_file(data).unlink(missing_ok=True)

    for path in sorted(folder.glob("*.mdb")):
        try:
            for file in (path, sums_file(path)):
                with suppress(FileNotFoundError), file.open("rb"):
                    pass  # it may be read: what is said of it below is said of what it holds
            trouble, size = damage(path), path.stat().st_size
        except FileNotFoundError:  # imported again just now
            continue
        except OSError as error:
            yield Item("data", path.stem, "unreadable", _words(error))
            continue
        if not trouble:
            yield Item("data", path.stem, "ok", f"{size} bytes")
            continue
        failed = _attempt(partial(remove, path)) if repair else ""
        yield Item("data", path.stem, _mended(repair=repair, failed=failed), f"{trouble}{failed}")
