"""Optuna's own contract suite on our storage, and what Optuna's users do with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[BaseStorage]:
    storage = LmdbStorage(tmp_path / "store")
    yield storage
    storage.close()


class TestOptunaContract(StorageTestCase):
    """Optuna's suite, as it is."""
