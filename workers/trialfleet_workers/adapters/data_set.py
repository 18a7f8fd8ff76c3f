"""A data set in the cache as evaluators read it: arrays over the shared map, folds, frames.

Apart from the import in `lmdb_data.py`, so that an evaluator has no use for the libraries that read sources.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import DataError
from trialfleet_workers.adapters.data_format import data_file
from trialfleet_workers.adapters.lmdb_mapping import Mapping, read_meta
from trialfleet_workers.data import Data, Table
from trialfleet_workers.subsample import Fold, Layout, Positions


def open_data_set(folder: Path, digest: str) -> "DataSet":
    """The data set with this digest in the cache at `folder`. Raises DataError when it is not there."""
    file = data_file(folder, digest)
    if not file.exists():
        raise DataError(f"the data set {digest} is not in the cache at {folder}; it was not imported on this host")
    return DataSet(file)


class DataSet:
    """One opened data set, which stays open for as long as it or an array that came from it lives.

    Args:
        path: its file.

    Raises:
        DataError: it can not be opened, or is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        self._mapping = Mapping(path)
        self._meta = read_meta(self._mapping, path)
        self._layout = self._read_layout()
        self._shared = self._read_table()
        self._private: Table | None = None

    @property
    def info(self) -> DataInfo:
        """Digests and shape."""
        return self._meta.info

    def split(self, *, fold: int, fraction: float, rung: int, seed: int, share: bool = True) -> Data:
        """What an objective is given.

        Args:
            fold: index of the fold; -1: all that the search saw, and the test part.
            fraction: share of the training rows, 0 < fraction <= 1.
            rung: handed through.
            seed: handed through.
            share: views on the shared map; else on this process's own copy, made at the first call.
        """
        if not -1 <= fold < len(self._layout.folds):
            raise DataError(f"fold = {fold}; the data set has {len(self._layout.folds)}")
        table = self._shared
        if not share:
            self._private = table = self._private or table.copy()
        return Data(
            table,
            self._layout.subsample(fold, fraction),
            self._layout.fold(fold).valid,
            fold=fold,
            fraction=fraction,
            rung=rung,
            seed=seed,
        )

    def _array(self, name: str) -> NDArray[Any]:
        form = self._meta.arrays[name]
        array = self._mapping.array(name, form.dtype, form.shape)
        if array is None:
            raise DataError(f"the data set {self._meta.info.digest} is damaged: {name!r} is not whole; remove its file")
        return array

    def _read_layout(self) -> Layout:
        meta = self._meta

        def positions(stored: tuple[int, int] | str) -> Positions:
            return self._array(stored) if isinstance(stored, str) else slice(*stored)

        return Layout(
            rows=np.empty(0, np.int64),  # of use in an import only
            folds=tuple(Fold(positions(train), positions(valid)) for train, valid in meta.folds),
            search=slice(0, meta.search_rows),
            test=slice(meta.search_rows, meta.info.rows),
            from_end=meta.from_end,
        )

    def _read_table(self) -> Table:
        meta = self._meta
        return Table(
            block=self._array("X") if "X" in meta.arrays else None,
            columns={
                name: self._array(f"column {number}")
                for number, name in enumerate(meta.names)
                if f"column {number}" in meta.arrays
            },
            names=meta.names,
            target=self._array("y"),
            target_name=meta.info.target,
            categories=meta.categories,
            ordered=meta.ordered,
            times=meta.times,
            zones=meta.zones,
            classes=meta.classes,
        )
