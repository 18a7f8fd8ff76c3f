"""Opens the studies of a coordinator that serves many: `HomeWorkshop`."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from trialfleet.engine import OpenStudy, open_study, results_address
from trialfleet.home import Home
from trialfleet.recorded import open_store, recorded_definition, recorded_report, recorded_runs
from trialfleet.study_file import StudyRequest, read_study
from trialfleet.watching import Watching
from trialfleet_coordinator.adapters.lmdb_store import as_stored
from trialfleet_coordinator.daemon import Described
from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.roster import Entry
from trialfleet_coordinator.runs import Run
from trialfleet_coordinator.serving import Submission
from trialfleet_shared.adapters.rabbit import remove_results
from trialfleet_shared.errors import ConfigurationError, StoreError, UnknownStudyError
from trialfleet_shared.messages import StudyName
from trialfleet_shared.tables import read_value
from trialfleet_workers.adapters.sources import is_function
from trialfleet_workers.allowance import Allowance, require_allowed
from trialfleet_workers.digests import code_digest


class HomeWorkshop:
    """Implements `trialfleet_coordinator.daemon.Workshop` on a home and a broker.

    Args:
        home: where studies, results and data are kept.
        broker_url: where the workers listen.
        allowance: whose code may be read and, where reading does not tell enough, imported here.
        watching: who watches the studies.
    """

    def __init__(self, home: Home, broker_url: str, allowance: Allowance, watching: Watching) -> None:
        self._home = home
        self._broker_url = broker_url
        self._allowance = allowance
        self._watching = watching

    def describe(self, submission: Submission) -> Described:
        """See `Workshop.describe`."""
        if submission.name is not None:
            read_value(StudyName, submission.name, "the submission: name")
        request = self._request(submission)
        self._require_same(request)
        return Described(request.name, request.mode, request.direction)

    @contextmanager
    def open(self, entry: Entry, most_slots: Callable[[], int], check: Callable[[], None]) -> Iterator[OpenStudy]:
        """See `Workshop.open`."""
        with open_study(
            self._request(entry.submission),
            self._home,
            broker_url=self._broker_url,
            warm_start=entry.submission.warm_start,
            on_rows=lambda _: check(),
            most_slots=most_slots,
            watching=self._watching,
        ) as study:
            yield study

    def report(self, study: str) -> StudyReport | None:
        """See `Workshop.report`."""
        try:
            return recorded_report(self._home, study)[0]
        except UnknownStudyError:
            return None

    def runs(self, study: str) -> list[Run] | None:
        """See `Workshop.runs`."""
        try:
            return recorded_runs(self._home, study)
        except UnknownStudyError:
            return None

    def delete(self, study: str) -> None:
        """See `Workshop.delete`."""
        with open_store(self._home) as store:
            if study in store.names():  # else it has no record, or one of its name was made by Optuna alone
                identity = store.identity(study)
                store.delete(study)
                if identity is not None:
                    # Apart: the broker may be slow to answer, and nobody depends on it.
                    arguments = self._broker_url, results_address(self._home, identity)
                    threading.Thread(target=remove_results, args=arguments, daemon=True).start()
        self._watching.study_deleted(study)

    def trouble(self) -> str:
        """See `Workshop.trouble`."""
        try:
            with open_store(self._home) as store:
                store.names()
        except StoreError as error:
            return str(error)
        return ""

    def _require_same(self, request: StudyRequest) -> None:
        """Compare the study with what is recorded of its name, but for what its data make of it: they may be far away."""
        recorded = recorded_definition(self._home, request.name)
        if recorded is None:
            return
        asked = msgspec.structs.replace(
            recorded,
            direction=request.direction,
            space=request.space.describe(),
            objective=request.objective,
            objective_digest=code_digest(request.objective, request.base),
            seed=request.seed,
        )
        recorded.require_same(as_stored(asked))

    def _request(self, submission: Submission) -> StudyRequest:
        base = Path(submission.base)
        if not base.is_absolute():
            raise ConfigurationError(f"base = {submission.base!r}: the whole path of a folder is needed")
        for reference in _code(submission.tables):  # before any of it is imported
            require_allowed(reference, base, self._allowance)
        request = read_study(submission.tables, "the submission", base, own=True)
        name = submission.name or request.name
        return replace(request, name=name, origin=f"study {name}")


def _code(tables: Mapping[str, Any]) -> Iterator[str]:
    """The functions that a study refers to, as far as its tables are what they should be."""
    for table, key in (("study", "objective"), ("study", "space"), ("data", "source")):
        values = tables.get(table)
        value = values.get(key) if isinstance(values, Mapping) else None
        if isinstance(value, str) and (key != "source" or is_function(value)):
            yield value
