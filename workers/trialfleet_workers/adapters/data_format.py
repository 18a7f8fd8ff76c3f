"""How a data set is described in its file, for the side that writes it and the side that reads it."""

from contextlib import suppress
from pathlib import Path

import msgspec

from trialfleet_shared.data import DataInfo

#: Goes up when a data set of an older trialfleet can not be read any more, or has other columns, or its rows in another
#: order; part of every digest.
FORMAT = 5
#: Goes up when an import notices more of a source than before: every source is read once more then, and one of which there is
#: nothing more to notice has the digest that it had. 1: time zones, and whether categories are ordered. 2: that what is
#: quoted in a CSV file may be missing, which columns are an index, and a few texts among numbers.
IMPORT = 2


def data_file(folder: Path, digest: str) -> Path:
    """The file of the data set with this digest (`DataInfo.digest`), be it there or not."""
    return folder / f"{digest}.mdb"


def cache_bytes(folder: Path) -> int:
    """Bytes of all data sets in the folder."""
    size = 0
    for file in folder.glob("*.mdb"):
        with suppress(FileNotFoundError):  # somebody removed it just now
            size += file.stat().st_size
    return size


class StoredArray(msgspec.Struct, frozen=True):
    """How to read one stored value."""

    dtype: str
    shape: tuple[int, ...]


class Meta(msgspec.Struct, frozen=True):
    """All that is known of a data set but its values."""

    info: DataInfo
    arrays: dict[str, StoredArray]
    names: tuple[str, ...]
    categories: dict[str, list[str]]
    times: tuple[str, ...]
    classes: list[str] | None
    #: Stored parts of the folds: a slice as (start, stop), or the name of an array.
    folds: list[tuple[tuple[int, int] | str, tuple[int, int] | str]]
    search_rows: int
    from_end: bool
    #: Of `categories`, those whose order means something; of `times`, the time zones. Older files have neither.
    ordered: tuple[str, ...] = ()
    zones: dict[str, str] = {}
