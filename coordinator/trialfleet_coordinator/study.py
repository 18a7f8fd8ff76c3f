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
at the end is run a second time: see `attempts`. How the trials compare is in `standings`, what is counted in
`tally`, and what a record says of a trial in `resuming`; all of it is changed here alone.
"""

import math
from collections import Counter, deque
from typing import Self

from trialfleet_coordinator.attempts import CRASHES, LOSSES, Attempts, Retry, reason_of
from trialfleet_coordinator.batching import Pacing
from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.commands import (
    Command,
    DrawTrials,
    GiveUp,
    Observe,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTerms,
    RecordTest,
    RecordTrial,
    StartEvaluations,
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
from trialfleet_coordinator.ports import StudyRecord
from trialfleet_coordinator.promotion import mean
from trialfleet_coordinator.resuming import restored_trial
from trialfleet_coordinator.standings import Best, Standings
from trialfleet_coordinator.tally import Tally
from trialfleet_coordinator.trial import DECIDED, Phase, Story, Trial
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import TEST_FOLD, Evaluation, EvaluationKey, EvaluationResult, Outcome
from trialfleet_shared.settings import EfficiencyConfig

#: A study whose first trials all fail stops after so many: something is wrong with the objective, not with the params. Where
#: seven params of ten fail, three studies of a hundred end so; of five trials it were seventeen.
FIRST_FAILURES = 10


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
        #: Why no new trials are taken up; None while they are.
        self.ended: Ended | None = None
        #: Whether every evaluation is answered and every trial that will be decided is decided.
        self.finished = False
        #: Score of a trial on the test part, as (trial, value).
        self.test: tuple[int, float] | None = None
        self.tally = Tally()
        self.standings = Standings(ladder, config, maximize=maximize, defer_dear=budget.time_runs_out)
        #: All trials, by number.
        self.trials = self.standings.trials
        self._attempts = Attempts()
        #: Evaluations in flight and the attempt that is.
        self.pending = self._attempts.pending
        self.pacing = Pacing(config.batch_size)
        self.slots = 0
        #: New trials that the sampler was asked for.
        self._drawing = 0
        #: Trials of an earlier session whose evaluations are to be published again.
        self._backlog: deque[Trial] = deque()
        #: Trials whose test evaluation failed: it is not tried twice.
        self._untestable: set[int] = set()
        #: Seconds that the study ran.
        self._elapsed = 0.0 if record is None else record.elapsed
        self._story = Story()
        self._commands: list[Command] = []
        if record is not None:
            self._restore(record)

    @classmethod
    def recorded(cls, record: StudyRecord, terms: RecordTerms, *, has_test: bool) -> Self:
        """The state of a recorded study that is run by `terms`; `has_test` as above."""
        return cls(
            ladder=record.definition.ladder,
            maximize=record.definition.direction == "maximize",
            config=terms.config,
            budget=terms.budget,
            has_test=has_test,
            record=record,
        )

    # Events

    def handle(self, *events: Event) -> list[Command]:
        """Take in what happened; the answer is what is to be done about it, in this order.

        Of events that are given together all are taken in before anything is decided on the strength of them: new trials
        are then asked for once, not one for the first result and the others later.
        """
        self._commands = []
        if self.finished:
            self.tally.discarded["late"] += sum(isinstance(event, EvaluationFinished) for event in events)
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
            case FleetChanged(slots, workers):
                self.slots = slots
                self._attempts.workers = workers
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
            trial.rung = self.standings.choice.start(trial.number)
            self.standings.add(trial)
            self._commands.append(RecordTrial(trial.number, trial.params, trial.distributions))
            self._publish(trial)
        if exhausted:
            self._end(Ended.EXHAUSTED)

    def _on_result(self, result: EvaluationResult) -> None:
        key = result.key
        if key not in self.pending and not self._take_up(result):
            known = result.trial < len(self.trials)
            self.tally.discarded["duplicate" if known else "unknown"] += 1
            return
        if result.outcome is not Outcome.OK:
            if result.outcome in (Outcome.REFUSED, Outcome.CRASH) and self._tries_again(result):
                return
            if result.outcome.may_be_of_the_place and result.attempt < self.pending[key]:
                self.tally.discarded["late"] += 1
                return
        self._attempts.answer(result, self._elapsed)
        trial = self.trials[result.trial]
        self._commands.append(RecordEvaluation(result))
        self._count(result)
        self.standings.hear(result)
        trial.results.append(result)
        if result.fold == TEST_FOLD:
            self._on_test(trial, result)
        elif result.outcome is Outcome.OK:
            assert result.value is not None
            trial.values[self.ladder.rungs[result.rung].fraction, result.fold] = result.value
            self._on_value(trial)
        elif result.outcome is Outcome.PRUNED:
            self._decide(trial, Phase.PRUNED, trial.value, "objective")
            self._observe(trial, trial.rung, None, pruned=True)
        else:
            often = f"{CRASHES} times, the last time: " if result.outcome is Outcome.CRASH else ""
            self._fail(trial, f"{result.outcome.value}: {often}{reason_of(result)}")

    def _tries_again(self, result: EvaluationResult) -> bool:
        """Whether another attempt will answer in place of one that was refused or killed its slot."""
        crashed = result.outcome is Outcome.CRASH
        match self._attempts.crash(result, self._elapsed) if crashed else self._attempts.refuse(result):
            case Retry.LATE:
                self.tally.discarded["late"] += 1
            case Retry.AGAIN:
                self._publish_again(result.key)
            case Retry.NEVER:
                if crashed:
                    reason = f"killed its slot {CRASHES} times, the last time: {reason_of(result)}"
                    self._give_up(result.key, reason)
                return False
        return True

    def _give_up(self, key: EvaluationKey, reason: str) -> None:
        evaluation = self.trials[key.trial].evaluation(self.ladder, key.fold, self.pending[key])
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
        self._attempts.adopt(result)
        return True

    def _on_lost(self, key: EvaluationKey, attempt: int, reason: str) -> None:
        match self._attempts.lose(key, attempt, reason, self._elapsed):
            case Retry.LATE:
                self.tally.discarded["lost late"] += 1
            case Retry.AGAIN:
                self._publish_again(key)
            case Retry.NEVER:
                often = f"{LOSSES} times, the last time because {reason}"
                self._give_up(key, f"lost {often}")
                if key.fold == TEST_FOLD:
                    self._attempts.forget(key)
                    self._untestable.add(key.trial)
                else:
                    self._fail(self.trials[key.trial], f"lost: {often}")

    def _on_test(self, trial: Trial, result: EvaluationResult) -> None:
        if result.outcome is Outcome.OK:
            assert result.value is not None
            self.test = (trial.number, result.value)
            self._commands.append(RecordTest(trial.number, result.value))
        else:
            self._give_up_test(trial.number, result)

    def _give_up_test(self, trial: int, result: EvaluationResult) -> None:
        self._untestable.add(trial)
        self.tally.failures.append(f"trial {trial} on the test part: {result.outcome.value}: {result.error}")

    # One trial

    def _on_value(self, trial: Trial) -> None:
        """A fold came in: the rung may be finished, or the race decided."""
        rung = self.ladder.rungs[trial.rung]
        values = trial.fold_values(self.ladder, trial.rung)
        if len(values) == rung.folds:
            self._on_rung(trial, mean(values))
        elif not self._keys_in_flight(trial):
            self._publish(trial)

    def _on_rung(self, trial: Trial, value: float) -> None:
        """The trial has all folds of its rung."""
        self.standings.finish(trial, value)
        self._commands.append(RecordRung(trial.number, trial.rung, value))
        self._observe(trial, trial.rung, value)
        if trial.rung == self.ladder.last:
            self._decide(trial, Phase.COMPLETE, value, "complete")
            self.standings.complete(trial, value)
            self._end_at_target()
        elif self.standings.beyond_threshold(trial, value):
            self._decide(trial, Phase.PRUNED, value, "threshold")
        else:
            self._story.move(trial, Phase.WAITING, f"finished rung {trial.rung}")
            self.standings.wait(trial)
            self._give_up_hopeless()

    def _end_at_target(self) -> None:
        best, target, score = self.standings.best_complete, self.budget.target, self.standings.score
        if best is not None and target is not None and score(best.value) >= score(target):
            self._end(Ended.TARGET)

    def _promote(self, trial: Trial) -> None:
        rung = trial.rung
        self.standings.climb(trial)
        self._story.move(trial, Phase.EVALUATING, f"promoted from rung {rung}")
        self._publish(trial)

    def _publish(self, trial: Trial) -> None:
        """Have the next folds of the trial's rung evaluated; on the last rung, one at a time while it races."""
        if self._interrupted:
            return  # it stays undecided, and is taken up again when the study is resumed
        if not self._climbs_on:
            self._decide(trial, Phase.PRUNED, trial.value, "budget")
            return
        rung = self.ladder.rungs[trial.rung]
        missing = [fold for fold in range(rung.folds) if (rung.fraction, fold) not in trial.values]
        if trial.rung == self.ladder.last:
            verdict = self.standings.race(trial)
            if verdict is not None and not verdict.goes_on:
                expected = self.standings.score(verdict.expected)
                self._observe(trial, trial.rung, expected)
                self._decide(trial, Phase.PRUNED, expected, "racing")
                return
            if self.standings.races:
                missing = missing[:1]
        self._start([trial.evaluation(self.ladder, fold) for fold in missing])

    def _start(self, evaluations: list[Evaluation]) -> None:
        for evaluation in evaluations:
            self._attempts.begin(evaluation.key, evaluation.attempt, self._elapsed)
        self._commands.append(StartEvaluations(evaluations))

    def _publish_again(self, key: EvaluationKey) -> None:
        if self._interrupted:
            self._attempts.forget(key)
            return
        self._start([self.trials[key.trial].evaluation(self.ladder, key.fold, self.pending[key] + 1)])

    def _run_stragglers_again(self) -> None:
        """Nothing new will be taken up: idle slots run what straggles a second time, and the first answer wins."""
        if self.ended is None or self._interrupted:
            return
        for key in self._attempts.stragglers(self._elapsed, idle=self.slots - len(self.pending)):
            self._publish_again(key)

    def _fail(self, trial: Trial, reason: str) -> None:
        self.tally.failures.append(f"trial {trial.number}: {reason}")
        self._decide(trial, Phase.FAIL, None, reason)
        self._observe(trial, trial.rung, None)
        if self.tally.all_failed and self.first_failures >= FIRST_FAILURES:
            self._end(Ended.FAILED)

    def _decide(self, trial: Trial, phase: Phase, value: float | None, reason: str) -> None:
        for key in self._keys_in_flight(trial):
            self._attempts.forget(key)
        effort = trial.effort
        rung = trial.rung if reason == "racing" else effort.rung  # as `resuming` has it
        self.standings.decide(trial, rung, failed=phase is Phase.FAIL)
        self._story.move(trial, phase, reason)
        trial.value = value
        trial.reason = reason
        self.tally.decided[DECIDED[phase]] += 1
        self._commands.append(RecordDecision(trial.number, DECIDED[phase], value, reason, effort))

    def _observe(self, trial: Trial, rung: int, value: float | None, *, pruned: bool = False) -> None:
        self._commands.append(Observe(trial.observation(rung, value, pruned=pruned)))

    def _keys_in_flight(self, trial: Trial) -> list[EvaluationKey]:
        # A trial is in flight on its own rung only, so its keys can be named instead of searched for.
        keys = (EvaluationKey(trial.number, trial.rung, fold) for fold in range(self.ladder.rungs[trial.rung].folds))
        return [key for key in keys if key in self.pending]

    # The whole study

    def _advance(self) -> None:
        """Fill the slots; where nothing is left to do, decide what waits, and finish."""
        if self.budget.cpu_seconds is not None and self.tally.cpu_seconds >= self.budget.cpu_seconds:
            self._end(Ended.CPU_SECONDS)
        if self.ended is None and self._out_of_patience:
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
            for number, _ in self.standings.halving.waiting():
                self._decide(self.trials[number], Phase.PRUNED, self.trials[number].value, reason)
            if self._start_test():
                return
            if self.tally.all_failed:
                self._end(Ended.FAILED)
        self.finished = True

    @property
    def _out_of_patience(self) -> bool:
        """Whether trials that might still be started are not."""
        patience, trials = self.budget.patience, self.budget.trials
        some_left = trials is None or len(self.trials) < trials
        return patience is not None and some_left and self.standings.since_best >= patience

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
        left = math.inf if self.budget.seconds is None else self.budget.seconds - self._elapsed
        target = max(self.pacing.in_flight(self.slots, seconds_left=left), self._fewest_in_flight)
        # Where time ends the study there is no moment at which all trials are started.
        early = self.config.adaptive_trial_allocation or self.budget.time_runs_out
        while len(self.pending) < target and self._climbs_on and not self._drawing:
            if self._backlog:
                self._publish(self._backlog.popleft())
            elif not (self._take_promotion(early=early) or self._draw(target)):
                break
        while self._backlog and not self._climbs_on:
            self._publish(self._backlog.popleft())

    @property
    def _fewest_in_flight(self) -> int:
        """One even while there are no slots: it waits for the first worker to come. None while all slots are other studies'.

        A study that closes waits in any case, or it would leave off where it has nothing in flight.
        """
        others_have_all = self.slots == 0 and bool(self._attempts.workers) and self.ended is None
        return 0 if others_have_all else 1

    def _take_promotion(self, *, early: bool) -> bool:
        """Promote one trial; `early` says whether promotions go before new trials."""
        closing = self.ended is not None
        if not (early or closing):
            return False
        promotion = self.standings.candidate(closing=closing)
        if promotion is None:
            return False
        self._promote(self.trials[promotion.trial])
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
        raced = self.ladder.last == 0 and self.standings.races
        return 1 if raced else self.ladder.rungs[self.standings.choice.first].folds

    def _give_up_hopeless(self) -> None:
        if self.budget.trials is not None and not self._interrupted:
            for number in self.standings.halving.hopeless(max(self.budget.trials, len(self.trials))):
                self._decide(self.trials[number], Phase.PRUNED, self.trials[number].value, "halving")

    def _start_test(self) -> bool:
        best = self.standings.best_complete
        if not self.has_test or best is None or best.trial in self._untestable:
            return False
        if self.test is not None and self.test[0] == best.trial:
            return False
        trial = self.trials[best.trial]
        self._start([trial.evaluation(self.ladder, TEST_FOLD)])
        return True

    def _end(self, ended: Ended) -> None:
        if self.ended is None or ended.rank > self.ended.rank:
            self.ended = ended

    def _count(self, result: EvaluationResult) -> None:
        self.tally.count(result)
        if not result.cached:
            self.pacing.observe(result.wall_seconds)

    # What is known

    @property
    def first_failures(self) -> int:
        """How many trials failed before the first, by number, that did not, or is not decided; who prunes itself is left out.

        Not how many failed first: to fail takes no time, and the good ones may be under way yet.
        """
        count = 0
        for trial in self.trials:
            if trial.phase is Phase.FAIL:
                count += 1
            elif trial.phase is not Phase.PRUNED or trial.value is not None:
                break
        return count

    @property
    def best(self) -> Best | None:
        """The best complete trial; where there is none, the best on the highest rung reached; None before that."""
        return self.standings.best

    def validate(self) -> None:
        """Assert every invariant; tests call it after every event."""
        in_flight = Counter(key.trial for key in self.pending if key.fold != TEST_FOLD)
        backlog = {trial.number for trial in self._backlog}
        for trial in self.trials:
            if trial.phase is Phase.EVALUATING:
                taken_up = in_flight[trial.number] or trial.number in backlog or self._interrupted
                assert taken_up, f"trial {trial.number} is forgotten"
            else:
                assert not in_flight[trial.number], f"trial {trial.number} is {trial.phase} with work in flight"
            if trial.phase is Phase.COMPLETE:
                assert self.ladder.last in trial.finished(self.ladder)
            keys = [result.key for result in trial.results]
            assert len(keys) == len(set(keys)), f"trial {trial.number} has a result twice"
        decided = Counter(DECIDED[trial.phase] for trial in self.trials if trial.decided)
        assert decided == +self.tally.decided
        self.standings.validate()
        if self.budget.trials is not None and self._drawing:
            assert len(self.trials) + self._drawing <= self.budget.trials
        if self.finished:
            assert not self.pending
            if not self._interrupted:
                assert all(trial.decided for trial in self.trials)

    # Resuming

    def _restore(self, record: StudyRecord) -> None:
        """Take up where the record ends."""
        self.test = record.test
        trials = [restored_trial(entry, self.ladder) for entry in record.trials]
        assert [trial.number for trial in trials] == list(range(len(trials))), "trial numbers are consecutive"
        for trial in trials:
            for result in trial.results:
                self._count(result)
                if result.fold == TEST_FOLD and result.outcome is not Outcome.OK:
                    self._give_up_test(trial.number, result)
            if trial.decided:
                self.tally.decided[DECIDED[trial.phase]] += 1
            if trial.phase is Phase.FAIL:
                self.tally.failures.append(f"trial {trial.number}: {trial.reason}")
            elif trial.phase is Phase.EVALUATING:
                self._backlog.append(trial)
        self.standings.restore(trials)
        self._end_at_target()
        # Trials that climbed since may have changed who leads: what led to the end is not to be seen any more.
        terms = record.terms
        if terms is not None and terms.ended is not None and terms.same_as(RecordTerms(self.config, self.budget)):
            self._end(terms.ended)
