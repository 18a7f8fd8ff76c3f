"""What the home's store has recorded of studies, be they running or not."""

from collections.abc import Iterator
from contextlib import contextmanager

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.home import Home
from trialfleet.rendering import CacheFigures, StudySummary
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.commands import RecordTerms, TrialState
from trialfleet_coordinator.events import TimePassed
from trialfleet_coordinator.ports import StudyDefinition, StudyRecord
from trialfleet_coordinator.report import StudyReport, build_report
from trialfleet_coordinator.runs import Run, runs_of
from trialfleet_coordinator.study import StudyState
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import StoreError, UnknownStudyError
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.tables import nearest


@contextmanager
def open_store(home: Home) -> Iterator[LmdbStudyStore]:
    """The home's store while entered. Raises StoreError when it can not be used."""
    store = LmdbStudyStore(home.store, clock=SystemClock())
    try:
        yield store
    finally:
        store.close()


def load_record(store: LmdbStudyStore, name: str) -> StudyRecord:
    """The study called `name`. Raises UnknownStudyError, with the nearest name, when there is none."""
    record = store.load(name)
    if record is None:
        names = store.names()
        hint = nearest(name, names, all_of_them="there are") if names else "; there are no studies yet"
        raise UnknownStudyError(f"there is no study {name!r}{hint}")
    return record


def recorded_definition(home: Home, name: str) -> StudyDefinition | None:
    """What the study called `name` is; None when the home has none."""
    with open_store(home) as store:
        return store.definition(name)


def recorded_report(home: Home, name: str) -> tuple[StudyReport, CacheFigures]:
    """The report of a study as it is recorded, be it running or not."""
    with open_store(home) as store:
        record = load_record(store, name)
    state = recorded_state(record)
    if all(trial.state.decided for trial in record.trials):
        state.handle(TimePassed(record.elapsed))  # which may have ended it
    report = build_report(state, study=name, elapsed_seconds=record.elapsed)
    return report, cache_figures_of(report, config=None if record.terms is None else record.terms.config)


def recorded_runs(home: Home, name: str) -> list[Run]:
    """When and where a study's evaluations ran, as it is recorded."""
    with open_store(home) as store:
        record = load_record(store, name)
    return runs_of(result for trial in record.trials for result in trial.results)


def delete_study(home: Home, name: str) -> None:
    """Delete a study of the home's store, which no running coordinator has. Raises StudyLockedError while it is being run."""
    with open_store(home) as store:
        store.delete(name)
    roster = CoordinatorFiles(home.path).studies
    if roster.exists():  # else a coordinator that is started later would begin it anew
        RosterFiles(roster).remove(name)


def studies(home: Home) -> list[StudySummary]:
    """All studies of the home's store, oldest first; of one that can not be read, why."""
    with open_store(home) as store:
        return [_summary(store, name) for name in store.names()]


def _summary(store: LmdbStudyStore, name: str) -> StudySummary:
    try:
        record = load_record(store, name)
    except StoreError as error:
        return StudySummary(study=name, trouble=str(error))
    state = recorded_state(record)
    best = state.best
    return StudySummary(
        study=name,
        direction=record.definition.direction,
        trials=len(state.trials),
        complete=state.tally.decided[TrialState.COMPLETE],
        pruned=state.tally.decided[TrialState.PRUNED],
        failed=state.tally.decided[TrialState.FAIL],
        undecided=sum(not trial.decided for trial in state.trials),
        best_value=best.value if best else None,
        best_is_complete=best.complete if best else False,
        elapsed_seconds=record.elapsed,
    )


def decided_trials(home: Home, study: str) -> tuple[str, dict[int, TrialState]]:
    """A study's identity, and its decided trials by number; empty when the home does not know the study."""
    if not home.store.exists():
        return "", {}
    with open_store(home) as store:
        identity, record = store.identity(study), store.load(study)
    if identity is None or record is None:
        return "", {}
    return identity, {trial.number: trial.state for trial in record.trials if trial.state.decided}


def recorded_state(record: StudyRecord) -> StudyState:
    """The state of a study that is only looked at."""
    terms = record.terms or RecordTerms(EfficiencyConfig(), Budget())
    return StudyState.recorded(record, terms, has_test=False)


def cache_figures_of(
    report: StudyReport, cache: LmdbResultCache | None = None, config: EfficiencyConfig | None = None
) -> CacheFigures:
    """How a study used the result cache; without a cache and settings, as far as its report tells."""
    return CacheFigures(
        enabled=None if config is None else config.enable_caching,
        hits=report.cached,
        misses=report.evaluations - report.cached,
        hit_rate=report.efficiency_metrics.cache_hit_rate,
        entries=None if cache is None else cache.stats().entries,
        cache_size=None if cache is None or config is None else config.cache_size,
    )
