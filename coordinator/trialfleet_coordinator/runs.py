"""When and where a study's evaluations ran, as its record tells it."""

from collections.abc import Iterable

import msgspec

from trialfleet_shared.messages import EvaluationResult, Outcome


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation that ran."""

    trial: int
    rung: int
    #: Index of the fold; -1 is the test part.
    fold: int
    outcome: Outcome
    #: Who ran it; empty for slots of the study's own process.
    worker: str
    #: Which of the worker's slots, counted from 0.
    slot: int
    #: When it began, in seconds since 1970 by the clock of its machine.
    started_at: float
    wall_seconds: float

    @property
    def ended_at(self) -> float:
        """When it ended, as `started_at`."""
        return self.started_at + self.wall_seconds


def runs_of(results: Iterable[EvaluationResult]) -> list[Run]:
    """Those of the results that tell when and where they ran, by when they began.

    A cache's answers did not run, and what was refused did not either; workers of schema version 1 do not tell.
    """
    runs = [
        Run(
            trial=result.trial,
            rung=result.rung,
            fold=result.fold,
            outcome=result.outcome,
            worker=result.worker,
            slot=result.slot,
            started_at=result.started_at,
            wall_seconds=result.wall_seconds,
        )
        for result in results
        if result.slot is not None and result.started_at is not None
    ]
    return sorted(runs, key=lambda run: run.started_at)
