"""When garbage is collected."""

import gc
import weakref
from collections.abc import Iterator

import pytest
from support.simulated import SimulatedClock

from trialfleet.collecting import SECONDS, SHARE, RegularCollection
from trialfleet_coordinator.collecting import SELDOM, SeldomCollection, nothing_collected


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
    collection = RegularCollection(clock, lambda: given_back.append(clock.now))
    begun = clock.now
    for _ in range(2):
        with nothing_collected():
            garbage = weakref.ref(Cycle())
        clock.now += SECONDS - 1
        collection.tick()
        assert garbage() is not None
        clock.now += 1
        collection.tick()
        assert garbage() is None
    assert given_back == [begun + SECONDS, begun + 2 * SECONDS]


def test_collections_that_take_long_are_seldom() -> None:
    clock = SimulatedClock()
    ends: list[float] = []

    def give_back() -> None:
        clock.now += 2.0
        ends.append(clock.now)

    collection = RegularCollection(clock, give_back)
    while len(ends) < 3:
        clock.now += 1.0
        collection.tick()
    assert ends[2] - ends[1] == 2.0 + 2.0 / SHARE


@pytest.fixture
def usual() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    gc.set_threshold(300, 7, 8)
    yield 300, 7, 8
    gc.set_threshold(*before)


def test_the_collector_looks_seldom_until_the_last_study_ends(usual: tuple[int, int, int]) -> None:
    seldom = SeldomCollection()
    first, second = seldom.wanted(), seldom.wanted()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == (SELDOM, 7, 8)
    second.__exit__(None, None, None)
    assert gc.get_threshold() == usual


@pytest.mark.parametrize("threshold", [0, SELDOM + 1])
def test_whoever_has_it_look_more_seldom_is_left_alone(usual: tuple[int, int, int], threshold: int) -> None:
    gc.set_threshold(threshold)
    with SeldomCollection().wanted():
        assert gc.get_threshold()[0] == threshold
