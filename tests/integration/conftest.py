"""What several of these tests begin with."""

from pathlib import Path

import pytest

from trialfleet_workers.adapters.lmdb_data import DataCache


@pytest.fixture
def cache(tmp_path: Path) -> DataCache:
    return DataCache(tmp_path / "cache")
