"""One schedule: the whole life of a study in a world whose every move a seed decides."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from simulation import checks
from simulation.broker import Broker, Message
from simulation.checks import Inspector
from simulation.disk import Disk, SimulatedStore
from simulation.link import SimulatedLink
from simulation.objective import Objective
from simulation.plan import ENDLESS, Rates, draw_plan
from simulation.sampler import GridSampler
from simulation.workers import SimulatedWorker
from simulation.world import Killed, Violation, World
from trialfleet_coordinator import driver, rung_choice
from trialfleet_coordinator.adapters.lmdb_store import LmdbStudyStore
from trialfleet_coordinator.adapters.memory_store import MemoryStudies, MemoryStudyStore
from trialfleet_coordinator.budget import Ended
from trialfleet_coordinator.driver import Outside, Session, StudyPlan
from trialfleet_coordinator.ports import StudyDefinition, StudyStore
from trialfleet_coordinator.remote_fleet import RemoteFleet
from trialfleet_coordinator.study import StudyState
from trialfleet_shared.adapters.memory_results import MemoryResultCache
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.messages import StudySpec

#: The study's queue of results.
ADDRESS = "results"
#: Share of the workers that never lie.
_HONEST = 0.5
#: Seconds until somebody starts a coordinator again, at most.
_AGAIN = 2.0
#: Seconds that what is broken stays so, at most.
_BROKEN = 3.0

#: Studies have six trials at most here: which of them start on all rows.
FULL_START_AFTER, FULL_START_EVERY = 1, 3


class Ending(NamedTuple):
    """What came of a schedule."""

    seed: int
    #: Simulated seconds.
    seconds: float
    sessions: int
    #: Why the study ended.
    ended: Ended | None
    trials: int
    evaluations: int
    #: Faults that happened, of the moments and of the messages.
    faults: int


class Schedule:
    """See the module's docstring.

    Args:
        seed: decides everything.
        stores: gives a store for each of the coordinator's processes; None: in memory.
        log: is told what happens.
    """

    def __init__(
        self, seed: int, stores: Callable[[World], StudyStore] | None = None, log: Callable[[str], object] | None = None
    ) -> None:
        self.plan = plan = draw_plan(seed)
        self.world = world = World(seed)
        self._tell = log
        make_store = stores or _memory_stores()
        self.disk = Disk(lambda: make_store(world))
        self._broker = Broker(world, plan.rates)
        self._broker.on_acknowledged = self._acknowledged
        self._objective = Objective(world, plan)
        self._cache = MemoryResultCache(size=1000, ttl_hours=24.0, clock=world) if plan.caching else None
        self._names = 0
        self._workers = [self._hire(slots) for slots in plan.fleet.slots]
        self._definition = StudyDefinition(
            "s", "maximize" if plan.maximize else "minimize", {}, "f", "", "", plan.ladder, 0
        )
        self._study = StudyPlan(
            definition=self._definition,
            config=plan.config,
            spec=StudySpec(study="s", objective="simulated", objective_digest=""),
            budget=plan.budget,
            has_test=plan.has_test,
        )
        self._sessions = 0
        self._faults = 0
        self._healed = False
        self._link: SimulatedLink | None = None
        self._link_cut = False
        self._inspector: Inspector | None = None
        self._stop = False
        #: Calls of ports until the coordinator is killed; None: it is not.
        self._steps_left: int | None = None
        self._kill_now = False
        self._started = world.now
        self._end = world.now + plan.horizon + ENDLESS
        for delay, kind in plan.faults:
            world.after(delay, self._fault, kind)
        world.after(plan.horizon, self._heal)

    def run(self) -> Ending:
        """Run it. Raises Violation where a promise is broken."""
        with (
            mock.patch.object(driver, "TICK_RECORDS", self.plan.tick_records),
            mock.patch.multiple(rung_choice, FULL_START_AFTER=FULL_START_AFTER, FULL_START_EVERY=FULL_START_EVERY),
        ):
            while (state := self._session()) is None:
                self.world.run(self.world.now + self.world.random.uniform(0.0, _AGAIN))
        store = self.disk.make_store()
        record = store.load(self._definition.name)
        store.close()
        assert record is not None
        checks.finished(self.plan, self.disk, record, state)
        return Ending(
            seed=self.plan.seed,
            seconds=self.world.now - self._started,
            sessions=self._sessions,
            ended=state.ended,
            trials=len(record.trials),
            evaluations=state.tally.evaluations,
            faults=self._faults + self.world.mishaps,
        )

    # The coordinator

    def _session(self) -> StudyState | None:
        """One process of the coordinator; the study at its end, None when it is to be run again."""
        kills = self.plan.kills
        self._steps_left = kills[self._sessions] if self._sessions < len(kills) and not self._healed else None
        self._sessions += 1
        self._kill_now = self._stop = False
        store = SimulatedStore(self.world, self.disk, self._step)
        session: Session | None = None
        try:
            record = store.open(self._definition)
            fleet = RemoteFleet(self._connect, address=ADDRESS, clock=self.world, grace=self.plan.fleet.grace)
            sampler = GridSampler(self.world, self.plan)
            session = Session(self._study, record, Outside(fleet, store, self._cache, sampler, self.world, lambda: 0))
            self._log(f"a coordinator starts: {len(record.trials)} trials are recorded")
            self._inspector = Inspector(self.plan, self.disk, session, thorough=self.plan.seed % 4 == 0)
            session.run(self._inspector.ticked, self._asked_to_stop)
            fleet.close()
        except Killed:
            self._log("the coordinator is killed")
            return None
        except Violation:
            raise
        except TrialfleetError as error:
            self._log(f"the coordinator ends: {error}")
            return None
        else:
            self._log(f"the session ends: {session._state.ended}")
            record = store.load(self._definition.name)  # type: ignore[assignment]
            self._inspector.ended(record)
            return None if session._state.ended is Ended.STOPPED else session._state
        finally:
            self._inspector = None
            if self._link is not None:
                self._link.die()
                self._link = None
            store.close()

    def _connect(self) -> SimulatedLink:
        fleet = self.plan.fleet
        self._link = SimulatedLink(
            self.world, self._broker, ADDRESS, outage=fleet.outage, step=self._step, cut_off=self._link_cut
        )
        return self._link

    def _step(self) -> None:
        """The coordinator calls a port."""
        if self.world.now > self._end:
            raise Violation(f"the study does not end within {ENDLESS:g} s after the faults")
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left <= 0:
                self._steps_left = None
                self._kill_now = True
        if self._kill_now:
            self._faults += 1
            raise Killed

    def _asked_to_stop(self) -> str | None:
        stop, self._stop = self._stop, False
        return "SIGINT" if stop else None

    def _acknowledged(self, queue: str, message: Message) -> None:
        if self._inspector is not None:
            self._inspector.acknowledged(queue, message)

    # The faults

    def _hire(self, slots: int) -> SimulatedWorker:
        self._names += 1
        return SimulatedWorker(
            self.world,
            self._broker,
            self._objective,
            self.plan,
            name=f"w{self._names}",
            slots=slots,
            honest=self.world.random.random() < _HONEST,
        )

    def _log(self, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.world.now - self._started:8.4f} s  {text}")

    def _fault(self, kind: str) -> None:  # noqa: C901  # one case after the other
        self._faults += 1
        self._log(kind)
        later, random = self.world.after, self.world.random
        seconds = random.uniform(0.0, _BROKEN)
        alive = [worker for worker in self._workers if worker.alive]
        worker = random.choice(alive) if alive else None
        match kind:
            case "kill coordinator":
                self._kill_now = True
            case "stop study":
                self._stop = True
            case "fill disk":
                self.disk.full = True
                later(seconds, self._make_space)
            case "cut off coordinator":
                self._link_cut = True
                if self._link is not None:
                    self._link.cut()
                later(seconds, self._mend_link)
            case "restart broker":
                self._broker.stop(lose_queues=False)
                later(seconds, self._broker.start)
            case "lose queues":
                self._broker.stop(lose_queues=True)
                later(seconds, self._broker.start)
            case "kill worker" if worker is not None:
                worker.kill()
                later(seconds, self._replace, worker)
            case "drain worker" if worker is not None:
                worker.drain()
                later(seconds, self._replace, worker)
            case "pause worker" if worker is not None:
                worker.pause()
                later(random.uniform(0.0, _BROKEN), self._give_up, worker)
                later(seconds, worker.go_on)
            case "cut off worker" if worker is not None:
                worker.cut()
                later(random.uniform(0.0, _BROKEN), self._give_up, worker)
                later(seconds, worker.mend)

    def _give_up(self, worker: SimulatedWorker) -> None:
        if worker.paused or worker.cut_off:
            worker.lose_connection()

    def _replace(self, worker: SimulatedWorker) -> None:
        self._workers.append(self._hire(worker.slots))

    def _make_space(self) -> None:
        self.disk.full = False

    def _mend_link(self) -> None:
        self._link_cut = False
        if self._link is not None:
            self._link.cut_off = False

    def _heal(self) -> None:
        """From now on nothing new goes wrong, and all that is broken is mended."""
        self._log("all is mended")
        self._healed = True
        self._steps_left = None
        self._broker.rates = Rates()
        self._objective.heal()
        self._broker.start()
        self._make_space()
        self._mend_link()
        for worker in self._workers:
            worker.go_on()
            worker.mend()
        self._workers.append(self._hire(1))


def _memory_stores() -> Callable[[World], StudyStore]:
    studies = MemoryStudies()

    def store(_: World) -> StudyStore:
        studies.locked.clear()  # as the kernel does with the locks of a process that was killed
        return MemoryStudyStore(studies)

    return store


def lmdb_stores(folder: Path) -> Callable[[World], StudyStore]:
    """Stores on disk, in that folder."""
    return lambda world: LmdbStudyStore(folder / "store", clock=world)
