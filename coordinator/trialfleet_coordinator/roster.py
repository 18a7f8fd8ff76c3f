"""The studies of a coordinator that serves many, as it remembers them from one start to the next."""

from typing import Protocol

import msgspec

from trialfleet_coordinator.report import EfficiencyMetrics, Progress
from trialfleet_coordinator.serving import ServiceState, Submission


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One study of the roster."""

    study: str
    submission: Submission
    mode: str
    direction: str
    state: ServiceState
    #: Why it is in this state, one sentence; empty while it runs.
    because: str
    #: Seconds since the epoch.
    submitted_at: float
    #: Why it ended, as of `StudyReport.ended`.
    ended: str = "open"
    #: What its last session measured, once it has ended by itself.
    efficiency: EfficiencyMetrics | None = None
    #: Of the last tick of its last session, also of an earlier submission; None before its end. What `Progress` gains needs
    #: defaults, for the entries that are kept.
    progress: Progress | None = None
    #: What it was before it was submitted again, which it is once more if that can not even be opened; None otherwise.
    before: "Entry | None" = None
    #: Why its latest submission could not be opened; empty when it could, or was not tried yet.
    refused: str = ""


class RosterStore(Protocol):
    """Keeps the entries durably."""

    def load(self) -> list[Entry]:
        """All entries, in any order. Raises StoreError when one can not be read."""
        ...

    def save(self, entry: Entry) -> None:
        """Write an entry, in place of the one of the same study, whole or not at all. Raises StoreError."""
        ...

    def remove(self, study: str) -> None:
        """Forget an entry, if there is one. Raises StoreError."""
        ...
