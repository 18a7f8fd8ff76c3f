"""When garbage is collected."""

import gc
import weakref
from collections.abc import Iterator

import pytest
from support.simulated import SimulatedClock

from trialfleet_coordinator.collecting import RegularCollection, nothing_collected


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _no_other_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_old_garbage_goes_whenever_it_is_time() -> None:
    clock = SimulatedClock()
    given_back: list[float] = []
    collection = RegularCollection(clock, lambda: given_back.append(clock.now), 60.0)
    begun = clock.now
    for _ in range(2):
        with nothing_collected():
            garbage = weakref.ref(Cycle())
        clock.now += 59
        collection.tick()
        assert garbage() is not None
        clock.now += 1
        collection.tick()
        assert garbage() is None
    assert given_back == [begun + 60, begun + 120]
