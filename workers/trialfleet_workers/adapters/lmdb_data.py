"""Data sets in LMDB: imported once per host, read by all its processes without a copy (`data_set.py`).

One environment, a single file, holds one data set in one layout; its name is the data set's digest. An import builds the
file under another name and renames it at the end, so that a half import is never seen. Imports take turns under a lock,
and the one that comes second finds what the first has made.

    <digest>.mdb        a data set: the value `meta` (JSON), and an array per value, in the stored order of rows
    <digest>.sums       checksums of that file; a study begins with a look whether they are still right
    sources/<key>.json  which data set a file's contents became, so that an unchanged file is not read again, and a checksum
    import.lock         held while importing
    import-*/           an import's files; whatever an earlier process left there is removed by the next import
"""

import fcntl
import logging
import os
import resource
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import msgspec
import numpy as np
from numpy.typing import NDArray

from trialfleet_shared.adapters.private_files import make_private_folder, private
from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import DataError
from trialfleet_shared.fingerprint import digest_json
from trialfleet_shared.messages import DataSpec
from trialfleet_workers.adapters.checksums import damage, evident_damage, sums_file, write_checksums
from trialfleet_workers.adapters.contents import ArrayContents, TableContents, check_size, reserve
from trialfleet_workers.adapters.data_format import FORMAT, IMPORT, Meta, StoredArray, data_file
from trialfleet_workers.adapters.data_set import DataSet, open_data_set
from trialfleet_workers.adapters.sources import (
    Arrays,
    Stamp,
    as_source,
    call_source,
    is_function,
    read_file,
    stamp,
)
from trialfleet_workers.subsample import Layout, default_order, plan_layout, size

if TYPE_CHECKING:  # see sources.py
    import pyarrow as pa

    from trialfleet_workers.adapters.spool import ColumnSpool

_LOG = logging.getLogger("trialfleet.data")

#: Room in the file beyond the arrays: pages are not filled to the last byte.
_SLACK_BYTES = 16 * 2**20
_PAGE_BYTES = 4096


class DataCache:
    """The data sets of this host.

    Args:
        path: its folder; made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Bytes that this object's imports brought in.
        self.imported_bytes = 0

    def import_data(
        self, spec: DataSpec, *, base: Path, progress: Callable[[int], None] | None = None, own: bool = False
    ) -> DataInfo:
        """Bring the data set that `spec` names into the cache, unless it is there.

        Args:
            spec: source and layout.
            base: folder that relative paths and functions start from.
            progress: told the number of rows read so far.
            own: as of `load_function`, for a source that is a function.

        Raises:
            DataError: the source can not be read, or is not what the spec says of it.
        """
        if is_function(spec.source):
            return self.import_object(call_source(spec.source, base, own=own), spec)
        found = stamp(spec.source, base)
        known = self._recall(found, spec)
        if known is not None:
            return known
        with self._importing() as folder:
            known = self._recall(found, spec)  # somebody else may have imported it while this process waited
            if known is not None:
                return known
            spools: list[ColumnSpool] = []

            def consume(batches: "Iterable[pa.RecordBatch]") -> None:
                from trialfleet_workers.adapters.spool import spool_table  # noqa: PLC0415  # see sources.py

                spools[:] = spool_table(_counted(batches, progress), folder)

            arrays = read_file(spec.source, base, consume, _named(spec))
            # A server may say each time that it is another one.
            is_local = found is not None and found.place.startswith("file:")
            if is_local and stamp(spec.source, base) != found:
                raise DataError(
                    f"data.source = {spec.source!r} changed while it was read; try again once it is written"
                )
            info = self._store(arrays or spools, spec, folder)
            self._remember(found, spec, info)
            return info

    def import_object(self, data: Any, spec: DataSpec) -> DataInfo:
        """Bring data in memory into the cache; see `sources.as_source` for what they may be.

        Raises:
            DataError: they are nothing that can be stored, or not what the spec says of them.
        """
        source = as_source(data, spec.target)
        with self._importing() as folder:
            if isinstance(source, Arrays):
                return self._store(source, spec, folder)
            from trialfleet_workers.adapters.arrow_tables import table_batches  # noqa: PLC0415  # see sources.py
            from trialfleet_workers.adapters.spool import spool_table  # noqa: PLC0415  # see sources.py

            spools = spool_table(table_batches(source.table, _named(spec)), folder)
            return self._store(spools, msgspec.structs.replace(spec, target=source.target), folder)

    def recall(self, spec: DataSpec, *, base: Path) -> DataInfo | None:
        """What `import_data` gives, where the data are here, without reading them: whether they are whole, `damage` tells.

        None: they have to be imported, or only `import_data` can tell. Arguments and errors are those of `import_data`.
        """
        if is_function(spec.source):
            return None
        info = self._recorded(stamp(spec.source, base), spec)
        try:
            return info if info is not None and not evident_damage(data_file(self._path, info.digest)) else None
        except FileNotFoundError:
            return None

    def damage(self, digest: str) -> str:
        """What is wrong with a data set; empty when it is as it was written. Reads it, at the speed of disk or page cache."""
        try:
            return damage(data_file(self._path, digest))
        except FileNotFoundError:
            return "it is gone"

    def open(self, digest: str) -> DataSet:
        """The data set with this digest (`DataInfo.digest`). Raises DataError when it is not here."""
        return open_data_set(self._path, digest)

    @contextmanager
    def _importing(self) -> Iterator[Path]:
        """A folder to import in, while nobody else on this host imports."""
        try:
            make_private_folder(self._path)
            with open(self._path / "import.lock", "a", opener=private) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left in self._path.glob("import-*"):
                    shutil.rmtree(left)
                folder = Path(tempfile.mkdtemp(prefix="import-", dir=self._path))
                # A file, and later a map that holds one, is open for each column, and tables may have thousands.
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
                try:
                    yield folder
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise DataError(f"the data cache at {self._path} can not be written: {error.strerror or error}") from error

    def _source_file(self, found: Stamp, spec: DataSpec) -> Path:
        return self._path / "sources" / f"{digest_json([FORMAT, IMPORT, found.place, msgspec.to_builtins(spec)])}.json"

    def _recall(self, found: Stamp | None, spec: DataSpec) -> DataInfo | None:
        """The data set that this file became, if it has not changed since, and is whole."""
        info = self._recorded(found, spec)
        return info if info is not None and self._is_whole(data_file(self._path, info.digest)) else None

    def _recorded(self, found: Stamp | None, spec: DataSpec) -> DataInfo | None:
        """The data set that this file became, if it has not changed since."""
        if found is None:
            return None
        try:
            stored = self._source_file(found, spec).read_bytes()
            known, info, checksum = msgspec.json.decode(stored, type=tuple[Stamp, DataInfo, int])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return info if known == found and checksum == _checksum(found, info) else None

    def _is_whole(self, file: Path) -> bool:
        """Whether the data set is here and as it was written; this reads it, at the speed of the disk or the page cache."""
        try:
            found = damage(file)
        except FileNotFoundError:
            return False
        if found:
            _LOG.warning("the data set %s is imported again: %s", file.stem, found)
        return not found

    def _remember(self, found: Stamp | None, spec: DataSpec, info: DataInfo) -> None:
        if found is not None:
            file = self._source_file(found, spec)
            make_private_folder(file.parent)
            part = file.with_suffix(".part")
            with open(part, "wb", opener=private) as half:
                half.write(msgspec.json.encode((found, info, _checksum(found, info))))
            part.rename(file)

    def _store(self, source: "Arrays | list[ColumnSpool]", spec: DataSpec, folder: Path) -> DataInfo:
        contents = ArrayContents(source, spec) if isinstance(source, Arrays) else TableContents(source, spec, folder)
        classes = contents.classes()
        usable = contents.usable()
        layout = _layout(contents, spec, usable, classes)
        settings = msgspec.to_builtins(msgspec.structs.replace(spec, source=""))
        digest = digest_json([FORMAT, contents.digest, settings])
        file = data_file(self._path, digest)
        stored_rows = usable[layout.rows]
        arrays = contents.arrays(stored_rows)
        folds = []
        for number, fold in enumerate(layout.folds):
            parts: list[tuple[int, int] | str] = []
            for part, positions in (("train", fold.train), ("valid", fold.valid)):
                if isinstance(positions, slice):
                    parts.append((positions.start, positions.stop))
                else:
                    name = f"fold {number} {part}"
                    arrays[name] = positions
                    parts.append(name)
            folds.append((parts[0], parts[1]))
        info = DataInfo(
            digest=digest,
            content_digest=contents.digest,
            rows=len(stored_rows),
            train_rows=tuple(size(fold.train) for fold in layout.folds),
            valid_rows=tuple(size(fold.valid) for fold in layout.folds),
            test_rows=size(layout.test),
            columns=contents.names,
            target=contents.target_name,
            size_bytes=sum(array.nbytes for array in arrays.values()),
            dropped_rows=contents.rows - len(usable),
            odd_texts=contents.odd_texts,
        )
        if not self._is_whole(file):
            meta = Meta(
                info=info,
                arrays={name: StoredArray(array.dtype.str, array.shape) for name, array in arrays.items()},
                names=contents.names,
                categories=contents.categories,
                times=contents.times,
                classes=classes[1] if classes is not None and contents.target_is_text else None,
                folds=folds,
                search_rows=layout.search.stop,
                from_end=layout.from_end,
                ordered=contents.ordered,
                zones=contents.zones,
            )
            _write(folder / "data.mdb", arrays, msgspec.json.encode(meta))
            write_checksums(folder / "data.mdb")
            # In this order: a data set without its checksums is none.
            sums_file(folder / "data.mdb").rename(sums_file(file))
            (folder / "data.mdb").rename(file)
            self.imported_bytes += info.size_bytes
        return info


def _checksum(found: Stamp, info: DataInfo) -> int:
    return zlib.crc32(msgspec.json.encode((found, info)))


def _write(path: Path, arrays: dict[str, NDArray[Any]], meta: bytes) -> None:
    """Write the arrays, straight into the map: private memory does not grow with them."""
    for name, array in arrays.items():
        check_size(f"the array {name}", array.shape, array.dtype)
    room = sum(array.nbytes + 2 * _PAGE_BYTES for array in arrays.values()) + len(meta) + _SLACK_BYTES
    try:
        environment = lmdb.open(str(path), subdir=False, map_size=room, writemap=True, lock=False, mode=0o600)
        try:
            reserve(path, room)
            for name, array in arrays.items():
                with environment.begin(write=True) as transaction:
                    transaction.put(name.encode(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            with environment.begin(write=True) as transaction:
                transaction.put(b"meta", meta)
            environment.sync(True)
            used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        finally:
            environment.close()
    except lmdb.Error as error:
        raise DataError(f"the data set can not be written to {path.parent}: {error}") from error
    # The map was made as large as the data might need: give back what they did not.
    os.truncate(path, used)


def _layout(
    contents: ArrayContents | TableContents,
    spec: DataSpec,
    usable: NDArray[np.int64],
    classes: tuple[NDArray[np.int64], list[str]] | None,
) -> Layout:
    order = default_order(spec, has_classes=classes is not None)
    groups = contents.groups(spec.group_column, usable) if spec.group_column is not None else None
    times = contents.times_of(spec.time_column, usable) if spec.time_column is not None else None
    codes = None if classes is None else np.unique(classes[0], return_inverse=True)[1].astype(np.int64)
    return plan_layout(
        len(usable),
        order=order,
        resampling=spec.resampling,
        seed=spec.seed,
        classes=codes,
        groups=groups,
        times=times,
    )


def _named(spec: DataSpec) -> set[str]:
    """The columns that the study names: they may be a pandas frame's index."""
    return {name for name in (spec.target, spec.time_column, spec.group_column) if name is not None}


def _counted(batches: "Iterable[pa.RecordBatch]", progress: Callable[[int], None] | None) -> "Iterator[pa.RecordBatch]":
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if progress is not None:
            progress(rows)
        yield batch
