"""What an objective is given as `data`: one fold at one fraction, as arrays or frames over the shared map."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from trialfleet_shared.errors import DataError
from trialfleet_workers.subsample import Positions

if (
    TYPE_CHECKING
):  # a quarter of a second, which objectives that take arrays do not need; see `zygote.py` for the others
    import pandas as pd

#: Points in time, as numpy stores them.
_MOMENTS = "datetime64[ns]"


class Table:
    """The stored rows: one block of features, or one array per column.

    Args:
        block: features of shape (rows, …) when all are numbers; else None.
        columns: arrays by name when they do not; text as codes, points in time as nanoseconds.
        names: the features' names in order; empty for arrays of more than two dimensions.
        target: shape (rows,).
        target_name: what frames call it.
        categories: the texts behind the codes, by column.
        ordered: columns whose categories have an order that means something.
        times: columns that are points in time.
        zones: the time zones of those that have one.
        classes: what the target's codes stand for; None for a target of numbers.
    """

    def __init__(
        self,
        *,
        block: NDArray[Any] | None,
        columns: Mapping[str, NDArray[Any]],
        names: Sequence[str],
        target: NDArray[Any],
        target_name: str,
        categories: Mapping[str, Sequence[str]],
        ordered: Sequence[str],
        times: Sequence[str],
        zones: Mapping[str, str],
        classes: Sequence[str] | None,
    ) -> None:
        self.block = block
        self.columns = columns
        self.names = tuple(names)
        self.target = target
        self.target_name = target_name
        self.categories = categories
        self.ordered = frozenset(ordered)
        self.times = frozenset(times)
        self.zones = zones
        self.classes = None if classes is None else tuple(classes)

    @cached_property
    def _types(self) -> "dict[str, pd.CategoricalDtype]":
        """Of the text columns; built once: comparing two columns' categories is quick when they are the same object."""
        import pandas as pd  # noqa: PLC0415  # see the top

        return {
            name: pd.CategoricalDtype(pd.Index(texts), ordered=name in self.ordered)
            for name, texts in self.categories.items()
        }

    def features(self, rows: Positions) -> NDArray[Any]:
        """X of these rows; a view where they are neighbours. Raises DataError when a column is text."""
        if self.block is not None:
            return self.block[rows]
        odd = [name for name in self.names if name in self.categories or name in self.times]
        raise DataError(
            f"data.X needs numbers; text or points in time are in {', '.join(map(repr, odd))}: use data.frame"
        )

    def frame(self, rows: Positions) -> "pd.DataFrame":
        """The features of these rows as a frame.

        Numbers are views where the rows are neighbours, and so are points in time that have no time zone.
        """
        import pandas as pd  # noqa: PLC0415  # see the top

        if self.block is not None:
            if self.block.ndim > 2:
                raise DataError(f"data.frame needs two dimensions; X has {self.block.ndim}: use data.X")
            return pd.DataFrame(self.block[rows], columns=list(self.names), copy=False)
        return pd.DataFrame({name: self._series(name, rows) for name in self.names}, copy=False)

    def _series(self, name: str, rows: Positions) -> Any:
        values = self.columns[name][rows]
        if name in self.categories:
            import pandas as pd  # noqa: PLC0415  # see the top

            return pd.Categorical.from_codes(values, dtype=self._types[name], validate=False)
        if name not in self.times:
            return values
        moments = values.view(_MOMENTS)
        if name not in self.zones:
            return moments
        import pandas as pd  # noqa: PLC0415  # see the top

        return pd.Series(moments).dt.tz_localize("UTC").dt.tz_convert(self.zones[name]).array

    def copy(self) -> "Table":
        """The same in this process's own memory, and as read-only: the next evaluation is given it as well."""
        return Table(
            block=None if self.block is None else _copied(self.block),
            columns={name: _copied(values) for name, values in self.columns.items()},
            names=self.names,
            target=_copied(self.target),
            target_name=self.target_name,
            categories=self.categories,
            ordered=tuple(self.ordered),
            times=tuple(self.times),
            zones=self.zones,
            classes=self.classes,
        )


def _copied(array: NDArray[Any]) -> NDArray[Any]:
    copy = array.copy()
    copy.setflags(write=False)
    return copy


class Data:
    """One fold's training part at one fraction, and its validation part, which is the same at every fraction.

    Everything is computed when it is first asked for, and kept. Arrays are read-only; where the rows are neighbours in
    the store, as those of a holdout and of fold 0 always are, they are views on the memory that all processes of this
    machine share.
    """

    def __init__(
        self, table: Table, train: Positions, valid: Positions, *, fold: int, fraction: float, rung: int, seed: int
    ) -> None:
        self._table = table
        self._train = train
        self._valid = valid
        #: Index of the fold; -1 for the test part.
        self.fold = fold
        #: Share of the training rows, 0 < fraction <= 1.
        self.fraction = fraction
        #: Index of the rung.
        self.rung = rung
        #: The study's seed, for whatever the objective draws.
        self.seed = seed

    @property
    def columns(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return self._table.names

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels behind y where the target is text: y = 0 is the first of them."""
        return self._table.classes

    @cached_property
    def X(self) -> NDArray[Any]:  # noqa: N802  # the field's name for it
        """Training features, shape (rows, features)."""
        return self._table.features(self._train)

    @cached_property
    def y(self) -> NDArray[Any]:
        """Training target, shape (rows,)."""
        return self._table.target[self._train]

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """Training features as a frame; text columns are categorical, with the categories of the whole data set.

        Points in time have the time zone of the source, categories its order, and are ordered where they are there.
        """
        return self._table.frame(self._train)

    @cached_property
    def X_valid(self) -> NDArray[Any]:  # noqa: N802  # the field's name for it
        """Validation features."""
        return self._table.features(self._valid)

    @cached_property
    def y_valid(self) -> NDArray[Any]:
        """Validation target."""
        return self._table.target[self._valid]

    @cached_property
    def frame_valid(self) -> "pd.DataFrame":
        """Validation features as a frame."""
        return self._table.frame(self._valid)
