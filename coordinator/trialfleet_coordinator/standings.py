"""How the trials of a study compare: which rungs each of them finished, who may climb, who leads, and since when.

A table without IO. `StudyState` tells it what happened to a trial, and asks it what that means; it decides nothing by
itself. It owns the scores on every rung (`promotion`), the choice of rungs (`rung_choice`) and the best trial, and gives
the samplers' view of it all. A resumed study has the same standings, in whatever order its results came; only the choice of
rungs may differ, as it compares the ranks of the latest trials: the latest by number then, by time before.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.promotion import Halving, Promotion, Racing, Verdict, beyond_threshold, mean
from trialfleet_coordinator.rung_choice import Finished, RungChoice
from trialfleet_coordinator.trial import Phase, Trial
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import EvaluationKey, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig


class Best(NamedTuple):
    """The best trial so far."""

    trial: int
    value: float
    #: Whether the value was measured on the last rung.
    complete: bool


class Standings:
    """The table. See the module's docstring.

    Args:
        ladder: the rungs.
        maximize: direction.
        config: the settings; those of pruning and racing are read here.
        defer_dear: whether trials that took far longer than others wait, see `promotion`.
    """

    def __init__(self, ladder: Ladder, config: EfficiencyConfig, *, maximize: bool, defer_dear: bool) -> None:
        self._ladder = ladder
        self._config = config
        self._maximize = maximize
        #: All trials, by number.
        self.trials: list[Trial] = []
        self.halving = Halving(len(ladder.rungs), config.reduction_factor, defer_dear=defer_dear)
        #: Which rungs trials climb.
        self.choice = RungChoice(ladder, config.reduction_factor)
        folds = ladder.rungs[-1].folds
        #: None when the last rung's folds run at once.
        self.racing = Racing(folds) if config.fold_racing and folds > 1 else None
        #: The best trial that has all folds of the last rung.
        self.best_complete: Best | None = None
        #: Trials after the best one, by number, that have a value or are decided.
        self.since_best = 0
        #: The best trial so far, complete or not.
        self._leader: int | None = None
        self._rung_mix = [0] * len(ladder.rungs)
        #: Per rung, the trials that were decided on it.
        self._decided = [0] * len(ladder.rungs)
        #: What each slot, given as (worker, slot), evaluated first.
        self._first_of: dict[tuple[str, int], EvaluationKey] = {}
        #: All of these: imports and the like make them dearer than others.
        self.firsts: set[EvaluationKey] = set()

    # What happened to a trial

    def add(self, trial: Trial) -> None:
        """A new one, on the rung where it starts."""
        self.trials.append(trial)
        self._rung_mix[trial.rung] += 1

    def hear(self, result: EvaluationResult) -> None:
        """An evaluation was answered."""
        if result.slot is not None and (slot := (result.worker, result.slot)) not in self._first_of:
            self._first_of[slot] = result.key
            self.firsts.add(result.key)

    def restore(self, trials: Sequence[Trial]) -> None:
        """They come from an earlier session, and stand as they stood there."""
        self._hear_firsts(trials)
        finished: list[tuple[int, Finished]] = []
        for trial in trials:
            self.add(trial)
            marks = self._marks(trial)
            for place, mark in enumerate(marks):
                finished.append((trial.number, mark))
                self.choice.observe(marks[:place], mark)
                if mark.rung < trial.rung:
                    self.halving.climb(mark.rung)
            if trial.phase is Phase.WAITING:
                self.wait(trial)
            elif trial.phase is Phase.COMPLETE and trial.value is not None:
                self.complete(trial, trial.value)
        self.halving.restore(finished)
        for trial in trials:
            if trial.decided:
                self._decided[trial.rung] += 1
                if trial.phase is Phase.FAIL:
                    self.halving.rule_out(trial.number)
            elif not trial.results:  # it stands where trials start by now
                self._move(trial, self.choice.start(trial.number))
        self._leader = None  # who led meanwhile was counted without the trials that came later
        self._lead()

    def finish(self, trial: Trial, value: float) -> None:
        """It has all folds of its rung, whose mean is `value`."""
        self._judge(trial)
        trial.value = value
        *earlier, latest = self._marks(trial)
        self.halving.finish(trial.rung, trial.number, latest.score, latest.seconds)
        self._lead()
        self.choice.observe(earlier, latest)

    def wait(self, trial: Trial) -> None:
        """It may be promoted from the rung that it finished."""
        self.halving.wait(trial.rung, trial.number, self._finished_score(trial))

    def climb(self, trial: Trial) -> None:
        """It leaves the rung where it waited for the next one that pays."""
        self._leave(trial)
        self.halving.climb(trial.rung)
        self._move(trial, self.choice.above(trial.rung))

    def complete(self, trial: Trial, value: float) -> None:
        """It has all folds of the last rung, whose mean is `value`."""
        if self.racing is not None:
            self.racing.complete(trial.number, self._fold_scores(trial))
        # Of equal ones the first in number, whichever was first in time: a resumed study must find the same.
        best = self.best_complete
        if best is None or (self.score(value), -trial.number) > (self.score(best.value), -best.trial):
            self.best_complete = Best(trial.number, value, complete=True)
            self._lead()

    def decide(self, trial: Trial, rung: int, *, failed: bool) -> None:
        """It will be decided on `rung`: where it is, or below, where it brought no result since it climbed from there."""
        if trial.phase is Phase.WAITING:
            self._leave(trial)
        self._judge(trial)
        if rung < trial.rung:
            if trial.results:
                self.halving.fall(rung)
            self._move(trial, rung)
        self._decided[rung] += 1
        if failed:
            self.halving.rule_out(trial.number)
            self._lead()

    # What that means

    @property
    def best(self) -> Best | None:
        """The best complete trial; else the best on the highest rung that somebody finished who did not fail; else None."""
        if self.best_complete is not None:
            return self.best_complete
        leader = self.halving.leader()
        if leader is None:
            return None
        trial, score = leader
        return Best(trial, self.score(score), complete=False)

    def candidate(self, *, closing: bool) -> Promotion | None:
        """Who is to climb next; see `Halving.candidate`."""
        return self.halving.candidate(self._under_way, closing=closing)

    @property
    def races(self) -> bool:
        """Whether folds of the last rung run one after another."""
        return self.racing is not None and self.racing.has_incumbent

    def race(self, trial: Trial) -> Verdict | None:
        """What racing says of a trial on the last rung; None where there is none."""
        return None if self.racing is None else self.racing.verdict(self._fold_scores(trial))

    def beyond_threshold(self, trial: Trial, value: float) -> bool:
        """Whether the threshold rule stops the trial, which finished its rung with `value`."""
        config, best = self._config, self.halving.best(trial.rung)
        if not config.enable_aggressive_pruning or best is None:
            return False
        if self.halving.finished(trial.rung) <= config.min_trials_before_pruning:  # the trial itself is one of them
            return False
        return beyond_threshold(value, self.score(best), threshold=config.pruning_threshold, maximize=self._maximize)

    def rung_mix(self) -> tuple[int, ...]:
        """Trials by the highest rung they were started on."""
        return tuple(self._rung_mix)

    def observations(self) -> list[Observation]:
        """All that a sampler would have been told so far, by trial number."""
        told: list[Observation] = []
        for trial in self.trials:
            told.extend(trial.observation(mark.rung, self.score(mark.score)) for mark in self._marks(trial))
            if trial.phase is Phase.FAIL:
                told.append(trial.observation(trial.rung, None))
            elif trial.reason == "objective":
                told.append(trial.observation(trial.rung, None, pruned=True))
            elif trial.reason == "racing":
                told.append(trial.observation(self._ladder.last, trial.value))
        return told

    def score(self, value: float) -> float:
        """Higher is better; its own inverse."""
        return value if self._maximize else -value

    def validate(self) -> None:
        """Assert every invariant."""
        waiting = dict(self.halving.waiting())
        for trial in self.trials:
            assert (trial.phase is Phase.WAITING) == (trial.number in waiting)
            if trial.phase is Phase.WAITING:
                assert waiting[trial.number] == trial.rung
        assert sum(self._rung_mix) == len(self.trials)
        evaluating = Counter(trial.rung for trial in self.trials if trial.phase is Phase.EVALUATING)
        assert evaluating == Counter({rung: self._under_way(rung) for rung in range(len(self._rung_mix))})
        assert self._leader == (None if self.best is None else self.best.trial)
        if self._leader is not None:
            assert self.since_best == self._judged_after(self._leader)

    def _hear_firsts(self, trials: Sequence[Trial]) -> None:
        earliest: dict[tuple[str, int], EvaluationResult] = {}
        for result in (result for trial in trials for result in trial.results):
            if result.slot is not None:
                first = earliest.setdefault((result.worker, result.slot), result)
                if (result.started_at or 0.0) < (first.started_at or 0.0):
                    earliest[result.worker, result.slot] = result
        for result in earliest.values():
            self.hear(result)

    def _leave(self, trial: Trial) -> None:
        """It does not wait any more."""
        self.halving.leave(trial.rung, trial.number, self._finished_score(trial))

    def _judge(self, trial: Trial) -> None:
        """It will have its first value, or be decided: if it comes after the best one, it counts in `since_best` now."""
        if self._leader is not None and trial.number > self._leader and not trial.judged:
            self.since_best += 1

    def _under_way(self, rung: int) -> int:
        """Trials on the rung that have not finished it yet."""
        return self._rung_mix[rung] - self.halving.waiting_on(rung) - self._decided[rung]

    def _move(self, trial: Trial, rung: int) -> None:
        self._rung_mix[trial.rung] -= 1
        trial.rung = rung
        self._rung_mix[rung] += 1

    def _lead(self) -> None:
        """Another trial may be the best one now."""
        leader = None if self.best is None else self.best.trial
        if leader != self._leader:
            self._leader = leader
            self.since_best = 0 if leader is None else self._judged_after(leader)

    def _judged_after(self, number: int) -> int:
        return sum(later.judged for later in self.trials[number + 1 :])

    def _finished_score(self, trial: Trial) -> float:
        assert trial.value is not None
        return self.score(trial.value)

    def _fold_scores(self, trial: Trial) -> list[float]:
        """Its scores on the first folds of the last rung."""
        return [self.score(value) for value in trial.fold_values(self._ladder, self._ladder.last)]

    def _marks(self, trial: Trial) -> list[Finished]:
        """The rungs that the trial finished, lowest first."""
        return [
            self._mark(trial, rung, values)
            for rung in range(trial.rung + 1)
            if len(values := trial.fold_values(self._ladder, rung)) == self._ladder.rungs[rung].folds
        ]

    def _mark(self, trial: Trial, rung: int, values: list[float]) -> Finished:
        rungs = self._ladder.rungs
        fraction = rungs[rung].fraction
        measured = [
            result
            for result in trial.results
            # Not what came later, of more folds or of the test: a mark stays what it was when it was made.
            if 0 <= result.fold < rungs[rung].folds
            and rungs[result.rung].fraction == fraction
            and result.outcome is Outcome.OK
        ]
        seconds = mean([result.wall_seconds for result in measured])
        typical = self.firsts.isdisjoint([result.key for result in measured])
        return Finished(rung, seconds, self.score(mean(values)), typical)
