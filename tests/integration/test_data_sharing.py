"""Data sets out of the cache: views on one map, whoever reads them."""

import gc
import os
import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trialfleet_shared.messages import TEST_FOLD, DataSpec, Resampling
from trialfleet_workers.adapters.lmdb_data import DataCache

ROWS = 20_000
SPEC = DataSpec(source="memory:x", resampling=Resampling(kind="kfold", folds=3, test_fraction=0.1))


def numbers(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(rows, 10)), random.normal(size=rows)


def lies_in_map(array: np.ndarray, file: str) -> bool:
    """Whether the array's memory is that of the mapped file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, rest = line.partition(" ")
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address and address + array.nbytes <= last:
            return rest.endswith(file)
    return False


@pytest.mark.parametrize("fold", [0, TEST_FOLD])
@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_arrays_are_views_on_the_mapped_file(fold: int, fraction: float, cache: DataCache) -> None:
    info = cache.import_object(numbers(), SPEC)
    data = cache.open(info.digest).split(fold=fold, fraction=fraction, rung=0, seed=0)
    for array in (data.X, data.y, data.X_valid, data.y_valid):
        assert lies_in_map(array, f"{info.digest}.mdb")
        assert not array.flags.writeable


def test_frames_are_views_on_the_mapped_file(cache: DataCache) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": random.normal(size=ROWS), "b": np.arange(ROWS), "c": random.choice(["x", "y"], ROWS), "y": 0.5}
    )
    spec = DataSpec(source="memory:x", target="y")
    info = cache.import_object(frame, spec)
    data = cache.open(info.digest).split(fold=0, fraction=0.5, rung=0, seed=0)
    for column in ("a", "b"):
        assert lies_in_map(data.frame[column].to_numpy(), f"{info.digest}.mdb")
    codes = data.frame["c"].cat.codes.to_numpy()
    assert codes.dtype == np.int8
    assert lies_in_map(data.frame["c"].array.codes, f"{info.digest}.mdb")
    block = cache.import_object(frame.drop(columns="c"), spec)
    whole = cache.open(block.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
    assert np.shares_memory(whole.frame["a"].to_numpy(), whole.X)
    assert lies_in_map(whole.frame["b"].to_numpy()[:1], f"{block.digest}.mdb")


def test_a_subsample_allocates_nothing_of_the_datas_size(cache: DataCache) -> None:
    dataset = cache.open(cache.import_object(numbers(), SPEC).digest)
    _ = dataset.split(fold=0, fraction=0.1, rung=0, seed=0).frame  # pandas imports some of itself at the first frame
    tracemalloc.start()
    try:
        data = dataset.split(fold=0, fraction=0.7, rung=0, seed=0)
        assert data.X.shape == (int(np.ceil(0.7 * 12_000)), 10)
        assert data.frame.shape == data.X.shape
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000, f"{peak} bytes for a subsample of {data.X.nbytes}"


def test_other_folds_copy_the_rows_of_one_evaluation_alone(cache: DataCache) -> None:
    dataset = cache.open(cache.import_object(numbers(), SPEC).digest)
    data = dataset.split(fold=1, fraction=0.1, rung=0, seed=0)
    tracemalloc.start()
    try:
        rows = data.X
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < rows.nbytes + 100_000


def test_an_array_keeps_its_data_set_open(cache: DataCache) -> None:
    x, _ = numbers()
    info = cache.import_object(numbers(), SPEC)
    part = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0).X[5:50, 2:4]
    gc.collect()
    assert all((x[:, 2:4] == row).all(axis=1).any() for row in part)


def test_a_data_set_may_be_open_many_times_in_a_process(cache: DataCache, tmp_path: Path) -> None:
    info = cache.import_object(numbers(), SPEC)

    def read(_: int) -> float:
        dataset = DataCache(tmp_path / "cache").open(info.digest)
        return float(dataset.split(fold=0, fraction=1.0, rung=0, seed=0).X.sum())

    kept = cache.open(info.digest).split(fold=0, fraction=1.0, rung=0, seed=0).X
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(200))) == {kept.sum()}
    maps = Path("/proc/self/maps")
    assert maps.read_text().count(f"{info.digest}.mdb") == 1
    child = os.fork()
    if not child:
        os._exit(int(read(0) != kept.sum()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del kept
    gc.collect()
    assert f"{info.digest}.mdb" not in maps.read_text(), "the last array closes the file"


def test_without_sharing_each_process_has_its_own_copy(cache: DataCache) -> None:
    info = cache.import_object(numbers(), SPEC)
    dataset = cache.open(info.digest)
    own = dataset.split(fold=0, fraction=0.1, rung=0, seed=0, share=False)
    assert not lies_in_map(own.X, f"{info.digest}.mdb")
    again = dataset.split(fold=0, fraction=0.5, rung=0, seed=0, share=False)
    assert np.shares_memory(own.X, again.X), "one copy for all evaluations of a process"
    shared = dataset.split(fold=0, fraction=0.1, rung=0, seed=0)
    assert np.array_equal(own.X, shared.X)
    arrays = (own.X, own.X_valid, own.y, own.y_valid)
    assert not any(array.flags.writeable for array in arrays), "the next evaluation is given them as well"


READER = """
    import sys
    from pathlib import Path
    from trialfleet_workers.adapters.lmdb_data import DataCache

    data = DataCache(Path(sys.argv[1])).open(sys.argv[2]).split(
        fold=0, fraction=1.0, rung=0, seed=0, share=sys.argv[3] == "share"
    )
    print(data.X.sum() + data.X_valid.sum() + data.y.sum(), flush=True)
    sys.stdin.readline()
    # Of libraries it depends on what other programs run.
    mapped, is_data = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.partition(" ")[0].endswith(":"):
            is_data = line.endswith(".mdb")
        elif is_data and line.startswith("Pss:"):
            mapped += int(line.split()[1]) * 1024
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    print(mapped, own, flush=True)
    sys.stdin.readline()
"""


def four_readers(folder: Path, digest: str, mode: str) -> tuple[int, int]:
    """Proportional set size of four processes that have read all the data: of the data's file, and of their own."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READER), str(folder), digest, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    mapped = own = 0
    try:
        sums = {reader.stdout.readline() for reader in readers}  # type: ignore[union-attr]  # piped
        assert len(sums) == 1
        for reader in readers:  # all have read everything by now, and none has ended
            print(file=reader.stdin, flush=True)
        for reader in readers:
            of_data, anonymous = map(int, reader.stdout.readline().split())  # type: ignore[union-attr]  # piped
            mapped += of_data
            own += anonymous
    finally:
        for reader in readers:
            reader.communicate("\n\n")
    return mapped, own


def test_four_processes_share_one_copy_unless_told_otherwise(cache: DataCache, tmp_path: Path) -> None:
    rows = 400_000
    data = rows * 11 * 8
    tiny = cache.import_object(numbers(100), DataSpec(source="memory:x"))
    large = cache.import_object(numbers(rows), DataSpec(source="memory:x"))
    mapped_before, own_before = four_readers(tmp_path / "cache", tiny.digest, "share")
    mapped, own = four_readers(tmp_path / "cache", large.digest, "share")
    _, own_copied = four_readers(tmp_path / "cache", large.digest, "copy")
    assert mapped - mapped_before < 1.1 * data, "the data once, for all four"
    assert own - own_before < 0.1 * data, "and nothing of it in anybody's own memory"
    assert own_copied - own_before > 3.9 * data, "told otherwise, each has its own"
