"""What simulated workers evaluate: a deterministic function with ties, folds that differ, and params that fail."""

from simulation.plan import Plan
from simulation.world import World
from trialfleet_shared.messages import ERROR_CHARACTERS, Evaluation, EvaluationResult, Outcome

#: How an evaluation may fail that fails because of the place where it runs.
_FAILURES = (Outcome.ERROR, Outcome.CRASH, Outcome.MEMORY, Outcome.TIMEOUT)
#: How many times as long as others a slow evaluation takes, at most.
_SLOWNESS = 30.0


def value(evaluation: Evaluation) -> float:
    """The same for equal params; in hundredths, so that trials tie."""
    x = evaluation.params["x"]
    assert isinstance(x, int)
    mixed = (x + 1) * 7919 + evaluation.fold * 1543 + int(100 * evaluation.fraction) * 31
    return (mixed % 101 - 20) / 100


class Objective:
    """Draws what becomes of an evaluation and how long it takes."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._rates = plan.rates
        self._seconds = plan.fleet.seconds

    def heal(self) -> None:
        """From now on evaluations fail for their params alone."""
        self._rates = self._rates._replace(fails=0.0, slow=0.0)

    def seconds(self, evaluation: Evaluation) -> float:
        """How long it takes."""
        seconds = self._seconds * evaluation.fraction * self._world.random.uniform(0.5, 1.5)
        return seconds * self._world.random.uniform(1.0, _SLOWNESS) if self._world.chance(self._rates.slow) else seconds

    def answer(self, evaluation: Evaluation, seconds: float, worker: str) -> EvaluationResult:
        """What comes of it."""
        outcome = self._outcome(evaluation)
        is_ok = outcome is Outcome.OK
        return EvaluationResult(
            trial=evaluation.trial,
            rung=evaluation.rung,
            fold=evaluation.fold,
            attempt=evaluation.attempt,
            outcome=outcome,
            value=value(evaluation) if is_ok else None,
            error=None if is_ok else f"{outcome}!"[:ERROR_CHARACTERS],
            wall_seconds=seconds,
            cpu_seconds=seconds,
            worker=worker,
            cached=is_ok and self._world.chance(self._rates.remembered),
        )

    def _outcome(self, evaluation: Evaluation) -> Outcome:
        if self._rates.bad_params:
            x = evaluation.params["x"]
            assert isinstance(x, int)
            if (x * 37 % 100) / 100 < self._rates.bad_params:
                return Outcome.PRUNED if x % 2 else Outcome.ERROR
        if self._world.chance(self._rates.fails):
            return self._world.random.choice(_FAILURES)
        return Outcome.OK
