"""Data sets on their way into the cache: nothing changes on the way, whatever the source."""

import csv
import gzip
import io
import itertools
import os
import resource
import stat
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas._libs.parsers import STR_NA_VALUES
from support.waiting import wait_until

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import TEST_FOLD, DataSpec, Resampling
from trialfleet_workers.adapters.arrow_tables import NULL_VALUES
from trialfleet_workers.adapters.data_set import DataSet
from trialfleet_workers.adapters.lmdb_data import DataCache
from trialfleet_workers.adapters.sources import Stamp, read_file
from trialfleet_workers.adapters.sources import stamp as stamp_of

ROWS = 300


def table(rows: int = ROWS) -> pd.DataFrame:
    """Like a census: numbers, text, gaps; `row` says which source row a value came from."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "row": np.arange(rows),
            "age": random.integers(17, 90, rows),
            "hours": np.where(random.random(rows) < 0.1, np.nan, random.normal(40, 5, rows)),
            "work": random.choice(["Private", "State-gov", "Self-emp"], rows),
            "married": random.random(rows) < 0.5,
            "since": pd.date_range("2020-01-01", periods=rows, freq="h"),
            "single": random.normal(size=rows).astype(np.float32),
            "income": random.choice([">50K", "<=50K"], rows),
        }
    )
    frame.loc[random.random(rows) < 0.1, "work"] = None
    return frame


def spec(source: str = "memory:table", target: str | None = "income", **fields: Any) -> DataSpec:
    fields.setdefault("resampling", Resampling(kind="stratified", folds=3, test_fraction=0.2))
    return DataSpec(source=source, target=target, **fields)


def assert_same(dataset: DataSet, source: pd.DataFrame, folds: int = 3) -> None:
    """Every value that comes out is that of the source row it claims to be."""
    for fold in [*range(folds), TEST_FOLD]:
        data = dataset.split(fold=fold, fraction=0.6, rung=1, seed=7)
        assert (data.fold, data.fraction, data.rung, data.seed) == (fold, 0.6, 1, 7)
        assert data.classes is not None
        for part, target in ((data.frame, data.y), (data.frame_valid, data.y_valid)):
            expected = source.iloc[part["row"].to_numpy()].reset_index(drop=True)
            assert [data.classes[code] for code in target] == expected["income"].tolist()
            for column in data.columns:
                got, wanted = part[column], expected[column]
                assert (got.isna() == wanted.isna()).all(), column
                assert got[~got.isna()].tolist() == wanted[~wanted.isna()].tolist(), column


def test_a_frame_comes_out_as_it_went_in(cache: DataCache) -> None:
    info = cache.import_object(table(), spec())
    dataset = cache.open(info.digest)
    assert_same(dataset, table())
    data = dataset.split(fold=0, fraction=1.0, rung=0, seed=0)
    assert data.classes == ("<=50K", ">50K")
    assert data.frame.dtypes.astype(str).to_dict() == {
        "row": "int64",
        "age": "int64",
        "hours": "float64",
        "work": "category",
        "married": "bool",
        "since": "datetime64[ns]",
        "single": "float32",
    }
    assert data.frame["work"].dtype == data.frame_valid["work"].dtype
    assert info.rows == ROWS
    assert info.test_rows == ROWS // 5
    assert [t + v for t, v in zip(info.train_rows, info.valid_rows, strict=True)] == [ROWS * 4 // 5] * 3


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".feather"])
def test_a_file_comes_out_as_it_went_in(suffix: str, cache: DataCache, tmp_path: Path) -> None:
    file = tmp_path / f"table{suffix}"
    frame = table()
    if suffix == ".csv":
        frame.to_csv(file, index=False)
    elif suffix == ".csv.gz":
        file.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    elif suffix == ".parquet":
        frame.to_parquet(file, row_group_size=100)
    else:
        frame.to_feather(file)
    info = cache.import_data(spec(file.name), base=tmp_path)
    dataset = cache.open(info.digest)
    single = frame["single"] if suffix in (".parquet", ".feather") else frame["single"].astype(str).astype(float)
    assert_same(dataset, frame.assign(single=single))


@pytest.mark.parametrize(("separator", "words"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators_are_told(separator: str, words: str, cache: DataCache, tmp_path: Path) -> None:
    """As of an export with decimal commas, where the parser counts columns."""
    table().to_csv(tmp_path / "table.csv", index=False, sep=separator, decimal=",")
    with pytest.raises(DataError, match=f"separated by {words}; allowed are commas"):
        cache.import_data(spec("table.csv"), base=tmp_path)


def test_the_index_of_a_frame_is_no_feature(cache: DataCache, tmp_path: Path) -> None:
    """The number of a row that was kept often tells its class: rows stood sorted by it."""
    table().sample(frac=0.9, random_state=0).to_parquet(tmp_path / "table.parquet")
    info = cache.import_data(spec("table.parquet"), base=tmp_path)
    assert info.columns == tuple(table().columns.drop("income"))
    named = table().rename_axis("visit").sample(frac=0.9, random_state=0)
    named.to_parquet(tmp_path / "named.parquet")
    assert cache.import_data(spec("named.parquet"), base=tmp_path).columns == info.columns
    named.set_index("age", append=True).to_parquet(tmp_path / "two.parquet")
    assert cache.import_data(spec("two.parquet"), base=tmp_path).columns == info.columns[:1] + info.columns[2:]
    grouped = {"group_column": "visit", "resampling": Resampling(kind="grouped", folds=3)}
    by_visit = cache.import_data(spec("named.parquet", **grouped), base=tmp_path)
    assert by_visit.columns == info.columns, "what is asked for by its name is there, as it was named"


def test_nor_is_it_in_an_arrow_file(cache: DataCache, tmp_path: Path) -> None:
    rows = pa.Table.from_pandas(table().sample(frac=0.9, random_state=0))
    assert "__index_level_0__" in rows.column_names
    with pa.ipc.new_file(tmp_path / "table.arrow", rows.schema) as file:
        file.write_table(rows)
    info = cache.import_data(spec("table.arrow"), base=tmp_path)
    assert info.columns == tuple(table().columns.drop("income"))


@pytest.mark.parametrize("metadata", [b"{}", b"[]", b"not JSON", b'{"index_columns": [{"kind": "range"}]}'])
def test_metadata_that_tell_of_no_index_do_no_harm(metadata: bytes, cache: DataCache, tmp_path: Path) -> None:
    rows = pa.Table.from_pandas(table(), preserve_index=False).replace_schema_metadata({b"pandas": metadata})
    with pa.ipc.new_file(tmp_path / "table.arrow", rows.schema) as file:
        file.write_table(rows)
    info = cache.import_data(spec("table.arrow"), base=tmp_path)
    assert info.columns == tuple(table().columns.drop("income"))


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_is_missing_is_missing_however_it_is_quoted(quoting: int, cache: DataCache, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [*range(39), None], "b": ["x", None] * 20, "y": ["u", "v", None, "NA"] * 10})
    frame.to_csv(tmp_path / "t.csv", index=False, quoting=quoting)  # type: ignore[arg-type]
    read = pd.read_csv(tmp_path / "t.csv")
    info = cache.import_data(spec("t.csv", "y", resampling=Resampling()), base=tmp_path)
    assert (info.rows, info.dropped_rows, info.odd_texts) == (20, 20, {})
    dataset = cache.open(info.digest)
    data = dataset.split(fold=0, fraction=1.0, rung=0, seed=0)
    assert data.classes == ("u", "v")
    got = pd.concat([data.frame, data.frame_valid])
    kept = read[read["y"].notna()]
    assert got.isna().sum().to_dict() == kept[["a", "b"]].isna().sum().to_dict()
    assert sorted(got["a"].dropna()) == sorted(kept["a"].dropna())


def test_equal_contents_have_equal_digests_wherever_they_come_from(cache: DataCache, tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "table.parquet")
    from_file = cache.import_data(spec("table.parquet"), base=tmp_path)
    from_memory = cache.import_object(pd.read_parquet(tmp_path / "table.parquet"), spec())
    assert from_file.digest == from_memory.digest
    changed = table()
    changed.loc[5, "age"] += 1
    assert cache.import_object(changed, spec()).digest != from_file.digest
    assert cache.import_object(table(), spec(seed=1)).digest != from_file.digest


def test_a_csv_column_may_change_its_type_late(cache: DataCache, tmp_path: Path) -> None:
    rows = 400_000  # several blocks of 4 MB
    frame = pd.DataFrame({"late": np.arange(rows), "text": np.arange(rows), "gap": "", "y": np.arange(rows) % 2})
    frame = frame.astype({"late": object, "text": object, "gap": object})
    frame.loc[rows - 1, "late"] = 0.5
    frame.loc[rows - 2, "text"] = "none of your business"
    frame.loc[rows - 3, "gap"] = 3
    frame.to_csv(tmp_path / "late.csv", index=False)
    info = cache.import_data(spec("late.csv", "y", resampling=Resampling()), base=tmp_path)
    data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    both = pd.concat([data.frame, data.frame_valid])
    assert both["late"].dtype == np.float64
    assert sorted(both["late"])[:3] == [0.0, 0.5, 1.0]
    assert "none of your business" in set(both["text"])
    assert both["gap"].dropna().tolist() == [3]


def test_numbers_become_one_block_and_gaps_become_nan(cache: DataCache) -> None:
    frame = pd.DataFrame({"a": [1, 2, None, 4] * 10, "b": range(40), "y": np.linspace(0, 1, 40)})
    frame["a"] = frame["a"].astype("Int64")
    info = cache.import_object(frame, spec(target="y", resampling=Resampling()))
    data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    assert data.X.dtype == np.float64
    assert data.X.shape == (32, 2)
    b = data.X[:, 1].astype(int)
    assert np.array_equal(np.isnan(data.X[:, 0]), b % 4 == 2)
    assert data.columns == ("a", "b")


def test_a_few_texts_among_numbers_are_told(cache: DataCache, tmp_path: Path) -> None:
    columns = {
        "mistyped": [*map(str, range(99)), "12o"],
        "codes": [*map(str, range(96)), "A1", "A2", "A3", "A4"],
        "few": ["1", "2", "3", "many"] * 25,
        "words": ["red", "blue"] * 50,
        "numbers": [*map(str, range(99)), "NA"],
        "price": [*map(str, range(90)), *["?"] * 10],
    }
    plain = partial(spec, "memory:table", resampling=Resampling())
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    info = cache.import_data(spec("t.csv", "few", resampling=Resampling()), base=tmp_path)
    assert info.odd_texts == {"mistyped": "12o", "price": "?"}
    # A frame's texts are texts, whatever a CSV file means by them.
    frame = cache.import_object(pd.DataFrame(columns), plain("words"))
    assert frame.odd_texts == {**info.odd_texts, "numbers": "NA"}
    assert cache.import_object(pd.DataFrame({"a": range(40), "y": range(40)}), plain("y")).odd_texts == {}


def test_rows_without_a_target_are_left_out(cache: DataCache) -> None:
    frame = pd.DataFrame({"hour": np.arange(100), "pm": np.where(np.arange(100) % 3 == 0, np.nan, np.arange(100.0))})
    forward = Resampling(kind="forward", folds=3, test_fraction=0.1)
    info = cache.import_object(frame, spec(target="pm", resampling=forward))
    assert (info.rows, info.dropped_rows) == (66, 34)
    data = cache.open(info.digest).split(fold=0, fraction=0.5, rung=0, seed=0)
    assert np.array_equal(data.y, data.X[:, 0])
    assert data.X[:, 0].max() < data.X_valid[:, 0].min()


def test_arrays_of_any_shape_keep_it(cache: DataCache, tmp_path: Path) -> None:
    images = np.arange(60 * 4 * 5, dtype=np.uint8).reshape(60, 4, 5)
    np.savez(tmp_path / "images.npz", X=images, y=np.arange(60) % 3)
    info = cache.import_data(spec("images.npz", None), base=tmp_path)
    data = cache.open(info.digest).split(fold=1, fraction=1.0, rung=0, seed=0)
    assert data.X.shape[1:] == (4, 5)
    assert data.X.dtype == np.uint8
    assert all((images == image).all(axis=(1, 2)).any() for image in data.X)
    with pytest.raises(DataError, match=r"data.frame needs two dimensions; X has 3: use data.X"):
        _ = data.frame


def test_labels_of_arrays_become_codes(cache: DataCache) -> None:
    x = np.arange(40.0).reshape(40, 1)
    labels = np.where(x[:, 0] < 20, "low", "high")
    info = cache.import_object((x, labels), spec(target=None))
    data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    assert data.classes == ("high", "low")
    assert np.array_equal(data.y == 1, data.X[:, 0] < 20)


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_a_class_too_rare_for_the_folds_is_told_as_that(kind: type, cache: DataCache) -> None:
    data = (np.zeros((40, 1)), np.array([0] * 39 + [1]).astype(kind))
    words = r"resampling\.folds = 3, but the rarest class has 1 rows; allowed is at most that"
    with pytest.raises(DataError, match=words):
        cache.import_object(data, spec(target=None, resampling=Resampling("stratified", folds=3)))


@pytest.mark.parametrize("fields", [{"resampling": Resampling(kind="stratified", folds=3)}, {"order": "stratified"}])
def test_whole_numbers_held_as_floats_are_classes_where_strata_are_asked_for(
    fields: dict[str, Any], cache: DataCache
) -> None:
    x, labels = np.arange(80.0).reshape(40, 2), np.repeat([0.0, 1.0], [32, 8])
    fields = {"resampling": Resampling(), **fields}
    for source, target in (((x, labels), None), (pd.DataFrame({"a": x[:, 0], "y": labels}), "y")):
        info = cache.import_object(source, spec(target=target, **fields))
        data = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
        assert data.y.dtype == np.float64
        assert data.y_valid.mean() == pytest.approx(0.2, abs=0.1)
    many = cache.import_object((np.zeros((260, 2)), np.arange(260.0) % 26), spec(target=None, **fields))
    assert np.bincount(cache.open(many.digest).split(fold=0, fraction=1.0, rung=0, seed=0).y.astype(int)).min() >= 6
    with pytest.raises(DataError, match="need a target of classes: text, booleans, or whole numbers"):
        cache.import_object((x, labels + 0.5), spec(target=None, **fields))


def test_a_function_gives_data(cache: DataCache, tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text(
        "import numpy as np\ndef pair():\n    return np.arange(40.0).reshape(20, 2), np.arange(20) % 2\n"
        "def broken():\n    raise RuntimeError('no database')\ndef odd():\n    return 7\n"
        "def ending():\n    raise SystemExit(0)\n"
    )
    info = cache.import_data(spec("load.py:pair", None, resampling=Resampling()), base=tmp_path)
    assert info.rows == 20
    with pytest.raises(DataError, match=r"data.source = 'load.py:broken' raised RuntimeError: no database"):
        cache.import_data(spec("load.py:broken", None), base=tmp_path)
    with pytest.raises(DataError, match=r"data.source = 'load.py:ending' raised SystemExit: 0"):
        cache.import_data(spec("load.py:ending", None), base=tmp_path)
    with pytest.raises(DataError, match="the data are of type int; allowed are a data frame"):
        cache.import_data(spec("load.py:odd", None), base=tmp_path)


def test_any_file_system_of_fsspec_serves(cache: DataCache) -> None:
    with fsspec.open("memory://trialfleet/table.csv", "wb") as file:
        file.write(table().to_csv(index=False).encode())
    info = cache.import_data(spec("memory://trialfleet/table.csv"), base=Path("nowhere"))
    assert info.rows == ROWS


def test_a_path_and_its_uri_are_one_source(tmp_path: Path) -> None:
    file = tmp_path / "a table.csv"
    file.write_text("row,income\n")
    (tmp_path / "link.csv").symlink_to(file)
    stamps = {stamp_of(source, tmp_path) for source in ("a table.csv", "link.csv", str(file), f"file://{file}")}
    assert len(stamps) == 1


def test_links_in_a_loop_are_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("b.csv")
    (tmp_path / "b.csv").symlink_to("a.csv")
    with pytest.raises(DataError, match=r"^data.source = 'a.csv' can not be "):
        stamp_of("a.csv", tmp_path)


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(
    cache: DataCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.csv"
    table().to_csv(file, index=False)
    first = cache.import_data(spec("table.csv"), base=tmp_path)

    def fail(*_: Any) -> None:
        raise AssertionError("the file was read")

    with monkeypatch.context() as patched:
        patched.setattr("trialfleet_workers.adapters.lmdb_data.read_file", fail)
        assert cache.import_data(spec("table.csv"), base=tmp_path) == first
    table(200).to_csv(file, index=False)
    assert cache.import_data(spec("table.csv"), base=tmp_path).rows == 200


@pytest.mark.parametrize(
    ("name", "content", "fields", "words"),
    [
        ("no.csv", None, {}, "data.source = 'no.csv': there is no file"),
        ("t.txt", "a,b\n1,2\n", {}, "allowed endings are .parquet"),
        ("t.csv", "", {}, "data.source = 't.csv' can not be read"),
        ("t.csv", "a,y\n", {"target": "y"}, "data.source = 't.csv' has no rows"),
        ("t.csv", "a,y\n1,2,3\n", {"target": "y"}, "data.source = 't.csv' can not be read"),
        (
            "t.csv",
            "a,incoem\n1,2\n",
            {"target": "income"},
            "data.target = 'income' is no column; did you mean 'incoem'?",
        ),
        ("t.csv", "a,y\n1,2\n", {"target": None}, "data.target is needed; the columns are 'a', 'y'"),
        ("t.csv", "a,y\n1,\n2,NA\n", {"target": "y"}, "data.target = 'y' has no value in any of the 2 rows"),
        ("t.csv", "y\n1\n2\n", {"target": "y"}, "no column beside the target"),
        ("t.csv", "a,y\n1,2\n", {"target": "y", "group_column": "g"}, "data.group_column = 'g' is no column"),
        ("t.csv", "a,y\n1,2\n", {"target": "y", "group_column": "y"}, "data.group_column = 'y' is the target"),
        ("t.csv", "a,y\n1,2\n", {"target": "y", "time_column": "y"}, "data.time_column = 'y' is the target"),
        ("t.csv", "a,y\n1,2\n", {"target": "y"}, "needs at least 4"),
        ("t.parquet", "not parquet", {"target": "y"}, "data.source = 't.parquet' can not be read"),
    ],
)
def test_data_that_can_not_be_used_are_told(
    name: str, content: str | None, fields: dict[str, Any], words: str, cache: DataCache, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        cache.import_data(spec(name, fields.pop("target", "y"), resampling=Resampling(), **fields), base=tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["t.npz", "t.csv.gz"])
def test_a_file_that_ends_too_soon_is_told(name: str, cache: DataCache, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "t.npz":
        np.savez(file, X=np.random.default_rng(0).random((500, 3)), y=np.arange(500.0))
    else:
        pd.DataFrame({"a": np.random.default_rng(0).random(5000), "y": 1.0}).to_csv(file, index=False)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=f"data.source = '{name}' can not be read"):
        cache.import_data(spec(name, None if name == "t.npz" else "y", resampling=Resampling()), base=tmp_path)


def test_other_contents_of_the_same_size_and_time_are_noticed(cache: DataCache, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,y\n" + "1,1\n" * 40)
    before = file.stat()
    first = cache.import_data(spec("table.csv", "y", resampling=Resampling()), base=tmp_path)
    file.write_text("a,y\n" + "2,1\n" * 40)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = cache.import_data(spec("table.csv", "y", resampling=Resampling()), base=tmp_path)
    assert second.content_digest != first.content_digest


def test_a_file_that_changes_while_it_is_read_is_told(
    cache: DataCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,y\n" + "1,1\n" * 40)

    def read_and_go_on_writing(*args: Any) -> Any:
        arrays = read_file(*args)
        with file.open("a") as more:
            more.write("2,2\n" * 40)
        return arrays

    monkeypatch.setattr("trialfleet_workers.adapters.lmdb_data.read_file", read_and_go_on_writing)
    with pytest.raises(DataError, match=r"data.source = 'table.csv' changed while it was read; try again once it is"):
        cache.import_data(spec("table.csv", "y", resampling=Resampling()), base=tmp_path)
    monkeypatch.undo()
    assert cache.import_data(spec("table.csv", "y", resampling=Resampling()), base=tmp_path).rows == 80


def test_a_server_may_name_the_same_contents_otherwise_each_time(
    cache: DataCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = (Stamp("memory://trialfleet/t.csv", 9, f"etag {number}") for number in itertools.count())
    monkeypatch.setattr("trialfleet_workers.adapters.lmdb_data.stamp", lambda *_: next(stamps))
    with fsspec.open("memory://trialfleet/t.csv", "wb") as file:
        file.write(table().to_csv(index=False).encode())
    assert cache.import_data(spec("memory://trialfleet/t.csv"), base=Path("nowhere")).rows == ROWS


def test_a_table_may_have_more_columns_than_a_process_may_have_files(cache: DataCache) -> None:
    frame = pd.DataFrame(np.arange(40.0 * 300).reshape(40, 300)).assign(y=1.0)
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, most))
    try:
        info = cache.import_object(frame, spec(target="y", resampling=Resampling()))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    assert len(info.columns) == 300


def test_text_is_no_matrix(cache: DataCache) -> None:
    data = cache.open(cache.import_object(table(), spec()).digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    with pytest.raises(DataError, match=r"data.X needs numbers; text or points in time are in 'work', 'since'"):
        _ = data.X


def test_nobody_else_may_read_the_cache(cache: DataCache, tmp_path: Path) -> None:
    info = cache.import_object(table(), spec())
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "cache" / f"{info.digest}.mdb").stat().st_mode) == 0o600


def test_a_data_set_that_is_not_here_is_told(cache: DataCache) -> None:
    with pytest.raises(DataError, match="the data set abc is not in the cache"):
        cache.open("abc")


def test_a_cache_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can not be written"):
        DataCache(tmp_path / "file").import_object(table(), spec())


def test_only_its_owner_waits_for_an_import(cache: DataCache, tmp_path: Path) -> None:
    """A data set that is there is opened while another one is imported."""
    import fcntl

    info = cache.import_object(table(), spec())
    lock = os.open(tmp_path / "cache" / "import.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        wait_until(lambda: cache.open(info.digest).info == info, "it is opened")
    finally:
        os.close(lock)


def test_what_a_csv_file_may_write_for_a_missing_value_is_what_pandas_takes_for_one() -> None:
    written = "x\n" + "\n".join(f'"{value}"' for value in NULL_VALUES)
    assert pd.read_csv(io.StringIO(written), skip_blank_lines=False)["x"].isna().all()
    assert set(NULL_VALUES) == STR_NA_VALUES
