"""One study as a state machine without IO: events in, commands out.

`StudyState.handle(*events)` is the only mutator. It reads no clock, draws no random number and touches nothing outside:
the driver feeds it what happened and carries out what it answers. A trial's way is a walk through `TRANSITIONS`:

    EVALUATING  at least one evaluation of its rung is to be answered
    WAITING     it finished a rung and waits there for a promotion
    COMPLETE    it has all folds of the last rung
    PRUNED      it stopped early: by halving, the threshold rule, racing, the objective, or the end of the budget
    FAIL        an evaluation of it failed

Results may come late, twice, or for evaluations that nobody asked for: the first answer to a key that is in flight
counts, every other is counted in `discarded` and changes nothing. What killed its slot is tried again, and what straggles
at the end is run a second time: see `attempts`.
"""

import math
import statistics
from collections import Counter, deque
from typing import NamedTuple

from trialfleet_coordinator.attempts import Attempts, FailedAttempt
from trialfleet_coordinator.batching import Pacing
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    Command,
    DrawTrials,
    Finish,
    GiveUp,
    Observation,
    Observe,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTest,
    RecordTrial,
    StartEvaluations,
    TrialState,
)
from trialfleet_coordinator.events import (
    Draw,
    EvaluationFinished,
    EvaluationLost,
    Event,
    FleetChanged,
    StopRequested,
    TimePassed,
    TrialsDrawn,
)
from trialfleet_coordinator.ports import StudyRecord, TrialRecord
from trialfleet_coordinator.promotion import Halving, Promotion, Racing, beyond_threshold, mean
from trialfleet_coordinator.rung_choice import Finished, RungChoice
from trialfleet_coordinator.trial import DECIDED, TRANSITIONS, InvalidTransitionError, Phase, Trial
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import TEST_FOLD, Evaluation, EvaluationKey, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig

#: A study whose first trials all fail stops after so many: something is wrong with the objective, not with the params.
FIRST_FAILURES = 5
#: Times that an evaluation is published before a worker's refusal is final; another worker may have the right code.
REFUSALS = 5
#: Times that an evaluation may be lost with its worker before the trial fails.
LOSSES = 10
#: Times that an evaluation may kill its slot before the trial fails: a crash may be of the place, three are of the params.
CRASHES = 3
#: Steps that `story` remembers.
STORY_LENGTH = 2000


class Best(NamedTuple):
    """The best trial so far."""

    trial: int
    value: float
    #: Whether the value was measured on all rows and all folds.
    complete: bool


class StudyState:
    """The study. See the module's docstring.

    Args:
        ladder: the rungs.
        maximize: direction.
        config: the settings; those of subsampling, pruning, allocation and racing are read here.
        budget: when it ends.
        has_test: whether the best trial is scored on a test part at the end.
        record: what earlier sessions recorded; None for a new study.
    """

    def __init__(
        self,
        *,
        ladder: Ladder,
        maximize: bool,
        config: EfficiencyConfig,
        budget: Budget,
        has_test: bool,
        record: StudyRecord | None = None,
    ) -> None:
        self.ladder = ladder
        self.maximize = maximize
        self.config = config
        self.budget = budget
        self.has_test = has_test
        self.trials: list[Trial] = []
        #: Why no new trials are taken up; None while they are.
        self.ended: Ended | None = None
        #: Whether every evaluation is answered and every trial that will be decided is decided.
        self.finished = False
        #: Score of a trial on the test part, as (trial, value).
        self.test: tuple[int, float] | None = None
        #: Decided trials by state.
        self.counts: Counter[TrialState] = Counter()
        #: Answered evaluations, and those of them that a cache answered.
        self.evaluations = 0
        self.cached = 0
        #: Results that changed nothing, by reason.
        self.discarded: Counter[str] = Counter()
        #: Reasons of the latest failures.
        self.failures: deque[str] = deque(maxlen=5)
        self.pacing = Pacing(config.batch_size)
        self.slots = 0
        #: Evaluations in flight and the attempt that is.
        self.pending: dict[EvaluationKey, int] = {}
        time_runs_out = budget.seconds is not None or budget.cpu_seconds is not None
        self._halving = Halving(len(ladder.rungs), config.reduction_factor, defer_dear=time_runs_out)
        #: Which rungs trials climb.
        self.choice = RungChoice(ladder, config.reduction_factor)
        folds = ladder.rungs[-1].folds
        self._racing = Racing(folds) if config.fold_racing and folds > 1 else None
        self._best: Best | None = None
        self._drawing = 0
        #: Trials of an earlier session whose evaluations are to be published again.
        self._backlog: deque[Trial] = deque()
        self._rung_mix = [0] * len(ladder.rungs)
        self._evaluations_ok = 0
        #: Trials whose test evaluation failed: it is not tried twice.
        self._untestable: set[int] = set()
        #: The best trial so far, complete or not, and the trials after it, by number, that have a value or failed.
        self._leader: int | None = None
        self._judged_since = 0
        #: CPU seconds of the evaluations that ran.
        self._cpu_seconds = 0.0
        #: Seconds that the study ran.
        self._elapsed = 0.0 if record is None else record.elapsed
        self._attempts = Attempts()
        self._story: deque[tuple[int, str]] = deque(maxlen=STORY_LENGTH)
        self._commands: list[Command] = []
        if record is not None:
            self._restore(record)

    # Events

    def handle(self, *events: Event) -> list[Command]:
        """Take in what happened; the answer is what is to be done about it, in this order.

        Of events that are given together all are taken in before anything is decided on the strength of them: new trials
        are then asked for once, not one for the first result and the others later.
        """
        self._commands = []
        if self.finished:
            self.discarded["late"] += sum(isinstance(event, EvaluationFinished) for event in events)
            return []
        for event in events:
            self._on_event(event)
        self._advance()
        return self._commands

    def _on_event(self, event: Event) -> None:
        match event:
            case EvaluationFinished(result):
                self._on_result(result)
            case TrialsDrawn(draws):
                self._on_drawn(draws)
            case FleetChanged(slots):
                self.slots = slots
            case TimePassed(elapsed):
                self._elapsed = elapsed
                if self.budget.seconds is not None and elapsed >= self.budget.seconds:
                    self._end(Ended.SECONDS)
            case EvaluationLost(key, attempt, reason):
                self._on_lost(key, attempt, reason)
            case StopRequested():
                self._end(Ended.STOPPED)

    def _on_drawn(self, draws: list[Draw]) -> None:
        exhausted = len(draws) < self._drawing
        self._drawing = 0
        for draw in draws:
            trial = Trial(len(self.trials), draw.params, draw.distributions)
            trial.rung = self.choice.first
            self.trials.append(trial)
            self._rung_mix[trial.rung] += 1
            self._commands.append(RecordTrial(trial.number, trial.params, trial.distributions))
            self._publish(trial)
        if exhausted:
            self._end(Ended.EXHAUSTED)

    def _on_result(self, result: EvaluationResult) -> None:
        if result.key not in self.pending and not self._take_up(result):
            known = result.trial < len(self.trials)
            self.discarded["duplicate" if known else "unknown"] += 1
            return
        if result.outcome in (Outcome.REFUSED, Outcome.CRASH) and self._tries_again(result):
            return
        del self.pending[result.key]
        self._attempts.answer(result, self._elapsed)
        trial = self.trials[result.trial]
        self._commands.append(RecordEvaluation(result))
        self._count(result)
        trial.results.append(result)
        if result.fold == TEST_FOLD:
            self._on_test(trial, result)
        elif result.outcome is Outcome.OK:
            assert result.value is not None
            trial.values[self.ladder.rungs[result.rung].fraction, result.fold] = result.value
            self._on_value(trial)
        elif result.outcome is Outcome.PRUNED:
            self._decide(trial, Phase.PRUNED, trial.value, "objective")
        else:
            often = f"{CRASHES} times, the last time: " if result.outcome is Outcome.CRASH else ""
            self._fail(trial, f"{result.outcome.value}: {often}{result.error or 'no reason given'}")

    def _tries_again(self, result: EvaluationResult) -> bool:
        """Whether another attempt will answer in place of one that was refused or killed its slot."""
        key, attempt = result.key, self.pending[result.key]
        if result.attempt < attempt:  # a copy of the evaluation is in flight
            self.discarded["late"] += 1
            return True
        if result.outcome is Outcome.REFUSED:  # another worker may have the right code
            again = attempt + 1 < REFUSALS
        else:
            what = result.error or "no reason given"
            self._attempts.fail(key, FailedAttempt(attempt, self._elapsed, result.worker, what, crashed=True))
            again = self._attempts.crashes(key) < CRASHES
            if not again:
                self._give_up(key, f"killed its slot {CRASHES} times, the last time: {what}")
        if again:
            self._publish_again(key)
        return again

    def _give_up(self, key: EvaluationKey, reason: str) -> None:
        evaluation = self._evaluation(self.trials[key.trial], key.fold, self.pending[key])
        self._commands.append(GiveUp(evaluation, reason, self._attempts.history(key)))

    def _take_up(self, result: EvaluationResult) -> bool:
        """Whether it answers an evaluation of an earlier session, before that was published again."""
        trial = next((trial for trial in self._backlog if trial.number == result.trial), None)
        if trial is None or result.outcome is Outcome.REFUSED or result.rung != trial.rung:
            return False
        rung = self.ladder.rungs[trial.rung]
        if not 0 <= result.fold < rung.folds or (rung.fraction, result.fold) in trial.values:
            return False
        self._backlog.remove(trial)
        self.pending[result.key] = result.attempt
        return True

    def _on_lost(self, key: EvaluationKey, attempt: int, reason: str) -> None:
        if self.pending.get(key) != attempt:
            self.discarded["lost late"] += 1
            return
        self._attempts.fail(key, FailedAttempt(attempt, self._elapsed, "", f"lost: {reason}", crashed=False))
        if attempt + 1 >= LOSSES:
            self._give_up(key, f"lost {LOSSES} times, the last time because {reason}")
            if key.fold == TEST_FOLD:
                self._forget(key)
                self._untestable.add(key.trial)
            else:
                self._fail(self.trials[key.trial], f"lost: {LOSSES} times, the last time because {reason}")
        else:
            self._publish_again(key)

    def _on_test(self, trial: Trial, result: EvaluationResult) -> None:
        if result.outcome is Outcome.OK:
            assert result.value is not None
            self.test = (trial.number, result.value)
            self._commands.append(RecordTest(trial.number, result.value))
        else:
            self._untestable.add(trial.number)
            self.failures.append(f"trial {trial.number} on the test part: {result.outcome.value}: {result.error}")

    # One trial

    def _on_value(self, trial: Trial) -> None:
        """A fold came in: the rung may be finished, or the race decided."""
        rung = self.ladder.rungs[trial.rung]
        values = self._fold_values(trial, trial.rung)
        if len(values) == rung.folds:
            self._on_rung(trial, mean(values))
        elif not self._in_flight(trial):
            self._publish(trial)

    def _on_rung(self, trial: Trial, value: float) -> None:
        """The trial has all folds of its rung."""
        self._judge(trial)
        trial.value = value
        rung, score = trial.rung, self._score(value)
        self._commands.append(RecordRung(trial.number, rung, value))
        self._observe(trial, rung, value)
        *earlier, latest = self._marks(trial)
        self._halving.finish(rung, trial.number, score, latest.seconds)
        self._lead()
        if rung > 0:
            self.choice.observe(earlier, latest)
        last = rung == self.ladder.last
        if not last and self._beyond_threshold(rung, value):
            self._decide(trial, Phase.PRUNED, value, "threshold")
        elif not last:
            self._move(trial, Phase.WAITING, f"finished rung {rung}")
            self._halving.wait(rung, trial.number, score)
            self._give_up_hopeless()
        else:
            self._decide(trial, Phase.COMPLETE, value, "complete")
            self._on_complete(trial, value)

    def _on_complete(self, trial: Trial, value: float) -> None:
        if self._racing is not None:
            self._racing.complete([self._score(v) for v in self._fold_values(trial, self.ladder.last)])
        # Of equal ones the first in number, whichever was first in time: a resumed study must find the same.
        if self._best is None or (self._score(value), -trial.number) > (
            self._score(self._best.value),
            -self._best.trial,
        ):
            self._best = Best(trial.number, value, complete=True)
            self._lead()
        if self.budget.target is not None and self._score(value) >= self._score(self.budget.target):
            self._end(Ended.TARGET)

    def _promote(self, promotion: Promotion) -> None:
        trial = self.trials[promotion.trial]
        assert trial.value is not None
        self._halving.leave(promotion.rung, trial.number, self._score(trial.value))
        self._halving.climb(promotion.rung)
        self._move(trial, Phase.EVALUATING, f"promoted from rung {promotion.rung}")
        self._rung_mix[trial.rung] -= 1
        trial.rung = self.choice.above(promotion.rung)
        self._rung_mix[trial.rung] += 1
        self._publish(trial)

    def _judge(self, trial: Trial) -> None:
        """The trial is about to be known for better or worse than the best one, if it was not before."""
        if self._leader is not None and trial.number > self._leader and not trial.judged:
            self._judged_since += 1

    def _lead(self) -> None:
        """Another trial may be the best one now."""
        best = self.best
        if best is not None and best.trial != self._leader:
            self._leader = best.trial
            self._judged_since = sum(later.judged for later in self.trials[best.trial + 1 :])

    def _publish(self, trial: Trial) -> None:
        """Have the next folds of the trial's rung evaluated; on the last rung, one at a time while it races."""
        if self._interrupted:
            return  # it stays undecided, and is taken up again when the study is resumed
        if not self._climbs_on:
            self._decide(trial, Phase.PRUNED, trial.value, "budget")
            return
        rung = self.ladder.rungs[trial.rung]
        missing = [fold for fold in range(rung.folds) if (rung.fraction, fold) not in trial.values]
        if trial.rung == self.ladder.last and self._racing is not None:
            verdict = self._racing.verdict([self._score(value) for value in self._fold_values(trial, trial.rung)])
            if not verdict.goes_on:
                expected = self._score(verdict.expected)
                self._observe(trial, trial.rung, expected)
                self._decide(trial, Phase.PRUNED, expected, "racing")
                return
            if self._racing.has_incumbent:
                missing = missing[:1]
        self._start([self._evaluation(trial, fold) for fold in missing])

    def _evaluation(self, trial: Trial, fold: int, attempt: int = 0) -> Evaluation:
        return Evaluation(
            trial=trial.number,
            rung=trial.rung,
            fold=fold,
            fraction=self.ladder.rungs[trial.rung].fraction,
            params=trial.params,
            attempt=attempt,
        )

    def _start(self, evaluations: list[Evaluation]) -> None:
        for evaluation in evaluations:
            self.pending[evaluation.key] = evaluation.attempt
            self._attempts.begin(evaluation.key, self._elapsed)
        self._commands.append(StartEvaluations(evaluations))

    def _publish_again(self, key: EvaluationKey) -> None:
        if self._interrupted:
            self._forget(key)
            return
        self._start([self._evaluation(self.trials[key.trial], key.fold, self.pending[key] + 1)])

    def _forget(self, key: EvaluationKey) -> None:
        """Wait for the evaluation no more."""
        del self.pending[key]
        self._attempts.forget(key)

    def _run_stragglers_again(self) -> None:
        """Nothing new will be taken up: idle slots run what straggles a second time, and the first answer wins."""
        if self.ended is None or self._interrupted or len(self.pending) >= self.slots:
            return
        for key in self._attempts.stragglers(self.pending, self._elapsed, idle=self.slots - len(self.pending)):
            self._publish_again(key)

    def _fail(self, trial: Trial, reason: str) -> None:
        self.failures.append(f"trial {trial.number}: {reason}")
        self._decide(trial, Phase.FAIL, None, reason)
        self._commands.append(Observe(Observation(trial.number, trial.params, trial.distributions, trial.rung, None)))
        failed = self.counts[TrialState.FAIL]
        if failed >= FIRST_FAILURES and self._evaluations_ok == 0:
            self._end(Ended.FAILED)

    def _decide(self, trial: Trial, phase: Phase, value: float | None, reason: str) -> None:
        for key in self._keys_in_flight(trial):
            self._forget(key)
        if trial.phase is Phase.WAITING:
            assert trial.value is not None
            self._halving.leave(trial.rung, trial.number, self._score(trial.value))
        self._judge(trial)
        self._move(trial, phase, reason)
        trial.value = value
        trial.reason = reason
        self.counts[DECIDED[phase]] += 1
        self._commands.append(RecordDecision(trial.number, DECIDED[phase], value, reason))

    def _move(self, trial: Trial, phase: Phase, cause: str) -> None:
        if (trial.phase, phase) not in TRANSITIONS:
            raise InvalidTransitionError(trial.number, trial.phase, phase, self.story(trial.number))
        self._story.append((trial.number, f"{trial.phase.value} -> {phase.value} ({cause})"))
        trial.phase = phase

    # The whole study

    def _advance(self) -> None:
        """Fill the slots; where nothing is left to do, decide what waits, and finish."""
        if self.budget.cpu_seconds is not None and self._cpu_seconds >= self.budget.cpu_seconds:
            self._end(Ended.CPU_SECONDS)
        if self.budget.patience is not None and self._judged_since >= self.budget.patience:
            self._end(Ended.PATIENCE)
        self._fill()
        self._run_stragglers_again()
        if self.pending or self._drawing or self._backlog:
            return
        if self.ended is None:
            # No slots, or every trial of an unbounded study waits: only new slots or time can change that.
            return
        if not self._interrupted:
            reason = "halving" if self._climbs_on else "budget"
            for number, _ in self._halving.waiting():
                self._decide(self.trials[number], Phase.PRUNED, self.trials[number].value, reason)
            if self._start_test():
                return
            if self._evaluations_ok == 0 and self.counts[TrialState.FAIL]:
                self._end(Ended.FAILED)
        self.finished = True
        self._commands.append(Finish(self.ended.value))

    @property
    def _climbs_on(self) -> bool:
        """Whether trials under way are still promoted."""
        return self.ended in (None, Ended.TRIALS, Ended.EXHAUSTED, Ended.PATIENCE)

    @property
    def _interrupted(self) -> bool:
        """Whether undecided trials stay so: the study may be resumed."""
        return self.ended in (Ended.STOPPED, Ended.FAILED)

    def _fill(self) -> None:
        if self._interrupted:
            self._backlog.clear()
            return
        # One evaluation is in flight even while there are no slots: it waits for the first worker to come.
        target = max(self.pacing.in_flight(self.slots), 1)
        while len(self.pending) < target and self._climbs_on and not self._drawing:
            if self._backlog:
                self._publish(self._backlog.popleft())
            elif not (self._take_promotion(early=self.config.adaptive_trial_allocation) or self._draw(target)):
                break
        while self._backlog and not self._climbs_on:
            self._publish(self._backlog.popleft())

    def _take_promotion(self, *, early: bool) -> bool:
        """Promote one trial; `early` says whether promotions go before new trials."""
        closing = self.ended is not None
        if not (early or closing):
            return False
        promotion = self._halving.candidate(closing=closing)
        if promotion is None:
            return False
        self._promote(promotion)
        return True

    def _draw(self, target: int) -> bool:
        """Ask for new trials; whether anything was done about it."""
        if self.ended is not None:
            return False
        left = math.inf if self.budget.trials is None else self.budget.trials - len(self.trials)
        if left <= 0:
            self._end(Ended.TRIALS)
            return True
        count = min(left, math.ceil((target - len(self.pending)) / self._evaluations_per_trial()))
        self._drawing = int(count)
        self._commands.append(DrawTrials(range(len(self.trials), len(self.trials) + self._drawing)))
        return True

    def _evaluations_per_trial(self) -> int:
        """Evaluations that a new trial puts in flight."""
        raced = self._racing is not None and self.ladder.last == 0 and self._racing.has_incumbent
        return 1 if raced else self.ladder.rungs[self.choice.first].folds

    def _give_up_hopeless(self) -> None:
        if self.budget.trials is not None and not self._interrupted:
            for number in self._halving.hopeless(max(self.budget.trials, len(self.trials))):
                self._decide(self.trials[number], Phase.PRUNED, self.trials[number].value, "halving")

    def _start_test(self) -> bool:
        best = self._best
        if not self.has_test or best is None or best.trial in self._untestable:
            return False
        if self.test is not None and self.test[0] == best.trial:
            return False
        trial = self.trials[best.trial]
        self._start([self._evaluation(trial, TEST_FOLD)])
        return True

    def _end(self, ended: Ended) -> None:
        if self.ended is None or ended.rank > self.ended.rank:
            self.ended = ended

    # What is known

    @property
    def best(self) -> Best | None:
        """The best complete trial; where there is none, the best on the highest rung reached; None before that."""
        if self._best is not None:
            return self._best
        leader = self._halving.leader()
        if leader is None:
            return None
        trial, rung = leader
        score = self._halving.best(rung)
        assert score is not None
        return Best(trial, self._score(score), complete=False)

    def rung_mix(self) -> tuple[int, ...]:
        """Trials by the highest rung they were started on."""
        return tuple(self._rung_mix)

    def story(self, trial: int) -> list[str]:
        """The latest steps of a trial, oldest first."""
        return [step for number, step in self._story if number == trial]

    def observations(self) -> list[Observation]:
        """All that a sampler would have been told so far, by trial number."""
        told: list[Observation] = []
        for trial in self.trials:
            told.extend(self._observation(trial, mark.rung, self._score(mark.score)) for mark in self._marks(trial))
            if trial.phase is Phase.FAIL:
                told.append(self._observation(trial, trial.rung, None))
            elif trial.reason == "racing":
                told.append(self._observation(trial, self.ladder.last, trial.value))
        return told

    def validate(self) -> None:
        """Assert every invariant; tests call it after every event."""
        in_flight = Counter(key.trial for key in self.pending if key.fold != TEST_FOLD)
        waiting = dict(self._halving.waiting())
        backlog = {trial.number for trial in self._backlog}
        for trial in self.trials:
            if trial.phase is Phase.EVALUATING:
                taken_up = in_flight[trial.number] or trial.number in backlog or self._interrupted
                assert taken_up, f"trial {trial.number} is forgotten"
            else:
                assert not in_flight[trial.number], f"trial {trial.number} is {trial.phase} with work in flight"
            assert (trial.phase is Phase.WAITING) == (trial.number in waiting)
            if trial.phase is Phase.WAITING:
                assert waiting[trial.number] == trial.rung
            if trial.phase is Phase.COMPLETE:
                assert len(self._fold_values(trial, self.ladder.last)) == self.ladder.rungs[-1].folds
            keys = [result.key for result in trial.results]
            assert len(keys) == len(set(keys)), f"trial {trial.number} has a result twice"
        decided = Counter(DECIDED[trial.phase] for trial in self.trials if trial.decided)
        assert decided == +self.counts
        assert sum(self._rung_mix) == len(self.trials)
        assert self._leader == (None if self.best is None else self.best.trial)
        if self._leader is not None:
            assert self._judged_since == sum(later.judged for later in self.trials[self._leader + 1 :])
        if self.budget.trials is not None and self._drawing:
            assert len(self.trials) + self._drawing <= self.budget.trials
        if self.finished:
            assert not self.pending
            if not self._interrupted:
                assert all(trial.decided for trial in self.trials)

    def _fold_values(self, trial: Trial, rung: int) -> list[float]:
        """The trial's values on folds 0, 1, … of the rung, up to the first that is missing."""
        fraction, folds = self.ladder.rungs[rung].fraction, self.ladder.rungs[rung].folds
        values = []
        for fold in range(folds):
            value = trial.values.get((fraction, fold))
            if value is None:
                break
            values.append(value)
        return values

    def _marks(self, trial: Trial) -> list[Finished]:
        """The rungs that the trial finished, lowest first."""
        return [self._mark(trial, rung) for rung in range(trial.rung + 1) if self._has_finished(trial, rung)]

    def _has_finished(self, trial: Trial, rung: int) -> bool:
        return len(self._fold_values(trial, rung)) == self.ladder.rungs[rung].folds

    def _mark(self, trial: Trial, rung: int) -> Finished:
        fraction = self.ladder.rungs[rung].fraction
        seconds = statistics.fmean(
            result.wall_seconds
            for result in trial.results
            if self.ladder.rungs[result.rung].fraction == fraction and result.outcome is Outcome.OK
        )
        return Finished(rung, seconds, self._score(mean(self._fold_values(trial, rung))))

    def _score(self, value: float) -> float:
        """Higher is better; its own inverse."""
        return value if self.maximize else -value

    def _beyond_threshold(self, rung: int, value: float) -> bool:
        config = self.config
        best = self._halving.best(rung)
        if not config.enable_aggressive_pruning or best is None:
            return False
        if self._halving.finished(rung) <= config.min_trials_before_pruning:  # the trial itself is one of them
            return False
        return beyond_threshold(value, self._score(best), threshold=config.pruning_threshold, maximize=self.maximize)

    def _keys_in_flight(self, trial: Trial) -> list[EvaluationKey]:
        # A trial is in flight on its own rung only, so its keys can be named instead of searched for.
        keys = (EvaluationKey(trial.number, trial.rung, fold) for fold in range(self.ladder.rungs[trial.rung].folds))
        return [key for key in keys if key in self.pending]

    def _in_flight(self, trial: Trial) -> bool:
        return bool(self._keys_in_flight(trial))

    def _observation(self, trial: Trial, rung: int, value: float | None) -> Observation:
        return Observation(trial.number, trial.params, trial.distributions, rung, value)

    def _observe(self, trial: Trial, rung: int, value: float) -> None:
        self._commands.append(Observe(self._observation(trial, rung, value)))

    def _count(self, result: EvaluationResult) -> None:
        self.evaluations += 1
        self._evaluations_ok += result.outcome is Outcome.OK
        if result.cached:
            self.cached += 1
        else:
            self._cpu_seconds += result.cpu_seconds
            self.pacing.observe(result.wall_seconds)

    # Resuming

    def _restore(self, record: StudyRecord) -> None:
        """Take up where the record ends."""
        self.test = record.test
        for entry in record.trials:
            trial = Trial(entry.number, entry.params, entry.distributions)
            assert entry.number == len(self.trials), "trial numbers are consecutive"
            self.trials.append(trial)
            self._restore_results(trial, entry)
            self._restore_phase(trial, entry)
            self._rung_mix[trial.rung] += 1
        self._leader = None  # who led meanwhile was counted without the trials that came later
        self._lead()

    def _restore_results(self, trial: Trial, entry: TrialRecord) -> None:
        for result in entry.results:
            trial.results.append(result)
            self._count(result)
            if result.fold == TEST_FOLD:
                if result.outcome is not Outcome.OK:
                    self._untestable.add(trial.number)
                continue
            trial.rung = max(trial.rung, result.rung)
            if result.outcome is Outcome.OK and result.value is not None:
                trial.values[self.ladder.rungs[result.rung].fraction, result.fold] = result.value

    def _restore_phase(self, trial: Trial, entry: TrialRecord) -> None:
        if entry.state.decided and entry.reason == "racing":
            trial.rung = self.ladder.last  # which it may have reached by values of the rung below alone
        marks = self._marks(trial)
        waits = not entry.state.decided and bool(marks) and marks[-1].rung == trial.rung
        for place, mark in enumerate(marks):
            trial.value = self._score(mark.score)
            self._halving.finish(mark.rung, trial.number, mark.score, mark.seconds)
            self.choice.observe(marks[:place], mark)
            if mark.rung < trial.rung:
                self._halving.climb(mark.rung)
        if waits:
            trial.phase = Phase.WAITING
            self._halving.wait(trial.rung, trial.number, marks[-1].score)
        elif not entry.state.decided:
            self._backlog.append(trial)
        else:
            trial.phase = next(phase for phase, state in DECIDED.items() if state is entry.state)
            trial.value, trial.reason = entry.value, entry.reason
            self.counts[entry.state] += 1
            if trial.phase is Phase.FAIL:
                self.failures.append(f"trial {trial.number}: {entry.reason}")
            elif trial.phase is Phase.COMPLETE and entry.value is not None:
                self._on_complete(trial, entry.value)
