"""Looks whether a home is as it was written, and mends what can be mended: `examine`.

Caches can be computed again: what is damaged in them is removed. Of the store, studies that are whole are written into a new
one, and the damaged one is kept beside it. All can be looked at while studies run; a store, or a cache that can not even be
read, is mended only while nobody uses it.
"""

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.examination import apart
from trialfleet.home import Home
from trialfleet_coordinator.adapters.roster_files import read_entry
from trialfleet_shared.adapters.lmdb_environment import exclusive
from trialfleet_shared.errors import StoreError

#: What is said of a study that was.
_LEFT_OUT = "; left out of the store"
#: Modes that let others in.
_OTHERS = 0o077


class Item(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    kind: Literal["files", "study", "store", "results", "data", "roster"]
    name: str
    state: Literal["ok", "damaged", "repaired"]
    #: What is wrong, or was done; for a thing that is whole, how large it is.
    detail: str = ""


def examine(home: Home, *, repair: bool) -> Iterator[Item]:
    """Look at everything in the home, thing by thing."""
    yield _files(home, repair=repair)
    yield from _store(home, repair=repair)
    yield from _roster(CoordinatorFiles(home.path).studies, repair=repair)
    yield from _results(home.results, repair=repair)
    yield from _data(home.data, repair=repair)


def _files(home: Home, *, repair: bool) -> Item:
    """Whether others can read or enter anything."""
    found = 0
    for path in (home.path, *home.path.rglob("*")):
        try:
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or not mode & _OTHERS:
                continue
            found += 1
            if repair:
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
        except FileNotFoundError:  # a study runs, and is done with it
            continue
    if not found:
        return Item("files", str(home.path), "ok", "for their user alone")
    return Item("files", str(home.path), "repaired" if repair else "damaged", f"{found} are open to other users")


def _store(home: Home, *, repair: bool) -> Iterator[Item]:
    if not (home.store / "data.mdb").exists():
        return
    try:
        studies = apart("store", str(home.store))
    except StoreError as error:
        yield Item("store", str(home.store), "damaged", f"{error}; restore a backup")
        return
    damaged = [(name, trouble) for name, _, trouble in studies if trouble]
    for name, _, trouble in studies:
        if not trouble:
            yield Item("study", name, "ok")
    done = _without(home.store) if damaged and repair else ""
    for name, trouble in damaged:
        yield Item("study", name, "repaired" if done.startswith(_LEFT_OUT) else "damaged", f"{trouble}{done}")


def _without(store: Path) -> str:
    """Leave the damaged studies out of the store; what is to be said of it."""
    try:
        return f"{_LEFT_OUT}; the whole file is kept as {_salvage(store)}"
    except StoreError as error:
        return f"; not repaired: {error}"


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
            if repair:
                path.rename(path.with_suffix(".damaged"))
            yield Item("roster", path.name, "repaired" if repair else "damaged", str(error))
        else:
            yield Item("roster", entry.study, "ok", entry.state.value)


def _results(path: Path, *, repair: bool) -> Iterator[Item]:
    if not (path / "data.mdb").exists():
        return
    try:
        count, damaged = apart("results", str(path), "repair" if repair else "look")
    except StoreError as error:
        if repair:
            try:
                with exclusive(path):
                    for name in ("data.mdb", "lock.mdb"):
                        (path / name).unlink(missing_ok=True)
            except (StoreError, OSError) as why:
                yield Item("results", str(path), "damaged", f"{error}; not repaired: {why}")
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

    for path in sorted(folder.glob("*.mdb")):
        try:
            trouble = damage(path)
            if trouble and repair:
                # Whoever has it open goes on reading what is open; whoever wants it next imports it.
                path.unlink()
                sums_file(path).unlink(missing_ok=True)
            size = f"{path.stat().st_size} bytes" if not trouble else ""
        except FileNotFoundError:  # imported again just now
            continue
        if trouble:
            yield Item("data", path.stem, "repaired" if repair else "damaged", trouble)
        else:
            yield Item("data", path.stem, "ok", size)
