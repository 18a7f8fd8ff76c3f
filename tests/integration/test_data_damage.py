"""Data sets whose files change behind the cache's back are imported again: no result comes of a value that was not imported."""

import logging
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from support.flipping import flipped
from support.waiting import wait_until

from trialfleet import EfficiencyConfig, optimize
from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec, StudySpec
from trialfleet_workers.adapters import checksums
from trialfleet_workers.adapters.checksums import damage, sums_file
from trialfleet_workers.adapters.data_format import data_file
from trialfleet_workers.adapters.lmdb_data import DataCache
from trialfleet_workers.adapters.study_data import StudyData
from trialfleet_workers.allowance import Allowance
from trialfleet_workers.digests import code_digest
from trialfleet_workers.telemetry import NO_TELEMETRY

SPEC = DataSpec(source="rows.csv", target="y")
ROWS = pd.DataFrame({"a": np.arange(2000) / 7, "b": [f"t{i % 5}" for i in range(2000)], "y": np.arange(2000) % 2})


class Imported:
    """A CSV file that was imported into a cache."""

    def __init__(self, folder: Path) -> None:
        self.base = folder
        self.path = folder / "cache"
        ROWS.to_csv(folder / "rows.csv", index=False)
        self.info = self.again()[0]
        self.file = data_file(self.path, self.info.digest)
        self.contents = {each: each.read_bytes() for each in self.path.rglob("*") if each.is_file()}

    def again(self) -> tuple[DataInfo, int]:
        """Import it; what was brought in."""
        cache = DataCache(self.path)
        return cache.import_data(SPEC, base=self.base), cache.imported_bytes

    def restore(self) -> None:
        for file, content in self.contents.items():
            file.write_bytes(content)

    def rows(self) -> pd.DataFrame:
        data = DataCache(self.path).open(self.info.digest).split(fold=0, fraction=1.0, rung=0, seed=0)
        return data.frame.assign(b=data.frame["b"].astype(str), y=data.y)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return Imported(tmp_path_factory.mktemp("damage"))


@pytest.fixture
def imported(shared: Imported) -> Imported:
    """Whole, whatever the test before did to it."""
    shared.restore()
    return shared


@pytest.fixture
def rows(imported: Imported) -> pd.DataFrame:
    return imported.rows().copy()


def test_what_is_whole_is_not_read_from_its_source_again(imported: Imported) -> None:
    assert imported.again() == (imported.info, 0)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_flipped_byte_is_noticed_and_the_data_imported_again(
    imported: Imported, rows: pd.DataFrame, data: st.DataObject
) -> None:
    imported.restore()
    file = data.draw(st.sampled_from(sorted(each for each in imported.contents if each.stat().st_size)), label="file")
    content = imported.contents[file]
    flip = data.draw(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), label="flip")
    file.write_bytes(flipped(content, flip))

    info, brought_in = imported.again()
    assert info == imported.info
    assert damage(imported.file) == ""
    pd.testing.assert_frame_equal(imported.rows(), rows)
    if file == imported.file:
        assert brought_in > 0


@pytest.mark.parametrize("how", ["cut", "longer", "gone", "no sums", "odd sums"])
def test_other_damage_is_noticed_too(
    imported: Imported, rows: pd.DataFrame, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = imported.contents[imported.file]
    match how:
        case "cut":
            imported.file.write_bytes(content[:-4096])
        case "longer":
            imported.file.write_bytes(content + b"\0")
        case "gone":
            imported.file.unlink()
        case "no sums":  # as builds without checksums left it
            sums_file(imported.file).unlink()
        case "odd sums":
            sums_file(imported.file).write_text('{"size": true}')
    with caplog.at_level(logging.WARNING, "trialfleet.data"):
        info, brought_in = imported.again()
    assert (info, brought_in > 0) == (imported.info, True)
    assert ("is imported again" in caplog.text) == (how != "gone")
    pd.testing.assert_frame_equal(imported.rows(), rows)


def test_what_is_imported_again_is_not_what_this_process_has_open(imported: Imported, rows: pd.DataFrame) -> None:
    held = DataCache(imported.path).open(imported.info.digest)
    content = imported.contents[imported.file]
    with imported.file.open("r+b") as file:  # the page cache is what the process has mapped
        file.write(content[: len(content) // 2].translate(bytes(255 - byte for byte in range(256))))
    imported.again()
    pd.testing.assert_frame_equal(imported.rows(), rows)
    assert held.info.digest == imported.info.digest


def test_a_record_of_what_was_imported_is_believed_only_where_it_is_whole(imported: Imported) -> None:
    cache = DataCache(imported.path)
    assert cache.recall(SPEC, base=imported.base) == imported.info
    (record,) = (imported.path / "sources").iterdir()
    record.write_bytes(record.read_bytes().replace(b'"rows":2000', b'"rows":2001'))
    assert cache.recall(SPEC, base=imported.base) is None


@pytest.mark.parametrize("how", ["cut", "gone", "no sums"])
def test_what_is_evidently_damaged_is_not_recalled(imported: Imported, how: str) -> None:
    match how:
        case "cut":
            imported.file.write_bytes(imported.contents[imported.file][:-4096])
        case "gone":
            imported.file.unlink()
        case "no sums":
            sums_file(imported.file).unlink()
    assert DataCache(imported.path).recall(SPEC, base=imported.base) is None


def test_a_study_begins_while_its_data_are_read_and_keeps_nothing_that_comes_of_damaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sums, home = tmp_path / "rows.csv", tmp_path / "sums", tmp_path / "home"
    ROWS.to_csv(source, index=False)

    def objective(params: dict[str, Any], data: Any) -> float:  # as objectives are called
        total = float(data.frame["a"].sum() + data.frame_valid["a"].sum())
        with sums.open("a") as file:
            file.write(f"{total}\n")
        return total

    def study() -> list[float]:
        sums.write_text("")
        found = optimize(
            objective,
            {"x": {"type": "float", "min": 0, "max": 1}},
            n_trials=3,
            data=str(source),
            target="y",
            home=home,
            config=EfficiencyConfig(enable_data_subsampling=False, enable_caching=False, max_workers=1),
        )
        return [trial["value"] for trial in found["results"]]

    values = study()
    assert values == [pytest.approx(ROWS["a"].sum())] * 3
    (file,) = (home / "data").glob("*.mdb")
    one, other = (np.float64(number).tobytes() for number in (1999 / 7, 1e9))
    content = file.read_bytes()
    assert content.count(one) == 1
    file.write_bytes(content.replace(one, other))
    reading = DataCache.damage

    def slowly(cache: DataCache, digest: str) -> str:
        wait_until(sums.read_text, "an evaluation has seen the damaged data")
        return reading(cache, digest)

    monkeypatch.setattr(DataCache, "damage", slowly)
    assert study() == values
    seen = [float(line) for line in sums.read_text().split()]
    assert seen[0] > 1e9 - 1
    assert seen[-3:] == values


def test_a_worker_imports_again_what_has_gone_from_the_cache(imported: Imported) -> None:
    (imported.base / "objective.py").write_text("def f(params, data):\n    return 1.0\n")
    spec = StudySpec(
        study="s",
        objective="objective.py:f",
        objective_digest=code_digest("objective.py:f", imported.base),
        data=SPEC,
        data_digest=imported.info.digest,
    )
    data = StudyData(imported.path, imported.base, Allowance((imported.base,)), NO_TELEMETRY)
    data.require(spec)
    imported.file.unlink()
    data.require(spec)
    assert damage(imported.file) == ""


def test_an_object_is_stored_again_where_its_file_is_damaged(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache")
    spec = DataSpec(source="memory:rows", target="y")
    info = cache.import_object(ROWS, spec)
    file = data_file(tmp_path / "cache", info.digest)
    file.write_bytes(flipped(file.read_bytes(), (len(file.read_bytes()) // 2, 1)))
    assert damage(file) != ""
    before = cache.imported_bytes
    assert cache.import_object(ROWS, spec) == info
    assert cache.imported_bytes > before
    assert damage(file) == ""


def test_each_block_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 2**20)
    file = tmp_path / "data.mdb"
    file.write_bytes(bytes(range(256)) * 4096 * 3)
    checksums.write_checksums(file)
    assert damage(file) == ""
    file.write_bytes(flipped(flipped(file.read_bytes(), (5, 1)), (2**20 * 2 + 5, 1)))
    assert damage(file) == "2 of its 3 blocks of 1 MiB changed"


def test_a_data_set_without_a_description_is_told(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "cache")
    info = cache.import_object(ROWS, DataSpec(source="memory:rows", target="y"))
    file = data_file(tmp_path / "cache", info.digest)
    file.write_bytes(file.read_bytes().replace(b'{"info"', b'{"odd"!'))
    with pytest.raises(DataError, match="is damaged: its description is not whole"):
        cache.open(info.digest)
