"""The ladder: which share of the rows and how many folds a trial sees on each rung.

Rungs are nested by construction: the rows of a lower fraction are the first rows of a higher one, and a rung's folds
are the first folds of the resampling. So a result at (fraction, fold) counts on every rung that has both.
"""

import itertools
import math

import msgspec

from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.tables import check_fields

#: The highest rung below all rows has at most 1 / this of them, to be worth its own decision.
SMALLEST_STEP = 1.5
#: Validation rows that a rung's folds have together at least. On 35 rows, a tenth of them all, scores hardly rank the trials:
#: with two such folds on rung 0 instead of one, the regret fell from 0.41 to 0.08 in mode `thorough` and from 0.61 to 0.20 in
#: `balanced` (scikit-learn's diabetes data, five seeds), for a tenth to a fifth of the baseline's CPU.
FEWEST_VALIDATED = 60


class Rung(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One position on the ladder."""

    #: Share of the training rows, 0 < fraction <= 1.
    fraction: float
    #: Number of folds, from fold 0.
    folds: int

    def __post_init__(self) -> None:
        """Raise ValueError outside the ranges."""
        check_fields(self)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction = {self.fraction} must be above 0 and at most 1")
        if self.folds < 1:
            raise ValueError(f"folds = {self.folds} must be at least 1")

    def __str__(self) -> str:
        """As (fraction, folds)."""
        return f"({self.fraction:g}, {self.folds})"


class Ladder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rungs in climbing order; a trial that has all of the last one's folds is COMPLETE."""

    rungs: tuple[Rung, ...]

    def __post_init__(self) -> None:
        """Raise ValueError unless each rung has more rows or more folds than the one below and no fewer of either."""
        if not self.rungs:
            raise ValueError("a ladder needs at least one rung")
        for lower, upper in itertools.pairwise(self.rungs):
            if upper.fraction < lower.fraction or upper.folds < lower.folds or upper == lower:
                raise ValueError(
                    f"rung {upper} must have more rows or folds than {lower} below it, and no fewer of either"
                )

    @property
    def last(self) -> int:
        """Index of the last rung."""
        return len(self.rungs) - 1


def build_ladder(
    *,
    rows: int,
    folds: int,
    valid_rows: int | None,
    fraction: float,
    lowest: float,
    rung_rows: int,
    fewest_rows: int,
    reduction_factor: float,
    fold_halving: bool = True,
) -> Ladder:
    """The ladder from `fraction` of the rows on one fold up to all rows on all folds; on more folds where one is small.

    Between them are fractions eta apart, then one and two folds on all rows: on tables of real fits a second fold told
    the best trials from the good ones for little. The middle fractions are not there for their price alone: they show
    soon when the fraction below ranks the trials the wrong way round (see `rung_choice.py`).

    Args:
        rows: training rows of fold 0.
        folds: folds of the resampling.
        valid_rows: validation rows of fold 0; None when there is no data set.
        fraction: share of the rows on rung 0.
        lowest: rung 0 may start as low as this where it keeps `rung_rows` rows.
        rung_rows: rows that make a rung below `fraction` worth having.
        fewest_rows: rows that rung 0 has at least.
        reduction_factor: eta, the ratio between the fractions of neighbouring rungs.
        fold_halving: whether there are rungs of fewer than all folds on all rows.
    """
    if rows < 1:
        raise ConfigurationError(f"a ladder needs training rows, got {rows}")
    start = max(min(fraction, max(lowest, rung_rows / rows)), min(1.0, fewest_rows / rows))
    fewest_folds = 1 if valid_rows is None else min(folds, math.ceil(FEWEST_VALIDATED / max(valid_rows, 1)))
    rungs = []
    while start * SMALLEST_STEP <= 1.0:
        rungs.append(Rung(round(start, 6), fewest_folds))
        start *= reduction_factor
    counts = {fewest_folds, min(max(2, fewest_folds), folds), folds} if fold_halving else {folds}
    return Ladder((*rungs, *(Rung(1.0, count) for count in sorted(counts))))
