"""What the coordinator needs of the world, as protocols; adapters and fakes pass the same contract suites."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from trialfleet_coordinator.commands import Observation as Observation
from trialfleet_coordinator.commands import Record, RecordTerms, TrialState
from trialfleet_coordinator.events import Draw
from trialfleet_shared.errors import StudyChangedError
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import EvaluationResult
from trialfleet_shared.space import Distribution, Params


class StudyDefinition(msgspec.Struct, frozen=True):
    """What makes a study the same study when it is run again."""

    name: str
    direction: str
    space: dict[str, Any]
    objective: str
    objective_digest: str
    data_digest: str
    ladder: Ladder
    seed: int

    def changes(self, other: "StudyDefinition") -> list[str]:
        """What differs in `other`, in words; the name apart."""
        changed = []
        for field, words in (
            ("direction", "direction"),
            ("space", "search space"),
            ("objective", "objective"),
            ("objective_digest", "objective's code, or values that it uses"),
            ("data_digest", "data set (its rows, its resampling, or how this version of trialfleet imports it)"),
            ("ladder", "ladder"),
            ("seed", "seed"),
        ):
            if getattr(self, field) != getattr(other, field):
                changed.append(words)
        return changed

    def require_same(self, other: "StudyDefinition") -> None:
        """Raise StudyChangedError, which says what differs in `other`, if anything does."""
        changes = self.changes(other)
        if changes:
            raise StudyChangedError(
                f"study {self.name!r} exists with another {' and another '.join(changes)}; "
                "give this one another name (--name), have it start from what the old one found (--fork; `warm_start` in "
                "Python), or delete the old one (trialfleet delete)"
            )


class TrialRecord(msgspec.Struct, gc=False):
    """One trial as the store has it."""

    number: int
    params: Params
    distributions: dict[str, Distribution]
    state: TrialState
    value: float | None
    reason: str
    #: Results that counted, in the order they were recorded.
    results: list[EvaluationResult]


class StudyRecord(msgspec.Struct):
    """One study as the store has it: enough to go on where it was."""

    definition: StudyDefinition
    trials: list[TrialRecord]
    #: Seconds that the study ran in earlier sessions.
    elapsed: float
    #: The best trial's score on the test part, as (trial, value).
    test: tuple[int, float] | None
    #: What it was last run by; None: it was not run yet, or by a version that did not record it or recorded it otherwise.
    terms: RecordTerms | None = None

    @property
    def has_outcome(self) -> bool:
        """Whether it has a trial that did not fail: then it is worth going on with."""
        return any(trial.state is not TrialState.FAIL for trial in self.trials)


class StudyStore(Protocol):
    """Owns the study. One coordinator at a time holds a study open for writing."""

    def load(self, name: str) -> StudyRecord | None:
        """The study called `name`, None when there is none. Reading needs no lock."""
        ...

    def names(self) -> list[str]:
        """The names of all studies."""
        ...

    def open(self, definition: StudyDefinition) -> StudyRecord:
        """Lock the study for this coordinator; create it if it is new; return what is recorded.

        One that has no trial yet, or none that did not fail, is made anew where its definition is another.

        Raises:
            StudyLockedError: another coordinator has it open.
            StudyChangedError: it exists with another definition; the message says what changed.
        """
        ...

    def commit(self, records: Sequence[Record], *, elapsed: float) -> None:
        """Write all records, or none, in one durable transaction. Raises StoreError (a full disk, say)."""
        ...

    def close(self) -> None:
        """Release the lock. May be called twice."""
        ...


class Sampler(Protocol):
    """Draws params. What it drew counts as pending until the trial is observed for the first time."""

    def restore(
        self, draws: Sequence[tuple[int, Params, dict[str, Distribution]]], observations: Sequence[Observation]
    ) -> None:
        """Take up where an earlier session ended, before anything is asked.

        Args:
            draws: number, params and distributions of its trials, by number.
            observations: what it was told.
        """
        ...

    def add(self, draws: Sequence[tuple[int, Params, dict[str, Distribution]]]) -> None:
        """These trials, given as for `restore`, were drawn elsewhere; they count as pending, and are not drawn again."""
        ...

    def ask(self, numbers: range) -> list[Draw]:
        """One draw for each trial number; fewer when every point of the space was drawn already."""
        ...

    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn; a trial is observed once per rung it finished."""
        ...
