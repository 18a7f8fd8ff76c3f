"""trialfleet in the simulated world: the real coordinator (`run_study`), on a simulated clock and fleet."""

from collections.abc import Sequence

from measuring.simulation import Answer, Ended, SimulatedClock, SimulatedFleet
from trialfleet_coordinator.adapters.memory_store import MemoryStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.ports import StudyDefinition
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_shared.messages import Evaluation, StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from yahpo_parts.surrogate import Problem
from yahpo_parts.world import Trace


def run_trialfleet(problem: Problem, *, workers: int, seconds: float, seed: int) -> Trace:
    """Run a study in mode `balanced` with a budget of seconds."""
    config = EfficiencyConfig.balanced()
    clock, trace, store = SimulatedClock(), Trace(), MemoryStudyStore()

    def evaluate(evaluations: Sequence[Evaluation]) -> list[Answer]:
        scores, costs = problem.evaluate([one.params for one in evaluations], [one.fraction for one in evaluations])
        return [Answer(score, cost) for score, cost in zip(scores, costs, strict=True)]

    def observe(ended: Ended) -> None:
        if ended.end <= seconds:
            trace.observe(ended.end, ended.evaluation.params, ended.evaluation.fraction, ended.answer.value)

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
        fleet=SimulatedFleet(clock, evaluate, slots=workers, observe=observe),
        store=store,
        cache=None,
        sampler=TpeSampler(problem.space, maximize=True, startup=config.warm_start_trials, seed=seed),
        clock=clock,
        memory=lambda: 0,
    )
    run_study(plan, store.open(definition), outside, on_progress=lambda _: None, stop=lambda: None)
    return trace
