"""Tables as streams of Arrow record batches, so that no more than a few batches are in memory."""

import gzip
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from trialfleet_shared.errors import DataError

if TYPE_CHECKING:  # a caller that has a frame has imported it
    import pandas as pd

#: Rows of a record batch.
BATCH_ROWS = 16_384
#: What is read of each column of a parquet file at a time, in bytes. Without it a column of a row group is read whole,
#: and pandas writes row groups of a million rows.
_PARQUET_BUFFER_BYTES = 256 * 2**10
#: What a CSV file may write for a missing value: pandas' list.
NULL_VALUES = [
    "",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "-NaN",
    "-nan",
    "null",
    "NULL",
    "None",
    "<NA>",
    "#N/A",
    "#NA",
    "#N/A N/A",
    "1.#IND",
    "-1.#IND",
    "1.#QNAN",
    "-1.#QNAN",
]
#: What a CSV column is read as when its values turn out not to fit what the first block looked like.
_WIDER = {pa.null(): pa.int64(), pa.int64(): pa.float64()}
#: Bytes of a CSV file's first line that are looked at, and what else may stand between its columns.
_HEADER_BYTES = 2**16
_OTHER_SEPARATORS = {b";": "semicolons", b"\t": "tabs", b"|": "bars"}
#: What a parquet or Arrow file calls the index of a pandas frame where it has no name.
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
#: How Arrow names the column whose value does not fit.
_BAD_COLUMN = re.compile(r"CSV column #(\d+)")


def read_table(
    open_file: Callable[[], IO[bytes]],
    suffix: str,
    consume: Callable[[Iterable[pa.RecordBatch]], None],
    named: Collection[str],
) -> None:
    """Stream a file's table to `consume`.

    Args:
        open_file: opens the file, again at each call.
        suffix: one of `sources.SUFFIXES`, but ".npz".
        consume: as of `sources.read_file`.
        named: as of `sources.read_file`.

    Raises:
        DataError: the file has text that is not UTF-8.
        ValueError: it is not what its suffix says.
        OSError: it can not be read.
    """
    try:
        if suffix.startswith(".csv"):
            _read_csv(partial(_opened_plain, open_file, suffix), consume)
        else:
            with open_file() as file:
                consume(_read_arrow(file, suffix, named))
    except pa.ArrowException as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(str(error)) from error


def table_batches(frame: "pd.DataFrame", wanted: Collection[str] = ()) -> Iterator[pa.RecordBatch]:
    """A frame in memory as batches.

    Args:
        frame: the table.
        wanted: columns that are wanted though they are its index.

    Raises:
        DataError: a column has no one type.
    """
    named = frame.set_axis([str(name) for name in frame.columns], axis=1)
    levels = [name for name in named.index.names if name in wanted and name not in named.columns]
    if levels:
        named = named.reset_index(level=levels)
    try:
        # The types are those of all rows: the first rows of a column of Python objects may look like something else.
        schema = pa.Schema.from_pandas(named, preserve_index=False)
        for start in range(0, len(named), BATCH_ROWS):
            part = named.iloc[start : start + BATCH_ROWS]
            yield pa.RecordBatch.from_pandas(part, schema=schema, preserve_index=False)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        for name, column in named.items():
            trouble = _trouble(column)
            if trouble:
                raise DataError(f"column {name!r} {trouble}") from error
        raise DataError(f"the data frame can not be stored: {error}") from error


def _trouble(column: "pd.Series[Any]") -> str:
    """Why a column can not be stored; empty when it can be."""
    try:
        pa.Table.from_pandas(column.to_frame(), preserve_index=False)
    except OverflowError:
        return "has whole numbers of more than 64 bits; allowed are smaller ones, floats, or texts"
    except (pa.ArrowException, TypeError, ValueError) as error:
        return f"can not be stored: {error.args[0]}; allowed are values of one type: numbers, booleans, texts or times"
    return ""


@contextmanager
def _opened_plain(open_file: Callable[[], IO[bytes]], suffix: str) -> Iterator[IO[bytes]]:
    with open_file() as file:
        if suffix.endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as plain:
                yield plain  # type: ignore[misc]  # it is readable
        else:
            yield file


def _read_csv(
    opened: Callable[[], AbstractContextManager[IO[bytes]]], consume: Callable[[Iterable[pa.RecordBatch]], None]
) -> None:
    """Read with the types of the first block, and again with wider ones for as long as a later value does not fit."""
    with opened() as file:
        header = file.readline(_HEADER_BYTES)
    for separator, words in _OTHER_SEPARATORS.items():
        if separator in header and b"," not in header:
            raise DataError(
                f"the columns of the CSV file are separated by {words}; allowed are commas: "
                "a function may read it, by pandas.read_csv with `sep`, and give a frame"
            )
    types: dict[str, pa.DataType] = {}
    while True:
        with opened() as file, _csv_reader(file, types) as reader:
            schema = reader.schema
            for name, kind in zip(schema.names, schema.types, strict=True):
                if pa.types.is_binary(kind):
                    raise _not_utf8(name)
            try:
                consume(reader)
            except pa.ArrowInvalid as error:
                found = _BAD_COLUMN.search(str(error))
                if found is None:
                    raise
                index = int(found.group(1))
                name, kind = schema.names[index], schema.types[index]
                if pa.types.is_string(kind):  # nothing is wider
                    raise _not_utf8(name) from error
                types[name] = _WIDER.get(kind, pa.string())
            else:
                return


def _not_utf8(name: str) -> DataError:
    return DataError(f"column {name!r} of the CSV file has text that is not UTF-8; save the file as UTF-8")


def _csv_reader(file: IO[bytes], types: Mapping[str, pa.DataType]) -> Any:
    return pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(block_size=4 * 2**20),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict(types),
            null_values=NULL_VALUES,
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )


def _read_arrow(file: Any, suffix: str, named: Collection[str]) -> Iterator[pa.RecordBatch]:
    if suffix in (".parquet", ".pq"):
        # Reading ahead would bring the whole file into memory.
        parquet = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
        index = _index_columns(parquet.schema_arrow).difference(named)
        columns = [name for name in parquet.schema_arrow.names if name not in index]
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)
        return
    with pa.ipc.open_file(file) as reader:
        index = _index_columns(reader.schema).difference(named)
        # By place: a name that stands twice is told later.
        places = [place for place, name in enumerate(reader.schema.names) if name not in index]
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).select(places)


def _index_columns(schema: pa.Schema) -> set[str]:
    """The columns that are a pandas frame's index: no features, as they are none of a frame in memory."""
    found = {name for name in schema.names if _UNNAMED_INDEX.fullmatch(name)}
    with suppress(ValueError, AttributeError):  # metadata that pandas did not write
        columns = (schema.pandas_metadata or {}).get("index_columns", [])
        found.update(name for name in columns if isinstance(name, str))
    return found
