"""What every layout promises, whatever the data."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import TEST_FOLD, DataSpec, Resampling
from trialfleet_workers.subsample import Layout, default_order, looks_like_classes, plan_layout, size

FRACTIONS = [0.05, 0.1, 0.3, 0.5, 0.9, 1.0]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, str, Resampling, np.ndarray, np.ndarray, np.ndarray]:
    rows = draw(st.integers(30, 200))
    order = draw(st.sampled_from(["random", "stratified", "temporal", "grouped"]))
    kinds = {
        "temporal": ["holdout", "forward"],
        "grouped": ["holdout", "grouped"],
        "random": ["holdout", "kfold", "stratified"],
        "stratified": ["holdout", "kfold", "stratified"],
    }
    kind = draw(st.sampled_from(kinds[order]))
    resampling = Resampling(
        kind=kind,  # type: ignore[arg-type]  # drawn from the allowed ones
        folds=1 if kind == "holdout" else draw(st.integers(2, 4)),
        valid_fraction=draw(st.sampled_from([0.1, 0.2, 0.4])),
        test_fraction=draw(st.sampled_from([0.0, 0.1, 0.25])),
    )
    seed = draw(st.integers(0, 10))
    random = np.random.default_rng(draw(st.integers(0, 10)))
    classes = np.concatenate([np.arange(rows) % 3, []]).astype(np.int64)[random.permutation(rows)]
    groups = random.integers(0, 12, rows)
    groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    times = random.integers(0, 50, rows)
    try:
        layout = plan_layout(
            rows,
            order=order,
            resampling=resampling,
            seed=seed,
            classes=classes,
            groups=groups if order == "grouped" else None,
            times=times if order == "temporal" else None,
        )
    except DataError as error:
        assume("leaves" not in str(error) and "groups; allowed" not in str(error))
        raise
    return layout, order, resampling, classes, groups, times


def stored(layout: Layout, positions: object) -> np.ndarray:
    return layout.rows[positions]  # type: ignore[index]  # a slice or an index array


def all_folds(layout: Layout) -> list[int]:
    return [*range(len(layout.folds)), *([TEST_FOLD] if size(layout.test) else [])]


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_parts_are_disjoint_and_subsamples_nested(drawn: tuple) -> None:
    layout = drawn[0]
    assert sorted(layout.rows) == list(range(len(layout.rows))), "every row is stored once"
    test = set(stored(layout, layout.test))
    for fold in all_folds(layout):
        part = layout.fold(fold)
        train, valid = set(stored(layout, part.train)), set(stored(layout, part.valid))
        assert len(train) == size(part.train)
        assert len(valid) == size(part.valid)
        assert train
        assert valid
        assert not train & valid
        assert fold == TEST_FOLD or not (train | valid) & test
        smaller: set[int] = set()
        for fraction in FRACTIONS:
            subsample = layout.subsample(fold, fraction)
            rows = set(stored(layout, subsample))
            assert len(rows) == -(-len(train) * fraction // 1), "ceil(fraction x n) rows"
            assert smaller <= rows <= train
            smaller = rows
        assert smaller == train


@given(layouts())
@settings(max_examples=100, deadline=None)
def test_what_the_low_rungs_read_is_a_run_of_neighbours(drawn: tuple) -> None:
    layout, order = drawn[0], drawn[1]
    for fold in all_folds(layout):
        if fold in (0, TEST_FOLD) or order == "temporal":
            assert isinstance(layout.fold(fold).valid, slice)
            assert all(isinstance(layout.subsample(fold, fraction), slice) for fraction in FRACTIONS)


@given(layouts())
@settings(max_examples=100, deadline=None)
def test_of_k_folds_each_row_is_validated_on_once(drawn: tuple) -> None:
    layout, _, resampling = drawn[:3]
    if resampling.kind in ("kfold", "stratified", "grouped"):
        validated = Counter(row for fold in layout.folds for row in stored(layout, fold.valid))
        assert validated == Counter(stored(layout, layout.search))


@given(layouts())
@settings(max_examples=100, deadline=None)
def test_groups_are_never_on_both_sides_and_the_future_is_never_seen(drawn: tuple) -> None:
    layout, order, _, _, groups, times = drawn
    for fold in all_folds(layout):
        train, valid = (stored(layout, part) for part in layout.fold(fold))
        if order == "grouped":
            assert not set(groups[train]) & set(groups[valid])
        if order == "temporal":
            assert times[train].max() < times[valid].min()
            chronological = times[stored(layout, layout.subsample(fold, 0.5))]
            assert (np.diff(chronological) >= 0).all()
            assert chronological.min() >= np.sort(times[train])[: -len(chronological) or None].max(initial=-1)


@st.composite
def class_mixes(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Classes of rows that stand in any order, a number of folds, and a seed."""
    sizes = draw(st.lists(st.integers(1, 120), min_size=1, max_size=8))
    folds = draw(st.sampled_from([2, 3, 4, 5, 10]))
    assume(sum(sizes) >= 2 * (folds + 1))
    arranged = draw(st.sampled_from(["by class", "in turn", "shuffled"]))
    classes = np.repeat(np.arange(len(sizes)), sizes)
    if arranged == "in turn":
        classes = classes[np.argsort(np.concatenate([np.arange(size) for size in sizes]), kind="stable")]
    if arranged == "shuffled":
        classes = classes[np.random.default_rng(draw(st.integers(0, 10))).permutation(len(classes))]
    return classes, folds, draw(st.integers(0, 10))


@given(class_mixes(), st.sampled_from(["holdout", "kfold", "stratified"]))
@settings(max_examples=150, deadline=None)
def test_every_prefix_of_a_stratified_training_part_has_the_classes_shares(
    mix: tuple[np.ndarray, int, int], kind: str
) -> None:
    classes, folds, seed = mix
    assume(kind != "stratified" or np.bincount(classes).min() >= folds)
    resampling = Resampling(kind=kind, folds=1 if kind == "holdout" else folds)  # type: ignore[arg-type]  # drawn
    layout = plan_layout(len(classes), order="stratified", resampling=resampling, seed=seed, classes=classes)
    for fold in layout.folds:
        labels = classes[stored(layout, fold.train)]
        inside = np.cumsum(labels[:, np.newaxis] == np.arange(classes.max() + 1), axis=0)
        shares = inside[-1] / len(labels)
        if kind == "holdout":  # its rows are the first of those that have the shares
            shares = np.bincount(classes) / len(classes)
        assert (np.abs(inside - np.arange(1, len(labels) + 1)[:, np.newaxis] * shares) <= 1.0 + 1e-9).all()


@given(class_mixes(), st.sampled_from(["random", "stratified"]), st.floats(0.0, 0.3))
@settings(max_examples=150, deadline=None)
def test_random_folds_do_not_follow_the_classes(
    mix: tuple[np.ndarray, int, int], order: str, test_fraction: float
) -> None:
    """How many rows of a class a fold has is as in draws without replacement: eight standard deviations are never seen."""
    classes, folds, seed = mix
    resampling = Resampling(kind="kfold", folds=folds, test_fraction=test_fraction)
    layout = plan_layout(len(classes), order=order, resampling=resampling, seed=seed, classes=classes)
    sizes = [size(fold.valid) for fold in layout.folds]
    assert max(sizes) - min(sizes) <= 1
    seen = np.bincount(classes[stored(layout, layout.search)], minlength=classes.max() + 1)
    rows = seen.sum()
    for fold in layout.folds:
        drawn = size(fold.valid)
        counts = np.bincount(classes[stored(layout, fold.valid)], minlength=len(seen))
        variance = drawn * seen / rows * (1 - seen / rows) * (rows - drawn) / (rows - 1)
        assert (np.abs(counts - drawn * seen / rows) <= 8 * np.sqrt(variance) + 1).all()


@pytest.mark.parametrize("folds", [2, 4, 10])
@pytest.mark.parametrize("order", ["random", "stratified"])
def test_random_folds_of_two_halves_have_both(order: str, folds: int) -> None:
    classes = np.arange(1000, dtype=np.int64) // 500
    resampling = Resampling(kind="kfold", folds=folds)
    layout = plan_layout(1000, order=order, resampling=resampling, seed=0, classes=classes)
    shares = [classes[stored(layout, fold.valid)].mean() for fold in layout.folds]
    assert min(shares) >= 0.3
    assert max(shares) <= 0.7
    assert len(set(shares)) > 1, "random, not stratified"


@given(st.integers(2, 6), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_groups_of_one_size_are_dealt_to_folds_at_random(folds: int, seed: int) -> None:
    """Not in the order of their names, which may follow the target: a case beside its control, say."""
    groups = np.repeat(np.arange(40 * folds), 3)
    layout = plan_layout(
        len(groups), order="grouped", resampling=Resampling(kind="grouped", folds=folds), seed=seed, groups=groups
    )
    for fold in layout.folds:
        inside = np.unique(groups[stored(layout, fold.valid)])
        assert len(inside) == 40
        assert np.bincount(inside % folds).max() < 40 * 0.9


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_stratified_folds_have_the_classes_shares(drawn: tuple) -> None:
    layout, _, resampling, classes = drawn[:4]
    if resampling.kind != "stratified":
        return
    counts = np.array([np.bincount(classes[stored(layout, fold.valid)], minlength=3) for fold in layout.folds])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
    sizes = counts.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1


def test_the_seed_decides() -> None:
    def rows(seed: int) -> list[int]:
        return list(plan_layout(100, order="random", resampling=Resampling(), seed=seed).rows)

    assert rows(1) == rows(1) != rows(2)


@pytest.mark.parametrize(
    ("order", "resampling", "words"),
    [
        (
            "temporal",
            Resampling(kind="kfold", folds=3),
            "data.order = 'temporal' does not go with resampling.kind = 'kfold'",
        ),
        ("random", Resampling(kind="forward", folds=3), "'forward' with temporal order alone"),
        ("grouped", Resampling(), "need data.group_column"),
        ("stratified", Resampling(), "need a target of classes"),
        (
            "random",
            Resampling(kind="kfold", folds=60),
            "the data have 100 usable rows; resampling.folds = 60 needs at least 122",
        ),
        ("random", Resampling(test_fraction=0.99, valid_fraction=0.99), "leaves 0 training"),
    ],
)
def test_what_contradicts_itself_is_told(order: str, resampling: Resampling, words: str) -> None:
    with pytest.raises(DataError) as caught:
        plan_layout(100, order=order, resampling=resampling, seed=0)
    assert words in str(caught.value)


def test_more_folds_than_groups_or_class_members_are_told() -> None:
    few = np.arange(100) % 2
    with pytest.raises(DataError, match="the data have 2 groups; allowed is at most that"):
        plan_layout(100, order="grouped", resampling=Resampling(kind="grouped", folds=3), seed=0, groups=few)
    rare = np.concatenate([np.zeros(98, np.int64), [1, 1]])
    with pytest.raises(DataError, match="the rarest class has 2 rows"):
        plan_layout(100, order="stratified", resampling=Resampling(kind="stratified", folds=3), seed=0, classes=rare)


def test_what_is_taken_for_classes() -> None:
    assert looks_like_classes(np.array([True, False]))
    assert looks_like_classes(np.array([3, 3, 7, 7]))
    assert not looks_like_classes(np.array([3, 3, 7]))
    assert not looks_like_classes(np.arange(100) % 30)
    assert not looks_like_classes(np.array([0.0, 0.0, 1.0, 1.0]))
    assert looks_like_classes(np.array([0.0, 0.0, 1.0, 1.0]), wanted=True)
    assert not looks_like_classes(np.array([0.5, 0.5, 1.0, 1.0]), wanted=True)


def test_the_order_that_nobody_asked_for() -> None:
    def order(*, has_classes: bool = False, **fields: object) -> str:
        return default_order(DataSpec(source="s", **fields), has_classes=has_classes)  # type: ignore[arg-type]

    assert order() == "random"
    assert order(has_classes=True) == "stratified"
    assert order(resampling=Resampling(kind="forward", folds=3)) == "temporal"
    assert order(time_column="t", has_classes=True) == "temporal"
    assert order(group_column="g") == "grouped"
    assert order(order="random", has_classes=True) == "random"
