"""A worker's work as log lines: `WorkerLog`."""

import logging
from collections.abc import Sequence

from trialfleet_shared.adapters.result_log import log_result
from trialfleet_shared.messages import EvaluationResult
from trialfleet_workers.telemetry import WorkerTelemetry

_LOG = logging.getLogger("trialfleet.worker")


class WorkerLog(WorkerTelemetry):
    """Logs what fails as warnings, every evaluation for debugging.

    The sink logs that the broker is back, the actor what could not be read.
    """

    def answered(self, study: str, results: Sequence[EvaluationResult]) -> None:
        """See `WorkerTelemetry.answered`."""
        for result in results:
            log_result(_LOG, study, result)

    def data_imported(self, seconds: float, size: int) -> None:
        """See `WorkerTelemetry.data_imported`."""
        _LOG.info(
            "imported %d bytes of data in %.1f s", size, seconds, extra={"bytes": size, "seconds": round(seconds, 3)}
        )

    def redelivered(self) -> None:
        """See `WorkerTelemetry.redelivered`."""
        _LOG.info("a batch came that had been delivered before")
