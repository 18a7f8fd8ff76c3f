"""Data sets that come as objects, and files that are not tidy: every value arrives, or the import says why not."""

import re
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec, Resampling
from trialfleet_workers.adapters import contents, lmdb_data
from trialfleet_workers.adapters.arrow_tables import BATCH_ROWS
from trialfleet_workers.adapters.lmdb_data import DataCache
from trialfleet_workers.adapters.sources import read_file
from trialfleet_workers.data import Data

#: More than one batch, so that what the first one looks like does not decide.
ROWS = 2 * BATCH_ROWS


def imported(cache: DataCache, data: Any, target: str | None = "y", **fields: Any) -> Data:
    info = cache.import_object(data, DataSpec(source="memory:data", target=target, **fields))
    return cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)


def everything(data: Data) -> pd.DataFrame:
    return pd.concat([data.frame, data.frame_valid], ignore_index=True)


@pytest.mark.parametrize(
    ("early", "late", "dtype"),
    [(1, 0.5, "float64"), (None, "x", "category"), (None, True, "object"), (1, None, "float64")],
)
def test_a_column_of_objects_has_the_type_of_all_its_rows(
    early: object, late: object, dtype: str, cache: DataCache
) -> None:
    column = pd.Series([early] * (ROWS - 5) + [late] * 5, dtype=object)
    frame = everything(imported(cache, pd.DataFrame({"a": column, "y": np.arange(ROWS) % 2})))
    expected = "float64" if dtype == "object" else dtype  # booleans with gaps are numbers with gaps
    assert str(frame["a"].dtype) == expected
    gaps = frame["a"].isna()
    assert gaps.sum() == (ROWS - 5) * (early is None) + 5 * (late is None)
    counted = frame["a"][~gaps].value_counts().to_dict()
    assert counted == {value: count for value, count in ((early, ROWS - 5), (late, 5)) if value is not None}


@pytest.mark.parametrize("name", [None, "price"])
def test_a_frame_and_a_series_go_together_by_position(name: str | None, cache: DataCache) -> None:
    features = pd.DataFrame({"a": np.arange(40), "b": 0.5}, index=np.arange(40)[::-1])
    data = imported(cache, (features, pd.Series(np.arange(40) * 10.0, name=name)), target=None)
    assert np.array_equal(data.y, data.frame["a"] * 10)
    assert data.columns == ("a", "b")


@pytest.mark.parametrize("role", ["time_column", "group_column"])
def test_the_index_of_a_frame_can_be_named(role: str, cache: DataCache) -> None:
    """As that of one in a file can; other levels of it are no columns."""
    days = pd.Index(np.arange(40)[::-1] // 2, name="day")
    frame = pd.DataFrame({"a": np.arange(40), "y": 0.5}, index=days).set_index(pd.RangeIndex(40, name="n"), append=True)
    fields = (
        {role: "day", "resampling": Resampling(kind="grouped", folds=5)} if role == "group_column" else {role: "day"}
    )
    named = imported(cache, frame, **fields)
    column = imported(cache, frame.reset_index(level="day").reset_index(drop=True), **fields)
    assert named.columns == column.columns
    assert np.array_equal(named.frame["a"], column.frame["a"])
    assert np.array_equal(named.frame_valid["a"], column.frame_valid["a"])
    shadowed = imported(cache, frame.assign(day=np.arange(40) // 2), **fields)
    assert not np.array_equal(named.frame["a"], shadowed.frame["a"]), "a column comes first"


def test_a_mapping_of_x_and_y_is_a_pair(cache: DataCache) -> None:
    data = imported(cache, {"X": np.arange(80.0).reshape(40, 2), "y": np.arange(40) * 2.0}, target=None)
    assert np.array_equal(data.y, data.X[:, 0])


def test_a_mapping_of_columns_is_a_table(cache: DataCache) -> None:
    data = imported(cache, {"a": np.arange(40), "y": list(range(40))})
    assert np.array_equal(data.y, data.frame["a"])


@pytest.mark.parametrize("numbers", [np.linspace(0, 1, 40), np.arange(40), np.where(np.arange(40) % 4, 1.5, np.nan)])
def test_numbers_as_python_objects_stay_numbers(numbers: np.ndarray, cache: DataCache) -> None:
    data = imported(cache, (np.arange(80.0).reshape(40, 2), numbers.astype(object)), target=None)
    assert data.classes is None
    assert np.array_equal(data.y, numbers[(data.X[:, 0] / 2).astype(int)])


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b", np.nan, "a"] * 10,
        pd.Series([True, False, None, True] * 10, dtype="boolean"),
        [True, False, None, True] * 10,
        np.array([True, False, np.nan, True] * 10, dtype=object),
        pd.Series([7, 0, None, 2**53] * 10, dtype="Int64"),
        pd.Series([7.5, 0, None, 1] * 10, dtype="Float64"),
        [7.5, 0, None, 1] * 10,
        pd.Categorical(["a", "b", None, "a"] * 10),
    ],
    ids=[
        "texts",
        "nullable booleans",
        "booleans",
        "objects",
        "nullable ints",
        "nullable floats",
        "floats",
        "categories",
    ],
)
def test_missing_labels_are_missing_as_in_a_frame(labels: Any, cache: DataCache) -> None:
    x = np.arange(40.0)
    array = imported(cache, (x.reshape(-1, 1), labels), target=None)
    frame = imported(cache, pd.DataFrame({"x0": x, "y": pd.Series(labels).array}))
    assert len(array.y) + len(array.y_valid) == len(frame.y) + len(frame.y_valid) == pd.Series(labels).notna().sum()
    assert array.y.dtype == frame.y.dtype
    assert array.classes == frame.classes
    assert np.array_equal(np.column_stack([array.X[:, 0], array.y]), np.column_stack([frame.X[:, 0], frame.y]))


def test_whole_numbers_with_gaps_are_not_taken_for_floats(cache: DataCache) -> None:
    x, labels = np.arange(80.0).reshape(40, 2), [1.0, 0.0, None, 1.0] * 10
    assert imported(cache, (x, np.array(labels, dtype=float)), target=None).y.dtype == np.float64
    assert imported(cache, (x, pd.Series(labels, dtype="Int64")), target=None).y.dtype == np.int64


def test_missing_texts_of_a_mapping_are_missing(cache: DataCache) -> None:
    data = imported(cache, {"a": ["u", np.nan] * 20, "y": range(40)})
    assert everything(data)["a"].isna().sum() == 20


def test_columns_without_text_names_have_their_names_as_text(cache: DataCache) -> None:
    columns = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])
    frame = pd.DataFrame(np.arange(80.0).reshape(40, 2), columns=columns)
    assert imported(cache, frame, target="('b', 2)").columns == ("('a', 1)",)


@pytest.mark.parametrize(
    ("data", "target", "words"),
    [
        (
            pd.DataFrame({"b": [1, 2], "a": pd.Series([1, "x"], dtype=object), "y": [0, 1]}),
            "y",
            "column 'a' can not be stored: Could not convert 'x' with type str",
        ),
        (pd.DataFrame({"a": [1j, 2], "y": [0, 1]}), "y", "column 'a' can not be stored"),
        ((csr_matrix(np.eye(10)), np.ones(10)), None, "X is a csr_matrix; allowed are dense arrays: `X.toarray()`"),
        (pd.DataFrame([[1, 2, 3]], columns=["a", "a", "y"]), "y", "Duplicate column names found: ['a', 'a', 'y']"),
        (pd.DataFrame({"a": np.array(["3000-01-01"], "M8[s]"), "y": [0]}), "y", "column 'a' has points in time before"),
        (pd.DataFrame({"a": pd.to_timedelta([1], "s"), "y": [0]}), "y", "column 'a' has values of type duration"),
        (pd.DataFrame({"a": pd.arrays.SparseArray([0]), "y": [0]}), "y", "Sparse pandas data"),
        (
            (pd.DataFrame({"a": range(10)}), range(9)),
            None,
            "y has shape (9,), X (10, 1); y must have one value per row",
        ),
        ((pd.DataFrame({"y": range(10)}), range(10)), None, "the target 'y' stands among the features as well"),
        ((np.ones((10, 2)), np.array([1, "x"] * 5, dtype=object)), None, "y has values of mixed-integer types"),
        (
            pd.DataFrame({"a": range(9), "id": [2**70] * 9, "y": 1}),
            "y",
            "column 'id' has whole numbers of more than 64",
        ),
        ((np.ones((9, 2)), [2**70] * 9), None, "y has whole numbers of more than 64 bits"),
        ((np.ones((9, 2)), [2**70, None, 1] * 3), None, "y has whole numbers of more than 64 bits"),
        ((np.ones(10), np.ones(10)), None, "X has shape (10,); allowed is (rows, features) or more dimensions"),
        ({"a": range(10), "y": range(9)}, "y", "the mapping of arrays is no table"),
        ((np.ma.masked_equal(np.ones((10, 2)), 1), np.ones(10)), None, "X or y is a masked array"),
        ((np.ones((10, 2)), np.ma.masked_equal(np.ones(10), 1)), None, "X or y is a masked array"),
    ],
)
def test_objects_that_are_no_data_are_told(data: Any, target: str | None, words: str, cache: DataCache) -> None:
    with pytest.raises(DataError) as caught:
        imported(cache, data, target)
    assert words in str(caught.value)


def test_an_array_of_4_gib_is_refused_before_anything_is_written(cache: DataCache, tmp_path: Path) -> None:
    images = np.broadcast_to(np.float32(0.5), (16, 2**13, 2**13))  # no memory is behind it
    words = (
        "the array X has 4,294,967,296 bytes: 16 x 8192 x 8192 values of float32; allowed are 4,294,967,295, by fewer"
    )
    with pytest.raises(DataError, match=words):
        imported(cache, (images, np.arange(16)), target=None)
    assert list((tmp_path / "cache").glob("*.mdb")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (1.5, "the array X of all columns has 640 bytes: 40 x 2 values of float64; allowed are 319"),
        ("x", "the column 'a' has 320 bytes: 40 values of float64; allowed are 319"),
    ],
)
def test_of_a_table_it_is_all_numbers_or_one_column(
    text: Any, words: str, cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MOST_BYTES", 319)
    with pytest.raises(DataError, match=words):
        imported(cache, pd.DataFrame({"a": 0.5, "b": text, "y": range(40)}))


def test_that_the_target_is_too_large_is_told(cache: DataCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_BYTES", 319)
    with pytest.raises(DataError, match="the array y has 320 bytes"):
        imported(cache, (np.zeros((40, 1), dtype=np.int8), np.linspace(0, 1, 40)), target=None)


def imported_csv(cache: DataCache, folder: Path, text: str) -> Data:
    (folder / "data.csv").write_text(text)
    info = cache.import_data(DataSpec(source="data.csv", target="y"), base=folder)
    return cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)


def test_texts_of_several_lines_may_cross_the_blocks_of_a_csv_file(cache: DataCache, tmp_path: Path) -> None:
    long = "x" * 3_000_000 + "\n"  # blocks are 4 MB
    data = imported_csv(cache, tmp_path, "a,b,y\n" + "".join(f'"{long}",{row},0\n' for row in range(6)))
    frame = everything(data)
    assert sorted(frame["b"]) == list(range(6))
    assert set(frame["a"]) == {long}


def test_a_name_that_stands_twice_in_a_file_is_told(cache: DataCache, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'a' stands twice in the data"):
        imported_csv(cache, tmp_path, "a,a,y\n1,2,3\n")


@pytest.mark.parametrize("tidy_rows", [0, 400_000], ids=["in the first block", "later"])
def test_text_that_is_not_utf8_is_told(tidy_rows: int, cache: DataCache, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"a,y\n" + b"tidy text,1\n" * tidy_rows + "é,1\n".encode("latin1"))
    with pytest.raises(DataError, match="column 'a' of the CSV file has text that is not UTF-8"):
        cache.import_data(DataSpec(source="data.csv", target="y"), base=tmp_path)


def test_a_parquet_file_of_one_row_group_is_read_piece_by_piece(tmp_path: Path) -> None:
    """pandas writes up to a million rows into one group."""
    numbers = np.random.default_rng(0).normal(size=(700_000, 8))
    pd.DataFrame(numbers, columns=list("abcdefgh")).to_parquet(tmp_path / "data.parquet")
    peaks = []

    def consume(batches: Iterable[pa.RecordBatch]) -> None:
        peaks.extend(pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0] for _ in batches)

    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        read_file("data.parquet", tmp_path, consume)
    finally:
        tracemalloc.stop()
    assert max(peaks) - before < numbers.nbytes * 0.6


def test_a_columns_name_may_be_a_whole_question(cache: DataCache, tmp_path: Path) -> None:
    question = "Wie häufig haben Sie in den letzten zwölf Monaten … " * 20
    data = imported_csv(cache, tmp_path, f"{question},b,y\n" + "yes,1,0\nno,2,1\n" * 20)
    assert data.columns == (question, "b")
    assert sorted(everything(data)[question].unique()) == ["no", "yes"]


def test_a_census_keeps_its_words_and_gaps(cache: DataCache, tmp_path: Path) -> None:
    """Like the adult data: blanks after commas, question marks, gaps, classes in text."""
    rows = "39, State-gov, 77516, ?, <=50K\n50,, 83311, Exec-managerial, >50K\n" * 20
    data = imported_csv(cache, tmp_path, "age,workclass,fnlwgt,occupation,y\n" + rows)
    frame = everything(data)
    assert data.classes == (" <=50K", " >50K")
    assert frame["workclass"].isna().sum() == 20
    assert frame["occupation"].value_counts().to_dict() == {" ?": 20, " Exec-managerial": 20}
    assert frame["fnlwgt"].dtype == np.int64
    assert len(data.y) == 32, "the default: a fifth is for validation"
    assert np.bincount(data.y).tolist() == [16, 16], "and classes are stratified"


@pytest.mark.parametrize(("kind", "largest"), [("Int64", 2**63 - 1), ("UInt64", 2**64 - 1), ("Int64", 2**53 + 1)])
def test_a_target_with_gaps_is_exact(kind: str, largest: int, cache: DataCache) -> None:
    labels = pd.Series([largest, 0, None] * 20, dtype=kind)
    data = imported(cache, pd.DataFrame({"a": range(60), "y": labels}))
    assert set(np.concatenate([data.y, data.y_valid]).tolist()) == {0, largest}


def test_labels_that_no_row_has_are_no_classes(cache: DataCache) -> None:
    labels = pd.Categorical(["x", "y"] * 20, categories=["ctrl", "y", "x"])
    data = imported(cache, pd.DataFrame({"a": range(40), "label": labels}), "label")
    assert data.classes == ("x", "y")
    assert set(data.y.tolist()) == {0, 1}


def test_a_missing_label_is_not_the_text_nan(cache: DataCache) -> None:
    labels = np.array(["a", "b", "a", np.nan] * 10, dtype=object)
    infos = [cache.import_object((np.ones((40, 2)), y), DataSpec("memory:x")) for y in (labels, labels.astype(str))]
    assert infos[0].digest != infos[1].digest


def test_texts_are_told_apart_whatever_is_in_them(cache: DataCache) -> None:
    frames = [pd.DataFrame({"a": texts * 20, "y": range(40)}) for texts in (["x\0y", "z"], ["x", "y\0z"])]
    infos = [cache.import_object(one, DataSpec("memory:x", "y")) for one in frames]
    assert infos[0].digest != infos[1].digest


def test_a_categorical_of_many_batches_keeps_its_words(cache: DataCache) -> None:
    words = [f"word {number}" for number in range(3 * ROWS)]
    places = np.random.default_rng(0).permutation(3 * ROWS)[:ROWS]
    column = pd.Categorical.from_codes(places, categories=words)
    data = imported(cache, pd.DataFrame({"word": column, "place": places, "y": 0.5 + np.arange(ROWS)}))
    frame = everything(data)
    assert frame["word"].astype(str).tolist() == [words[place] for place in frame["place"]]


ZONED = ["Europe/Berlin", "UTC", "+05:30"]


def _zoned(zone: str) -> pd.DataFrame:
    hours = pd.date_range("2024-03-30 20:00", periods=40, freq="h", tz="UTC").tz_convert(
        zone
    )  # a clock change in Berlin
    sizes = pd.Categorical(["mid", "low", "top", "mid"] * 10, categories=["low", "mid", "top", "never"], ordered=True)
    return pd.DataFrame({"at": hours, "size": sizes, "a": np.arange(40.0), "y": np.arange(40.0)})


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("source", ["frame", "parquet", "feather"])
@pytest.mark.parametrize("zone", ZONED)
def test_time_zones_and_the_order_of_categories_arrive(
    zone: str, source: str, share: bool, cache: DataCache, tmp_path: Path
) -> None:
    frame = _zoned(zone)
    spec = DataSpec(source="memory:data", target="y", order="temporal", time_column="at")
    if source == "frame":
        info = cache.import_object(frame, spec)
    else:
        path = tmp_path / f"data.{source}"
        getattr(frame, f"to_{source}")(path)
        info = cache.import_data(msgspec.structs.replace(spec, source=str(path)), base=tmp_path)
    data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0, share=share)
    arrived = everything(data).sort_values("a")
    assert arrived["at"].dt.hour.tolist() == frame["at"].dt.hour.tolist()
    assert str(arrived["at"].dtype) == str(frame["at"].astype(f"datetime64[ns, {zone}]").dtype)
    assert (arrived["at"].array == frame["at"].array).all()
    assert arrived["size"].dtype == frame["size"].dtype
    assert arrived["size"].max() == "top"


def test_only_what_has_a_zone_or_an_order_is_another_data_set_for_it(cache: DataCache) -> None:
    def digest(frame: pd.DataFrame) -> str:
        return cache.import_object(frame, DataSpec(source="memory:data", target="y")).digest

    zoned = _zoned("UTC")
    plain = zoned.assign(at=zoned["at"].dt.tz_localize(None), size=zoned["size"].cat.as_unordered())
    others = [zoned.assign(at=plain["at"]), zoned.assign(size=plain["size"]), zoned, _zoned("Europe/Berlin"), plain]
    assert len({digest(frame) for frame in others}) == len(others)


def _table(kind: pa.DataType, *batches: pa.Array) -> pa.Table:
    values = pa.chunked_array([batch.cast(kind) for batch in batches], kind)
    return pa.table({"a": values, "y": pa.array(range(len(values)))})


def _from_parquet(cache: DataCache, table: pa.Table, folder: Path) -> pd.DataFrame:
    path = folder / "data.parquet"
    pq.write_table(table, path, row_group_size=40)
    info = cache.import_data(DataSpec(source=str(path), target="y"), base=folder)
    return everything(cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0))


@pytest.mark.parametrize("zone", ["Mars/Phobos", "CEST", "+7", "../UTC"])
def test_a_time_zone_that_is_not_known_is_refused(zone: str, cache: DataCache, tmp_path: Path) -> None:
    table = _table(pa.timestamp("ms", zone), pa.array(range(40)))
    with pytest.raises(DataError, match=f"column 'a' has the time zone '{re.escape(zone)}'.*allowed are names like"):
        _from_parquet(cache, table, tmp_path)


@pytest.mark.parametrize(("zone", "found"), [("Z", "UTC"), ("utc", "UTC"), ("", None)])
def test_what_writes_utc_otherwise_is_utc(zone: str, found: str | None, cache: DataCache, tmp_path: Path) -> None:
    frame = _from_parquet(cache, _table(pa.timestamp("ms", zone), pa.array(range(40))), tmp_path)
    assert str(frame["a"].dt.tz) == str(found)


@pytest.mark.parametrize(("later", "ordered"), [(["low", "top", "huge"], True), (["low", "mid", "top"], False)])
def test_categories_are_ordered_where_all_batches_say_the_same(
    later: list[str], ordered: bool, cache: DataCache, tmp_path: Path
) -> None:
    kind = pa.dictionary(pa.int8(), pa.string(), ordered=True)

    def batch(words: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array([0, 1] * 20, pa.int8()), words, ordered=True)

    frame = _from_parquet(cache, _table(kind, batch(["low", "top"]), batch(later)), tmp_path)
    assert frame["a"].cat.ordered == ordered


def test_files_are_read_once_more_where_an_import_notices_more(
    cache: DataCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("a,y\n" + "1,2\n" * 40)
    spec = DataSpec(source=str(path), target="y")
    first = cache.import_data(spec, base=tmp_path)
    assert cache.recall(spec, base=tmp_path) == first
    monkeypatch.setattr(lmdb_data, "IMPORT", lmdb_data.IMPORT + 1)
    assert cache.recall(spec, base=tmp_path) is None
    assert cache.import_data(spec, base=tmp_path) == first
