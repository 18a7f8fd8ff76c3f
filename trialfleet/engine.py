"""Wires a study to the world: opens data, cache, store, sampler and fleet, for the command line and the API."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Union

import msgspec

from trialfleet.home import Home
from trialfleet.recorded import cache_figures_of, load_record, open_store, recorded_state
from trialfleet.rendering import CacheFigures
from trialfleet.study_file import StudyRequest
from trialfleet.watching import Watching
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.budget import Budget
from trialfleet_coordinator.capped_fleet import CappedFleet
from trialfleet_coordinator.collecting import nothing_collected, seldom_collected
from trialfleet_coordinator.commands import RecordTerms
from trialfleet_coordinator.driver import Outside, StudyPlan, run_study
from trialfleet_coordinator.events import TimePassed
from trialfleet_coordinator.ports import Sampler, StudyDefinition, StudyRecord
from trialfleet_coordinator.report import Progress, StudyReport, build_report
from trialfleet_coordinator.sampling.given_points import GivenPoints
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_coordinator.sampling.warm_start import warm_start as learn_from
from trialfleet_coordinator.study import StudyState
from trialfleet_coordinator.telemetry import Telemetry
from trialfleet_shared.adapters.lmdb_results import LmdbResultCache
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import ConfigurationError, DataError
from trialfleet_shared.fingerprint import digest_bytes
from trialfleet_shared.fleet import Fleet
from trialfleet_shared.messages import StudySpec
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_workers import linux
from trialfleet_workers.checked_fleet import CheckedFleet
from trialfleet_workers.declared import declared_function
from trialfleet_workers.digests import code_digest
from trialfleet_workers.function_digests import function_digest
from trialfleet_workers.local import LocalFleet
from trialfleet_workers.objective import MEMORY_PREFIX, Objective, load_function

if TYPE_CHECKING:  # imported when one of Optuna's samplers is asked for: it takes a quarter of a second
    from trialfleet_coordinator.adapters.optuna_samplers import OptunaSampler

_LOG = logging.getLogger("trialfleet.data")

#: Evaluations between two garbage collections where they are switched off.
_NEVER = 2**53
#: What draws the params of a study.
StudySampler = Union[UniformSampler, TpeSampler, "OptunaSampler"]


class OpenStudy:
    """A study that is open for this process: locked in its store, its data imported, its sampler up to date."""

    def __init__(
        self,
        plan: StudyPlan,
        record: StudyRecord,
        *,
        store: LmdbStudyStore,
        cache: LmdbResultCache | None,
        sampler: Sampler,
        make_fleet: Callable[[Telemetry], Fleet],
        evaluates_here: bool,
        mode: str,
        watching: Watching,
    ) -> None:
        self.plan = plan
        self.record = record
        self._store = store
        self._cache = cache
        self._sampler = sampler
        self._make_fleet = make_fleet
        self._evaluates_here = evaluates_here
        self._mode = mode
        self._watching = watching

    def finished(self) -> StudyReport | None:
        """The report of a study that has nothing left to do; None while it has."""
        if not all(trial.state.decided for trial in self.record.trials):
            return None  # without the cost of a state, which `run` needs again
        with nothing_collected():
            terms = RecordTerms(self.plan.config, self.plan.budget)
            state = StudyState.recorded(self.record, terms, has_test=self.plan.has_test)
        state.handle(TimePassed(self.record.elapsed))
        if not state.finished:
            return None
        return build_report(state, study=self.plan.definition.name, elapsed_seconds=self.record.elapsed)

    def run(self, on_progress: Callable[[Progress], None], stop: Callable[[], str | None]) -> StudyReport:
        """Run it on its fleet; see `run_study`."""
        here = self._evaluates_here
        with (
            # What objectives leave behind may hold much memory: where they run in this process it is looked for as often as
            # ever, unless another study of the process has it otherwise.
            nullcontext() if here else seldom_collected(),
            self._watching.study(self.plan.definition, self._mode, self.record, self._cache) as telemetry,
        ):
            memory = (lambda: 0) if here else _memory  # a fleet in this process counts it by itself
            fleet = self._make_fleet(telemetry)
            try:
                outside = Outside(fleet, self._store, self._cache, self._sampler, SystemClock(), memory, telemetry)
                return run_study(self.plan, self.record, outside, on_progress=on_progress, stop=stop)
            finally:
                fleet.close()

    def cache_figures(self, report: StudyReport) -> CacheFigures:
        """How the study used the result cache."""
        return cache_figures_of(report, self._cache, self.plan.config)


@contextmanager
def open_study(
    request: StudyRequest,
    home: Home,
    *,
    store_path: Path | None = None,
    broker_url: str | None = None,
    warm_start: str | None = None,
    on_rows: Callable[[int], None] | None = None,
    most_slots: Callable[[], int] | None = None,
    watching: Watching | None = None,
) -> Iterator[OpenStudy]:
    """Open the study, new or recorded.

    Args:
        request: the study.
        home: where results and data are kept.
        store_path: the store; None: the home's.
        broker_url: evaluate on the workers that listen there; None: on this machine.
        warm_start: a study of the home's store whose record seeds the sampler.
        on_rows: told now and then how many rows of a data file are imported.
        most_slots: how many of the workers' slots it may use at a moment, where it shares them with other studies; its
            objective is then not imported here, if its source says how it is to be called.
        watching: who watches; None: nobody.

    Raises:
        TrialfleetError: of the kind that the part at fault raises.
    """
    watching = watching or Watching()
    with ExitStack() as stack:
        with _naming(request.origin):
            objective, digest, imported = _objective(
                request, may_read=broker_url is None or most_slots is not None, own=most_slots is not None
            )
            spec = _spec(request, digest)
            local = None
            if broker_url is None:
                local = _local_fleet(request, home, watching)
                stack.callback(local.close)
                # Its processes import the objective while this one brings in the data and opens the study.
                local.preload(spec)
            # A coordinator of workers needs to know of data, not to have them; threads may die of damaged ones.
            recall = broker_url is not None or request.config.use_process_pool
            info, unread = _import(request, home, on_rows, watching, own=most_slots is not None, recall=recall)
            if info is not None:
                _warn_of(info)
            plan = _plan(request, objective, spec, info)
            if broker_url is not None:
                plan = msgspec.structs.replace(plan, spec=_abroad(plan.spec, request.base))
            sampler = make_sampler(request)
            fleet: Fleet | None = local
            if local is not None and info is not None and unread:
                fleet = _checked(local, info, request, home, on_rows, watching)
                stack.callback(fleet.close)
            if fleet is not None and not imported:
                # Its processes are the first to import the objective, so they find what is wrong with it: before the
                # store knows of the study.
                fleet.start(plan.spec)
        store = LmdbStudyStore(store_path or home.store, clock=SystemClock())
        stack.callback(store.close)
        if warm_start is not None:
            _start_warm(sampler, plan.definition, home, warm_start)
        record = store.open(plan.definition)
        cache = _cache(request.config, home)
        if cache is not None:
            stack.callback(cache.close)

        def make_fleet(telemetry: Telemetry) -> Fleet:
            if broker_url is not None:
                identity = store.identity(request.name)
                assert identity is not None
                return _capped(_rabbit_fleet(home, identity, broker_url, telemetry), most_slots)
            assert fleet is not None
            return _capped(fleet, most_slots)

        yield OpenStudy(
            plan,
            record,
            store=store,
            cache=cache,
            sampler=GivenPoints(sampler, request.points_to_evaluate),
            make_fleet=make_fleet,
            evaluates_here=broker_url is None and not request.config.use_process_pool,
            mode=request.mode,
            watching=watching,
        )


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    """Errors in what a study file says name the file."""
    try:
        yield
    except ConfigurationError as error:
        if not origin:
            raise
        raise type(error)(f"{origin}: {error}") from error


def _objective(request: StudyRequest, *, may_read: bool, own: bool) -> tuple[Objective, str, bool]:
    """The objective, the digest of its code, and whether it is imported; else only its signature is known.

    Args:
        request: the study.
        may_read: whether the signature, read from its source, will do, because a fleet of processes is at hand that
            imports it.
        own: as of `load_function`: somebody else chose the function.
    """
    declared: Callable[..., object] | None = None
    if request.objective.startswith(MEMORY_PREFIX):
        function = request.functions[request.objective.removeprefix(MEMORY_PREFIX)]
        digest = function_digest(function)
    else:
        if may_read and request.config.use_process_pool:
            declared = declared_function(request.objective, request.base)
        function = declared or load_function(request.objective, request.base, own=own)
        digest = code_digest(request.objective, request.base)
    objective = Objective(function, request.objective)
    objective.check(has_data=request.data is not None)
    if request.data is not None and not objective.takes_data:
        raise ConfigurationError(
            f"objective {request.objective!r} takes no data, but the study has a data set; "
            "let it take `data`, or leave the data set out"
        )
    return objective, digest, declared is None


def _warn_of(info: DataInfo) -> None:
    """Tell what of the data is not as it seems at first."""
    if info.dropped_rows:
        _LOG.warning(
            "%d of the %d rows of the data have no value in the target %r: they are left out",
            *(info.dropped_rows, info.dropped_rows + info.rows, info.target),
        )
    for column, text in info.odd_texts.items():
        _LOG.warning("column %r has the text %r among its numbers: all of them are read as categories", column, text)


def _import(
    request: StudyRequest,
    home: Home,
    on_rows: Callable[[int], None] | None,
    watching: Watching,
    *,
    own: bool,
    recall: bool,
) -> tuple[DataInfo | None, bool]:
    """Have the data set in the cache; what it is, and whether it was there and is not looked at yet.

    Args:
        request: the study.
        home: where it is.
        on_rows: as of `open_study`.
        watching: is told.
        own: as of `load_function`.
        recall: whether data that are there may be left unread.
    """
    if request.data is None:
        return None, False
    from trialfleet_workers.adapters.lmdb_data import DataCache  # noqa: PLC0415  # only where data are
    from trialfleet_workers.adapters.sources import is_function  # noqa: PLC0415  # as above

    cache = DataCache(home.data)
    known = cache.recall(request.data, base=request.base) if recall and request.data_object is None else None
    if known is not None:
        watching.data_found()
        return known, True
    started = time.monotonic()
    if own and is_function(request.data.source):
        # It runs code that others may change, and may call sys.exit() or never return.
        from trialfleet_workers.adapters.importing import import_function_apart  # noqa: PLC0415  # in a service alone

        check = partial(on_rows, 0) if on_rows is not None else lambda: None
        info, imported_bytes = import_function_apart(request.data, home.data, request.base, check)
    elif request.data_object is not None:
        info, imported_bytes = cache.import_object(request.data_object, request.data), cache.imported_bytes
    else:
        info = cache.import_data(request.data, base=request.base, progress=on_rows)
        imported_bytes = cache.imported_bytes
    if imported_bytes:
        watching.data_imported(time.monotonic() - started, imported_bytes)
    else:
        watching.data_found()
    return info, False


def _checked(
    fleet: LocalFleet,
    info: DataInfo,
    request: StudyRequest,
    home: Home,
    on_rows: Callable[[int], None] | None,
    watching: Watching,
) -> CheckedFleet:
    """The fleet, none of whose answers is seen before the data set is known to be whole."""
    from trialfleet_workers.adapters.lmdb_data import DataCache  # noqa: PLC0415  # see _import

    def again() -> LocalFleet:
        imported, _ = _import(request, home, on_rows, watching, own=False, recall=False)
        if imported != info:
            assert request.data is not None
            raise DataError(f"data.source = {request.data.source!r} changed while the study began; start it again")
        return _local_fleet(request, home, watching)

    return CheckedFleet(fleet, partial(DataCache(home.data).damage, info.digest), again)


def _spec(request: StudyRequest, digest: str) -> StudySpec:
    """What evaluators are told of the study, but for the digest of its data."""
    config = request.config
    return StudySpec(
        study=request.name,
        objective=request.objective,
        objective_digest=digest,
        data=request.data,
        seed=request.seed,
        deadline_seconds=request.evaluation_seconds,
        memory_limit_bytes=None if request.memory_mb is None else int(request.memory_mb * 2**20),
        share_memory=config.enable_memory_optimization,
        collect_interval=config.clear_cache_interval if config.enable_memory_optimization else _NEVER,
        use_cache=config.enable_caching,
    )


def _plan(request: StudyRequest, objective: Objective, spec: StudySpec, info: DataInfo | None) -> StudyPlan:
    config = request.config
    ladder = config.ladder_for(
        rows=None if info is None else info.train_rows[0],
        folds=1 if info is None else len(info.train_rows),
        has_fidelity=objective.has_fidelity(has_data=info is not None),
        valid_rows=None if info is None else info.valid_rows[0],
    )
    data_digest = "" if info is None else info.digest
    return StudyPlan(
        definition=StudyDefinition(
            name=request.name,
            direction=request.direction,
            space=request.space.describe(),
            objective=request.objective,
            objective_digest=spec.objective_digest,
            data_digest=data_digest,
            ladder=ladder,
            seed=request.seed,
        ),
        config=config,
        spec=msgspec.structs.replace(spec, data_digest=data_digest),
        budget=_budget(request),
        has_test=info is not None and info.test_rows > 0,
    )


def _budget(request: StudyRequest) -> Budget:
    """The budget with the mode's patience, unless the study names its own."""
    own, budget = request.budget.patience, request.budget
    patience = request.config.patience_for(budget.trials) if own is None else own or None
    return msgspec.structs.replace(budget, patience=patience)


def make_sampler(request: StudyRequest) -> StudySampler:
    """The sampler that the study names, which knows nothing yet."""
    config, maximize = request.config, request.direction == "maximize"
    if request.sampler == "random" or not config.enable_smart_sampling:
        return UniformSampler(request.space, seed=request.seed)
    if request.sampler == "tpe":
        return TpeSampler(request.space, maximize=maximize, startup=config.warm_start_trials, seed=request.seed)
    from trialfleet_coordinator.adapters.optuna_samplers import OptunaSampler  # noqa: PLC0415  # see the top

    return OptunaSampler(request.sampler, request.space, maximize=maximize, seed=request.seed)


def _start_warm(sampler: StudySampler, new: StudyDefinition, home: Home, name: str) -> None:
    """Have the sampler of the new study learn from a study of the home's store."""
    if not isinstance(sampler, TpeSampler):
        raise ConfigurationError('a warm start needs study.sampler = "tpe" and efficiency.enable_smart_sampling')
    with open_store(home) as store:
        record = load_record(store, name)
    earlier = record.definition
    # Values of the same function: what the new study says of them holds. Those of another one may be losses here, gains there.
    direction = new.direction if new.objective_digest == earlier.objective_digest else earlier.direction
    observations = recorded_state(record).standings.observations()
    learnt = learn_from(sampler, observations, maximize=direction == "maximize", turned=direction != earlier.direction)
    if learnt.unknown:
        _LOG.warning("the trials of %r say nothing of %s", name, ", ".join(map(repr, learnt.unknown)))


def _cache(config: EfficiencyConfig, home: Home) -> LmdbResultCache | None:
    if not config.enable_caching:
        return None
    return LmdbResultCache(home.results, size=config.cache_size, ttl_hours=config.cache_ttl_hours, clock=SystemClock())


def _local_fleet(request: StudyRequest, home: Home, watching: Watching) -> LocalFleet:
    config = request.config
    return LocalFleet(
        slots=config.slots(cores()),
        base=request.base,
        data_path=None if request.data is None else home.data,
        functions=request.functions,
        use_processes=config.use_process_pool,
        clock=SystemClock(),
        telemetry=watching.worker,
    )


def _capped(fleet: Fleet, most_slots: Callable[[], int] | None) -> Fleet:
    return fleet if most_slots is None else CappedFleet(fleet, most_slots)


def _abroad(spec: StudySpec, base: Path) -> StudySpec:
    """The spec as workers elsewhere need it: files by their whole paths, which they look for below their own folders."""
    data = spec.data
    if data is not None and "://" not in data.source:
        data = msgspec.structs.replace(data, source=_whole(data.source, base))
    return msgspec.structs.replace(spec, objective=_whole(spec.objective, base), data=data)


def _whole(reference: str, base: Path) -> str:
    """A file, or a function in a file, by its whole path; a function in a module as it is."""
    place, colon, attribute = reference.rpartition(":")
    if colon and attribute.isidentifier():
        return f"{base / place}:{attribute}" if place.endswith(".py") else reference
    return str(base / reference)


def _rabbit_fleet(home: Home, identity: str, url: str, telemetry: Telemetry) -> Fleet:
    from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet  # noqa: PLC0415  # embedded runs need no broker

    return RabbitFleet(url, address=results_address(home, identity), clock=SystemClock(), telemetry=telemetry)


def results_address(home: Home, identity: str) -> str:
    """Where results of the home's study are heard, in all its sessions: what workers answered in between is still there.

    What they answer to one of the same name that was deleted is not.

    Args:
        home: the home; a store that was copied to another one is heard elsewhere.
        identity: of the study, as its store tells it.
    """
    parts = (socket.gethostname(), str(home.store.resolve()), identity)
    return digest_bytes(*(part.encode() for part in parts))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _memory() -> int:
    """Proportional set size of this process, in bytes."""
    return linux.pss_bytes(os.getpid())
