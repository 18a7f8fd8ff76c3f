"""An evaluation's end as a log line."""

import logging

from trialfleet_shared.messages import EvaluationResult, Outcome


def log_result(log: logging.Logger, study: str, result: EvaluationResult) -> None:
    """Log a failure as a warning, anything else for debugging."""
    if result.outcome not in (Outcome.OK, Outcome.PRUNED):
        cause, _, _ = (result.error or "no reason given").partition("\n")
        log.warning(
            "study %s: trial %d on rung %d: %s: %s",
            *(study, result.trial, result.rung, result.outcome.value, cause),
            extra=_fields(study, result) | {"cause": result.error},
        )
    elif log.isEnabledFor(logging.DEBUG):
        log.debug(
            "study %s: trial %d on rung %d: %s",
            *(study, result.trial, result.rung, result.outcome.value),
            extra=_fields(study, result) | {"value": result.value},
        )


def _fields(study: str, result: EvaluationResult) -> dict[str, object]:
    return {
        "study": study,
        "trial": result.trial,
        "rung": result.rung,
        "fold": result.fold,
        "attempt": result.attempt,
        "worker": result.worker,
        "outcome": result.outcome.value,
        "seconds": result.wall_seconds,
        "cached": result.cached,
    }
