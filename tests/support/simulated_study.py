"""A whole study of the real coordinator on a simulated clock and fleet."""

from collections.abc import Callable

from tests.support.simulated import SimulatedClock, SimulatedFleet
from trialfleet_coordinator.adapters.memory_store import MemoryStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.ports import StudyDefinition
from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import Evaluation, StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import SearchSpace


def simulated_study(
    ladder: Ladder,
    space: SearchSpace,
    value: Callable[[Evaluation], float],
    *,
    seconds: Callable[[Evaluation], float],
    budget: Budget,
    seed: int,
) -> StudyReport:
    """Maximise `value`, of which an evaluation takes so many simulated seconds, on one slot."""
    clock, store = SimulatedClock(), MemoryStudyStore()
    definition = StudyDefinition("s", "maximize", {}, "f", "", "", ladder, seed)
    plan = StudyPlan(
        definition=definition,
        config=EfficiencyConfig(),
        spec=StudySpec(study="s", objective="f", objective_digest=""),
        budget=budget,
        has_test=False,
    )
    outside = Outside(
        fleet=SimulatedFleet(clock, value, seconds=seconds),
        store=store,
        cache=None,
        sampler=TpeSampler(space, maximize=True, startup=20, seed=seed),
        clock=clock,
        memory=lambda: 0,
    )
    return run_study(plan, store.open(definition), outside, on_progress=lambda _: None, stop=lambda: None)
