"""Has a study's data on this host before a worker evaluates on them."""

import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from trialfleet_shared.errors import TrialfleetError, message_of
from trialfleet_shared.messages import StudySpec
from trialfleet_workers.adapters.data_format import data_file
from trialfleet_workers.adapters.importing import import_apart
from trialfleet_workers.allowance import Allowance, resolve
from trialfleet_workers.service import Ticket, WorkerService
from trialfleet_workers.telemetry import WorkerTelemetry

_LOG = logging.getLogger("trialfleet.worker")


class StudyData:
    """Sees to it that a study's data are in this host's cache before its evaluations start; for any thread.

    Args:
        path: the data cache.
        base: folder that data sources given as paths are relative to.
        allowance: which objectives, and functions that give data, may run.
        telemetry: watches.
    """

    def __init__(self, path: Path, base: Path, allowance: Allowance, telemetry: WorkerTelemetry) -> None:
        self._path = path
        self._base = base
        self._allowance = allowance
        self._telemetry = telemetry
        self._lock = threading.Lock()
        #: By digest: held by whoever looks after a data set, so that one study does not wait for the data of another.
        self._looked_after: dict[str, threading.Lock] = {}
        self._known: set[str] = set()

    def is_here(self, spec: StudySpec) -> bool:
        """Whether the study needs no data, or has had them and they are still here."""
        # Somebody may have made room in the cache since.
        return spec.data is None or (
            spec.data_digest in self._known and data_file(self._path, spec.data_digest).exists()
        )

    def require(self, spec: StudySpec) -> None:
        """Import the study's data unless they are here.

        Raises:
            ObjectiveError: the study's objective may not run here, so its data have no business here either.
            DataError: the data can not be imported, or are not the study's.
        """
        if spec.data is None:
            return
        resolve(spec.objective, spec.objective_digest, self._base, self._allowance)
        with self._lock:
            looked_after = self._looked_after.setdefault(spec.data_digest, threading.Lock())
        with looked_after:
            if self.is_here(spec):
                self._telemetry.data_found()
                return
            started = time.monotonic()
            size = import_apart(spec, self._path, self._base, self._allowance)
            self._known.add(spec.data_digest)
        if size:
            self._telemetry.data_imported(time.monotonic() - started, size)
        else:
            self._telemetry.data_found()


class Imports:
    """Has batches evaluated once their study's data are here; for any thread.

    An import may take hours, and who takes a batch holds its delivery no longer than some minutes. So each study that lacks its
    data has a thread of its own bring them in, for all batches of it that come meanwhile.

    Args:
        service: evaluates, or answers that it can not.
        data: brings in what is not here.
    """

    def __init__(self, service: WorkerService, data: StudyData) -> None:
        self._service = service
        self._data = data
        self._lock = threading.Lock()
        #: Batches that wait, by study; of those that were handed back, some.
        self._waiting: dict[StudySpec, list[Ticket]] = {}

    def prepare(self, ticket: Ticket) -> None:
        """Have the batch evaluated once the data are here, or refused where they can not be had; waits for no import."""
        spec = ticket.batch.spec
        try:
            if not self._data.is_here(spec):
                self._wait_for_data(ticket)
                return
        except Exception as error:  # noqa: BLE001  # the cache can not be read, or there are too many threads
            trouble = _told(spec, error)
        else:
            trouble = self._require(spec)
        self._go_on([ticket], trouble)

    def _wait_for_data(self, ticket: Ticket) -> None:
        spec = ticket.batch.spec
        with self._lock:
            if spec in self._waiting:
                self._waiting[spec] = [*(each for each in self._waiting[spec] if not each.wait(0.0)), ticket]
                return
            threading.Thread(target=self._bring_in, args=(spec,), name="import", daemon=True).start()
            self._waiting[spec] = [ticket]

    def _bring_in(self, spec: StudySpec) -> None:
        trouble = self._require(spec)
        with self._lock:
            tickets = self._waiting.pop(spec)
        self._go_on(tickets, trouble)

    def _require(self, spec: StudySpec) -> str:
        """Have the data here; why that can not be, or nothing."""
        try:
            self._data.require(spec)
        except TrialfleetError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # no memory for a process, say; the batch is held until it is answered
            return _told(spec, error)
        return ""

    def _go_on(self, tickets: Iterable[Ticket], trouble: str) -> None:
        for ticket in tickets:
            if trouble:
                self._service.refuse(ticket, trouble)
            else:
                self._service.begin(ticket)


def _told(spec: StudySpec, error: Exception) -> str:
    """Why a study's data can not be had, told in the log as well."""
    _LOG.error("the data of study %s can not be had", spec.study, exc_info=error, extra={"study": spec.study})
    return f"the study's data can not be had: {type(error).__name__}: {message_of(error)}"
