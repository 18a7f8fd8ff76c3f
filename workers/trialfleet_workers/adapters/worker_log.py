"""A worker's work as log lines: `WorkerLog`."""

import logging
from collections.abc import Sequence

from trialfleet_shared.adapters.result_log import log_result
from trialfleet_shared.messages import EvaluationResult
from trialfleet_workers.telemetry import PoolFigures

_LOG = logging.getLogger("trialfleet.worker")


class WorkerLog:
    """Logs what fails as warnings, every evaluation for debugging. Implements `WorkerTelemetry`."""

    def answered(self, study: str, results: Sequence[EvaluationResult]) -> None:
        """See `WorkerTelemetry.answered`."""
        for result in results:
            log_result(_LOG, study, result)

    def turned(self, figures: PoolFigures) -> None:
        """See `WorkerTelemetry.turned`."""

    def data_found(self) -> None:
        """See `WorkerTelemetry.data_found`."""

    def data_imported(self, seconds: float, size: int) -> None:
        """See `WorkerTelemetry.data_imported`."""
        _LOG.info(
            "imported %d bytes of data in %.1f s", size, seconds, extra={"bytes": size, "seconds": round(seconds, 3)}
        )

    def reconnected(self) -> None:
        """See `WorkerTelemetry.reconnected`; the sink logs it."""

    def redelivered(self) -> None:
        """See `WorkerTelemetry.redelivered`."""
        _LOG.info("a batch was delivered for a second time")

    def unreadable(self) -> None:
        """See `WorkerTelemetry.unreadable`; the actor logs it."""
