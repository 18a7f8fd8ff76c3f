"""A simulated clock and fleet: the coordinator's core runs on them without waiting."""

import heapq
import itertools
from collections.abc import Callable, Sequence

from trialfleet_shared.fleet import FleetReport, LostEvaluation, Poison
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec


class SimulatedClock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class SimulatedFleet:
    """Evaluates `function(evaluation) -> value` in `seconds(evaluation)` of simulated time on so many slots."""

    def __init__(
        self,
        clock: SimulatedClock,
        function: Callable[[Evaluation], float],
        *,
        slots: int = 1,
        seconds: Callable[[Evaluation], float] = lambda evaluation: evaluation.fraction,
    ) -> None:
        self._clock = clock
        self._function = function
        self._seconds = seconds
        self._slots = slots
        self._queue: list[Evaluation] = []
        self._running: list[tuple[float, int, Evaluation, float]] = []
        self._order = itertools.count()
        self._started = clock.now
        self._busy = 0.0
        #: Every evaluation that was submitted, in order.
        self.submitted: list[Evaluation] = []
        self.acknowledged = 0
        self.buried: list[Poison] = []

    def start(self, spec: StudySpec) -> None:
        self._started = self._clock.now

    def slots(self) -> int:
        return self._slots

    def workers(self) -> frozenset[str]:
        return frozenset({"simulated"})

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        self.submitted.extend(evaluations)
        self._queue.extend(evaluations)

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        while self._queue and len(self._running) < self._slots:
            evaluation = self._queue.pop(0)
            seconds = self._seconds(evaluation)
            heapq.heappush(self._running, (self._clock.now + seconds, next(self._order), evaluation, seconds))
        if not self._running:
            self._clock.now += timeout
            return [], []
        end, _, evaluation, seconds = heapq.heappop(self._running)
        self._clock.now = max(self._clock.now, end)
        self._busy += seconds
        return [self._evaluate(evaluation, seconds)], []

    def _evaluate(self, evaluation: Evaluation, seconds: float) -> EvaluationResult:
        outcome, value, error = Outcome.OK, None, None
        try:
            value = self._function(evaluation)
        except ValueError as caught:
            outcome, error = Outcome.ERROR, str(caught)
        return EvaluationResult(
            trial=evaluation.trial,
            rung=evaluation.rung,
            fold=evaluation.fold,
            attempt=evaluation.attempt,
            outcome=outcome,
            value=value,
            error=error,
            wall_seconds=seconds,
            cpu_seconds=seconds,
            worker="simulated",
        )

    def acknowledge(self) -> None:
        self.acknowledged += 1

    def bury(self, poison: Poison) -> None:
        self.buried.append(poison)

    def report(self) -> FleetReport:
        available = (self._clock.now - self._started) * self._slots
        return FleetReport(
            slots=self._slots,
            workers=1,
            busy_slot_seconds=self._busy,
            available_slot_seconds=available,
            pss_bytes=2**20,
        )

    def close(self) -> None:
        self._queue.clear()
        self._running.clear()
