"""Parameter values of all trials as a growing table, so that a model's few hundred rows are gathered, not rebuilt."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.normal import Array
from trialfleet_shared.space import Categorical, Distribution, Params, Scalar

#: Rows that wait to be brought into the table at once, at most.
_MOST_NEW = 4096
#: A parameter's column, and the codes of its values where it is categorical.
_Place = tuple[int, dict[tuple[bool, Scalar], int] | None]


class Columns:
    """One column per parameter, one row per trial; NaN where a trial does not have the parameter."""

    def __init__(self) -> None:
        self._rows = 0
        self._table = np.full((64, 0), np.nan)
        #: Rows that are not in the table yet; shorter ones end with parameters that they do not have.
        self._new: list[list[float]] = []
        #: By name, and whether the parameter is categorical: a space function may use a name for both.
        self._places: dict[tuple[str, bool], int] = {}
        #: Code of each categorical value by column, True kept apart from 1.
        self._codes: dict[int, dict[tuple[bool, Scalar], int]] = {}
        #: Distributions of the latest trial, and the place of each: trials that are drawn together share theirs.
        self._latest: tuple[Mapping[str, Distribution], dict[str, _Place]] = ({}, {})

    def __len__(self) -> int:
        return self._rows

    def append(self, params: Params, distributions: Mapping[str, Distribution]) -> int:
        """Add a trial, whose distributions do not change any more; return its row."""
        if distributions is not self._latest[0]:
            self._latest = distributions, {name: self._place(name, one) for name, one in distributions.items()}
        places = self._latest[1]
        row: list[Any] = [math.nan] * len(self._places)
        for name, value in params.items():
            place, codes = places[name]
            row[place] = value if codes is None else codes.setdefault((isinstance(value, bool), value), len(codes))
        self._new.append(row)
        self._rows += 1
        if len(self._new) == _MOST_NEW:
            self._flush()
        return self._rows - 1

    def gather(self, parameters: Mapping[str, Distribution], rows: npt.NDArray[np.intp]) -> Array:
        """Values in these rows, one column for each parameter: numbers, or positions among the distribution's choices.

        NaN where a trial does not have the parameter, or has a choice that this distribution does not offer: those of a
        parameter of a space function may differ from trial to trial.
        """
        self._flush()
        gathered = np.full((len(rows), len(parameters)), np.nan)
        table = self._table[rows]
        for column, (name, distribution) in enumerate(parameters.items()):
            place = self._places.get((name, isinstance(distribution, Categorical)))
            if place is None:
                continue
            if isinstance(distribution, Categorical):
                codes = np.where(np.isnan(table[:, place]), -1, table[:, place]).astype(np.intp)
                gathered[:, column] = self._positions(place, distribution)[codes]
            else:
                gathered[:, column] = table[:, place]
        return gathered

    def _place(self, name: str, distribution: Distribution) -> _Place:
        categorical = isinstance(distribution, Categorical)
        place = self._places.setdefault((name, categorical), len(self._places))
        return place, self._codes.setdefault(place, {}) if categorical else None

    def _positions(self, place: int, distribution: Categorical) -> Array:
        """Position among the choices by code; the last entry, at -1, is NaN."""
        known = {(isinstance(choice, bool), choice): index for index, choice in enumerate(distribution.choices)}
        return np.array([*(known.get(key, math.nan) for key in self._codes[place]), math.nan])

    def _flush(self) -> None:
        """Bring the new rows into the table."""
        if not self._new:
            return
        width, (capacity, old) = len(self._places), self._table.shape
        if self._rows > capacity or width > old:
            grown = np.full((max(self._rows, 2 * capacity if self._rows > capacity else capacity), width), np.nan)
            grown[:capacity, :old] = self._table
            self._table = grown
        rows = [row + [math.nan] * (width - len(row)) for row in self._new]
        self._table[self._rows - len(rows) : self._rows] = rows
        self._new = []
