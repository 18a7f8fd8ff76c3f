"""The simulated world: workers that take the surrogate's cost in simulated seconds, and what is known when.

`simulate` drives an asynchronous optimiser by ask and tell. trialfleet is driven by its own loop instead (`ours.py`); both
write down what was observed in the same `Trace`. The optimisers' own computing time is not part of simulated time.
"""

import heapq
import itertools
from typing import Any, NamedTuple, Protocol

from trialfleet_shared.space import Params
from yahpo_parts.surrogate import Problem


class Job(NamedTuple):
    """An evaluation that an optimiser wants."""

    params: Params
    #: Share of the full fidelity, 0 < f <= 1.
    fraction: float
    #: Whatever the optimiser knows it by.
    token: Any = None
    #: Share up to which the same configuration was evaluated already, where evaluations can be continued.
    done: float = 0.0


class Optimizer(Protocol):
    """An asynchronous optimiser; scores are maximised."""

    def ask(self) -> Job | None:
        """Work for an idle worker; None: there is nothing to do before another result comes in."""
        ...

    def tell(self, job: Job, score: float) -> Job | None:
        """A result; the answer is what the same worker goes on with, if the optimiser's trial is not finished."""
        ...


class Trace:
    """What an optimiser would have returned when: the best of the highest fidelity that was observed so far."""

    def __init__(self) -> None:
        #: (simulated seconds, params) whenever another configuration became the incumbent.
        self.incumbents: list[tuple[float, Params]] = []
        #: Results within the budget, and those of them at full fidelity.
        self.evaluations = 0
        self.full = 0
        self._best = (0.0, 0.0)

    def observe(self, now: float, params: Params, fraction: float, score: float) -> None:
        """A result came in."""
        self.evaluations += 1
        self.full += fraction == 1.0
        if not self.incumbents or (fraction, score) > self._best:
            self._best = fraction, score
            self.incumbents.append((now, params))


def simulate(optimizer: Optimizer, problem: Problem, *, workers: int, seconds: float) -> Trace:
    """Run the optimiser on so many workers for so many simulated seconds; what ends later does not count."""
    trace, now, order = Trace(), 0.0, itertools.count()
    running: list[tuple[float, int, Job, float]] = []

    def start(job: Job) -> None:
        scores, costs = problem.evaluate([job.params] * 2, [job.fraction, job.done or job.fraction])
        saved = costs[1] if problem.continues and job.done else 0.0
        heapq.heappush(running, (now + max(costs[0] - saved, 0.0), next(order), job, scores[0]))

    while True:
        while len(running) < workers:
            job = optimizer.ask()
            if job is None:
                break
            start(job)
        if not running or running[0][0] > seconds:
            return trace
        now, _, job, score = heapq.heappop(running)
        trace.observe(now, job.params, job.fraction, score)
        following = optimizer.tell(job, score)
        if following is not None:
            start(following)
