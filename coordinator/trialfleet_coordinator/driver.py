"""The one loop: ports -> events -> `StudyState.handle` -> commands -> ports.

A tick takes in what the fleet answered and carries out what the study makes of it, in an order that keeps every
promise whenever the process dies:

1. the store commits all records of the tick in one transaction;
2. the fleet is told that the results are safe;
3. new work is published.

Dying before 1 forgets the tick: its results are delivered again. Dying between 1 and 2 has them delivered twice, and
the second copy changes nothing. Dying before 3 leaves trials without work, which the next session publishes again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from trialfleet_coordinator.budget import Budget, Ended
from trialfleet_coordinator.collecting import nothing_collected
from trialfleet_coordinator.commands import (
    Command,
    DrawTrials,
    GiveUp,
    Observation,
    Observe,
    Record,
    RecordDecision,
    RecordEvaluation,
    RecordRung,
    RecordTerms,
    RecordTest,
    RecordTrial,
    StartEvaluations,
    TrialState,
)
from trialfleet_coordinator.events import (
    EvaluationFinished,
    EvaluationLost,
    Event,
    FleetChanged,
    StopRequested,
    TimePassed,
    TrialsDrawn,
)
from trialfleet_coordinator.ports import Sampler, StudyDefinition, StudyRecord, StudyStore
from trialfleet_coordinator.report import Progress, StudyReport, build_report
from trialfleet_coordinator.study import StudyState
from trialfleet_coordinator.telemetry import NO_TELEMETRY, Telemetry
from trialfleet_coordinator.trial import fraction_of
from trialfleet_shared.caching import CachedResult, ResultCache, key_of
from trialfleet_shared.clock import Clock
from trialfleet_shared.fleet import Attempt, Fleet, LostEvaluation, Poison
from trialfleet_shared.messages import Evaluation, EvaluationKey, EvaluationResult, StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Params

#: Longest wait for the fleet, in seconds: how soon a stop or a new worker is noticed.
TICK_SECONDS = 0.25
#: Records of one transaction, about: a study that the cache answers alone still commits and shows progress.
TICK_RECORDS = 2000


class StudyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that `run_study` needs to know of a study."""

    definition: StudyDefinition
    config: EfficiencyConfig
    #: What workers are told.
    spec: StudySpec
    budget: Budget
    #: Whether the data have a test part.
    has_test: bool


class Outside(NamedTuple):
    """The ports that a study runs on."""

    fleet: Fleet
    store: StudyStore
    #: None: caching is off.
    cache: ResultCache | None
    sampler: Sampler
    clock: Clock
    #: Proportional set size of the coordinator's own process, in bytes.
    memory: Callable[[], int]
    telemetry: Telemetry = NO_TELEMETRY


def run_study(
    plan: StudyPlan,
    record: StudyRecord,
    outside: Outside,
    *,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], str | None],
) -> StudyReport:
    """Run the study to its end, or until `stop` says why not, and report.

    Args:
        plan: the study.
        record: what `StudyStore.open` returned for it.
        outside: the world; the fleet is started here, the sampler told of what is recorded, and everything is left open for
            the caller to close.
        on_progress: called once a tick.
        stop: called once a tick; a text means: take up nothing new, finish what is in flight.

    Raises:
        TrialfleetError: a port failed in a way that it could not mend. What was committed is safe.
    """
    with nothing_collected():
        session = Session(plan, record, outside)
    return session.run(on_progress, stop)


class Session:
    """One run of `run_study`."""

    def __init__(self, plan: StudyPlan, record: StudyRecord, outside: Outside) -> None:
        self._plan = plan
        self._outside = outside
        self._elapsed_before = record.elapsed
        self._terms = RecordTerms(plan.config, plan.budget)
        self._state = StudyState.recorded(record, self._terms, has_test=plan.has_test)
        outside.sampler.restore(
            [(trial.number, trial.params, trial.distributions) for trial in record.trials],
            self._state.standings.observations(),
        )
        self._decided_before = sum(self._state.tally.decided.values())
        self._cpu_seconds_before = self._state.tally.cpu_seconds
        self._started = outside.clock.monotonic()
        #: The fleet as the study was told of it.
        self._told: FleetChanged | None = None
        self._stopping = False
        #: Evaluations by the key of an equal one in flight, whose answer will be theirs.
        self._followers: dict[bytes, list[Evaluation]] = {}
        #: The cache's keys of evaluations that this session published.
        self._keys: dict[EvaluationKey, bytes] = {}
        # The tick's yield, in the order of the module's docstring.
        self._records: list[Record] = []
        if record.terms is not None and self._terms.same_as(record.terms):
            self._terms = record.terms
        else:
            self._records.append(self._terms)
        self._entries: dict[bytes, CachedResult] = {}
        self._misses: list[Evaluation] = []
        self._given_up: list[GiveUp] = []
        #: Trials that the study has asked for.
        self._wanted: range | None = None

    def run(self, on_progress: Callable[[Progress], None], stop: Callable[[], str | None]) -> StudyReport:
        """See `run_study`."""
        fleet = self._outside.fleet
        fleet.start(self._plan.spec)
        self._restart_clock()
        events: deque[Event] = deque()
        while True:
            self._look_around(events, stop)
            self._take_in(events)
            self._note_end()
            self._carry_out()
            progress = self._progress()
            self._outside.telemetry.progressed(progress, self._state.tally.discarded)
            on_progress(progress)
            if self._state.finished and not events:
                return build_report(
                    self._state,
                    study=self._plan.definition.name,
                    elapsed_seconds=self._elapsed(),
                    fleet=fleet.report(),
                    coordinator_pss_bytes=self._outside.memory(),
                )
            if events or self._wanted is not None:
                continue
            results, lost = self._gather()
            events.extend(EvaluationFinished(result) for result in results)
            events.extend(EvaluationLost(*entry) for entry in lost)

    def _gather(self) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """Wait for the fleet; where evaluations are quick, a little longer, so that a tick's cost is many results'."""
        clock = self._outside.clock
        results, lost = self._poll(TICK_SECONDS)
        end = clock.monotonic() + self._state.pacing.gathering_seconds
        # The other half in flight keeps the slots busy meanwhile, and while the tick is carried out.
        while results and 2 * len(results) < len(self._state.pending) and (left := end - clock.monotonic()) > 0:
            more, more_lost = self._poll(left)
            results += more
            lost += more_lost
        return results, lost

    def _poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        results, lost = self._outside.fleet.poll(timeout)
        if results or lost:
            self._outside.telemetry.received(results, lost)
        return results, lost

    def _restart_clock(self) -> None:
        """Time that the fleet took to get ready is not the study's: nothing could be evaluated."""
        self._started = self._outside.clock.monotonic()

    def _elapsed(self) -> float:
        return self._elapsed_before + self._outside.clock.monotonic() - self._started

    @property
    def _slots(self) -> int:
        return 0 if self._told is None else self._told.slots

    def _look_around(self, events: deque[Event], stop: Callable[[], str | None]) -> None:
        fleet = FleetChanged(self._outside.fleet.slots(), self._outside.fleet.workers())
        if fleet != self._told:
            self._told = fleet
            events.append(fleet)
        events.append(TimePassed(self._elapsed()))
        cause = None if self._stopping else stop()
        if cause is not None:
            self._stopping = True
            events.append(StopRequested(cause))

    def _take_in(self, events: deque[Event]) -> None:
        """Handle events, and those that their commands lead to at once, until there are none or the tick is full."""
        while (events or self._wanted is not None) and len(self._records) < TICK_RECORDS:
            # Draws come last: they are then few and large, and the sampler has been told of all that is known.
            happened = list(events) or [self._drawn()]
            events.clear()
            for event in happened:
                if isinstance(event, EvaluationFinished):
                    self._keep(event.result, events)
                elif isinstance(event, EvaluationLost):
                    self._release(event.key)
            self._obey(self._state.handle(*happened), events)

    def _obey(self, commands: Sequence[Command], events: deque[Event]) -> None:
        started: list[Evaluation] = []
        observed: list[Observation] = []
        for command in commands:
            match command:
                case RecordTrial() | RecordEvaluation() | RecordRung() | RecordDecision() | RecordTest():
                    self._records.append(command)
                case Observe(observation):
                    observed.append(observation)
                case DrawTrials(numbers):
                    self._wanted = numbers
                case StartEvaluations(evaluations):
                    started += evaluations
                case GiveUp():
                    self._given_up.append(command)
        if observed:
            began = self._outside.clock.monotonic()
            self._outside.sampler.tell(observed)
            self._outside.telemetry.learned(self._outside.clock.monotonic() - began)
        if started:
            self._look_up(started, events)

    def _drawn(self) -> TrialsDrawn:
        """The trials that the study has asked for; it asks for no others before it has them."""
        assert self._wanted is not None
        numbers, self._wanted = self._wanted, None
        started = self._outside.clock.monotonic()
        draws = self._outside.sampler.ask(numbers)
        self._outside.telemetry.drew(self._outside.clock.monotonic() - started)
        return TrialsDrawn(draws)

    def _look_up(self, evaluations: Sequence[Evaluation], events: deque[Event]) -> None:
        """Answer from the cache what it has, or what an equal evaluation will bring; the rest is for the fleet."""
        cache = self._outside.cache
        if cache is None:
            self._misses.extend(evaluations)
            return
        known = len(self._misses)
        keys = [self._key(evaluation.fraction, evaluation.fold, evaluation.params) for evaluation in evaluations]
        for evaluation, key, kept in zip(evaluations, keys, cache.get_many(keys), strict=True):
            hit = kept or self._entries.get(key)
            if hit is not None:
                events.append(EvaluationFinished(hit.answer(evaluation)))
            elif evaluation.attempt == 0 and key in self._followers:
                self._followers[key].append(evaluation)
            else:
                self._followers.setdefault(key, [])
                self._keys[evaluation.key] = key
                self._misses.append(evaluation)
        misses = len(self._misses) - known
        self._outside.telemetry.looked_up(len(evaluations) - misses, misses)

    def _keep(self, result: EvaluationResult, events: deque[Event]) -> None:
        """Put a fresh value into the cache, once the tick is committed, and answer those that waited for it."""
        trials, ladder = self._state.trials, self._state.ladder
        key = self._keys.pop(result.key, None)
        foreign = result.trial >= len(trials) or result.rung > ladder.last
        # What a worker's cache answered is published work all the same, and others may wait for it.
        if self._outside.cache is None or foreign or (result.cached and key is None):
            return
        key = key or self._key(fraction_of(ladder, result.rung, result.fold), result.fold, trials[result.trial].params)
        followers = self._waiting_for(key)
        entry = CachedResult.of(result)
        if entry is not None:
            self._entries[key] = entry
            events.extend(EvaluationFinished(entry.answer(follower)) for follower in followers)
        else:
            # A crash, a refusal or a timeout may be of the place, not of the params: each has its own chance.
            self._misses.extend(followers)

    def _release(self, lost: EvaluationKey) -> None:
        """Have those that wait for the answer of an evaluation evaluated: it is lost, and perhaps not wanted any more."""
        key = self._keys.pop(lost, None)
        if key is not None:
            self._misses.extend(self._waiting_for(key))

    def _waiting_for(self, key: bytes) -> list[Evaluation]:
        """Those that waited for the answer of an equal one, but for what is decided or was published again meanwhile."""
        pending = self._state.pending
        return [waiting for waiting in self._followers.pop(key, []) if pending.get(waiting.key) == waiting.attempt]

    def _key(self, fraction: float, fold: int, params: Params) -> bytes:
        return key_of(self._plan.spec, fraction=fraction, fold=fold, params=params)

    def _note_end(self) -> None:
        """Record why the study has ended, where its trials do not tell."""
        ended = self._state.ended
        if ended in (Ended.PATIENCE, Ended.EXHAUSTED) and ended is not self._terms.ended:
            self._terms = msgspec.structs.replace(self._terms, ended=ended)
            self._records.append(self._terms)

    def _carry_out(self) -> None:
        fleet, store, cache = self._outside.fleet, self._outside.store, self._outside.cache
        if self._records:
            started = self._outside.clock.monotonic()
            store.commit(self._records, elapsed=self._elapsed())
            self._outside.telemetry.committed(self._records, self._outside.clock.monotonic() - started)
        fleet.acknowledge()
        if self._misses:
            size = self._state.pacing.batch(len(self._misses), self._slots or 1)
            for start in range(0, len(self._misses), size):
                batch = self._misses[start : start + size]
                fleet.submit(batch)
                self._outside.telemetry.published(batch)
        if self._entries and cache is not None:
            cache.put_many(list(self._entries.items()))
        for given_up in self._given_up:
            fleet.bury(self._poison(given_up))
        self._given_up.clear()
        self._records, self._misses, self._entries = [], [], {}

    def _poison(self, given_up: GiveUp) -> Poison:
        """With the time of day in place of the study's own."""
        began = self._outside.clock.time() - self._elapsed()
        attempts = (Attempt(one.attempt, began + one.elapsed, one.worker, one.what) for one in given_up.history)
        return Poison(given_up.evaluation, given_up.reason, tuple(attempts))

    # What is told

    def _progress(self) -> Progress:
        state = self._state
        elapsed = self._elapsed()
        session = max(self._outside.clock.monotonic() - self._started, 1e-9)
        best = state.best
        rate = (sum(state.tally.decided.values()) - self._decided_before) / session
        return Progress(
            study=self._plan.definition.name,
            direction=self._plan.definition.direction,
            ladder=self._plan.definition.ladder,
            elapsed_seconds=elapsed,
            trials=len(state.trials),
            trials_budget=state.budget.trials,
            seconds_budget=state.budget.seconds,
            complete=state.tally.decided[TrialState.COMPLETE],
            pruned=state.tally.decided[TrialState.PRUNED],
            failed=state.tally.decided[TrialState.FAIL],
            cached=state.tally.cached,
            evaluations=state.tally.evaluations,
            best_value=best.value if best else None,
            best_trial=best.trial if best else None,
            rung_mix=state.standings.rung_mix(),
            trials_per_second=rate,
            seconds_left=self._seconds_left(elapsed, session),
            slots=self._slots,
            in_flight=len(state.pending),
            evaluation_seconds=state.pacing.mean_seconds,
            closing=state.ended.value if state.ended else None,
            cpu_seconds=state.tally.cpu_seconds,
            cpu_seconds_budget=state.budget.cpu_seconds,
        )

    def _seconds_left(self, elapsed: float, session: float) -> float | None:
        """The soonest of the budgets' ends; trials and CPU seconds go on as they did in so many seconds of this session."""
        budget, tally = self._state.budget, self._state.tally
        decided = sum(tally.decided.values())
        ends = [] if budget.seconds is None else [max(budget.seconds - elapsed, 0.0)]
        for limit, now, before in (
            (budget.trials, decided, self._decided_before),
            (budget.cpu_seconds, tally.cpu_seconds, self._cpu_seconds_before),
        ):
            if limit is not None and now > before:
                ends.append(max(limit - now, 0.0) * session / (now - before))
        return min(ends, default=None)
