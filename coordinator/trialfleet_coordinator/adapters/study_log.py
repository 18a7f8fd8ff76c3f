"""A study's work as log lines: `StudyLog`."""

import logging
from collections.abc import Sequence

from trialfleet_coordinator.commands import Record, RecordDecision, RecordEvaluation
from trialfleet_coordinator.telemetry import Telemetry
from trialfleet_shared.adapters.result_log import log_result
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationResult, Outcome

_LOG = logging.getLogger("trialfleet.study")


class StudyLog(Telemetry):
    """Logs what fails as warnings, every evaluation and decision for debugging.

    What befalls the connection to the broker, the fleet logs.

    Args:
        study: the study's name.
    """

    def __init__(self, study: str) -> None:
        self._study = study
        #: Workers of which a refusal was told.
        self._refusing: set[str] = set()

    def received(self, results: Sequence[EvaluationResult], lost: Sequence[LostEvaluation]) -> None:
        """See `Telemetry.received`: the results that count are committed, but not every refusal does."""
        for result in results:
            if result.outcome is Outcome.REFUSED and result.worker not in self._refusing:
                self._refusing.add(result.worker)
                cause, _, _ = (result.error or "no reason given").partition("\n")
                _LOG.warning(
                    "study %s: worker %s refuses it: %s",
                    *(self._study, result.worker, cause),
                    extra={"study": self._study, "worker": result.worker, "cause": result.error},
                )
        for key, attempt, reason in lost:
            _LOG.warning(
                "study %s: trial %d was lost on rung %d: %s",
                self._study,
                key.trial,
                key.rung,
                reason,
                extra={
                    "study": self._study,
                    "trial": key.trial,
                    "rung": key.rung,
                    "fold": key.fold,
                    "attempt": attempt,
                    "cause": reason,
                },
            )

    def committed(self, records: Sequence[Record], seconds: float) -> None:
        """See `Telemetry.committed`."""
        debugging = _LOG.isEnabledFor(logging.DEBUG)
        for record in records:
            if isinstance(record, RecordEvaluation):
                log_result(_LOG, self._study, record.result)
            elif debugging and isinstance(record, RecordDecision):
                self._log_decision(record)
        if debugging:
            _LOG.debug(
                "study %s: %d records took %.1f ms",
                self._study,
                len(records),
                seconds * 1e3,
                extra={"study": self._study, "records": len(records), "seconds": seconds},
            )

    def _log_decision(self, decision: RecordDecision) -> None:
        _LOG.debug(
            "study %s: trial %d is %s: %s",
            self._study,
            decision.trial,
            decision.state.value,
            decision.reason,
            extra={
                "study": self._study,
                "trial": decision.trial,
                "state": decision.state.value,
                "cause": decision.reason,
                "value": decision.value,
            },
        )
