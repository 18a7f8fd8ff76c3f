"""Evenly spread points."""

import numpy as np
import pytest

from trialfleet_coordinator.sampling.spread import Spread
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Float, SearchSpace


@pytest.mark.parametrize(("dimension", "base"), [(0, 2), (1, 3), (4, 11), (19, 71)])
def test_every_run_of_points_has_one_in_each_part(dimension: int, base: int) -> None:
    spread = Spread(3)
    for first in (0, base, 5000 * base):
        shares = [spread.share(number, dimension, 0.999) for number in range(first, first + base)]
        assert sorted(int(share * base) for share in shares) == list(range(base))


def test_dimensions_are_not_correlated() -> None:
    spread, generator = Spread(0), np.random.default_rng(0)
    points = np.array([[spread.share(number, d, generator.random()) for d in range(25)] for number in range(71)])
    assert points.min() >= 0
    assert points.max() < 1
    between = np.corrcoef(points.T)[np.triu_indices(25, 1)]
    assert np.abs(between).mean() < 0.15
    assert np.abs(between).max() < 0.5


def test_seeds_differ() -> None:
    assert Spread(0).share(5, 3, 0.5) != Spread(1).share(5, 3, 0.5)


def test_uniform_draws_are_spread_over_choices_and_ranges() -> None:
    space = SearchSpace({"kind": Categorical(["a", "b"]), "x": Float(0, 1)})
    for seed in range(5):
        draws = UniformSampler(space, seed=seed).ask(range(12))
        assert sum(draw.params["kind"] == "a" for draw in draws) == 6
        thirds = [int(3 * float(str(draw.params["x"]))) for draw in draws]
        assert [thirds.count(third) for third in range(3)] == [4, 4, 4]
