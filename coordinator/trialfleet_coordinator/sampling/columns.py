"""Parameter values of all trials as growing arrays, so that a model's few hundred rows are gathered, not rebuilt."""

import numpy as np
import numpy.typing as npt

from trialfleet_coordinator.sampling.normal import Array
from trialfleet_shared.space import Categorical, Distribution, Params, Scalar


class Columns:
    """One column per parameter, one row per trial; NaN where a trial does not have the parameter."""

    def __init__(self) -> None:
        self._rows = 0
        #: By name, and whether the parameter is categorical: a space function may use a name for both.
        self._columns: dict[tuple[str, bool], _Column] = {}

    def __len__(self) -> int:
        return self._rows

    def append(self, params: Params, distributions: dict[str, Distribution]) -> int:
        """Add a trial; return its row."""
        row = self._rows
        self._rows += 1
        for name, value in params.items():
            key = name, isinstance(distributions[name], Categorical)
            if key not in self._columns:
                self._columns[key] = _Column()
            self._columns[key].set(row, value, categorical=key[1])
        return row

    def gather(self, name: str, distribution: Distribution, rows: npt.NDArray[np.intp]) -> Array:
        """The parameter's values in these rows: numbers, or positions among the distribution's choices.

        NaN where a trial does not have the parameter, or has it with a value that this distribution never has: the
        range of a parameter of a space function may differ from trial to trial.
        """
        categorical = isinstance(distribution, Categorical)
        column = self._columns.get((name, categorical))
        if column is None:
            return np.full(len(rows), np.nan)
        values = column.get(rows)
        if isinstance(distribution, Categorical):
            return column.positions(distribution)[np.where(np.isnan(values), -1, values).astype(np.intp)]
        with np.errstate(invalid="ignore"):
            values[(values < distribution.min) | (values > distribution.high)] = np.nan
        return values


class _Column:
    """One parameter's values: numbers, or codes of a growing vocabulary."""

    def __init__(self) -> None:
        self._values = np.full(64, np.nan)
        #: Code of each categorical value, True kept apart from 1.
        self._codes: dict[tuple[bool, Scalar], int] = {}

    def set(self, row: int, value: Scalar, *, categorical: bool) -> None:
        if row >= len(self._values):
            self._values = np.concatenate([self._values, np.full(max(len(self._values), row), np.nan)])
        if categorical:
            self._values[row] = self._codes.setdefault((isinstance(value, bool), value), len(self._codes))
        else:
            assert isinstance(value, int | float)
            self._values[row] = value

    def get(self, rows: npt.NDArray[np.intp]) -> Array:
        values = np.full(len(rows), np.nan)
        inside = rows < len(self._values)
        values[inside] = self._values[rows[inside]]
        return values

    def positions(self, distribution: Categorical) -> Array:
        """Position among the choices by code; the last entry, at -1, is NaN."""
        known = {(isinstance(choice, bool), choice): index for index, choice in enumerate(distribution.choices)}
        return np.array([*(known.get(key, np.nan) for key in self._codes), np.nan])
