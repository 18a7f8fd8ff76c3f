"""The world of a simulated study: a clock that is moved, and a fleet whose slots take simulated seconds.

The real coordinator (`run_study`) runs on them. Its own computing takes no simulated time on a `SimulatedClock`, and as
much as it takes CPU time on a `ChargedClock`.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from trialfleet_shared.fleet import FleetReport, LostEvaluation, Poison
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec


class SimulatedClock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Simulated seconds."""
        return self.now

    def time(self) -> float:
        """Simulated seconds."""
        return self.monotonic()

    def stop(self) -> None:
        """The coordinator's computing ends for a while."""

    def go_on(self) -> None:
        """It goes on."""


class ChargedClock(SimulatedClock):
    """Time that also goes by as this process uses CPU time, but for what the simulation itself uses."""

    def __init__(self) -> None:
        super().__init__()
        self._since = time.process_time()
        #: CPU seconds charged so far.
        self.charged = 0.0

    def monotonic(self) -> float:
        """Simulated seconds."""
        return self.now + time.process_time() - self._since

    def stop(self) -> None:
        """Charge what was used since the last `go_on`."""
        used = time.process_time() - self._since
        self.now += used
        self.charged += used
        self._since += used

    def go_on(self) -> None:
        """Forget what was used since the last `stop`."""
        self._since = time.process_time()


class Answer(NamedTuple):
    """What comes of an evaluation."""

    value: float
    #: Simulated seconds that it takes a slot.
    seconds: float


class Ended(NamedTuple):
    """An evaluation on a slot; they are in the order of their ends."""

    end: float
    order: int
    start: float
    slot: int
    evaluation: Evaluation
    answer: Answer


class SimulatedFleet:
    """Slots that answer from a function; see `trialfleet_shared.fleet.Fleet`.

    Args:
        clock: is moved to the end of an evaluation when its result is polled.
        evaluate: the answers to evaluations.
        slots: evaluations that run at the same time.
        observe: is shown each evaluation whose result is polled.
    """

    def __init__(
        self,
        clock: SimulatedClock,
        evaluate: Callable[[Sequence[Evaluation]], Iterable[Answer]],
        *,
        slots: int,
        observe: Callable[[Ended], None],
    ) -> None:
        self._clock = clock
        self._evaluate = evaluate
        self._slots = slots
        self._observe = observe
        #: When each slot has done what was submitted so far.
        self._free = [(0.0, slot) for slot in range(slots)]
        self._running: list[Ended] = []
        self._order = itertools.count()
        self._busy = 0.0

    def start(self, spec: StudySpec) -> None:
        """Nothing has to get ready."""

    def slots(self) -> int:
        """As many as there are."""
        return self._slots

    def workers(self) -> frozenset[str]:
        """None has a name."""
        return frozenset()

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Each goes to the slot that is free first."""
        self._clock.stop()
        for evaluation, answer in zip(evaluations, self._evaluate(evaluations), strict=True):
            free, slot = self._free[0]
            start = max(free, self._clock.now)
            end = start + answer.seconds
            heapq.heapreplace(self._free, (end, slot))
            heapq.heappush(self._running, Ended(end, next(self._order), start, slot, evaluation, answer))
        self._clock.go_on()

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """What has ended; if nothing has, the clock moves on to the next end."""
        self._clock.stop()
        results = []
        if self._running:
            self._clock.now = max(self._clock.now, self._running[0].end)
        else:
            self._clock.now += timeout
        while self._running and self._running[0].end <= self._clock.now:
            ended = heapq.heappop(self._running)
            self._busy += ended.answer.seconds
            self._observe(ended)
            results.append(_result(ended))
        self._clock.go_on()
        return results, []

    def acknowledge(self) -> None:
        """Nothing is delivered twice."""

    def bury(self, poison: Poison) -> None:
        """Nothing here crashes."""

    def report(self) -> FleetReport:
        """What the slots did."""
        return FleetReport(self._slots, 1, self._busy, self._clock.monotonic() * self._slots, 0)

    def close(self) -> None:
        """Nothing is held."""


def _result(ended: Ended) -> EvaluationResult:
    evaluation, answer = ended.evaluation, ended.answer
    return EvaluationResult(
        trial=evaluation.trial,
        rung=evaluation.rung,
        fold=evaluation.fold,
        attempt=evaluation.attempt,
        outcome=Outcome.OK,
        value=answer.value,
        wall_seconds=answer.seconds,
        cpu_seconds=answer.seconds,
    )
