"""Where data sets come from: files of any fsspec file system, functions, and objects in memory.

A table is read as a stream of Arrow record batches (`arrow_tables.py`). Arrays (npz, pairs of X and y) keep their shape.
"""

import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialfleet_shared.errors import DataError, message_of
from trialfleet_workers.objective import load_function

if TYPE_CHECKING:  # imported where frames and tables are: each takes a quarter of a second, which arrays do not need
    import pandas as pd
    import pyarrow as pa

#: File name endings that can be read.
SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz", ".feather", ".arrow", ".npz")


class Arrays(NamedTuple):
    """A data set of arrays: X of shape (rows, …) and y of shape (rows,)."""

    features: NDArray[Any]
    target: NDArray[Any]
    #: Whether the target's values are whole numbers or booleans, held as floats for those that are missing.
    whole: bool = False


class Frame(NamedTuple):
    """A data set in a frame, and which of its columns is the target."""

    table: "pd.DataFrame"
    target: str | None


class _Place(NamedTuple):
    """Where a file is: its path, and what looks at it and opens it."""

    path: str
    #: The path as a URI, which tells its file system.
    uri: str
    #: What the file system says of it, by the names that fsspec has for that.
    info: Callable[[], Mapping[str, Any]]
    open: Callable[[], Any]


class Stamp(NamedTuple):
    """What changes when a file does."""

    place: str
    size: int
    modified: str


def is_function(source: str) -> bool:
    """Whether `source` names a function rather than a file."""
    place, colon, attribute = source.rpartition(":")
    return bool(colon and place) and attribute.isidentifier() and "/" not in attribute and _suffix(source) is None


def _suffix(path: str) -> str | None:
    """Which of the suffixes a file's name ends with, in whatever case."""
    return next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)


def call_source(source: str, base: Path, *, own: bool = False) -> Any:
    """What the function that `source` names gives; `own` as of `load_function`. Raises DataError when it raises."""
    function = load_function(source, base, own=own)
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise DataError(f"data.source = {source!r} raised {type(error).__name__}: {message_of(error)}") from error


def stamp(source: str, base: Path) -> Stamp | None:
    """What identifies a file's present contents; None when the file system does not say.

    Raises:
        DataError: there is no such file, or it can not be looked at.
    """
    place = _locate(source, base)
    try:
        info = place.info()
    except FileNotFoundError as error:
        raise DataError(f"data.source = {source!r}: there is no file {place.path}") from error
    except Exception as error:  # each of fsspec's file systems has errors of its own
        raise DataError(f"data.source = {source!r} can not be read: {message_of(error)}") from error
    if info.get("type") == "directory":
        raise DataError(f"data.source = {source!r} is a folder; allowed are files ending in {', '.join(SUFFIXES)}")
    modified = next((info[key] for key in ("mtime", "ETag", "etag", "last_modified", "updated") if key in info), None)
    if modified is None:
        return None
    # Of a local file also when its inode changed, and which it is: `cp -p`, rsync and tar set the time of the contents.
    inode = (info["created"], info["ino"]) if "mtime" in info and {"created", "ino"} <= info.keys() else ()
    return Stamp(place.uri, int(info.get("size") or 0), repr((modified, *inode)))


def read_file(
    source: str, base: Path, consume: "Callable[[Iterable[pa.RecordBatch]], None]", named: Collection[str] = ()
) -> Arrays | None:
    """Stream the file's table to `consume`, or give its arrays.

    Args:
        source: path or URI.
        base: folder that relative paths start from.
        consume: takes the batches, from the first; it may be called several times, of which the last one counts.
        named: columns that are wanted though they are the index of the pandas frame that was written.

    Raises:
        DataError: the file can not be read.
    """
    place = _locate(source, base)
    suffix = _suffix(place.path)
    if suffix is None:
        raise DataError(
            f"data.source = {source!r} is no file that can be read; allowed endings are {', '.join(SUFFIXES)}"
        )
    try:
        if suffix == ".npz":
            with place.open() as file:
                return _read_npz(file, source)
        from trialfleet_workers.adapters.arrow_tables import read_table  # noqa: PLC0415  # see the top

        read_table(place.open, suffix, consume, named)
    except (OSError, EOFError, ValueError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.source = {source!r} can not be read: {error}") from error
    return None


def as_source(value: Any, target: str | None) -> Arrays | Frame:
    """What a function or a caller gave as data: a frame with the target in it, or arrays.

    Args:
        value: the data.
        target: name of the target; None for a pair's own.

    Raises:
        DataError: it is none of a frame, a pair (X, y), and a mapping of arrays.
    """
    import pandas as pd  # noqa: PLC0415  # see the top

    if isinstance(value, pd.DataFrame):
        return Frame(value, target)
    if isinstance(value, Mapping):
        if {"X", "y"} <= set(value) and target is None:
            return as_source((value["X"], value["y"]), None)
        try:
            return Frame(pd.DataFrame({str(name): _array(column) for name, column in value.items()}), target)
        except ValueError as error:
            raise DataError(f"the mapping of arrays is no table: {error}") from error
    if isinstance(value, tuple) and len(value) == 2:
        features, labels = value
        if isinstance(features, pd.DataFrame):
            return _join(features, labels, target)
        return _arrays(features, labels)
    raise DataError(
        f"the data are of type {type(value).__name__}; allowed are a data frame, a pair (X, y), or a mapping of arrays"
    )


def _join(features: "pd.DataFrame", labels: Any, target: str | None) -> Frame:
    """A frame of features and its target in one frame; rows go together by position, not by index."""
    import pandas as pd  # noqa: PLC0415  # see the top

    name = target or str(getattr(labels, "name", None) or "y")
    if name in features.columns:
        raise DataError(f"the target {name!r} stands among the features as well")
    if np.shape(labels) != (len(features),):
        raise DataError(f"y has shape {np.shape(labels)}, X {features.shape}; y must have one value per row")
    return Frame(features.assign(**{name: pd.Series(labels).array}), name)


def _array(values: Any) -> NDArray[Any]:
    """The values in an array, as Python objects where numpy would hide which are missing.

    Of a list, it makes the text 'nan' of one that is missing; of pandas' nullable whole numbers, floats.
    """
    array = np.asarray(values)
    hides = isinstance(values, list | tuple) and array.dtype.kind in "SU"
    is_nullable = not isinstance(getattr(values, "dtype", array.dtype), np.dtype)
    return np.asarray(values, dtype=object) if hides or is_nullable else array


def _labels(labels: Any) -> tuple[NDArray[Any], bool]:
    """A target, and whether it is whole; see `Arrays`."""
    y = _array(labels)
    if y.dtype.kind != "O" or y.ndim != 1:
        return y, False
    import pandas as pd  # noqa: PLC0415  # see the top

    found = pd.api.types.infer_dtype(y, skipna=True)
    missing = np.asarray(pd.isna(y))
    if found in ("boolean", "integer") and missing.any():
        with suppress(OverflowError):
            return np.where(missing, np.nan, np.where(missing, 0, y).astype(np.int64)), True
    # Numbers may come as Python objects, as those of a column of a mixed frame do.
    y = np.asarray(pd.Series(y).mask(missing, None).infer_objects())
    if y.dtype.kind == "O" and found != "string":
        kind = "whole numbers of more than 64 bits" if found == "integer" else f"values of {found} types"
        raise DataError(f"y has {kind}; allowed are numbers, booleans or texts")
    return y, False


def _arrays(features: Any, labels: Any) -> Arrays:
    if isinstance(features, np.ma.MaskedArray) or isinstance(labels, np.ma.MaskedArray):
        raise DataError("X or y is a masked array; allowed are arrays: NaN is missing, as `filled(np.nan)` gives it")
    # scipy's sparse matrices and arrays: numpy makes one object of them.
    if callable(getattr(features, "toarray", None)):
        raise DataError(f"X is a {type(features).__name__}; allowed are dense arrays: `X.toarray()` gives one")
    x = np.asarray(features)
    y, whole = _labels(labels)
    if x.ndim < 2:
        raise DataError(f"X has shape {x.shape}; allowed is (rows, features) or more dimensions")
    if y.shape != x.shape[:1]:
        raise DataError(f"y has shape {y.shape}, X {x.shape}; y must have one value per row")
    if x.dtype.kind not in "biuf":
        raise DataError(f"X has values of type {x.dtype}; allowed are numbers and booleans, or a data frame")
    return Arrays(x, y, whole)


def _locate(source: str, base: Path) -> _Place:
    """Where a source is. Chains of file systems, which fsspec knows, are none: a study names a file."""
    if "\0" in source:
        raise DataError(f"data.source = {source!r} has a NUL in it")
    if "::" in source:
        raise DataError(f"data.source = {source!r} is a chain of file systems; allowed is a path, or one URI")
    _refuse_password(source)
    try:
        return _place_of_uri(source) if "://" in source else _place_of_path((base / source).resolve())
    except Exception as error:  # links in a loop, a package that is not installed, a server out of reach
        raise DataError(f"data.source = {source!r} can not be opened: {message_of(error)}") from error


def _refuse_password(source: str) -> None:
    """Messages, records and reports have the source as it is."""
    scheme, slashes, rest = source.partition("://")
    authority, _, path = rest.partition("/")
    credentials, _, host = authority.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if slashes and colon:
        shown = f"{scheme}://{user}:***@{host}/{path.partition('?')[0]}"
        raise DataError(
            f"data.source = {shown!r} has a password in it, which whoever sees the study would see; "
            "have fsspec take it from its configuration"
        )


def _place_of_uri(uri: str) -> _Place:
    import fsspec  # noqa: PLC0415  # brings asyncio and much else, which paths do not need

    system, path = fsspec.core.url_to_fs(uri)
    return _Place(path, system.unstrip_protocol(path), partial(system.info, path), partial(system.open, path))


def _place_of_path(path: Path) -> _Place:
    return _Place(str(path), f"file://{path}", partial(_look_at, path), partial(path.open, "rb"))


def _look_at(path: Path) -> Mapping[str, Any]:
    """What fsspec says of a file of this machine, so that a path and its URI are one source."""
    found = path.stat()
    return {
        "type": "directory" if stat.S_ISDIR(found.st_mode) else "file",
        "size": found.st_size,
        "created": found.st_ctime,
        "mtime": found.st_mtime,
        "ino": found.st_ino,
    }


def _read_npz(file: Any, source: str) -> Arrays:
    with np.load(file, allow_pickle=False) as archive:
        if not {"X", "y"} <= set(archive.files):
            found = ", ".join(archive.files) or "none"
            raise DataError(f"data.source = {source!r} has the arrays {found}; needed are X and y")
        return _arrays(archive["X"], archive["y"])
