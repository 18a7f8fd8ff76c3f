"""Data sets whose files change behind the cache's back are imported again: no evaluator sees a value that was not imported."""

import logging
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from support.flipping import flipped

from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec
from trialfleet_workers.adapters import checksums
from trialfleet_workers.adapters.checksums import damage, sums_file
from trialfleet_workers.adapters.data_format import data_file
from trialfleet_workers.adapters.lmdb_data import DataCache

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
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return Imported(tmp_path_factory.mktemp("damage"))


@pytest.fixture(scope="module")
def rows(imported: Imported) -> pd.DataFrame:
    return imported.rows().copy()


def test_what_is_whole_is_not_read_from_its_source_again(imported: Imported) -> None:
    imported.restore()
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
    imported.restore()
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
    imported.restore()
    held = DataCache(imported.path).open(imported.info.digest)
    content = imported.contents[imported.file]
    with imported.file.open("r+b") as file:  # the page cache is what the process has mapped
        file.write(content[: len(content) // 2].translate(bytes(255 - byte for byte in range(256))))
    imported.again()
    pd.testing.assert_frame_equal(imported.rows(), rows)
    assert held.info.digest == imported.info.digest


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
