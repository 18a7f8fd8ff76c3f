"""What several of these tests begin with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trialfleet_shared.clock import SystemClock
from trialfleet_workers.adapters.lmdb_data import DataCache
from trialfleet_workers.slots import SlotPool


@pytest.fixture
def cache(tmp_path: Path) -> DataCache:
    return DataCache(tmp_path / "cache")


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., SlotPool]]:
    pools: list[SlotPool] = []

    def make(function: Callable[..., Any] | None = None, **arguments: Any) -> SlotPool:
        functions = {} if function is None else {"f": function}
        defaults = {"slots": 2, "base": tmp_path, "data_path": None, "functions": functions, "clock": SystemClock()}
        pools.append(SlotPool(**(defaults | arguments)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
