"""trialfleet in the simulated world: the real coordinator (`run_study`), on a simulated clock and fleet."""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence

from trialfleet_coordinator.adapters.memory_store import MemoryStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.ports import StudyDefinition
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_shared.fleet import FleetReport, LostEvaluation
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Trace


class SimulatedClock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Simulated seconds."""
        return self.now

    def time(self) -> float:
        """Simulated seconds."""
        return self.now


class SimulatedFleet:
    """Workers that answer from the surrogate; see `trialfleet_shared.fleet.Fleet`."""

    def __init__(self, clock: SimulatedClock, problem: Problem, trace: Trace, *, slots: int, seconds: float) -> None:
        self._clock = clock
        self._problem = problem
        self._trace = trace
        self._slots = slots
        self._seconds = seconds
        self._queue: deque[tuple[Evaluation, float, float]] = deque()
        self._running: list[tuple[float, int, Evaluation, float, float]] = []
        self._order = itertools.count()
        self._busy = 0.0

    def start(self, spec: StudySpec) -> None:
        """Nothing has to get ready."""

    def slots(self) -> int:
        """As many as there are workers."""
        return self._slots

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Take them up in this order."""
        scores, costs = self._problem.evaluate(
            [evaluation.params for evaluation in evaluations], [evaluation.fraction for evaluation in evaluations]
        )
        self._queue.extend(zip(evaluations, scores, costs, strict=True))

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """The next result; the clock moves on to its time."""
        while self._queue and len(self._running) < self._slots:
            evaluation, score, cost = self._queue.popleft()
            heapq.heappush(self._running, (self._clock.now + cost, next(self._order), evaluation, score, cost))
        if not self._running:
            self._clock.now += timeout
            return [], []
        self._clock.now, _, evaluation, score, cost = heapq.heappop(self._running)
        self._busy += cost
        if self._clock.now <= self._seconds:
            self._trace.observe(self._clock.now, evaluation.params, evaluation.fraction, score)
        result = EvaluationResult(
            trial=evaluation.trial,
            rung=evaluation.rung,
            fold=evaluation.fold,
            attempt=evaluation.attempt,
            outcome=Outcome.OK,
            value=score,
            wall_seconds=cost,
            cpu_seconds=cost,
        )
        return [result], []

    def acknowledge(self) -> None:
        """Nothing is delivered twice."""

    def report(self) -> FleetReport:
        """What the workers did."""
        return FleetReport(self._slots, 1, self._busy, self._clock.now * self._slots, 0)

    def close(self) -> None:
        """Nothing is held."""


def run_trialfleet(problem: Problem, *, workers: int, seconds: float, seed: int) -> Trace:
    """Run a study in mode `balanced` with a budget of seconds."""
    config = EfficiencyConfig.balanced()
    clock, trace, store = SimulatedClock(), Trace(), MemoryStudyStore()
    definition = StudyDefinition(
        name=f"{problem.name}-{problem.instance}",
        direction="maximize",
        space=problem.space.describe(),
        objective=problem.name,
        objective_digest="",
        data_digest="",
        ladder=config.ladder_for(rows=None, folds=1, has_fidelity=True),
        seed=seed,
    )
    plan = StudyPlan(
        definition=definition,
        config=config,
        spec=StudySpec(study=definition.name, objective=problem.name, objective_digest=""),
        budget=Budget(seconds=seconds),
        has_test=False,
    )
    outside = Outside(
        fleet=SimulatedFleet(clock, problem, trace, slots=workers, seconds=seconds),
        store=store,
        cache=None,
        sampler=TpeSampler(problem.space, maximize=True, startup=config.warm_start_trials, seed=seed),
        clock=clock,
        memory=lambda: 0,
    )
    run_study(plan, store.open(definition), outside, on_progress=lambda _: None, stop=lambda: None)
    return trace
