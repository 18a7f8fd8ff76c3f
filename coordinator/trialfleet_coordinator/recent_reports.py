"""Reports of large studies, for who asks for them again and again: a page of trials at a time, say."""

import threading
from typing import NamedTuple

from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.roster import Entry
from trialfleet_coordinator.serving import ServiceState
from trialfleet_shared.clock import Clock

#: A report is kept for so many times the seconds that it took: a tenth of the time goes into reports at most.
KEPT_FOR = 10.0
#: Reports that are kept at most, and the seconds from which on one is worth it.
MOST_KEPT = 4
WORTH_SECONDS = 0.1


class _Kept(NamedTuple):
    report: StudyReport
    until: float


class RecentReports:
    """What was reported lately; of a study that has ended, or was submitted again since, it is another report.

    For any thread.

    Args:
        clock: says how long ago it was.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, float, ServiceState], _Kept] = {}

    def get(self, entry: Entry) -> StudyReport | None:
        """The study's report, if it was made lately."""
        with self._lock:
            kept = self._kept.get(_key(entry))
            return None if kept is None or self._clock.monotonic() >= kept.until else kept.report

    def keep(self, entry: Entry, report: StudyReport, *, seconds: float) -> None:
        """Keep a report that took so long to make."""
        if seconds < WORTH_SECONDS:
            return
        now = self._clock.monotonic()
        with self._lock:
            self._kept = {key: kept for key, kept in self._kept.items() if kept.until > now and key != _key(entry)}
            while len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[_key(entry)] = _Kept(report, now + KEPT_FOR * seconds)


def _key(entry: Entry) -> tuple[str, float, ServiceState]:
    return entry.study, entry.submitted_at, entry.state
