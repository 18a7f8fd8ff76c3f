"""The loop between the study and its ports, on a simulated clock and fleet."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from support.simulated import SimulatedClock, SimulatedFleet

from trialfleet_coordinator import driver
from trialfleet_coordinator.adapters.memory_store import MemoryStudies, MemoryStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import Record, RecordEvaluation, TrialState
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.events import Draw
from trialfleet_coordinator.ports import Observation, StudyDefinition
from trialfleet_coordinator.report import Progress, StudyReport
from trialfleet_coordinator.sampling.drawing import Drawn
from trialfleet_shared.adapters.memory_results import MemoryResultCache
from trialfleet_shared.caching import ResultCache
from trialfleet_shared.errors import StoreError
from trialfleet_shared.fleet import LostEvaluation, Poison
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Float

LADDER = Ladder((Rung(0.1, 1), Rung(0.3, 1), Rung(1.0, 1)))


class Points:
    """A sampler that draws what it is told to, then random points; it remembers what it learnt."""

    def __init__(self, points: Sequence[float] = (), *, seed: int = 0) -> None:
        self._points = list(points)
        self._random = random.Random(seed)
        self.told: list[Observation] = []
        #: Draws of each time it was asked.
        self.asked: list[int] = []
        #: Trials and observations of earlier sessions, as it was told of them when this one began.
        self.restored: list[tuple[list[int], list[Observation]]] = []

    def restore(self, draws: Sequence[Drawn], observations: Sequence[Observation]) -> None:
        self.restored.append(([number for number, _, _ in draws], list(observations)))

    def ask(self, numbers: range) -> list[Draw]:
        self.asked.append(len(numbers))

        def point() -> float:
            return self._points.pop(0) if self._points else self._random.random()

        return [Draw({"x": point()}, {"x": Float(0.0, 1.0)}) for _ in numbers]

    def tell(self, observations: Sequence[Observation]) -> None:
        self.told.extend(observations)


class Few(Points):
    """Has twenty points."""

    def ask(self, numbers: range) -> list[Draw]:
        return super().ask(range(numbers.start, min(numbers.stop, 20))) if numbers.start < 20 else []


def quadratic(evaluation: Evaluation) -> float:
    x = float(evaluation.params["x"])  # type: ignore[arg-type]
    return -((x - 0.3) ** 2)


class World:
    """Everything a study needs; `run` may be called again, as a resumed session on the same store and cache."""

    def __init__(
        self, *, trials: int = 30, slots: int = 2, seconds: float = 1.0, cache: ResultCache | None = None
    ) -> None:
        self.clock = SimulatedClock()
        self.disk = MemoryStudies()
        self.cache = cache
        self.slots = slots
        #: What an evaluation takes on all rows.
        self.seconds = seconds
        self.budget = Budget(trials=trials)
        self.definition = StudyDefinition("s", "maximize", {}, "f", "ab", "", LADDER, 0)
        self.progress: list[Progress] = []
        self.make_fleet: Callable[..., SimulatedFleet] = SimulatedFleet
        self.fleet = self._fleet(quadratic)

    def _fleet(self, function: Callable[[Evaluation], float]) -> SimulatedFleet:
        return self.make_fleet(
            self.clock, function, slots=self.slots, seconds=lambda evaluation: self.seconds * evaluation.fraction
        )

    def run(
        self,
        *,
        function: Callable[[Evaluation], float] = quadratic,
        sampler: Points | None = None,
        stop: Callable[[], str | None] = lambda: None,
        store: MemoryStudyStore | None = None,
    ) -> StudyReport:
        self.fleet = self._fleet(function)
        store = store or MemoryStudyStore(self.disk)
        record = store.open(self.definition)
        plan = StudyPlan(
            definition=self.definition,
            config=EfficiencyConfig(),
            spec=StudySpec(study="s", objective="f", objective_digest="ab"),
            budget=self.budget,
            has_test=False,
        )
        outside = Outside(
            self.fleet, store, self.cache, sampler or Points(seed=len(record.trials)), self.clock, lambda: 2**20
        )
        try:
            return run_study(plan, record, outside, on_progress=self.progress.append, stop=stop)
        finally:
            store.close()


def test_a_study_runs_to_its_end_and_reports() -> None:
    world = World()
    report = world.run()
    assert report.ended == "trials"
    assert report.complete + report.pruned == 30
    assert report.best_is_complete
    assert report.best_params is not None
    best = float(report.best_params["x"])  # type: ignore[arg-type]
    assert all(abs(best - 0.3) <= abs(float(t.params["x"]) - 0.3) for t in report.trials)  # type: ignore[arg-type]
    assert report.rung_evaluations[0] == 30
    assert world.fleet.acknowledged > 0


def test_a_resumed_session_tells_its_sampler_what_is_recorded() -> None:
    world = World()
    first, second = Points(), Points(seed=1)
    world.run(sampler=first)
    world.budget = Budget(trials=40)
    world.run(sampler=second)
    assert first.restored == [([], [])]
    [(drawn, told)] = second.restored
    assert drawn == list(range(30))
    assert sorted(told, key=_place) == sorted(first.told, key=_place)


def _place(observation: Observation) -> tuple[int, int]:
    return observation.trial, observation.rung


def test_the_figures_are_those_of_the_simulated_costs() -> None:
    metrics = World(slots=2).run().efficiency_metrics
    assert metrics.baseline_cpu_seconds == pytest.approx(30.0), "thirty trials of one second each on all rows"
    saved = metrics.saved_cpu_seconds
    assert metrics.spent_cpu_seconds + saved.subsampling + saved.pruning == pytest.approx(30.0)
    assert metrics.speedup_factor == pytest.approx(30.0 / metrics.total_time_seconds)
    assert metrics.parallel_efficiency > 0.9
    assert metrics.memory_usage_mb == 2.0


def test_progress_ends_with_every_trial_decided() -> None:
    world = World()
    world.run()
    last = world.progress[-1]
    assert (last.complete + last.pruned, last.trials, last.in_flight) == (30, 30, 0)
    assert sum(last.rung_mix) == 30
    assert world.progress[0].best_value is None


def test_the_time_left_is_that_of_the_budget_that_ends_first() -> None:
    world = World(trials=100_000)
    world.budget = Budget(trials=100_000, seconds=1e6, cpu_seconds=100.0)
    end = world.run().efficiency_metrics.total_time_seconds
    halfway = next(progress for progress in world.progress if progress.cpu_seconds >= 50.0)
    assert halfway.cpu_seconds_budget == 100.0
    assert halfway.seconds_left == pytest.approx(end - halfway.elapsed_seconds, rel=0.2)
    world.budget = Budget(trials=100_000, cpu_seconds=200.0)
    world.progress.clear()
    world.run()
    assert world.progress[0].seconds_left is None, "of this session nothing is known yet"


@pytest.mark.parametrize("ended", ["patience", "exhausted"])
def test_a_study_that_ended_has_ended_when_it_is_run_again(ended: str) -> None:
    """Whoever led when patience ran out need not lead once all have climbed; a sampler that has no point left is not asked."""
    world = World(trials=1000)
    world.budget = Budget(trials=1000, patience=8 if ended == "patience" else None)
    points = Points(seed=3) if ended == "patience" else Few(seed=3)
    first = world.run(sampler=points)
    assert first.ended == ended
    again = world.run(sampler=Points(seed=4))
    assert (again.ended, len(again.trials)) == (ended, len(first.trials))
    assert again.efficiency_metrics.saved_cpu_seconds == first.efficiency_metrics.saved_cpu_seconds
    world.budget = Budget(trials=len(first.trials) + 5)
    more = world.run(sampler=Points(seed=4))
    assert (more.ended, len(more.trials)) == ("trials", len(first.trials) + 5), "by other terms it goes on"


def test_quick_results_are_committed_and_drawn_for_many_at_a_time() -> None:
    world, sampler = World(trials=1000, seconds=0.002), Points()
    report = world.run(sampler=sampler)
    assert report.complete + report.pruned == sum(sampler.asked) == 1000
    assert len(sampler.asked) < 200
    assert world.fleet.acknowledged < report.evaluations / 5


def test_slow_results_are_committed_as_they_come() -> None:
    world = World(trials=100)
    report = world.run()
    assert world.fleet.acknowledged >= report.evaluations


def test_repeated_params_are_answered_by_the_cache_and_never_reach_the_fleet() -> None:
    clock = SimulatedClock()
    world = World(trials=6, slots=1, cache=MemoryResultCache(size=100, ttl_hours=1.0, clock=clock))
    report = world.run(sampler=Points([0.1, 0.2, 0.3] * 2))
    assert report.cached == report.evaluations - len(world.fleet.submitted)
    assert len({(e.fraction, e.params["x"]) for e in world.fleet.submitted}) == len(world.fleet.submitted)
    assert report.cached >= 3
    assert report.efficiency_metrics.cache_hit_rate == report.cached / report.evaluations
    assert report.efficiency_metrics.saved_cpu_seconds.caching > 0


def test_equal_evaluations_in_flight_at_once_are_run_once() -> None:
    world = World(trials=4, slots=4, cache=MemoryResultCache(size=9, ttl_hours=1.0, clock=SimulatedClock()))
    report = world.run(sampler=Points([0.5] * 4))
    assert [(e.fraction, e.params["x"]) for e in world.fleet.submitted] == [(0.1, 0.5), (0.3, 0.5), (1.0, 0.5)]
    assert report.complete == 3
    assert report.complete + report.pruned == 4


def test_an_answer_of_a_worker_s_cache_is_for_equal_evaluations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SimulatedFleet,
        "_evaluate",
        lambda fleet, evaluation, seconds, evaluate=SimulatedFleet._evaluate: msgspec.structs.replace(
            evaluate(fleet, evaluation, seconds), cached=True
        ),
    )
    world = World(trials=4, slots=4, cache=MemoryResultCache(size=9, ttl_hours=1.0, clock=SimulatedClock()))
    report = world.run(sampler=Points([0.5] * 4), stop=lambda: "stuck" if world.clock.now > 2000 else None)
    assert (report.ended, report.complete + report.pruned) == ("trials", 4)


def test_the_followers_of_a_failed_evaluation_get_their_own_chance() -> None:
    failures = 0

    def fails_once(evaluation: Evaluation) -> float:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise ValueError("out of luck")
        return quadratic(evaluation)

    world = World(trials=3, slots=3, cache=MemoryResultCache(size=9, ttl_hours=1.0, clock=SimulatedClock()))
    report = world.run(function=fails_once, sampler=Points([0.5] * 3))
    assert (report.failed, report.complete) == (1, 2)


def test_the_cache_serves_the_next_study() -> None:
    clock = SimulatedClock()
    world = World(trials=10, cache=MemoryResultCache(size=100, ttl_hours=1.0, clock=clock))
    first = world.run(sampler=Points(seed=5))
    world.disk = MemoryStudies()
    second = world.run(sampler=Points(seed=5))
    assert not world.fleet.submitted
    assert second.best_value == first.best_value


def test_without_a_cache_everything_is_evaluated() -> None:
    world = World(trials=6)
    report = world.run(sampler=Points([0.1] * 6))
    assert report.cached == 0
    assert len(world.fleet.submitted) == report.evaluations


def test_a_stopped_study_goes_on_where_it_was() -> None:
    world = World()
    asked = 0

    def stop_soon() -> str | None:
        nonlocal asked
        asked += 1
        return "SIGINT" if asked == 12 else None

    first = world.run(stop=stop_soon)
    assert first.ended == "stopped"
    assert first.undecided > 0
    started = len(first.trials)
    second = world.run()
    assert second.ended == "trials"
    assert len(second.trials) == 30
    assert [t.params for t in second.trials[:started]] == [t.params for t in first.trials]
    assert second.efficiency_metrics.total_time_seconds > first.efficiency_metrics.total_time_seconds


class FailingStore(MemoryStudyStore):
    """Its disk is full at the given commit."""

    def __init__(self, disk: MemoryStudies, *, commits: int) -> None:
        super().__init__(disk)
        self._left = commits

    def commit(self, records: Sequence[Record], *, elapsed: float) -> None:
        self._left -= 1
        if self._left < 0:
            raise StoreError("disk full")
        super().commit(records, elapsed=elapsed)


@pytest.mark.parametrize("commits", [0, 1, 5, 20])
def test_what_was_committed_survives_a_store_that_fails(commits: int) -> None:
    """The same as a coordinator that dies between two commits: nothing is lost, nothing counted twice."""
    world = World()
    with pytest.raises(StoreError, match="disk full"):
        world.run(store=FailingStore(world.disk, commits=commits))
    report = world.run()
    assert report.complete + report.pruned == len(report.trials) == 30
    assert report.evaluations == sum(trial.evaluations for trial in report.trials)


def test_nothing_is_published_before_its_trial_is_committed() -> None:
    world = World()
    with pytest.raises(StoreError):
        world.run(store=FailingStore(world.disk, commits=0))
    assert world.fleet.submitted == []


def test_a_study_whose_first_trials_all_fail_says_why() -> None:
    def broken(_: Evaluation) -> float:
        raise ValueError("no such column")

    report = World().run(function=broken)
    assert report.ended == "failed"
    assert "no such column" in report.ended_because


def test_what_fails_on_all_rows_is_not_the_best() -> None:
    def fails_where_it_promises_most(evaluation: Evaluation) -> float:
        x = float(evaluation.params["x"])  # type: ignore[arg-type]
        if evaluation.fraction == 1 and x > 0.5:
            raise ValueError("diverged")
        return x

    for trials in (3, 30):
        report = World(trials=trials).run(function=fails_where_it_promises_most, sampler=Points([0.9, 0.8, 0.1]))
        assert report.failed > 0
        assert report.best_trial is not None
        assert report.trials[report.best_trial].state is not TrialState.FAIL


def test_the_sampler_learns_every_rung_of_every_trial() -> None:
    sampler = Points(seed=1)
    report = World().run(sampler=sampler)
    assert len(sampler.told) == sum(report.rung_evaluations)


class ForgetfulFleet(SimulatedFleet):
    """Loses the first evaluations that it is given; it notices once it is polled again."""

    def __init__(self, *args: Any, losses: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._losses = losses
        self._lost: list[LostEvaluation] = []

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        lost = evaluations[: self._losses]
        self._losses -= len(lost)
        self._lost += [LostEvaluation(evaluation.key, evaluation.attempt, "gone") for evaluation in lost]
        super().submit(evaluations[len(lost) :])

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        lost, self._lost = self._lost, []
        return ([], lost) if lost else super().poll(timeout)


def test_those_that_wait_for_the_answer_of_a_lost_evaluation_are_evaluated_themselves() -> None:
    """Stopped meanwhile, the study does not publish the lost one again; others that wait for it must not wait for ever."""
    world = World(trials=3, slots=3, cache=MemoryResultCache(size=9, ttl_hours=1.0, clock=SimulatedClock()))
    world.make_fleet = partial(ForgetfulFleet, losses=1)
    asked = 0

    def stop_soon() -> str | None:
        nonlocal asked
        asked += 1
        assert asked < 1000, "the study does not end"
        return "SIGINT" if asked == 2 else None

    assert world.run(sampler=Points([0.5] * 3), stop=stop_soon).ended == "stopped"


class RefusingFleet(SimulatedFleet):
    """Refuses trial 6 after a long time; all others, and further attempts, are answered."""

    def __init__(self, clock: SimulatedClock, function: Callable[[Evaluation], float], **kwargs: Any) -> None:
        super().__init__(clock, function, **kwargs | {"seconds": self._takes})

    def _takes(self, evaluation: Evaluation) -> float:
        return 50.0 + evaluation.attempt if evaluation.trial >= 6 else 1.0

    def _evaluate(self, evaluation: Evaluation, seconds: float) -> EvaluationResult:
        result = super()._evaluate(evaluation, seconds)
        if evaluation.trial == 6 and evaluation.attempt == 0:
            result = msgspec.structs.replace(result, outcome=Outcome.REFUSED, value=None)
        return result


def test_one_that_waited_and_was_published_meanwhile_is_not_published_as_the_attempt_before() -> None:
    """Else the fleet would keep a lease on that attempt, and not miss the later one."""
    world = World(trials=8, slots=8, cache=MemoryResultCache(size=99, ttl_hours=1.0, clock=SimulatedClock()))
    world.make_fleet = RefusingFleet
    world.run(sampler=Points([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7]))
    attempts = [evaluation.attempt for evaluation in world.fleet.submitted if evaluation.trial == 7]
    assert 1 in attempts
    assert attempts == sorted(attempts)


class RepeatingFleet(SimulatedFleet):
    """Answers twice, as a broker does whose acknowledgements are lost."""

    def __init__(self, clock: SimulatedClock, function: Callable[[Evaluation], float], **kwargs: Any) -> None:
        super().__init__(clock, function, **kwargs)
        self._before: list[EvaluationResult] = []

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        results, lost = super().poll(timeout)
        again, self._before = self._before, results
        return results + again, lost


def test_an_answer_that_comes_again_is_kept_for_the_rows_it_is_of() -> None:
    """Else the value of a few rows would answer for all of them."""

    def by_rows(evaluation: Evaluation) -> float:
        return quadratic(evaluation) + evaluation.fraction

    plain = World(trials=9).run(function=by_rows)
    world = World(trials=9, cache=MemoryResultCache(size=99, ttl_hours=1.0, clock=SimulatedClock()))
    world.make_fleet = RepeatingFleet
    report = world.run(function=by_rows)
    assert (report.best_value, report.cached) == (plain.best_value, 0)


def test_nothing_is_acknowledged_while_some_of_it_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick takes in so many records; what the fleet gave beyond that is for the next one."""
    monkeypatch.setattr(driver, "TICK_RECORDS", 1)
    world = World(trials=6, slots=6, seconds=1.0)
    unrecorded = 0

    class Fleet(SimulatedFleet):
        """Gives all that it has at once, and looks at what is recorded when it is told that all is."""

        def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
            nonlocal unrecorded
            results: list[EvaluationResult] = []
            while self._running or not results:
                more, _ = super().poll(timeout)
                results += more
            unrecorded += len(results)
            return results, []

        def acknowledge(self) -> None:
            assert unrecorded == 0
            super().acknowledge()

    class Store(MemoryStudyStore):
        def commit(self, records: Sequence[Record], *, elapsed: float) -> None:
            nonlocal unrecorded
            unrecorded -= sum(isinstance(record, RecordEvaluation) for record in records)
            super().commit(records, elapsed=elapsed)

    world.make_fleet = Fleet
    report = world.run(store=Store(world.disk))
    assert report.complete + report.pruned == 6
    assert world.fleet.acknowledged > 0


def test_what_is_given_up_on_is_buried_with_the_time_of_day_once_it_is_recorded() -> None:
    world = World(trials=4)
    fleets: list[SimulatedFleet] = []

    class Fleet(SimulatedFleet):
        """Everything of trial 2 kills its slot."""

        def start(self, spec: StudySpec) -> None:
            fleets.append(self)
            super().start(spec)

        def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
            results, lost = super().poll(timeout)
            dead = {"outcome": Outcome.CRASH, "value": None, "error": "killed by SIGSEGV", "worker": "w"}
            return [msgspec.structs.replace(one, **(dead if one.trial == 2 else {})) for one in results], lost

        def bury(self, poison: Poison) -> None:
            (record,) = world.disk.studies.values()
            assert record.trials[2].state is TrialState.FAIL
            super().bury(poison)

    world.make_fleet = Fleet
    report = world.run()
    assert report.failed == 1
    ((evaluation, reason, attempts),) = fleets[0].buried
    assert (evaluation.trial, evaluation.attempt) == (2, 2)
    assert reason == "killed its slot 3 times, the last time: killed by SIGSEGV"
    assert [(one.attempt, one.worker, one.what) for one in attempts] == [
        (n, "w", "killed by SIGSEGV") for n in range(3)
    ]
    assert 1_000.0 < attempts[0].at < attempts[1].at < attempts[2].at <= world.clock.now
