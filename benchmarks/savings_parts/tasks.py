"""The tuning tasks: study files in `tasks/`, their data, and their folds as plain arrays for a script without trialfleet."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import datasets

from trialfleet_shared.messages import DataSpec, Resampling
from trialfleet_workers.adapters.data_format import FORMAT
from trialfleet_workers.subsample import Positions, looks_like_classes, plan_layout

_FOLDER = Path(__file__).parent / "tasks"
#: All tasks, the cheapest first.
TASKS = ("breast_cancer", "diabetes", "digits_svc", "digits_mlp", "adult_tree", "beijing_pm25", "adult")
#: Data sets that come with scikit-learn.
_BUNDLED = {
    "breast_cancer.npz": datasets.load_breast_cancer,
    "diabetes.npz": datasets.load_diabetes,
    "digits.npz": datasets.load_digits,
}


class Task:
    """One tuning task.

    Args:
        name: one of `TASKS`.
        data: folder of the CSV files.
        work: folder for what is made here.
    """

    def __init__(self, name: str, data: Path, work: Path) -> None:
        self.name = name
        self.study_file = _FOLDER / name / "study.toml"
        self.tables: dict[str, Any] = tomllib.loads(self.study_file.read_text())
        source = self.tables["data"]["source"]
        self.source = (work / source if source in _BUNDLED else data / source).resolve()
        self.maximize = self.tables["study"]["direction"] == "maximize"
        self._work = work

    @property
    def folds(self) -> int:
        """Folds of the resampling."""
        return int(self.tables["resampling"]["folds"])

    def prepare(self, seed: int) -> Path:
        """Have the data as a file, and the folds of this seed as arrays of row numbers; their path.

        The arrays `train i` and `valid i` hold the rows of fold i in the order in which trialfleet hands them over;
        `train -1` and `valid -1` all rows that the search sees, and the test part.
        """
        if self.source.name in _BUNDLED and not self.source.exists():
            features, target = _BUNDLED[self.source.name](return_X_y=True)
            np.savez(self.source, X=features, y=target)
        path = self._work / f"folds-{self.name}-{FORMAT}-{seed}.npz"
        if not path.exists():
            np.savez(path, **self._folds(seed))
        return path

    def _folds(self, seed: int) -> dict[str, Any]:
        target = self._target()
        resampling = Resampling(**self.tables["resampling"])
        spec = DataSpec(source="", order=self.tables["data"].get("order"), resampling=resampling)
        usable = np.flatnonzero(~pd.isna(target))
        target = target[usable]
        has_classes = target.dtype.kind in "OU" or looks_like_classes(target)
        layout = plan_layout(
            len(target),
            order=spec.order or ("stratified" if has_classes else "random"),
            resampling=resampling,
            seed=seed,
            classes=np.unique(target, return_inverse=True)[1] if has_classes else None,
        )
        rows = usable[layout.rows]

        def numbers(positions: Positions) -> Any:
            return rows[positions]

        folds = {}
        for index in range(-1, len(layout.folds)):
            fold = layout.fold(index)
            folds[f"train {index}"] = numbers(fold.train)
            folds[f"valid {index}"] = numbers(fold.valid)
        return folds

    def _target(self) -> Any:
        if self.source.suffix == ".npz":
            with np.load(self.source) as archive:
                return archive["y"]
        column = pd.read_csv(self.source)[self.tables["data"]["target"]]
        return column.to_numpy(dtype=object if column.dtype.kind == "O" else None)
