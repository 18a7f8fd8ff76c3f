"""Layouts of small data sets whose every row can be told."""

import math

import numpy as np
import pytest

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import TEST_FOLD, Resampling
from trialfleet_workers.subsample import Layout, plan_layout


def laid_out(sizes: list[int], seed: int = 0, resampling: Resampling | None = None) -> tuple[Layout, np.ndarray]:
    """A stratified layout of classes of these sizes, and the class of each stored row."""
    classes = np.repeat(np.arange(len(sizes)), sizes)
    layout = plan_layout(
        len(classes), order="stratified", resampling=resampling or Resampling(), seed=seed, classes=classes
    )
    return layout, classes[layout.rows]


@pytest.mark.parametrize(
    "sizes",
    [
        [900] + [2] * 50,
        [2] * 50 + [900],
        [2000] + [5] * 19,
        [500] + [10] * 10,
        [100, 30, 9, 9, 9, 4, 1, 1],
        [70, 20, 10],
        [1, 99],
        [25] * 40,
    ],
    ids=lambda sizes: f"{len(sizes)} classes, largest {max(sizes)}",
)
def test_every_prefix_has_each_class_within_one_row_of_its_share(sizes: list[int]) -> None:
    _, classes = laid_out(sizes)
    lengths = np.arange(1, len(classes) + 1)
    for label, count in enumerate(sizes):
        inside = np.cumsum(classes == label)
        assert inside[-1] == count
        assert np.abs(inside - lengths * count / len(classes)).max() <= 1 + 1e-9


def test_rare_classes_enter_one_after_another_and_reach_the_validation_part() -> None:
    layout, classes = laid_out([900] + [5] * 20)
    first = classes[layout.subsample(0, 0.1)]
    assert 6 <= np.count_nonzero(first) <= 10, "a tenth of the rare rows in a tenth of the rows, not all or none"
    assert np.count_nonzero(classes[layout.folds[0].valid]) == pytest.approx(20, abs=2)


def test_which_rows_of_a_class_come_first_is_the_seeds_choice() -> None:
    for sizes in ([40, 40], [900] + [2] * 50):
        one, same, other = (laid_out(sizes, seed)[0].rows for seed in (1, 1, 2))
        assert (one == same).all()
        assert (one != other).any()


def test_the_newest_rows_are_validated_on_and_the_newest_before_them_enter_first() -> None:
    times = np.array([50, 10, 40, 20, 30, 60, 80, 70, 100, 90])
    layout = plan_layout(
        10, order="temporal", resampling=Resampling(valid_fraction=0.25, test_fraction=0.2), seed=0, times=times
    )
    assert times[layout.rows[layout.test]].tolist() == [90, 100]
    assert times[layout.rows[layout.folds[0].valid]].tolist() == [70, 80]
    assert times[layout.rows[layout.subsample(0, 0.5)]].tolist() == [40, 50, 60]
    assert times[layout.rows[layout.subsample(TEST_FOLD, 0.25)]].tolist() == [70, 80]


def test_fold_0_of_forward_chaining_is_the_newest() -> None:
    layout = plan_layout(12, order="temporal", resampling=Resampling(kind="forward", folds=3), seed=0)
    assert [(fold.train, fold.valid) for fold in layout.folds] == [
        (slice(0, 9), slice(9, 12)),
        (slice(0, 6), slice(6, 9)),
        (slice(0, 3), slice(3, 6)),
    ]


FORWARD = Resampling(kind="forward", folds=3)


@pytest.mark.parametrize(
    ("days", "resampling", "splits"),
    [
        ([10] * 15, Resampling(valid_fraction=0.25, test_fraction=0.13), [100, 130]),
        ([10] * 15, FORWARD, [40, 70, 110]),
        ([100, 10, 10, 10], FORWARD, [100, 110, 120]),
        ([10, 10, 10, 100], FORWARD, [10, 20, 30]),
        ([5, 95], Resampling(), [5]),
    ],
)
def test_rows_of_one_moment_are_on_one_side(days: list[int], resampling: Resampling, splits: list[int]) -> None:
    """Each split is where a day ends, the nearest to where it would be among rows without ties."""
    times = np.repeat(np.arange(len(days)), days)
    layout = plan_layout(len(times), order="temporal", resampling=resampling, seed=0, times=times)
    parts = [fold.valid for fold in reversed(layout.folds)] + [layout.test] * (resampling.test_fraction > 0)
    assert [part.start for part in parts] == splits  # type: ignore[union-attr]  # in time they are runs


def test_fewer_moments_than_parts_are_told() -> None:
    words = "the rows are of 3 different moments; the resampling needs at least 4, as rows of one moment stay together"
    with pytest.raises(DataError, match=words):
        plan_layout(30, order="temporal", resampling=FORWARD, seed=0, times=np.arange(30) // 10)


def test_groups_enter_whole() -> None:
    groups = np.repeat(np.arange(6), [5, 3, 8, 2, 7, 5])
    layout = plan_layout(30, order="grouped", resampling=Resampling(), seed=3, groups=groups)
    stored = groups[layout.rows]
    assert np.count_nonzero(np.diff(stored)) == 5, "each group's rows are neighbours"


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1 / 3, 0.7, 1.0])
def test_a_subsample_has_the_ceiling_of_its_share(fraction: float) -> None:
    resampling = Resampling(kind="kfold", folds=4)
    layout = plan_layout(101, order="random", resampling=resampling, seed=0)
    for fold, part in enumerate(layout.folds):
        train = layout.rows[part.train]
        assert len(layout.rows[layout.subsample(fold, fraction)]) == math.ceil(fraction * len(train))


def test_a_test_part_that_leaves_no_rows_for_folds_is_told() -> None:
    with pytest.raises(DataError, match="leaves 0 training and 1 validation rows"):
        laid_out([50, 50], resampling=Resampling(kind="kfold", folds=2, test_fraction=0.99))


@pytest.mark.parametrize(
    ("order", "resampling", "newest_first"),
    [
        ("random", Resampling(test_fraction=0.2), False),
        ("random", Resampling(kind="kfold", folds=4, test_fraction=0.2), False),
        ("temporal", Resampling(test_fraction=0.2), True),
        ("temporal", Resampling(kind="forward", folds=3, test_fraction=0.2), True),
    ],
)
def test_what_is_tested_saw_all_other_rows_and_a_subsample_the_first_or_the_newest_of_them(
    order: str, resampling: Resampling, newest_first: bool
) -> None:
    layout = plan_layout(50, order=order, resampling=resampling, seed=0)
    assert (layout.search, layout.test) == (slice(0, 40), slice(40, 50))
    assert sorted(layout.rows.tolist()) == list(range(50))
    assert layout.subsample(TEST_FOLD, 0.25) == (slice(30, 40) if newest_first else slice(0, 10))


@pytest.mark.parametrize(
    ("order", "resampling", "words"),
    [
        ("random", Resampling(), "data.group_column does not go with data.order = 'random'; allowed is 'grouped'"),
        (
            "grouped",
            Resampling(kind="kfold", folds=3),
            "data.group_column does not go with resampling.kind = 'kfold'; allowed are 'grouped' and 'holdout'",
        ),
    ],
)
def test_groups_that_an_order_or_a_resampling_would_tear_apart_are_told(
    order: str, resampling: Resampling, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        plan_layout(50, order=order, resampling=resampling, seed=0, groups=np.arange(50) // 5)
    assert words in str(caught.value)


@pytest.mark.parametrize("order", ["random", "stratified", "grouped"])
def test_times_that_order_nothing_are_told(order: str) -> None:
    with pytest.raises(DataError, match=f"data.time_column does not go with data.order = '{order}'; allowed is 'temp"):
        plan_layout(50, order=order, resampling=Resampling(), seed=0, times=np.arange(50))
