"""The stored order of rows and the folds: pure arithmetic on positions.

Rows are stored in an order in which every subsample is a run of neighbours:

- **temporal**: in time order. The subsample of a training part is its *last* rows, the most recent ones, and every
  forward-chaining fold's parts are runs as well. Rows of one moment are never on both sides of a split.
- **random, stratified, grouped**: in sampling order. The subsample of a training part is its *first* rows. A holdout
  stores its validation part behind the training part. Of k folds, fold 0 has its validation part behind all others', so
  that the low rungs, which evaluate fold 0 alone, never copy a row; other folds are index arrays. Which rows are in which
  fold is drawn apart from the order, in which classes and groups come in turn: dealt along it, folds would follow them.

The test part is stored behind everything else.
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec, Resampling

#: Positions of stored rows: a run of neighbours, or an index array in sampling order.
Positions = slice | NDArray[np.int64]
Integers = NDArray[np.int64]

#: A whole-number target with at most this many different values, each in at least two rows unless strata are asked for, is
#: taken for classes.
MOST_CLASSES = 20


class Fold(NamedTuple):
    """One train/validation split, as stored positions."""

    train: Positions
    valid: Positions


class Layout(NamedTuple):
    """Where everything is stored."""

    #: Source row of each stored row.
    rows: Integers
    folds: tuple[Fold, ...]
    #: Every row that the search sees; the test part follows.
    search: slice
    test: slice
    #: Whether subsamples are taken from the end of a training part: the most recent rows.
    from_end: bool

    def fold(self, index: int) -> Fold:
        """Fold `index`; -1 trains on all that the search saw and validates on the test part."""
        return Fold(self.search, self.test) if index < 0 else self.folds[index]

    def subsample(self, index: int, fraction: float) -> Positions:
        """The rows of the fold's training part that an evaluation at `fraction` sees: ceil(fraction x n) of them."""
        train = self.fold(index).train
        if isinstance(train, slice):
            size = train.stop - train.start
            count = math.ceil(fraction * size)
            return slice(train.stop - count, train.stop) if self.from_end else slice(train.start, train.start + count)
        return train[: math.ceil(fraction * len(train))]


def size(positions: Positions) -> int:
    """How many rows they are."""
    return positions.stop - positions.start if isinstance(positions, slice) else len(positions)


def looks_like_classes(target: NDArray[Any], *, wanted: bool = False) -> bool:
    """Whether numbers name classes: booleans, or few different whole numbers that repeat.

    Args:
        target: one number per row.
        wanted: whether the study asks for strata; then whole numbers may be many, may be held as floats, and need not repeat.
    """
    if target.dtype.kind == "b":
        return True
    if target.dtype.kind not in "iu" and not (wanted and target.dtype.kind == "f" and (target == target.round()).all()):
        return False
    values, counts = np.unique(target, return_counts=True)
    return wanted or (len(values) <= MOST_CLASSES and int(counts.min()) >= 2)


def default_order(spec: DataSpec, *, has_classes: bool) -> str:
    """The order of a study that asks for none."""
    if spec.order is not None:
        return spec.order
    if spec.resampling.kind == "forward" or spec.time_column is not None:
        return "temporal"
    if spec.resampling.kind == "grouped" or spec.group_column is not None:
        return "grouped"
    return "stratified" if has_classes else "random"


def wants_classes(spec: DataSpec) -> bool:
    """Whether the study asks for what needs a target of classes."""
    return "stratified" in (spec.order, spec.resampling.kind)


def plan_layout(
    rows: int,
    *,
    order: str,
    resampling: Resampling,
    seed: int,
    classes: Integers | None = None,
    groups: Integers | None = None,
    times: NDArray[np.generic] | None = None,
) -> Layout:
    """Lay out so many rows.

    Args:
        rows: number of rows.
        order: random, stratified, temporal or grouped.
        resampling: how they become folds.
        seed: the same seed gives the same layout on every host.
        classes: class of each row, 0, 1, 2 …; needed for stratified order and resampling.
        groups: group of each row, 0, 1, 2 …; needed for grouped order and resampling.
        times: what the rows are sorted by in temporal order; None: they stand in time order.

    Raises:
        DataError: order, resampling and data contradict each other, or the rows are too few.
    """
    if order != "temporal" and times is not None:
        raise DataError(f"data.time_column does not go with data.order = {order!r}; allowed is 'temporal'")
    _check(rows, order, resampling, classes, groups)
    if order == "temporal":
        return _temporal(rows, resampling, times)
    generator = np.random.Generator(np.random.PCG64(seed))
    sequence = _sequence(rows, order, generator, classes, groups)
    whole = groups[sequence] if groups is not None else None
    seen = rows - _tail(rows, resampling.test_fraction, whole)
    if resampling.kind == "holdout":
        head = None if whole is None else whole[:seen]
        train = seen - max(_tail(seen, resampling.valid_fraction, head), 1)
        _check_parts(train, seen - train)
        folds: tuple[Fold, ...] = (Fold(slice(0, train), slice(train, seen)),)
        return Layout(sequence, folds, slice(0, seen), slice(seen, rows), from_end=False)
    searched = sequence[:seen]
    assigned = _assign(searched, resampling, generator, classes, groups)
    labels = classes[searched] if order == "stratified" and classes is not None else None
    ranks, folds = _folds(assigned, resampling.folds, labels)
    stored = np.concatenate([searched[ranks], sequence[seen:]])
    return Layout(stored, folds, slice(0, seen), slice(seen, rows), from_end=False)


def _folds(assigned: Integers, folds: int, labels: Integers | None) -> tuple[Integers, tuple[Fold, ...]]:
    """Which place in sampling order is stored where, and the folds.

    Args:
        assigned: the validation fold of each row, in sampling order.
        folds: how many there are.
        labels: the class of each row, where every prefix of a training part has the classes' shares.
    """
    for count in np.bincount(assigned, minlength=folds).tolist():
        _check_parts(len(assigned) - count, count)

    def train(fold: int) -> Integers:
        outside = np.flatnonzero(assigned != fold)
        # What is left of an order that had the shares need not have them.
        return outside if labels is None else outside[_evenly(labels[outside])]

    def valid(fold: int) -> Integers:
        return np.flatnonzero(assigned == fold)

    # Fold 0's validation part goes behind the others.
    ranks = np.concatenate([train(0), valid(0)])
    first = int(np.count_nonzero(assigned))
    parts = [Fold(slice(0, first), slice(first, len(assigned)))]
    place = np.argsort(ranks)
    parts += [Fold(place[train(fold)], place[valid(fold)]) for fold in range(1, folds)]
    return ranks, tuple(parts)


def _temporal(rows: int, resampling: Resampling, times: NDArray[np.generic] | None) -> Layout:
    order = np.arange(rows) if times is None else np.argsort(times, kind="stable")
    seen = rows - math.ceil(resampling.test_fraction * rows)
    if resampling.kind == "holdout":
        bounds = [seen - max(math.ceil(resampling.valid_fraction * seen), 1), seen]
    else:
        # k validation blocks, one after another in time, behind a first block that is only trained on.
        bounds = [seen * block // (resampling.folds + 1) for block in range(1, resampling.folds + 2)]
    if times is not None:
        splits = [bound for bound in bounds if bound < rows]
        bounds[: len(splits)] = _between_moments(splits, times[order])
        seen = bounds[-1]
    folds = [Fold(slice(0, begin), slice(begin, end)) for begin, end in itertools.pairwise(bounds)]
    for fold in folds:
        _check_parts(size(fold.train), size(fold.valid))
    return Layout(order, tuple(reversed(folds)), slice(0, seen), slice(seen, rows), from_end=True)


def _between_moments(splits: list[int], times: NDArray[np.generic]) -> list[int]:
    """As many splits of sorted rows, each where a moment ends, and as near as can be to where it was wanted."""
    ends = np.flatnonzero(times[1:] != times[:-1]) + 1
    if len(ends) < len(splits):
        raise DataError(
            f"the rows are of {len(ends) + 1} different moments; the resampling needs at least {len(splits) + 1}, as rows "
            "of one moment stay together"
        )
    found: list[int] = []
    first = 0
    for index, split in enumerate(splits):
        # Those that are not left for the splits to come.
        allowed = ends[first : len(ends) - (len(splits) - index - 1)]
        nearest = int(np.argmin(np.abs(allowed - split)))
        found.append(int(allowed[nearest]))
        first += nearest + 1
    return found


def _sequence(
    rows: int, order: str, generator: np.random.Generator, classes: Integers | None, groups: Integers | None
) -> Integers:
    """All rows in sampling order."""
    shuffled = generator.permutation(rows)
    if order == "stratified":
        assert classes is not None
        return shuffled[_evenly(classes[shuffled])]
    if order == "grouped":
        assert groups is not None
        turn = generator.permutation(int(groups.max()) + 1)
        return shuffled[np.argsort(turn[groups[shuffled]], kind="stable")]
    return shuffled


def _assign(
    sequence: Integers,
    resampling: Resampling,
    generator: np.random.Generator,
    classes: Integers | None,
    groups: Integers | None,
) -> Integers:
    """The validation fold of each row, in sampling order."""
    if resampling.kind == "grouped":
        assert groups is not None
        return _assign_groups(groups[sequence], resampling.folds, generator)
    place = np.arange(len(sequence), dtype=np.int64)
    if resampling.kind == "stratified":
        assert classes is not None
        # Classes are dealt one after another, each going on where the one before stopped: sizes differ by one at most.
        place[np.argsort(classes[sequence], kind="stable")] = np.arange(len(sequence))
        return place % resampling.folds
    return generator.permutation(place % resampling.folds)


def _assign_groups(groups: Integers, folds: int, generator: np.random.Generator) -> Integers:
    """Whole groups, the largest first, of one size in any order, each to the fold that has the fewest rows."""
    present, counts = np.unique(groups, return_counts=True)
    if len(present) < folds:
        raise DataError(f"resampling.folds = {folds}, but the data have {len(present)} groups; allowed is at most that")
    chosen = np.zeros(int(present.max()) + 1, dtype=np.int64)
    filled = [0] * folds
    turn = generator.permutation(len(present))
    for index in turn[np.argsort(-counts[turn], kind="stable")]:
        fold = min(range(folds), key=filled.__getitem__)
        chosen[present[index]] = fold
        filled[fold] += int(counts[index])
    return chosen[groups]


def _tail(rows: int, fraction: float, groups: Integers | None) -> int:
    """How many of the last rows make up `fraction`, whole groups only where there are groups."""
    count = math.ceil(fraction * rows)
    if groups is not None and 0 < count < rows:
        first = groups[rows - count]
        while count < rows and groups[rows - count - 1] == first:
            count += 1
    return count


def _evenly(labels: Integers) -> Integers:
    """Places of the rows, put in an order in which every prefix has each class within one row of its share."""
    counts = np.bincount(labels)
    if counts.max() * (np.count_nonzero(counts) - 2) <= len(labels):
        # The i-th of a class's n rows belongs at (i + 1/2) / n of the way. With C classes, a prefix is then off by at
        # most (1 + s (C - 2)) / 2 rows of a class with share s: one row, unless classes are many and one is large.
        return np.argsort((_rank_within(labels) + 0.5) / counts[labels], kind="stable")
    ordered = np.empty_like(labels)
    ordered[np.argsort(_turns(counts.tolist()), kind="stable")] = np.argsort(labels, kind="stable")
    return ordered


def _turns(counts: Sequence[int]) -> Integers:
    """The class at each place, so that every prefix has less than one row too many or too few of any class.

    The i-th of a class's n of N rows may stand no earlier than at place floor(i N / n) and before ceil((i + 1) N / n);
    of the classes that may stand at a place, the one that must stand soonest does. That such an order exists is shown
    by Baruah, Cohen, Plaxton and Varvel, "Proportionate progress", Algorithmica 15 (1996); and earliest deadline first
    finds one wherever jobs of one unit each have one.
    """
    rows = sum(counts)
    placed = [0] * len(counts)
    waiting = [(0, label) for label, count in enumerate(counts) if count]
    ready: list[tuple[int, int]] = []
    turns = np.empty(rows, dtype=np.int64)
    for place in range(rows):
        while waiting and waiting[0][0] <= place:
            label = heapq.heappop(waiting)[1]
            heapq.heappush(ready, (-(-(placed[label] + 1) * rows // counts[label]), label))
        label = heapq.heappop(ready)[1]
        turns[place] = label
        placed[label] += 1
        if placed[label] < counts[label]:
            heapq.heappush(waiting, (placed[label] * rows // counts[label], label))
    return turns


def _rank_within(labels: Integers) -> Integers:
    """For each row, how many rows of its class stand before it."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - starts
    return ranks


def _check(rows: int, order: str, resampling: Resampling, classes: Integers | None, groups: Integers | None) -> None:
    kind = resampling.kind
    if (order == "temporal") != (kind == "forward") and not (order == "temporal" and kind == "holdout"):
        raise DataError(
            f"data.order = {order!r} does not go with resampling.kind = {kind!r}; temporal order goes with 'holdout' "
            "and 'forward', and 'forward' with temporal order alone"
        )
    if "grouped" in (order, kind) and groups is None:
        raise DataError("grouped order and resampling need data.group_column")
    if order != "grouped" and groups is not None and kind != "grouped":
        raise DataError(f"data.group_column does not go with data.order = {order!r}; allowed is 'grouped'")
    if groups is not None and kind in ("kfold", "stratified"):
        raise DataError(
            f"data.group_column does not go with resampling.kind = {kind!r}; allowed are 'grouped' and 'holdout'"
        )
    if order != "grouped" and kind == "grouped":
        raise DataError(f"resampling.kind = 'grouped' does not go with data.order = {order!r}; allowed is 'grouped'")
    if "stratified" in (order, kind) and classes is None:
        raise DataError("stratified order and resampling need a target of classes: text, booleans, or whole numbers")
    if kind == "stratified":
        assert classes is not None
        rarest = int(np.bincount(classes).min())
        if rarest < resampling.folds:
            raise DataError(
                f"resampling.folds = {resampling.folds}, but the rarest class has {rarest} rows; allowed is at most that"
            )
    fewest = 2 * (resampling.folds + 1)
    if rows < fewest:
        raise DataError(
            f"the data have {rows} usable rows; resampling.folds = {resampling.folds} needs at least {fewest}"
        )


def _check_parts(train: int, valid: int) -> None:
    if train < 1 or valid < 1:
        raise DataError(
            f"the resampling leaves {train} training and {valid} validation rows; give resampling.valid_fraction, "
            "test_fraction or folds that leave some of both"
        )
