"""The slots of this machine: evaluator processes with a hard deadline, a memory limit, and crash isolation.

    SlotPool (this process) ── control ──> zygote (one per objective; imports it once)
        │                                     └── forks ──> slot, slot, …  (each its own process group)
        └─────────────── one socket pair per slot ─────────────┘

The pool decides, the zygote forks, kills and buries, a slot evaluates, and goes on with what it was offered meanwhile
(`offers.py`) without a way to the pool and back. Whatever an objective does (hang in native code, `os._exit`, a
segmentation fault, memory without end, grandchildren) costs its own evaluation; a fresh slot is there within milliseconds.
When the pool's process ends, however it ends, its zygotes and slots end with it.
"""

import math
import os
import selectors
import signal
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from trialfleet_shared.caching import ResultCache
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import DataError, FleetError, ObjectiveError, TrialfleetError
from trialfleet_shared.messages import Evaluation, EvaluationKey, EvaluationResult, Outcome, StudySpec
from trialfleet_workers import linux
from trialfleet_workers.allowance import Allowance
from trialfleet_workers.evaluate import failed
from trialfleet_workers.frames import Declined, Done, Failed, Forked, FromSlot, Prepared, Ready, Run, frame
from trialfleet_workers.handles import Slot, SlotState, Zygote
from trialfleet_workers.jobs import Job
from trialfleet_workers.live_slots import START_SECONDS, LiveSlots
from trialfleet_workers.pool_parts import (
    CachedEvaluations,
    KernelKills,
    LatestStudies,
    MemoryWatch,
    Refusals,
    SlotUsage,
    Waker,
)
from trialfleet_workers.zygotes import IMPORT_SECONDS, ObjectiveSources, Zygotes

#: Share of the machine's memory that slots may fill together when a study sets no limit.
_MEMORY_SHARE = 0.9
#: Seconds of an evaluation after which what else its slot was offered is offered to others.
_HELD_UP_SECONDS = 0.05
#: Slots in a row that may die before they are ready; then the study is refused.
_FAILED_STARTS = 3
#: Times an evaluation is started again after its zygote was lost; an objective may be what kills it.
_MOST_LOSSES = 2


class SlotPool:
    """Evaluates on a fixed number of slots; serves several studies at once.

    All methods but `wake` are called from one thread.

    Args:
        slots: evaluations that run at the same time.
        base: folder that objectives given as files are relative to.
        data_path: the data cache; None when no study has data.
        functions: objectives in memory, by the name after "memory:".
        name: who evaluates, as results say it.
        allowance: which objectives may run; None: any that is found from `base`.
        cache: asked before an evaluation, told after one; None: neither.
        clock: measures deadlines and utilisation.
    """

    def __init__(
        self,
        *,
        slots: int,
        base: Path,
        data_path: Path | None,
        functions: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        name: str = "",
        allowance: Allowance | None = None,
        cache: ResultCache | None = None,
        clock: Clock,
    ) -> None:
        if slots < 1:
            raise FleetError(f"slots = {slots}; at least 1 is needed")
        self.slots = slots
        self._name = name
        self._clock = clock
        #: Slots that died or were ended early, by reason: timeout, memory, crash, zygote.
        self.restarts: Counter[str] = Counter()

        self._selector = selectors.DefaultSelector()
        self._waker = Waker()
        self._objectives = ObjectiveSources(base, functions, allowance)
        self._zygotes = Zygotes(data_path=data_path, selector=self._selector, clock=clock, hear=self._hear_zygote)
        self._live = LiveSlots(
            most=slots,
            memory_limit=int(linux.machine_memory() * _MEMORY_SHARE / slots),
            selector=self._selector,
            clock=clock,
            heed=self._heed_slot,
        )
        self._queue: deque[Job] = deque()
        self._results: list[tuple[StudySpec, EvaluationResult]] = []
        self._prepared = LatestStudies()
        self._refusals = Refusals(clock)
        self._cached = CachedEvaluations(cache, name)
        self._memory = MemoryWatch(clock)
        self._usage = SlotUsage(slots, clock)
        self._kernel_kills = KernelKills(clock)
        self._woken = False
        self._closed = False

    # What its owner calls.

    def start(self) -> None:
        """Get ready to prepare studies; utilisation counts from here."""
        self._check_open()
        if not self._usage.started:
            self._usage.start()
            self._selector.register(self._waker.open(), selectors.EVENT_READ, self._take_wake)

    def preload(self, spec: StudySpec) -> None:
        """Begin to import the objective of a study that is to be prepared, whatever its data will be; does not wait for it.

        Raises:
            ObjectiveError: the objective is not allowed, is other code than the study's, or can not be sent to a process.
            FleetError: the pool is closed, or no process can be started.
        """
        self._check_open()
        self._zygote(spec)

    def prepare(self, spec: StudySpec) -> None:
        """Import the study's objective and open its data, once; slots are warm when it returns.

        Raises:
            ObjectiveError: the objective is not allowed, is other code than the study's, or can not be loaded.
            DataError: the data can not be opened.
            FleetError: the pool is closed, or the slots do not start.
        """
        self.start()
        if spec in self._prepared:
            return
        self._refusals.forget(spec)
        while spec not in self._prepared:
            zygote = self._zygote(spec)
            if zygote.ready and not self._live.serve(spec):
                self._live.spawn(zygote, spec)
            self._step(START_SECONDS)
            refusal = self._refusals.of(spec)
            if refusal is not None:
                raise refusal
        while not self._live.full:
            self._live.spawn(self._zygote(spec), spec)

    def submit(self, spec: StudySpec, *evaluations: Evaluation) -> None:
        """Queue evaluations; each starts as soon as a slot is free. Does not wait for anything.

        The objective of a study that was not prepared is imported meanwhile; if that fails, the outcome is REFUSED.

        Raises:
            FleetError: the pool is closed.
        """
        self.start()
        self._queue.extend(Job(spec, evaluation) for evaluation in evaluations)
        self._dispatch()

    def poll(self, timeout: float) -> list[tuple[StudySpec, EvaluationResult]]:
        """What came to its end, waiting up to `timeout` seconds for the first.

        Raises:
            FleetError: the pool is closed.
        """
        self.start()
        end = self._clock.monotonic() + timeout
        self._step(0.0)
        while not self._results and not self._woken:
            left = end - self._clock.monotonic()
            if left <= 0:
                break
            self._step(left)
        self._woken = False
        self._look_for_zygotes()
        self.pss_bytes()
        self._kernel_kills.look()
        results, self._results = self._results, []
        return results

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        """The evaluations that no slot has started, in order; the pool forgets them."""
        for zygote in self._zygotes:
            self._unpark(zygote)
        self._queue.extendleft(reversed(self._live.withdraw(self._live.offered)))
        taken = [(job.spec, job.evaluation) for job in self._queue]
        self._queue.clear()
        return taken

    def wake(self) -> None:
        """Have a `poll` that is waiting, or else the next one, return early. May be called from any thread."""
        self._waker.wake()

    def close(self) -> None:
        """End everything that runs, and all processes. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._cached.flush(idle=True)
        self._usage.close()
        if self._usage.started:
            self._look_at_memory()
        for zygote in self._zygotes:
            if not zygote.ready:
                zygote.interrupt()
            self._end_zygote(zygote)
        self._queue.clear()
        self._waker.close()
        self._selector.close()

    @property
    def busy(self) -> int:
        """Slots that have an evaluation."""
        return self._live.busy

    @property
    def queued(self) -> int:
        """Evaluations that wait for a slot."""
        return len(self._queue) + self._live.offered + sum(len(zygote.parked) for zygote in self._zygotes)

    @property
    def held(self) -> list[tuple[StudySpec, EvaluationKey]]:
        """Everything submitted and not returned by `poll` yet."""
        jobs = [*self._queue, *(slot.job for slot in self._live if slot.job is not None)]
        jobs += [job for slot in self._live for job in slot.offers.jobs]
        jobs += [job for zygote in self._zygotes for job in zygote.parked]
        return [
            *((job.spec, job.evaluation.key) for job in jobs),
            *((spec, result.key) for spec, result in self._results),
        ]

    @property
    def busy_slot_seconds(self) -> float:
        """Seconds that slots spent evaluating, up to now."""
        return self._usage.busy(slot.since for slot in self._live if slot.state is SlotState.BUSY)

    @property
    def available_slot_seconds(self) -> float:
        """Seconds from `start` to now, or to `close`, times the slots."""
        return self._usage.available

    def pss_bytes(self) -> int:
        """Proportional set size of this process, the zygotes and the slots, at most 5 seconds old, in bytes.

        Processes that an objective starts are not counted.
        """
        if self._memory.due():
            self._look_at_memory()
        return self._memory.current

    @property
    def peak_pss_bytes(self) -> int:
        """The highest proportional set size that was seen, in bytes."""
        return self._memory.peak

    # One turn of the loop.

    def _check_open(self) -> None:
        if self._closed:
            raise FleetError("the slot pool is closed")

    def _step(self, timeout: float) -> None:
        """Start what can be started, then handle what happens next, waiting up to `timeout` seconds for it."""
        known = len(self._results)
        self._dispatch()
        if len(self._results) > known:
            timeout = 0.0
        now = self._clock.monotonic()
        limits = [slot.limit for slot in self._live] + [zygote.limit for zygote in self._zygotes]
        limit = min(limits, default=math.inf)
        for key, _ in self._selector.select(max(0.0, min(timeout, limit - now))):
            key.data()
        if limit <= self._clock.monotonic():
            self._enforce_limits()
        held_up = self._live.relieve(self._clock.monotonic() - _HELD_UP_SECONDS)
        self._queue.extendleft(reversed(held_up))
        self._dispatch()
        self._cached.flush(idle=not self._live.busy)

    def _take_wake(self) -> None:
        self._waker.take()
        self._woken = True

    def _dispatch(self) -> None:
        self._level()
        try:
            self._hand_out()
        finally:
            self._live.send_offers()

    def _hand_out(self) -> None:
        while self._queue:
            job = self._queue[0]
            refusal = self._refusals.of(job.spec)
            if refusal is not None:
                self._queue.popleft()
                self._fail(job, Outcome.REFUSED, str(refusal))
                continue
            if self._answer_from_cache(job):
                self._queue.popleft()
                continue
            if self._live.busy >= self.slots:
                if not self._live.offer(job):
                    return
                self._queue.popleft()
                continue
            try:
                zygote = self._zygote(job.spec)
            except TrialfleetError as error:
                self._refuse(job.spec, error)
                continue
            self._queue.popleft()
            if not zygote.ready:
                zygote.parked.append(job)
                continue
            slot = self._live.choose(job.spec, zygote)
            slot.job = job
            if slot.state is SlotState.IDLE:
                self._run(slot)

    def _level(self) -> None:
        """Where slots are idle and nothing else is queued, withdraw what busy ones were offered."""
        idle = self.slots - self._live.busy
        if idle and not self._queue:
            self._queue.extendleft(reversed(self._live.withdraw(idle)))

    def _enforce_limits(self) -> None:
        now = self._clock.monotonic()
        for slot in self._live:
            if slot.limit > now or (slot.state is SlotState.BUSY and self._is_on_time(slot)):
                continue
            if slot.state is SlotState.BUSY:
                self.restarts["timeout"] += 1
                deadline = slot.spec.deadline_seconds
                self._end_job(slot, Outcome.TIMEOUT, f"ended at its deadline of {deadline:g} s", slot.cpu_used())
                self._hand_back(slot)
            else:
                self._not_started(slot, f"not ready within {START_SECONDS:g} s")
            self._live.kill(slot)
        for zygote in self._zygotes:
            if zygote.limit <= now:
                self._refuse_all(zygote, ObjectiveError(f"its import took more than {IMPORT_SECONDS:g} s"))

    def _is_on_time(self, slot: Slot) -> bool:
        """Whether the slot has ended, meanwhile, what it seemed to be late with, and goes on; it begins nothing more if not."""
        self._queue.extendleft(reversed(slot.offers.withdraw_all()))
        self._live.drain(slot)
        return slot.ending or slot.limit > self._clock.monotonic()

    # Evaluations.

    def _run(self, slot: Slot) -> None:
        assert slot.job is not None
        message = frame(Run(slot.job.evaluation))
        self._occupy(slot, slot.job)
        try:
            slot.sock.sendall(message)
        except OSError:  # it died while it had nothing to do: another one takes the evaluation
            slot.state = SlotState.IDLE
            self._hand_back(slot)
            self._live.kill(slot)

    def _occupy(self, slot: Slot, job: Job) -> None:
        """The slot evaluates it from now on."""
        now = self._clock.monotonic()
        deadline = job.spec.deadline_seconds
        slot.job = job
        slot.state = SlotState.BUSY
        slot.since = now
        slot.limit = math.inf if deadline is None else now + deadline
        slot.zygote.used_at = now

    def _end_job(self, slot: Slot, outcome: Outcome, message: str, cpu_seconds: float) -> None:
        """The slot's evaluation, if it has one, came to no end of its own."""
        if slot.job is None:
            return
        wall_seconds = self._clock.monotonic() - slot.since
        job = self._release(slot)
        ended = failed(
            job.evaluation,
            outcome,
            message,
            wall_seconds=wall_seconds,
            cpu_seconds=cpu_seconds,
            worker=self._name,
            slot=slot.place,
            started_at=self._clock.time() - wall_seconds,
        )
        self._results.append((job.spec, ended))

    def _release(self, slot: Slot) -> Job:
        assert slot.job is not None
        job, slot.job = slot.job, None
        self._usage.add(self._clock.monotonic() - slot.since)
        slot.state = SlotState.IDLE
        slot.limit = math.inf
        return job

    def _fail(self, job: Job, outcome: Outcome, message: str) -> None:
        self._results.append((job.spec, failed(job.evaluation, outcome, message, worker=self._name)))

    def _answer_from_cache(self, job: Job) -> bool:
        if job.asked_cache:
            return False
        job.asked_cache = True
        result = self._cached.answer(job.spec, job.evaluation)
        if result is not None:
            self._results.append((job.spec, result))
        return result is not None

    def _refuse(self, spec: StudySpec, error: TrialfleetError) -> None:
        self._prepared.discard(spec)
        self._refusals.add(spec, error)

    # Slots.

    def _heed_slot(self, slot: Slot, message: FromSlot) -> None:
        if slot.ending:
            return
        if isinstance(message, Ready):
            slot.zygote.failed_starts = 0
            slot.state = SlotState.IDLE
            slot.limit = math.inf
            self._prepared.add(slot.spec)
            if slot.job is not None:
                self._run(slot)
        elif isinstance(message, Failed):
            self._refuse(slot.spec, DataError(message.message) if message.data else ObjectiveError(message.message))
            self._hand_back(slot)
            self._live.kill(slot)
        elif isinstance(message, Declined):
            slot.offers.declined()
        elif slot.state is SlotState.BUSY:
            self._take_result(slot, message)
        else:  # an answer nobody asked for: something of the objective's speaks in its name
            self._live.kill(slot)

    def _take_result(self, slot: Slot, message: Done) -> None:
        job = self._release(slot)
        slot.cpu_seconds = message.cpu_seconds
        slot.offers.pace(message.result.wall_seconds)
        result = msgspec.structs.replace(message.result, worker=self._name, slot=slot.place)
        self._cached.remember(job.spec, job.evaluation, result)
        self._results.append((job.spec, result))
        if result.outcome is Outcome.MEMORY:
            # What filled the memory may still be held somewhere.
            self.restarts["memory"] += 1
            self._hand_back(slot)
            self._live.kill(slot)
        elif (offered := slot.offers.accepted()) is not None:
            self._occupy(slot, offered)

    def _bury(self, slot: Slot, status: int, cpu_seconds: float) -> None:
        """The slot is dead. Whatever it had in hand came to its end with it, and another slot takes its place."""
        self._live.drain(slot)
        begun = slot.offers.begun()
        self._live.forget(slot)
        death = linux.describe_status(status)
        if slot.ending:
            pass
        elif slot.state is SlotState.STARTING:
            self._not_started(slot, death)
        elif not begun:  # something that the evaluation before left behind ended it
            self.restarts["crash"] += 1
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and self._kernel_kills.one_lately():
            self.restarts["memory"] += 1
            self._end_job(slot, Outcome.MEMORY, f"{death}: the machine ran out of memory", cpu_seconds)
        else:
            self.restarts["crash"] += 1
            self._end_job(slot, Outcome.CRASH, death, cpu_seconds)
        self._hand_back(slot)
        if not self._live.full and slot.spec in self._prepared and slot.zygote in self._zygotes:
            self._live.spawn(slot.zygote, slot.spec)

    def _not_started(self, slot: Slot, death: str) -> None:
        self._hand_back(slot)
        slot.zygote.failed_starts += 1
        if slot.zygote.failed_starts >= _FAILED_STARTS:
            self._refuse(
                slot.spec, FleetError(f"evaluator processes of study {slot.spec.study!r} do not start: {death}")
            )
        elif slot.spec not in self._prepared:
            self._live.spawn(slot.zygote, slot.spec)

    def _hand_back(self, slot: Slot) -> None:
        """What it has in hand, and what it was offered, are for another slot."""
        offered = iter(slot.offers.accepted, None)
        self._queue.extendleft(reversed(list(offered)))
        if slot.job is not None:
            self._queue.appendleft(slot.job)
            slot.job = None

    # Zygotes.

    def _zygote(self, spec: StudySpec) -> Zygote:
        """The zygote of the study's objective, started if need be."""
        zygote = self._zygotes.find(spec)
        if zygote is None:
            prepare = self._objectives.prepare(spec)
            working = {slot.zygote for slot in self._live if slot.job is not None}
            surplus = self._zygotes.surplus(working)
            if surplus is not None:
                self._end_zygote(surplus)
            zygote = self._zygotes.start(spec, prepare)
        return zygote

    def _hear_zygote(self, zygote: Zygote) -> None:
        received = zygote.reader.receive()
        for message in zygote.reader.messages():
            if isinstance(message, Prepared):
                self._zygotes.imported(zygote, message)
                if not zygote.ready:  # it was started again: what comes, comes over another socket
                    return
                self._unpark(zygote)
            elif isinstance(message, Failed):
                self._refuse_all(zygote, ObjectiveError(message.message))
                return
            elif (slot := self._live.get(message.slot)) is None:
                continue
            elif isinstance(message, Forked):
                slot.pid = message.pid
            else:
                self._bury(slot, message.status, max(0.0, message.cpu_seconds - slot.cpu_seconds))
        if received == 0:
            self._lose_zygote(zygote)

    def _lose_zygote(self, zygote: Zygote) -> None:
        if not zygote.ready and self._zygotes.imports_again(zygote):
            self.restarts["zygote"] += 1
        elif not zygote.ready:
            self._refuse_all(zygote, zygote.died_importing())
        else:
            self.restarts["zygote"] += 1
            self._end_zygote(zygote)

    def _look_for_zygotes(self) -> None:
        """Lose those that are gone unheard: a process that an import has started may keep their sockets open."""
        for zygote in self._zygotes:
            if zygote.gone:
                self._hear_zygote(zygote)
                if zygote in self._zygotes and zygote.gone:
                    self._lose_zygote(zygote)

    def _unpark(self, zygote: Zygote) -> None:
        self._queue.extendleft(reversed(zygote.parked))
        zygote.parked.clear()

    def _refuse_all(self, zygote: Zygote, error: ObjectiveError) -> None:
        """The objective can not be imported."""
        for spec in zygote.studies:
            self._refuse(spec, error)
        self._end_zygote(zygote)

    def _end_zygote(self, zygote: Zygote) -> None:
        """End it and its slots; evaluations they had start again elsewhere."""
        self._zygotes.remove(zygote)
        mine = self._live.of(zygote)
        for slot in mine:
            self._live.drain(slot)
        zygote.end()
        self._unpark(zygote)
        for slot in mine:
            slot.kill_group()
            if slot.state is SlotState.BUSY:
                job = self._release(slot)
                job.losses += 1
                if job.losses > _MOST_LOSSES:
                    self._fail(job, Outcome.CRASH, "its evaluator processes were killed from outside, again and again")
                else:
                    self._queue.appendleft(job)
            self._hand_back(slot)
            self._live.forget(slot)

    def _look_at_memory(self) -> None:
        slots = (slot.pid for slot in self._live if slot.pid is not None)
        self._memory.look((*(zygote.pid for zygote in self._zygotes), *slots))
