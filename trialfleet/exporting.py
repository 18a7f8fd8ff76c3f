"""A study's trials in the formats of others: a table for CSV and parquet, or a study in one of Optuna's storages."""

import csv
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.storages import BaseStorage, get_storage

from trialfleet_coordinator.adapters.lmdb_storage import LmdbStorage
from trialfleet_coordinator.adapters.optuna_distributions import equal_choices
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
    """Write the trials as parquet; params of several types become text, those that some trials lack keep their type."""
    import pandas as pd  # noqa: PLC0415  # only here

    columns, rows = table(report)
    trials = list(rows)
    values = {column: _of_one_type([trial.get(column) for trial in trials]) for column in columns}
    pd.DataFrame(values).to_parquet(path, index=False)


def _of_one_type(values: list[Any]) -> Any:
    import pandas as pd  # noqa: PLC0415  # only here

    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    if None in values and kinds == {int}:
        return pd.array(values, dtype="Int64")
    return pd.array(values, dtype="boolean") if None in values and kinds == {bool} else values


def copy_to_optuna(store: Path, study: str, url: str) -> None:
    """Copy a study, with all of its trials, into the Optuna storage at `url`.

    Raises:
        ConfigurationError: the URL is no storage's, or it has a study of this name; Optuna can not tell its choices apart.
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
        _check_choices(source, study)
        _copy(study, source, target)
    finally:
        source.close()


def _check_choices(source: LmdbStorage, study: str) -> None:
    for trial in source.get_all_trials(source.get_study_id_from_name(study), deepcopy=False):
        for name, distribution in trial.distributions.items():
            if alike := equal_choices(distribution):
                raise ConfigurationError(
                    f"the choices {alike} of {name!r} are one to Optuna: it can not have this study"
                )


def _copy(study: str, source: LmdbStorage, target: BaseStorage) -> None:
    try:
        taken = study in (known.study_name for known in target.get_all_studies())
    except Exception as error:  # noqa: BLE001  # without what a driver says, which may name the URL
        raise TrialfleetError(f"the storage failed: {type(error).__name__}") from None
    if taken:
        raise ConfigurationError(f"the storage has a study {study!r} already")
    try:
        optuna.copy_study(from_study_name=study, from_storage=source, to_storage=target)
    except optuna.exceptions.DuplicatedStudyError:  # somebody made it just now
        raise ConfigurationError(f"the storage has a study {study!r} already") from None
    except Exception as error:  # noqa: BLE001  # as above
        with suppress(Exception):  # what there is of this name now is half a copy
            optuna.delete_study(study_name=study, storage=target)
        if isinstance(error, ValueError):  # a parameter's choices differ among trials, say
            raise ConfigurationError(f"Optuna can not have this study: {error}") from None
        raise TrialfleetError(f"the storage failed: {type(error).__name__}") from None


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
