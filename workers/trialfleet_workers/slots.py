"""The slots of this machine: evaluator processes with a hard deadline, a memory limit, and crash isolation.

    SlotPool (this process) ── control ──> zygote (one per objective; imports it once)
        │                                     └── forks ──> slot, slot, …  (each its own process group)
        └─────────────── one socket pair per slot ─────────────┘

The pool decides, the zygote forks, kills and buries, a slot evaluates. Whatever an objective does (hang in native code,
`os._exit`, a segmentation fault, memory without end, grandchildren) costs its own evaluation; a fresh slot is there
within milliseconds. When the pool's process ends, however it ends, its zygotes and slots end with it.
"""

import contextlib
import math
import os
import selectors
import signal
import socket
import threading
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
from trialfleet_workers.allowance import Allowance, resolve
from trialfleet_workers.evaluate import failed
from trialfleet_workers.frames import (
    Begin,
    Done,
    Failed,
    Fork,
    Forked,
    FromSlot,
    Kill,
    Prepare,
    Prepared,
    Ready,
    Run,
    frame,
)
from trialfleet_workers.handles import Job, Slot, SlotState, Zygote
from trialfleet_workers.in_memory import pickle_function
from trialfleet_workers.objective import MEMORY_PREFIX
from trialfleet_workers.pool_parts import CachedEvaluations, MemoryWatch

#: Share of the machine's memory that slots may fill together when a study sets no limit.
_MEMORY_SHARE = 0.9
#: Seconds that the import of an objective may take.
_IMPORT_SECONDS = 300.0
#: Seconds that a slot may take from its fork until it is ready (data opened; a cold slot imports the objective).
_START_SECONDS = 300.0
#: Slots in a row that may die before they are ready; then the study is refused.
_FAILED_STARTS = 3
#: Seconds for which a refusal is remembered: a batch of evaluations must not cost an import each, and a worker whose
#: copy of the objective is updated should notice.
_REFUSAL_SECONDS = 10.0
#: Objectives whose zygotes are kept; the one used longest ago goes first.
_MOST_ZYGOTES = 4
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
        self._base = base
        self._data_path = data_path
        self._functions = functions
        self._name = name
        self._allowance = allowance
        self._cached = CachedEvaluations(cache, name)
        self._memory = MemoryWatch(clock)
        self._clock = clock
        self._default_memory_limit = int(linux.machine_memory() * _MEMORY_SHARE / slots)
        #: Slots that died or were ended early, by reason: timeout, memory, crash, zygote.
        self.restarts: Counter[str] = Counter()

        self._selector = selectors.DefaultSelector()
        self._zygotes: dict[tuple[str, str], Zygote] = {}
        self._live: dict[int, Slot] = {}
        self._next_slot = 0
        self._queue: deque[Job] = deque()
        self._results: list[tuple[StudySpec, EvaluationResult]] = []
        self._prepared: set[StudySpec] = set()
        self._refusals: dict[StudySpec, tuple[TrialfleetError, float]] = {}
        self._oom_kills = linux.oom_kills()
        self._started_at: float | None = None
        self._closed_at: float | None = None
        self._busy_seconds = 0.0

        self._wake_lock = threading.Lock()
        self._wake_fd: int | None = None
        self._woken = False
        self._closed = False

    # What its owner calls.

    def start(self) -> None:
        """Get ready to prepare studies; utilisation counts from here."""
        self._check_open()
        if self._started_at is None:
            self._started_at = self._clock.monotonic()
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._selector.register(self._wake_fd, selectors.EVENT_READ, self._take_wake)

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
        self._refusals.pop(spec, None)
        while spec not in self._prepared:
            zygote = self._zygote(spec)
            if zygote.ready and not any(slot.spec == spec and not slot.ending for slot in self._live.values()):
                self._spawn(zygote, spec)
            self._step(_START_SECONDS)
            if spec in self._refusals:
                raise self._refusals[spec][0]
        while len(self._live) < self.slots:
            self._spawn(self._zygote(spec), spec)

    def submit(self, spec: StudySpec, evaluation: Evaluation) -> None:
        """Queue an evaluation; it starts as soon as a slot is free. Does not wait for anything.

        The objective of a study that was not prepared is imported meanwhile; if that fails, the outcome is REFUSED.

        Raises:
            FleetError: the pool is closed.
        """
        self.start()
        self._queue.append(Job(spec, evaluation))
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
        self.pss_bytes()
        results, self._results = self._results, []
        return results

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        """The evaluations that no slot has started, in order; the pool forgets them."""
        for zygote in self._zygotes.values():
            self._unpark(zygote)
        taken = [(job.spec, job.evaluation) for job in self._queue]
        self._queue.clear()
        return taken

    def wake(self) -> None:
        """Have a `poll` that is waiting, or else the next one, return early. May be called from any thread."""
        with self._wake_lock:
            if self._wake_fd is not None:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """End everything that runs, and all processes. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._closed_at = self._clock.monotonic()
        if self._started_at is not None:
            self._look_at_memory()
        for zygote in list(self._zygotes.values()):
            self._end_zygote(zygote)
        self._queue.clear()
        with self._wake_lock:
            if self._wake_fd is not None:
                os.close(self._wake_fd)
                self._wake_fd = None
        self._selector.close()

    @property
    def busy(self) -> int:
        """Slots that have an evaluation."""
        return sum(slot.job is not None for slot in self._live.values())

    @property
    def queued(self) -> int:
        """Evaluations that wait for a slot."""
        return len(self._queue) + sum(len(zygote.parked) for zygote in self._zygotes.values())

    @property
    def held(self) -> list[tuple[StudySpec, EvaluationKey]]:
        """Everything submitted and not returned by `poll` yet."""
        jobs = [*self._queue, *(slot.job for slot in self._live.values() if slot.job is not None)]
        jobs += [job for zygote in self._zygotes.values() for job in zygote.parked]
        return [
            *((job.spec, job.evaluation.key) for job in jobs),
            *((spec, result.key) for spec, result in self._results),
        ]

    @property
    def busy_slot_seconds(self) -> float:
        """Seconds that slots spent evaluating, up to now."""
        now = self._clock.monotonic()
        running = (slot for slot in self._live.values() if slot.state is SlotState.BUSY)
        return self._busy_seconds + sum(now - slot.since for slot in running)

    @property
    def available_slot_seconds(self) -> float:
        """Seconds from `start` to now, or to `close`, times the slots."""
        if self._started_at is None:
            return 0.0
        until = self._clock.monotonic() if self._closed_at is None else self._closed_at
        return (until - self._started_at) * self.slots

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
        limits = [slot.limit for slot in self._live.values()] + [zygote.limit for zygote in self._zygotes.values()]
        limit = min(limits, default=math.inf)
        for key, _ in self._selector.select(max(0.0, min(timeout, limit - now))):
            key.data()
        if limit <= self._clock.monotonic():
            self._enforce_limits()
        self._dispatch()
        self._cached.flush()

    def _take_wake(self) -> None:
        assert self._wake_fd is not None
        os.eventfd_read(self._wake_fd)
        self._woken = True

    def _dispatch(self) -> None:
        while self._queue:
            job = self._queue[0]
            refusal = self._refusal(job.spec)
            if refusal is not None:
                self._queue.popleft()
                self._fail(job, Outcome.REFUSED, str(refusal))
                continue
            if self._answer_from_cache(job):
                self._queue.popleft()
                continue
            if self.busy >= self.slots:
                return
            try:
                zygote = self._zygote(job.spec)
            except TrialfleetError as error:
                self._refuse(job.spec, error)
                continue
            self._queue.popleft()
            if not zygote.ready:
                zygote.parked.append(job)
                continue
            slot = self._slot_for(job.spec, zygote)
            slot.job = job
            if slot.state is SlotState.IDLE:
                self._run(slot)

    def _slot_for(self, spec: StudySpec, zygote: Zygote) -> Slot:
        """A slot that has nothing to do and is, or soon will be, ready for the study; one more may have work."""
        free = [slot for slot in self._live.values() if slot.job is None and not slot.ending]
        fitting = [slot for slot in free if slot.spec == spec]
        for slot in fitting:
            if slot.state is SlotState.IDLE:
                return slot
        if fitting:
            return fitting[0]
        for slot in free:
            if slot.zygote is zygote and slot.state is SlotState.IDLE:
                self._begin(slot, spec)
                return slot
        if len(self._live) >= self.slots and free:
            self._kill(free[0])
        return self._spawn(zygote, spec)

    def _enforce_limits(self) -> None:
        now = self._clock.monotonic()
        for slot in list(self._live.values()):
            if slot.limit > now:
                continue
            if slot.state is SlotState.BUSY:
                self.restarts["timeout"] += 1
                deadline = slot.spec.deadline_seconds
                self._end_job(slot, Outcome.TIMEOUT, f"ended at its deadline of {deadline:g} s", slot.cpu_used())
            else:
                self._not_started(slot, f"not ready within {_START_SECONDS:g} s")
            self._kill(slot)
        for zygote in list(self._zygotes.values()):
            if zygote.limit <= now:
                self._refuse_all(zygote, ObjectiveError(f"its import took more than {_IMPORT_SECONDS:g} s"))

    # Evaluations.

    def _run(self, slot: Slot) -> None:
        assert slot.job is not None
        now = self._clock.monotonic()
        deadline = slot.job.spec.deadline_seconds
        slot.state = SlotState.BUSY
        slot.since = now
        slot.limit = math.inf if deadline is None else now + deadline
        slot.zygote.used_at = now
        try:
            slot.sock.sendall(frame(Run(slot.job.evaluation)))
        except OSError:  # it died while it had nothing to do: another one takes the evaluation
            slot.state = SlotState.IDLE
            self._hand_back(slot)
            self._kill(slot)

    def _end_job(self, slot: Slot, outcome: Outcome, message: str, cpu_seconds: float) -> None:
        """The slot's evaluation, if it has one, came to no end of its own."""
        if slot.job is None:
            return
        wall_seconds = self._clock.monotonic() - slot.since
        job = self._release(slot)
        self._fail(job, outcome, message, wall_seconds=wall_seconds, cpu_seconds=cpu_seconds)

    def _release(self, slot: Slot) -> Job:
        assert slot.job is not None
        job, slot.job = slot.job, None
        self._busy_seconds += self._clock.monotonic() - slot.since
        slot.state = SlotState.IDLE
        slot.limit = math.inf
        return job

    def _fail(self, job: Job, outcome: Outcome, message: str, **measured: float) -> None:
        self._results.append((job.spec, failed(job.evaluation, outcome, message, worker=self._name, **measured)))

    def _answer_from_cache(self, job: Job) -> bool:
        if job.asked_cache:
            return False
        job.asked_cache = True
        result = self._cached.answer(job.spec, job.evaluation)
        if result is not None:
            self._results.append((job.spec, result))
        return result is not None

    def _refusal(self, spec: StudySpec) -> TrialfleetError | None:
        if spec not in self._refusals:
            return None
        error, until = self._refusals[spec]
        if self._clock.monotonic() < until:
            return error
        del self._refusals[spec]
        return None

    def _refuse(self, spec: StudySpec, error: TrialfleetError) -> None:
        self._prepared.discard(spec)
        self._refusals[spec] = (error, self._clock.monotonic() + _REFUSAL_SECONDS)

    # Slots.

    def _spawn(self, zygote: Zygote, spec: StudySpec) -> Slot:
        """Have a slot forked and told of the study."""
        mine, theirs = socket.socketpair()
        slot = Slot(self._next_slot, zygote, mine, spec)
        self._next_slot += 1
        self._live[slot.number] = slot
        self._selector.register(mine, selectors.EVENT_READ, lambda: self._hear_slot(slot))
        with theirs:
            zygote.tell(Fork(slot.number), theirs.fileno())
        self._begin(slot, spec)
        return slot

    def _begin(self, slot: Slot, spec: StudySpec) -> None:
        slot.spec = spec
        slot.state = SlotState.STARTING
        slot.since = self._clock.monotonic()
        slot.limit = slot.since + _START_SECONDS
        limit = spec.memory_limit_bytes
        message = Begin(spec, self._default_memory_limit if limit is None else limit)
        with contextlib.suppress(OSError):  # one that is dead hears nothing: its zygote tells
            slot.sock.sendall(frame(message))

    def _kill(self, slot: Slot) -> None:
        """Have the slot and all that it started killed, for a reason that is dealt with."""
        if not slot.ending:
            slot.ending = True
            slot.limit = math.inf
            slot.zygote.tell(Kill(slot.number))

    def _hear_slot(self, slot: Slot) -> None:
        if slot.number in self._live and not self._drain(slot):
            # Nearly always it is dead, and its status will say how. One that closed its descriptors is of no use.
            slot.zygote.tell(Kill(slot.number))

    def _drain(self, slot: Slot) -> bool:
        """Take everything the slot has said. Returns whether it may say more."""
        if not slot.connected:
            return False
        try:
            while received := slot.reader.receive():
                for message in slot.reader.messages():
                    self._heed_slot(slot, message)
        except msgspec.DecodeError:  # the objective wrote into the socket
            received = 0
        if received == 0:
            self._selector.unregister(slot.sock)
            slot.connected = False
        return slot.connected

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
            self._kill(slot)
        elif slot.state is SlotState.BUSY:
            self._take_result(slot, message)
        else:  # an answer nobody asked for: something of the objective's speaks in its name
            self._kill(slot)

    def _take_result(self, slot: Slot, message: Done) -> None:
        job = self._release(slot)
        slot.cpu_seconds = message.cpu_seconds
        result = msgspec.structs.replace(message.result, worker=self._name)
        self._cached.remember(job.spec, job.evaluation, result)
        self._results.append((job.spec, result))
        if result.outcome is Outcome.MEMORY:
            # What filled the memory may still be held somewhere.
            self.restarts["memory"] += 1
            self._kill(slot)

    def _bury(self, slot: Slot, status: int, cpu_seconds: float) -> None:
        """The slot is dead. Whatever it had in hand came to its end with it, and another slot takes its place."""
        self._drain(slot)
        self._forget(slot)
        death = linux.describe_status(status)
        if slot.ending:
            pass
        elif slot.state is SlotState.STARTING:
            self._not_started(slot, death)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and self._kernel_killed():
            self.restarts["memory"] += 1
            self._end_job(slot, Outcome.MEMORY, f"{death}: the machine ran out of memory", cpu_seconds)
        else:
            self.restarts["crash"] += 1
            self._end_job(slot, Outcome.CRASH, death, cpu_seconds)
        if len(self._live) < self.slots and slot.spec in self._prepared and slot.zygote in self._zygotes.values():
            self._spawn(slot.zygote, slot.spec)

    def _forget(self, slot: Slot) -> None:
        del self._live[slot.number]
        if slot.connected:
            self._selector.unregister(slot.sock)
            slot.connected = False
        slot.sock.close()

    def _not_started(self, slot: Slot, death: str) -> None:
        self._hand_back(slot)
        slot.zygote.failed_starts += 1
        if slot.zygote.failed_starts >= _FAILED_STARTS:
            self._refuse(
                slot.spec, FleetError(f"evaluator processes of study {slot.spec.study!r} do not start: {death}")
            )
        elif slot.spec not in self._prepared:
            self._spawn(slot.zygote, slot.spec)

    def _hand_back(self, slot: Slot) -> None:
        if slot.job is not None:
            self._queue.appendleft(slot.job)
            slot.job = None

    def _kernel_killed(self) -> bool:
        """Whether the kernel killed a process for want of memory since this was asked last."""
        before, self._oom_kills = self._oom_kills, linux.oom_kills()
        return self._oom_kills > before

    # Zygotes.

    def _zygote(self, spec: StudySpec) -> Zygote:
        """The zygote of the study's objective, started if need be."""
        key = (spec.objective, spec.objective_digest)
        zygote = self._zygotes.get(key)
        if zygote is None:
            function = None
            if spec.objective.startswith(MEMORY_PREFIX):
                reference, base = spec.objective.removeprefix(MEMORY_PREFIX), self._base
                function = pickle_function(self._in_memory(reference), reference)
            else:
                reference, base = resolve(spec.objective, spec.objective_digest, self._base, self._allowance)
            self._make_room()
            own = self._allowance is not None
            zygote = Zygote(Prepare(reference, str(base), function, own=own, preload=True), self._data_path)
            self._zygotes[key] = zygote
            self._listen(zygote)
        zygote.studies.add(spec)
        zygote.used_at = self._clock.monotonic()
        return zygote

    def _listen(self, zygote: Zygote) -> None:
        self._selector.register(zygote.control, selectors.EVENT_READ, lambda: self._hear_zygote(zygote))
        zygote.limit = self._clock.monotonic() + _IMPORT_SECONDS

    def _in_memory(self, name: str) -> Callable[..., Any]:
        if name not in self._functions:
            raise ObjectiveError(f"objective {MEMORY_PREFIX + name!r} is in another process's memory")
        return self._functions[name]

    def _make_room(self) -> None:
        """End the zygote used longest ago when there are too many; one whose slots have work stays."""
        if len(self._zygotes) < _MOST_ZYGOTES:
            return
        working = {id(slot.zygote) for slot in self._live.values() if slot.job is not None}
        idle = [zygote for zygote in self._zygotes.values() if id(zygote) not in working and zygote.ready]
        if idle:
            self._end_zygote(min(idle, key=lambda zygote: zygote.used_at))

    def _hear_zygote(self, zygote: Zygote) -> None:
        received = zygote.reader.receive()
        for message in zygote.reader.messages():
            if isinstance(message, Prepared):
                self._imported(zygote, message)
                if not zygote.ready:  # it was started again: what comes, comes over another socket
                    return
            elif isinstance(message, Failed):
                self._refuse_all(zygote, ObjectiveError(message.message))
                return
            elif (slot := self._live.get(message.slot)) is None:
                continue
            elif isinstance(message, Forked):
                slot.pid = message.pid
            else:
                self._bury(slot, message.status, max(0.0, message.cpu_seconds - slot.cpu_seconds))
        if received == 0 and not zygote.ready:
            self._refuse_all(zygote, zygote.died_importing())
        elif received == 0:
            self.restarts["zygote"] += 1
            self._end_zygote(zygote)

    def _imported(self, zygote: Zygote, message: Prepared) -> None:
        if zygote.preloads and message.threads > 1:
            # The import started threads; a fork would leave the locks they hold taken for ever.
            self._selector.unregister(zygote.control)
            zygote.start_again_without_preload()
            self._listen(zygote)
            return
        zygote.ready = True
        zygote.limit = math.inf
        self._unpark(zygote)

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
        self._zygotes = {key: kept for key, kept in self._zygotes.items() if kept is not zygote}
        self._selector.unregister(zygote.control)
        mine = [slot for slot in self._live.values() if slot.zygote is zygote]
        for slot in mine:
            self._drain(slot)
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
            self._forget(slot)

    def _look_at_memory(self) -> None:
        slots = (slot.pid for slot in self._live.values() if slot.pid is not None)
        self._memory.look((*(zygote.pid for zygote in self._zygotes.values()), *slots))
