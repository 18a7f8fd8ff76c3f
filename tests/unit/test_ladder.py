"""Ladders: what a study climbs, built from its settings and the data's size."""

import pytest

from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.ladder import Ladder, Rung, build_ladder
from trialfleet_shared.settings import EfficiencyConfig


def fractions(ladder: Ladder) -> list[tuple[float, int]]:
    return [(rung.fraction, rung.folds) for rung in ladder.rungs]


def test_the_ladder_of_the_evidence() -> None:
    ladder = build_ladder(
        rows=30_000,
        folds=5,
        valid_rows=6000,
        fraction=0.1,
        lowest=0.1,
        rung_rows=1000,
        fewest_rows=100,
        reduction_factor=3,
    )
    assert fractions(ladder) == [(0.1, 1), (0.3, 1), (1.0, 1), (1.0, 2), (1.0, 5)]


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_one_and_two_folds_come_before_all(folds: int) -> None:
    ladder = EfficiencyConfig.thorough().ladder_for(rows=300, folds=folds, has_fidelity=True)
    assert fractions(ladder) == [(1.0, count) for count in range(1, folds + 1)]


def test_a_rung_close_to_all_rows_is_left_out() -> None:
    assert fractions(EfficiencyConfig(subsample_fraction=0.3).ladder_for(rows=10_000, folds=1, has_fidelity=True)) == [
        (0.3, 1),
        (1.0, 1),
    ]


def test_presets_start_lower_where_the_data_allow() -> None:
    assert fractions(EfficiencyConfig.fast().ladder_for(rows=100_000, folds=3, has_fidelity=True))[0] == (0.1, 1)
    assert fractions(EfficiencyConfig.balanced().ladder_for(rows=1_400, folds=3, has_fidelity=True))[0] == (0.5, 1)


def test_the_lowest_rung_never_has_too_few_rows() -> None:
    for config, rows, fewest in (
        (EfficiencyConfig.fast(), 2000, 500),
        (EfficiencyConfig.fast(), 400, 400),
        (EfficiencyConfig(), 250, 100),
    ):
        first = config.ladder_for(rows=rows, folds=1, has_fidelity=True).rungs[0]
        assert first.fraction * rows == pytest.approx(fewest)


def test_few_rows_make_a_ladder_of_folds_alone() -> None:
    assert fractions(EfficiencyConfig.fast().ladder_for(rows=90, folds=5, has_fidelity=True)) == [
        (1.0, 1),
        (1.0, 2),
        (1.0, 5),
    ]


@pytest.mark.parametrize(
    ("valid_rows", "folds", "expected"),
    [
        (60, 10, [1, 2, 10]),
        (59, 10, [2, 10]),
        (30, 10, [2, 10]),
        (29, 10, [3, 10]),
        (10, 5, [5]),
        (0, 5, [5]),
        (20, 1, [1]),
        (None, 5, [1, 2, 5]),
    ],
)
def test_small_folds_are_not_asked_alone(valid_rows: int | None, folds: int, expected: list[int]) -> None:
    ladder = EfficiencyConfig.thorough().ladder_for(rows=300, folds=folds, has_fidelity=True, valid_rows=valid_rows)
    assert fractions(ladder) == [(1.0, count) for count in expected]


def test_shares_of_the_rows_are_scored_on_as_many_folds() -> None:
    ladder = EfficiencyConfig().ladder_for(rows=400, folds=10, has_fidelity=True, valid_rows=44)
    assert fractions(ladder) == [(0.3, 2), (1.0, 2), (1.0, 10)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EfficiencyConfig.thorough(), [(1.0, 1), (1.0, 2), (1.0, 5)]),
        (EfficiencyConfig(enable_data_subsampling=False), [(1.0, 1), (1.0, 2), (1.0, 5)]),
        (EfficiencyConfig(enable_data_subsampling=False, fold_halving=False), [(1.0, 5)]),
        (EfficiencyConfig(fold_halving=False), [(0.3, 1), (1.0, 5)]),
        (EfficiencyConfig(adaptive_subsampling=False), [(0.3, 5)]),
    ],
)
def test_switches_take_rungs_away(config: EfficiencyConfig, expected: list[tuple[float, int]]) -> None:
    assert fractions(config.ladder_for(rows=10_000, folds=5, has_fidelity=True)) == expected


def test_an_objective_without_fidelity_has_one_rung() -> None:
    assert fractions(EfficiencyConfig().ladder_for(rows=None, folds=1, has_fidelity=False)) == [(1.0, 1)]


def test_a_ladder_of_ones_own_must_end_with_everything() -> None:
    config = EfficiencyConfig(ladder=(Rung(0.5, 1), Rung(1.0, 2)))
    assert fractions(config.ladder_for(rows=1000, folds=2, has_fidelity=True)) == [(0.5, 1), (1.0, 2)]
    with pytest.raises(ConfigurationError, match=r"the last rung is \(1, 2\); it must be .* \(1, 5\)"):
        config.ladder_for(rows=1000, folds=5, has_fidelity=True)


def test_the_lowest_fraction_and_the_smallest_factor_make_a_ladder() -> None:
    config = EfficiencyConfig(subsample_fraction=0.0001, reduction_factor=1.1)
    assert len(config.ladder_for(rows=None, folds=1, has_fidelity=True).rungs) == 94


def test_rungs_must_climb() -> None:
    with pytest.raises(ValueError, match="must have more rows or folds"):
        Ladder((Rung(0.5, 2), Rung(1.0, 1)))
    with pytest.raises(ConfigurationError, match=r"ladder = .*rung \(1, 1\) must have more"):
        EfficiencyConfig(ladder=(Rung(1.0, 1), Rung(1.0, 1)))
