"""What holds of a study at every moment, at the end of a session, and at its very end; broken, it raises `Violation`."""

from collections import Counter
from typing import Any

from simulation.broker import EVALUATIONS, Message
from simulation.disk import Disk
from simulation.plan import Plan
from simulation.world import Violation
from trialfleet_coordinator.budget import Ended
from trialfleet_coordinator.commands import Command, RecordTerms, TrialState
from trialfleet_coordinator.driver import Session
from trialfleet_coordinator.events import EvaluationFinished, Event
from trialfleet_coordinator.ports import StudyRecord
from trialfleet_coordinator.study import StudyState
from trialfleet_coordinator.trial import Trial
from trialfleet_shared.adapters.rabbit import unpack_results
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationKey, EvaluationResult, Outcome

#: CPU seconds are summed up in another order by a study that is resumed.
_TOLERANCE = 1e-6
#: Outcomes of which an evaluation is published again, some times.
_TRIED_AGAIN = (Outcome.REFUSED, Outcome.CRASH)


class Inspector:
    """Watches one session of the coordinator."""

    def __init__(self, plan: Plan, disk: Disk, session: Session, *, thorough: bool) -> None:
        self._plan = plan
        self._disk = disk
        self._state = session._state
        self._thorough = thorough
        #: Results that the fleet gave, and those that the study was shown.
        self._polled = 0
        self._shown = 0
        self._seen: set[EvaluationKey] = set()
        self._study = session._plan.spec.study
        self._handle = self._state.handle
        self._state.handle = self._watched  # type: ignore[method-assign]
        fleet = session._outside.fleet
        self._poll = fleet.poll
        fleet.poll = self._watched_poll  # type: ignore[method-assign]

    def _watched_poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        results, lost = self._poll(timeout)
        self._polled += len(results)
        return results, lost

    def _watched(self, *events: Event) -> list[Command]:
        """Each result is counted, discarded, or of a kind upon which the evaluation is published again: one of them."""
        results = [event.result for event in events if isinstance(event, EvaluationFinished)]
        if not results:
            return self._handle(*events)
        self._shown += sum(bool(result.worker) for result in results)
        self._seen.update(result.key for result in results)
        before = self._accounted()
        commands = self._handle(*events)
        missing = len(results) - (self._accounted() - before)
        again = sum(result.outcome in _TRIED_AGAIN for result in results)
        _require(0 <= missing <= again, f"{missing} of {len(results)} results are neither counted nor discarded")
        return commands

    def _accounted(self) -> int:
        discarded = self._state.tally.discarded
        return self._state.tally.evaluations + sum(discarded.values()) - discarded["lost late"]

    def ticked(self, *_: object) -> None:
        """A tick has ended."""
        if self._thorough:
            self._state.validate()
        most = self._plan.budget.trials
        _require(most is None or len(self._state.trials) <= most, f"{len(self._state.trials)} trials of {most}")

    def acknowledged(self, queue: str, message: Message) -> None:
        """The study has seen what was in it, and what it counted of that is on the disk."""
        if queue == EVALUATIONS:
            return
        batch = unpack_results(message.body)
        if batch.study != self._study:
            return
        trials = self._state.trials
        for key in (result.key for result in batch.results):
            if key in self._disk.ledger.counted:
                continue
            _require(key in self._seen, f"{key} is acknowledged before the study has seen it")
            known = trials[key.trial].results if key.trial < len(trials) else []
            _require(all(key != other.key for other in known), f"{key} is acknowledged before it is committed")

    def ended(self, record: StudyRecord) -> None:
        """The session came to its end by itself."""
        self._state.validate()
        _require(self._state.finished, "the study is not finished")
        _require(self._polled == self._shown, f"{self._shown} of {self._polled} results were handled")
        self.replayed(record)

    def replayed(self, record: StudyRecord) -> None:
        """The study as it would be resumed is the one there is."""
        again = restored(self._state, record)
        again.validate()
        before, after = essence(self._state), essence(again)
        for name, value in before.items():
            if not _same(value, after[name]):
                raise Violation(f"{name}, restored from the record: {_difference(value, after[name])}")


def finished(plan: Plan, disk: Disk, record: StudyRecord, state: StudyState) -> None:
    """The study has ended: nothing was forgotten, and the budget is kept."""
    disk.ledger.compare(record)
    _require(state.ended is not Ended.STOPPED, "the study only stopped")
    undecided = [trial.number for trial in record.trials if not trial.state.decided]
    if state.ended is Ended.FAILED:
        return
    _require(not undecided, f"the study ended ({state.ended}) with trials {undecided} undecided")
    if state.ended is Ended.TRIALS:
        _require(len(record.trials) == plan.budget.trials, f"{len(record.trials)} trials of {plan.budget.trials}")
    if state.ended is Ended.EXHAUSTED:
        _require(plan.distinct and len(record.trials) == plan.points, f"{len(record.trials)} points of {plan.points}")
    best = state.standings.best_complete
    if best is not None:
        if plan.has_test and best.trial not in state._untestable:
            _require(record.test is not None and record.test[0] == best.trial, "the best trial is not tested")
        values = [trial.value for trial in record.trials if trial.state is TrialState.COMPLETE]
        known = [value for value in values if value is not None]
        expected = max(known) if plan.maximize else min(known)
        _require(best.value == expected, f"the best value is {expected}, not {best.value}")


def restored(state: StudyState, record: StudyRecord) -> StudyState:
    """The study from its record."""
    return StudyState.recorded(record, RecordTerms(state.config, state.budget), has_test=state.has_test)


def essence(state: StudyState) -> dict[str, Any]:
    """All of a study that has to outlive the process."""
    standings, halving = state.standings, state.standings.halving
    settled = all(trial.decided for trial in state.trials)
    found: dict[str, Any] = {
        "trials": [_trial(trial) for trial in state.trials],
        "counts": +Counter(state.tally.decided),
        "test": state.test,
        "best": standings.best_complete,
        "evaluations": state.tally.evaluations,
        "cached": state.tally.cached,
        "CPU seconds": state.tally.cpu_seconds,
        "trials since the best": standings.since_best,
        "untestable": state._untestable,
        "finished rungs": halving._finished,
        "observations": sorted(
            (one.trial, one.rung, one.value is None, one.value or 0.0) for one in standings.observations()
        ),
    }
    if standings.racing is not None:
        found["incumbent"] = standings.racing._incumbent
        found["raced"] = sorted(standings.racing._complete)
    if settled:
        found["waiting"] = halving._waiting
        found["climbed"] = halving._climbed
        if all(trial.results for trial in state.trials):
            found["rung mix"] = standings.rung_mix()
    return found


def _trial(trial: Trial) -> tuple[Any, ...]:
    known = (trial.number, trial.decided, dict(trial.values), [result.key for result in trial.results])
    # Where trials without results started is not recorded.
    rung = trial.rung if trial.results else None
    return (trial.phase, trial.value, trial.reason, rung, *known) if trial.decided else known


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, list) and len(one) == len(other):
        one, other = next((left, right) for left, right in zip(one, other, strict=True) if left != right)
    return f"{other}, and was {one}"


def _same(one: Any, other: Any) -> bool:
    return abs(one - other) <= _TOLERANCE * max(1.0, abs(one)) if isinstance(one, float) else one == other


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
