"""The baseline: a script as one writes it without trialfleet. Optuna's TPE, one trial after another, all rows, all folds.

    python baseline.py STUDY_FILE DATA FOLDS SEED TRIALS OUT
    python baseline.py STUDY_FILE DATA FOLDS SEED --examine PARAMS

Data are read once and cut into folds once; the study is kept in memory. It prints nothing; OUT gets one JSON document
with, per trial, its params, the mean over the folds, and the process's CPU and wall seconds since its start. The second
form prints what given params are worth on all folds and on the test part.
"""

import importlib
import json
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd


def read(source: Path, target: str | None) -> tuple[Any, Any]:
    """Features and target; text columns are categorical, a target of text is 0 for the first label."""
    if source.suffix == ".npz":
        with np.load(source) as archive:
            return archive["X"], archive["y"]
    frame = pd.read_csv(source)
    labels = frame.pop(target)
    if not pd.api.types.is_numeric_dtype(labels):
        labels = np.unique(labels, return_inverse=True)[1]
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            frame[column] = frame[column].astype("category")
    return frame, np.asarray(labels)


def fold_of(features: Any, target: Any, folds: Any, index: int, seed: int) -> SimpleNamespace:
    """What the objective is given."""
    train, valid = folds[f"train {index}"], folds[f"valid {index}"]
    if isinstance(features, pd.DataFrame):
        parts = {"frame": features.iloc[train], "frame_valid": features.iloc[valid]}
    else:
        parts = {"X": features[train], "X_valid": features[valid]}
    return SimpleNamespace(**parts, y=target[train], y_valid=target[valid], seed=seed, fold=index)


def suggest(trial: optuna.Trial, space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The params of a trial; a parameter under a condition is asked for only when it holds."""
    params: dict[str, Any] = {}
    for name, entry in space.items():
        if any(params.get(other) not in allowed for other, allowed in entry.get("when", {}).items()):
            continue
        match entry["type"]:
            case "float":
                params[name] = trial.suggest_float(name, entry["min"], entry["max"], log=entry.get("log", False))
            case "int":
                params[name] = trial.suggest_int(name, entry["min"], entry["max"], log=entry.get("log", False))
            case _:
                params[name] = trial.suggest_categorical(name, entry["choices"])
    return params


class Problem(NamedTuple):
    """A task, read."""

    tables: dict[str, Any]
    train: Callable[[dict[str, Any], Any], float]
    folds: list[SimpleNamespace]
    test: SimpleNamespace

    def evaluate(self, params: dict[str, Any]) -> list[float]:
        """The value on each fold."""
        return [self.train(params, fold) for fold in self.folds]


def load(study_file: Path, source: Path, fold_file: str, seed: int) -> Problem:
    """The objective, the data and the folds."""
    tables = tomllib.loads(study_file.read_text())
    sys.path.insert(0, str(study_file.parent))
    train = importlib.import_module("objective").train
    features, target = read(source, tables["data"].get("target"))
    with np.load(fold_file) as rows:
        folds = [fold_of(features, target, rows, index, seed) for index in range(tables["resampling"]["folds"])]
        return Problem(tables, train, folds, fold_of(features, target, rows, -1, seed))


def search(problem: Problem, seed: int, trials: int) -> dict[str, Any]:
    """The study, and what is told of it."""
    record: list[dict[str, Any]] = []
    beside = 0.0

    def objective(trial: optuna.Trial) -> float:
        params = suggest(trial, problem.tables["space"])
        record.append({"params": params})
        return float(np.mean(problem.evaluate(params)))

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal beside
        now = time.process_time()
        record[-1] |= {"value": trial.value, "cpu_seconds": now - beside}
        if study.best_trial.number == trial.number:
            # Beside the measurement: what the test part says of the incumbent, for the baseline that is cut short.
            record[-1]["test_value"] = problem.train(trial.params, problem.test)
            beside += time.process_time() - now

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = problem.tables["study"]["direction"]
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials, callbacks=[note])
    return {
        "trials": record,
        "best_params": study.best_params,
        "best_value": study.best_value,
        "test_value": problem.train(study.best_params, problem.test),
        "beside_cpu_seconds": beside,
    }


def main() -> None:
    """Run it."""
    study_file, source, fold_file, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    problem = load(study_file, source, fold_file, seed)
    if sys.argv[5] == "--examine":
        params = json.loads(sys.argv[6])
        value = float(np.mean(problem.evaluate(params)))
        json.dump({"best_value": value, "test_value": problem.train(params, problem.test)}, sys.stdout)
    else:
        Path(sys.argv[6]).write_text(json.dumps(search(problem, seed, int(sys.argv[5]))))


if __name__ == "__main__":
    main()
