"""How many slots one coordinator keeps busy: all of it but the broker, on simulated slots, its CPU time charged.

The coordinator samples with TPE, asks the result cache, decides, and commits to its store on disk. Its CPU time moves the
simulated clock, as if the slots were on other machines. Messages are not part of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measuring.simulation import Answer, ChargedClock, Ended, SimulatedFleet
from trialfleet import EfficiencyConfig
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.ports import StudyDefinition
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.messages import Evaluation, StudySpec
from trialfleet_shared.space import SearchSpace
from utilisation_parts.contestants import space as spinning
from utilisation_parts.figures import Figures, figures
from utilisation_parts.spin import Span


class Scaling(NamedTuple):
    """One simulated study."""

    figures: Figures
    #: CPU milliseconds of the coordinator for each evaluation.
    milliseconds: float
    #: Its CPU time over the study's: 1 when it does nothing but compute, and slots wait for it.
    core: float


def simulate(folder: Path, *, slots: int, trials: int, seconds: float) -> Scaling:
    """A study of so many trials, whose evaluations take so many simulated seconds in the mean."""
    config, space, clock = EfficiencyConfig(), SearchSpace(spinning(seconds)), ChargedClock()
    spans: list[Span] = []

    def evaluate(evaluations: Sequence[Evaluation]) -> list[Answer]:
        return [Answer(one.params["share"], one.params["seconds"]) for one in evaluations]

    def observe(ended: Ended) -> None:
        spans.append(Span(ended.slot, ended.start, ended.end))

    definition = StudyDefinition(
        name=f"slots{slots}",
        direction="maximize",
        space=space.describe(),
        objective="simulated",
        objective_digest="",
        data_digest="",
        ladder=config.ladder_for(rows=None, folds=1, has_fidelity=False),
        seed=0,
    )
    plan = StudyPlan(
        definition=definition,
        config=config,
        spec=StudySpec(study=definition.name, objective="simulated", objective_digest=""),
        budget=Budget(trials=trials),
        has_test=False,
    )
    store = LmdbStudyStore(folder / "store", clock=clock)
    cache = LmdbResultCache(folder / "results", size=config.cache_size, ttl_hours=config.cache_ttl_hours, clock=clock)
    try:
        outside = Outside(
            fleet=SimulatedFleet(clock, evaluate, slots=slots, observe=observe),
            store=store,
            cache=cache,
            sampler=TpeSampler(space, maximize=True, startup=config.warm_start_trials, seed=0),
            clock=clock,
            memory=lambda: 0,
        )
        record = store.open(definition)
        clock.go_on()
        called = clock.monotonic()
        run_study(plan, record, outside, on_progress=lambda _: None, stop=lambda: None)
        returned = clock.monotonic()
    finally:
        cache.close()
        store.close()
    spans.sort(key=lambda span: span.start)
    return Scaling(
        figures(spans, slots=slots, called=called, returned=returned),
        milliseconds=1000 * clock.charged / len(spans),
        core=clock.charged / (returned - called),
    )
