"""The columns of a data set on their way into the cache: raw files in the source's order, one per column.

A spool is written in one pass, whatever the size of the data: batches come in, bytes go out. What a column is in the end
(whole numbers with gaps become floats, texts become codes) is known only after the last batch.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trialfleet_shared.adapters.private_files import private
from trialfleet_shared.errors import DataError

#: A code that stands for a missing text.
MISSING = -1


class ColumnSpool:
    """One column's file.

    Args:
        name: of the column.
        arrow_type: of the column.
        path: file to write.
    """

    def __init__(self, name: str, arrow_type: pa.DataType, path: Path) -> None:
        self.name = name
        self._path = path
        self._digest = hashlib.blake2b(digest_size=16)
        self._rows = 0
        #: Rows without a value, of columns whose type has no room for a gap.
        self._gaps: list[NDArray[np.int64]] = []
        self._codes: dict[str, int] = {}
        #: The latest batch's dictionary, and the code of each of its entries; the last code is that of no entry.
        self._dictionary: pa.Array | None = None
        self._known = np.empty(0, np.int32)
        self.is_text = _is_text(arrow_type)
        self.is_time = pa.types.is_timestamp(arrow_type) or pa.types.is_date(arrow_type)
        #: Where the clocks show its points in time; None where that is not said.
        self.zone = None if not pa.types.is_timestamp(arrow_type) else _zone(name, arrow_type.tz)
        #: Whether its texts are said to have an order, which is that of `categories`: not where batches say different ones.
        self.is_ordered = self.is_text and pa.types.is_dictionary(arrow_type) and arrow_type.ordered
        self._dtype = self._stored_type(arrow_type)
        self._file: IO[bytes] = open(path, "wb", opener=private)  # noqa: SIM115  # closed by `close`

    def _stored_type(self, arrow_type: pa.DataType) -> np.dtype[np.generic]:
        if self.is_text:
            return np.dtype(np.int32)
        if self.is_time:
            return np.dtype(np.int64)
        if pa.types.is_decimal(arrow_type) or pa.types.is_null(arrow_type):
            return np.dtype(np.float64)
        if pa.types.is_boolean(arrow_type):
            return np.dtype(np.bool_)
        if pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type):
            stored: np.dtype[np.generic] = np.dtype(arrow_type.to_pandas_dtype())
            return stored
        raise DataError(
            f"column {self.name!r} has values of type {arrow_type}; allowed are numbers, booleans, texts and points in time"
        )

    def append(self, values: pa.Array) -> None:
        """Write a batch's values. Raises DataError for points in time beyond the reach of nanoseconds."""
        if self.is_text:
            raw = self._encode(values)
        elif self.is_time:
            try:
                raw = values.cast(pa.timestamp("ns")).to_numpy(zero_copy_only=False).view(np.int64)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"column {self.name!r} has points in time before 1678 or after 2262: {error}"
                ) from error
        elif self._dtype.kind == "f":
            wanted = pa.from_numpy_dtype(self._dtype)
            raw = (values if values.type == wanted else values.cast(wanted)).to_numpy(zero_copy_only=False)
        else:
            if values.null_count:
                gaps = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
                self._gaps.append(gaps + self._rows)
                values = values.fill_null(pa.scalar(0, pa.int64()).cast(values.type))
            raw = values.to_numpy(zero_copy_only=False)
        stored = np.ascontiguousarray(raw, dtype=self._dtype)
        self._rows += len(stored)
        self._digest.update(stored.data)
        try:
            self._file.write(stored.data)
        except OSError as error:
            raise DataError(f"the data cache at {self._path.parent} can not be written: {error.strerror}") from error

    def _encode(self, values: pa.Array) -> NDArray[np.int32]:
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        if self._dictionary is None or not encoded.dictionary.equals(self._dictionary):
            # Of a categorical it is the same in every batch, and may be longer than the batch.
            self._dictionary = encoded.dictionary
            texts = encoded.dictionary.cast(pa.string()).to_pylist()
            codes = [MISSING if text is None else self._codes.setdefault(text, len(self._codes)) for text in texts]
            self._known = np.array([*codes, MISSING], dtype=np.int32)
            self.is_ordered = self.is_ordered and codes == list(range(len(codes)))
        indices = encoded.indices.cast(pa.int64()).fill_null(len(self._known) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(self._known[indices])

    def close(self) -> None:
        """No more values come. Raises DataError when the last of them can not be written."""
        try:
            self._file.close()
        except OSError as error:
            raise DataError(f"the data cache at {self._path.parent} can not be written: {error.strerror}") from error

    def digest(self) -> bytes:
        """Digest of name, type, values, texts and gaps."""
        self._digest.update(msgspec.json.encode([self.name, str(self._dtype), self.is_time, *self._codes]))
        if self.zone is not None or self.is_ordered:
            self._digest.update(msgspec.json.encode([self.zone, self.is_ordered]))
        for gaps in self._gaps:
            self._digest.update(gaps.data)
        return self._digest.digest()

    @property
    def categories(self) -> list[str]:
        """The texts, in the order of their codes."""
        return list(self._codes)

    def gaps(self) -> NDArray[np.int64]:
        """Rows without a value, where the type has no room for a gap."""
        return np.concatenate(self._gaps) if self._gaps else np.empty(0, np.int64)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """What the column is stored as in the end."""
        if self._gaps:
            return np.dtype(np.float64)
        if self.is_text:
            # pandas narrows the codes of a categorical: stored that narrow, it need not copy them.
            return np.min_scalar_type(-max(len(self._codes), 1))
        return self._dtype

    def values(self) -> NDArray[np.generic]:
        """All values in the source's order, as a map of the file where nothing has to be changed."""
        if not self._rows:
            return np.empty(0, self.dtype)
        raw = self.raw()
        if not self._gaps:
            return raw if raw.dtype == self.dtype else raw.astype(self.dtype)
        filled = raw.astype(np.float64)
        filled[self.gaps()] = np.nan
        return filled

    def raw(self) -> NDArray[np.generic]:
        """All values as they were read, of which there is one at least; 0 in a gap that the type has no room for."""
        return np.memmap(self._path, dtype=self._dtype, mode="r", shape=(self._rows,))

    def missing(self) -> NDArray[np.bool_]:
        """Which rows have no value."""
        values = self.values()
        if self.is_text:
            return np.asarray(values == MISSING)
        if self.is_time:
            return np.asarray(np.isnat(values.view("datetime64[ns]")))
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=np.bool_)


def spool_table(batches: Iterable[pa.RecordBatch], folder: Path) -> list[ColumnSpool]:
    """Write a table's columns to files in `folder`. Raises DataError for types that can not be stored."""
    spools: list[ColumnSpool] = []
    with ExitStack() as stack:
        for batch in batches:
            if not spools:
                twice = [name for name, times in Counter(batch.schema.names).items() if times > 1]
                if twice:
                    raise DataError(f"column {twice[0]!r} stands twice in the data")
                for index, (name, kind) in enumerate(zip(batch.schema.names, batch.schema.types, strict=True)):
                    stored = kind.value_type if _is_plain(kind) else kind
                    spools.append(ColumnSpool(name, stored, folder / f"column{index}"))
                    stack.callback(spools[-1].close)
            for spool, values in zip(spools, batch.columns, strict=True):
                spool.append(values.dictionary_decode() if _is_plain(values.type) else values)
    return spools


def _zone(name: str, zone: str | None) -> str | None:
    """The time zone of a column, as pandas takes it. Raises DataError for one that it does not."""
    if not zone:
        return None
    if zone.upper() in ("UTC", "Z"):
        return "UTC"
    import pandas as pd  # noqa: PLC0415  # half a second, which other data do not need

    try:
        pd.Timestamp(0, tz="UTC").tz_convert(zone)
    except (LookupError, ValueError, OSError) as error:
        raise DataError(
            f"column {name!r} has the time zone {zone!r}, which is not known here; allowed are names like 'Europe/Berlin', "
            "'UTC', and offsets like '+05:30'"
        ) from error
    return zone


def _is_plain(arrow_type: pa.DataType) -> bool:
    """Whether it is a dictionary of something else than texts."""
    return pa.types.is_dictionary(arrow_type) and not _is_text(arrow_type)


def _is_text(arrow_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(arrow_type):
        return _is_text(arrow_type.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_time)
    return any(is_kind(arrow_type) for is_kind in texts)
