"""A source's contents as an import sees them: which rows are usable, what they are laid out by, and what is stored."""

import hashlib
import math
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec
from trialfleet_shared.tables import nearest
from trialfleet_workers.adapters.sources import Arrays
from trialfleet_workers.subsample import looks_like_classes, wants_classes

if TYPE_CHECKING:  # see sources.py
    from trialfleet_workers.adapters.spool import ColumnSpool

#: Rows that are put into their stored order at a time: an import's memory is this many rows, or one column.
_GATHER_ROWS = 16_384
#: Bytes of an array at most: what LMDB takes as one value.
MOST_BYTES = 2**32 - 1
_CLOCK = r"[0-2]\d(:?[0-5]\d(:?[0-5]\d([.,]\d+)?)?)?"
_ZONE = r"(?P<zone> ?(Z|UTC|[+-]\d\d(:?\d\d)?))?"
#: Texts whose order is that of time: ISO 8601's years, quarters, weeks, months and days, days with a time; times of day.
_SORTS_IN_TIME = re.compile(
    rf"\d{{4}}(-?Q\d|-?W\d\d(-?\d)?|-?(0\d|1[0-2])(-?[0-3]\d([ T]{_CLOCK}{_ZONE})?)?)?|[0-2]\d:[0-5]\d(:[0-5]\d(\.\d+)?)?"
)


#: Different texts that may be a mistake in a column of numbers, and different numbers that have to be there for each.
_MOST_ODD_TEXTS = 3
_NUMBERS_FOR_ODD_TEXT = 10


class ArrayContents:
    """A source of arrays."""

    def __init__(self, source: Arrays, spec: DataSpec) -> None:
        for column, key in ((spec.time_column, "time_column"), (spec.group_column, "group_column")):
            if column is not None:
                raise DataError(f"data.{key} = {column!r}, but the data are arrays without names; give a data frame")
        self._source = source
        self._wants_classes = wants_classes(spec)
        self.rows = len(source.target)
        check_size("the array X", (len(self.usable()), *source.features.shape[1:]), source.features.dtype)
        self.names = tuple(f"x{i}" for i in range(source.features.shape[1])) if source.features.ndim == 2 else ()
        self.target_name = spec.target or "y"
        self.categories: dict[str, list[str]] = {}
        self.ordered: tuple[str, ...] = ()
        self.times: tuple[str, ...] = ()
        self.zones: dict[str, str] = {}
        self.odd_texts: dict[str, str] = {}
        state = hashlib.blake2b(b"whole" if source.whole else b"", digest_size=16)
        labels = source.target
        for part in (source.features, labels if labels.dtype.kind in "biuf" else labels.astype(str)):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).view(np.uint8).data if part.size else b"")
        if labels.dtype.kind == "O":  # as texts, one that is missing looks like the text 'nan'
            state.update(_missing(labels).data)
        self.digest = state.hexdigest()

    @property
    def target_is_text(self) -> bool:
        """Whether the target is labels."""
        return self._source.target.dtype.kind in "OUS"

    def usable(self) -> NDArray[np.int64]:
        """Rows that have a target. Raises DataError when none has."""
        rows = np.flatnonzero(~_missing(self._source.target))
        if not len(rows):
            raise DataError(f"the target y has no value in any of the {self.rows} rows")
        return rows

    def classes(self) -> tuple[NDArray[np.int64], list[str]] | None:
        """Class of each usable row, and the classes' names."""
        target = self._target_values(self.usable())
        if self.target_is_text:
            names, codes = np.unique(target.astype(str), return_inverse=True)
        elif looks_like_classes(target, wanted=self._wants_classes):
            names, codes = np.unique(target, return_inverse=True)
        else:
            return None
        return codes.astype(np.int64), [str(name) for name in names]

    def groups(self, name: str, _usable: NDArray[np.int64]) -> NDArray[np.int64]:
        """There are none; see the constructor."""
        raise DataError(f"data.group_column = {name!r}, but the data are arrays without names")

    def times_of(self, name: str, _usable: NDArray[np.int64]) -> NDArray[Any]:
        """There are none; see the constructor."""
        raise DataError(f"data.time_column = {name!r}, but the data are arrays without names")

    def arrays(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is stored, by name, these rows in this order."""
        target = self._target_values(rows)
        if self.target_is_text:
            target = np.unique(target.astype(str), return_inverse=True)[1].astype(np.int64)
        return {"X": self._source.features[rows], "y": target}

    def _target_values(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The target of rows that have one."""
        target = self._source.target[rows]
        return target.astype(np.int64) if self._source.whole else target


class TableContents:
    """A source of columns."""

    def __init__(self, spools: "list[ColumnSpool]", spec: DataSpec, folder: Path) -> None:
        if not spools:
            raise DataError(f"data.source = {spec.source!r} has no rows")
        self._by_name = {spool.name: spool for spool in spools}
        if spec.target is None:
            raise DataError(f"data.target is needed; the columns are {', '.join(map(repr, self._by_name))}")
        for key in ("target", "time_column", "group_column"):
            column = getattr(spec, key)
            if column is not None and column not in self._by_name:
                raise DataError(f"data.{key} = {column!r} is no column{nearest(column, self._by_name)}")
            if column == spec.target and key != "target":
                raise DataError(f"data.{key} = {column!r} is the target; another column is needed")
        self._target = self._by_name[spec.target]
        self._folder = folder
        self._wants_classes = wants_classes(spec)
        self.target_name = spec.target
        self.names = tuple(name for name in self._by_name if name not in (spec.target, spec.group_column))
        if not self.names:
            raise DataError(f"data.source = {spec.source!r} has no column beside the target {spec.target!r}")
        self.rows = len(self._target.values())
        self.categories = {name: self._by_name[name].categories for name in self.names if self._by_name[name].is_text}
        self.ordered = tuple(name for name in self.names if self._by_name[name].is_ordered)
        self.times = tuple(name for name in self.names if self._by_name[name].is_time)
        self.zones = {name: zone for name in self.names if (zone := self._by_name[name].zone) is not None}
        self.odd_texts = {
            name: odd
            for name in (spec.target, *self.names)
            if self._by_name[name].is_text and (odd := _odd_text(self._by_name[name].categories)) is not None
        }
        self.digest = hashlib.blake2b(b"".join(spool.digest() for spool in spools), digest_size=16).hexdigest()

    @property
    def target_is_text(self) -> bool:
        """Whether the target is labels."""
        return self._target.is_text

    def usable(self) -> NDArray[np.int64]:
        """Rows that have a target. Raises DataError when none has."""
        missing = self._target.missing()
        missing[self._target.gaps()] = True
        rows = np.flatnonzero(~missing)
        if not len(rows):
            raise DataError(f"data.target = {self.target_name!r} has no value in any of the {self.rows} rows")
        return rows

    def classes(self) -> tuple[NDArray[np.int64], list[str]] | None:
        """Class of each usable row, and the classes' names."""
        target = self._target_values(self.usable())
        if self.target_is_text:
            return target, self._labels
        if looks_like_classes(target, wanted=self._wants_classes):
            names, codes = np.unique(target, return_inverse=True)
            return codes.astype(np.int64), [str(name) for name in names]
        return None

    @cached_property
    def _labels(self) -> list[str]:
        """The labels that rows have, sorted: a categorical may know others."""
        texts = self._target.categories
        return sorted(texts[code] for code in np.unique(self._target.raw()[self.usable()]))

    def _target_values(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The target; of a text, the place of each label in the sorted order of labels."""
        # Rows without a value are gone by now, so that whole numbers and booleans are what they were.
        values = self._target.raw()[rows]
        if self.target_is_text:
            places = {text: place for place, text in enumerate(self._labels)}
            place_of_code = np.array([places.get(text, -1) for text in self._target.categories])
            return np.asarray(place_of_code[values])
        return values if not len(self._target.gaps()) or values.dtype == np.uint64 else values.astype(np.int64)

    def groups(self, name: str, usable: NDArray[np.int64]) -> NDArray[np.int64]:
        """Group of each usable row, counted from 0."""
        spool = self._by_name[name]
        if spool.missing()[usable].any():
            raise DataError(f"data.group_column = {name!r} has missing values")
        codes: NDArray[np.int64] = np.unique(spool.values()[usable], return_inverse=True)[1].astype(np.int64)
        return codes

    def times_of(self, name: str, usable: NDArray[np.int64]) -> NDArray[Any]:
        """What the usable rows are sorted by in time."""
        spool = self._by_name[name]
        if spool.missing()[usable].any():
            raise DataError(f"data.time_column = {name!r} has missing values")
        values = spool.values()[usable]
        if spool.is_text:
            odd = next((text for text in spool.categories if not _SORTS_IN_TIME.fullmatch(text)), None)
            if odd is not None:
                raise DataError(
                    f"data.time_column = {name!r} has the text {odd!r}, and such texts do not sort in time; allowed are "
                    "points in time, numbers, and texts as of ISO 8601: '2022-12-31' or '2022-12-31 23:59', say"
                )
            forms = {_form(text): text for text in spool.categories}
            longest = max(forms)
            other = next((forms[form] for form in forms if not _sort_together(form, longest)), None)
            if other is not None:
                raise DataError(
                    f"data.time_column = {name!r} has texts like {other!r} and like {forms[longest]!r}, which do not sort "
                    "in time together; allowed is one form and one time zone, or points in time"
                )
            # Codes are in order of appearance.
            return np.asarray(np.argsort(np.argsort(spool.categories))[values])
        return values

    def arrays(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is stored, by name, these rows in this order."""
        columns = [self._by_name[name] for name in self.names]
        arrays: dict[str, NDArray[Any]] = {"y": self._target_values(rows)}
        if any(spool.is_text or spool.is_time for spool in columns):
            # By number: a name may be longer than a key of LMDB.
            for number, spool in enumerate(columns):
                arrays[f"column {number}"] = self._gather(spool, rows)
        else:
            arrays["X"] = self._block(columns, rows)
        return arrays

    def _gather(self, spool: "ColumnSpool", rows: NDArray[np.int64]) -> NDArray[Any]:
        """A column in its stored order, in a file."""
        values = spool.values()
        check_size(f"the column {spool.name!r}", (len(rows),), values.dtype)
        out = _mapped(self._folder / f"stored {id(spool)}", values.dtype, (len(rows),))
        for start in range(0, len(rows), _GATHER_ROWS):
            out[start : start + _GATHER_ROWS] = values[rows[start : start + _GATHER_ROWS]]
        return out

    def _block(self, columns: "Sequence[ColumnSpool]", rows: NDArray[np.int64]) -> NDArray[Any]:
        """All features in one block of one type, in their stored order, in a file."""
        dtype = np.result_type(*(spool.dtype for spool in columns))
        check_size("the array X of all columns", (len(rows), len(columns)), dtype)
        out = _mapped(self._folder / "block", dtype, (len(rows), len(columns)))
        sources = [spool.values() for spool in columns]
        for start in range(0, len(rows), _GATHER_ROWS):
            part = rows[start : start + _GATHER_ROWS]
            for index, values in enumerate(sources):
                out[start : start + len(part), index] = values[part]
        return out


def _form(text: str) -> tuple[str, str]:
    """How a text that `_SORTS_IN_TIME` writes a time: with 0 for each digit, and its zone."""
    found = _SORTS_IN_TIME.fullmatch(text)
    assert found is not None
    zone = found.group("zone") or ""
    return re.sub(r"\d", "0", text.removesuffix(zone)), zone


def _sort_together(form: tuple[str, str], longest: tuple[str, str]) -> bool:
    """Whether texts of two forms sort in time: one says less than the other, and less comes before more.

    It does not before a Z, which sorts after points and digits.
    """
    return form == longest or (longest[0].startswith(form[0]) and form[1] == longest[1] != "Z")


def _missing(target: NDArray[Any]) -> NDArray[np.bool_]:
    """Where there is no value."""
    if target.dtype.kind in "biuSU":
        return np.zeros(len(target), dtype=bool)
    if target.dtype.kind == "f":
        return np.asarray(np.isnan(target))
    import pandas as pd  # noqa: PLC0415  # a quarter of a second, which sources of numbers do not need

    return np.asarray(pd.isna(target))


def check_size(what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raises DataError where `what` is an array too large to be stored, before that is tried."""
    size = math.prod(shape) * dtype.itemsize
    if size > MOST_BYTES:
        raise DataError(
            f"{what} has {size:,} bytes: {' x '.join(map(str, shape))} values of {dtype}; allowed are {MOST_BYTES:,}, by "
            "fewer rows or columns, or a narrower type"
        )


def reserve(path: Path, size: int) -> None:
    """Have the disk space of a file that is written through a map, where a full disk would end the process by a signal.

    Raises:
        OSError: the disk is full.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array in a file."""
    reserve(path, math.prod(shape) * dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _odd_text(texts: list[str]) -> str | None:
    """A text for which a column is one of texts, where all but a few of them are numbers."""
    odd: list[str] = []
    for text in texts:
        if not _is_number(text):
            odd.append(text)
            if len(odd) > _MOST_ODD_TEXTS:
                return None
    return odd[0] if odd and len(texts) > _NUMBERS_FOR_ODD_TEXT * len(odd) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
