"""A study's trials in the formats of others: a table for CSV and parquet, or a study in one of Optuna's storages."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.storages import get_storage

from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage
from trialfleet_coordinator.report import StudyReport
from trialfleet_shared.errors import ConfigurationError, TrialfleetError

#: Columns that every study has, in order; params and metrics follow.
_COLUMNS = (
    "number",
    "state",
    "value",
    "rung",
    "reason",
    "wall_seconds",
    "cpu_seconds",
    "evaluations",
    "cached",
)


def table(report: StudyReport) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The columns of a study's trials, and a mapping for each trial; params and metrics that a trial lacks are missing."""
    params: dict[str, None] = {}
    metrics: dict[str, None] = {}
    for trial in report.trials:
        params |= dict.fromkeys(trial.params)
        metrics |= dict.fromkeys(trial.metrics)
    columns = [*_COLUMNS, *(f"params.{name}" for name in params), *(f"metrics.{name}" for name in metrics)]

    def rows() -> Iterator[dict[str, Any]]:
        for trial in report.trials:
            row = {column: getattr(trial, column) for column in _COLUMNS}
            row |= {f"params.{name}": value for name, value in trial.params.items()}
            row |= {f"metrics.{name}": value for name, value in trial.metrics.items()}
            yield row

    return columns, rows()


def write_csv(report: StudyReport, file: TextIO) -> None:
    """Write the trials as CSV (RFC 4180) with a header; what is missing is empty."""
    columns, rows = table(report)
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)


def write_parquet(report: StudyReport, path: Path) -> None:
    """Write the trials as parquet; params of several types become text."""
    import pandas as pd  # noqa: PLC0415  # only here

    columns, rows = table(report)
    trials = list(rows)
    values = {column: _of_one_type([trial.get(column) for trial in trials]) for column in columns}
    pd.DataFrame(values).to_parquet(path, index=False)


def _of_one_type(values: list[Any]) -> list[Any]:
    if len({type(value) for value in values if value is not None}) <= 1:
        return values
    return [None if value is None else str(value) for value in values]


def copy_to_optuna(store: Path, study: str, url: str) -> None:
    """Copy a study, with all of its trials, into the Optuna storage at `url`.

    Raises:
        ConfigurationError: the URL is no storage's, or it has a study of this name.
        TrialfleetError: the storage failed.
    """
    try:
        target = get_storage(url)
    except Exception as error:  # noqa: BLE001  # of any kind: of Optuna's, of SQLAlchemy's, of a driver's
        # Without the URL, which may have a password.
        raise ConfigurationError(
            f"--output is no storage that Optuna can use ({type(error).__name__}); a URL is needed, sqlite:///study.db say"
        ) from None
    source = LmdbStorage(store)
    try:
        optuna.copy_study(from_study_name=study, from_storage=source, to_storage=target)
    except optuna.exceptions.DuplicatedStudyError:
        raise ConfigurationError(f"the storage has a study {study!r} already") from None
    except optuna.exceptions.OptunaError as error:
        raise TrialfleetError(f"the storage failed: {type(error).__name__}") from None
    finally:
        source.close()


def importances(store: Path, study: str) -> dict[str, float]:
    """How much each param explains of which trials are good, as shares of 1 (PED-ANOVA, Watanabe et al. 2023).

    Of the complete trials; empty where they are too few to tell.
    """
    if not store.exists():
        return {}
    source = LmdbStorage(store)
    try:
        loaded = optuna.load_study(study_name=study, storage=source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(loaded, evaluator=evaluator))
    except (ValueError, RuntimeError):
        return {}
    finally:
        source.close()
