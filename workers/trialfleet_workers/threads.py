"""Slots that are threads of this process: no copies, no pickling, and no isolation.

For objectives that can not be sent to another process, and for debuggers. A thread can not be killed: an evaluation
that passes its deadline is reported as TIMEOUT at that moment and another thread takes over, but the function runs on
until it returns, and what it returns then is ignored. Memory limits do not apply. A crash in native code ends the
program. Global random generators are not seeded, and CPU seconds are those of the evaluating thread alone.
"""

import itertools
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import FleetError, ObjectiveError, TrialfleetError, message_of
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers.allowance import resolve
from trialfleet_workers.clocks import ThreadClock
from trialfleet_workers.evaluate import evaluate, failed
from trialfleet_workers.objective import MEMORY_PREFIX, Objective, load_function
from trialfleet_workers.pool_parts import MemoryWatch, SlotUsage
from trialfleet_workers.slot_process import DataSource, OpenData


@dataclass
class _Study:
    """A study that was prepared."""

    spec: StudySpec
    objective: Objective
    source: DataSource | None


@dataclass(eq=False)
class _Running:
    """An evaluation that a thread is at."""

    study: _Study
    evaluation: Evaluation
    #: Which of the slots it is in, counted from 0.
    slot: int
    #: When it began, and when its deadline is, in seconds of the pool's clock.
    since: float
    limit: float


class ThreadPool:
    """As `SlotPool`, with threads for slots.

    Args:
        slots: evaluations that run at the same time.
        base: folder that objectives given as files are relative to.
        open_data: opens a study's data set.
        functions: objectives in memory, by the name after "memory:".
        name: who evaluates, as results say it.
        clock: measures deadlines and utilisation.
    """

    def __init__(
        self,
        *,
        slots: int,
        base: Path,
        open_data: OpenData,
        functions: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        name: str = "",
        clock: Clock,
    ) -> None:
        if slots < 1:
            raise FleetError(f"slots = {slots}; at least 1 is needed")
        self.slots = slots
        self._base = base
        self._open_data = open_data
        self._functions = functions
        self._name = name
        self._clock = clock
        #: Threads that were given up on, by reason: timeout.
        self.restarts: Counter[str] = Counter()
        self._memory = MemoryWatch(clock)

        self._changed = threading.Condition()
        # All below is guarded by `_changed`.
        self._studies: dict[StudySpec, _Study] = {}
        self._queue: deque[tuple[_Study, Evaluation]] = deque()
        self._running: set[_Running] = set()
        self._results: list[tuple[StudySpec, EvaluationResult]] = []
        self._threads_started = 0
        self._usage = SlotUsage(slots, clock)
        self._woken = False
        self._closed = False

    def start(self) -> None:
        """Start the threads; utilisation counts from here. Raises FleetError when the pool is closed."""
        with self._changed:
            if self._closed:
                raise FleetError("the slot pool is closed")
            if not self._usage.started:
                self._usage.start()
                for _ in range(self.slots):
                    self._add_thread()

    def preload(self, spec: StudySpec) -> None:
        """Nothing: threads have what this process has imported."""

    def prepare(self, spec: StudySpec) -> None:
        """Import the study's objective and open its data, once.

        Raises:
            ObjectiveError: the objective is other code than the study's, or can not be loaded.
            DataError: the data can not be opened.
            FleetError: the pool is closed.
        """
        self.start()
        if spec in self._studies:
            return
        name = spec.objective.removeprefix(MEMORY_PREFIX)
        if name == spec.objective:
            function = load_function(*resolve(spec.objective, spec.objective_digest, self._base, None))
        elif name in self._functions:
            function = self._functions[name]
        else:
            raise ObjectiveError(f"objective {spec.objective!r} is in another process's memory")
        objective = Objective(function, name)
        objective.check(has_data=bool(spec.data_digest))
        source = self._open_data(spec) if spec.data_digest else None
        with self._changed:
            self._studies[spec] = _Study(spec, objective, source)

    def submit(self, spec: StudySpec, *evaluations: Evaluation) -> None:
        """Queue evaluations; those of a study that can not be prepared end as REFUSED.

        Raises:
            FleetError: the pool is closed.
        """
        self.start()
        try:
            self.prepare(spec)
        except TrialfleetError as error:
            with self._changed:
                for evaluation in evaluations:
                    refused = failed(evaluation, Outcome.REFUSED, str(error), worker=self._name)
                    self._results.append((spec, refused))
            return
        with self._changed:
            self._queue.extend((self._studies[spec], evaluation) for evaluation in evaluations)
            self._changed.notify_all()

    def poll(self, timeout: float) -> list[tuple[StudySpec, EvaluationResult]]:
        """What came to its end, waiting up to `timeout` seconds for the first.

        Raises:
            FleetError: the pool is closed.
        """
        self.start()
        end = self._clock.monotonic() + timeout
        with self._changed:
            while True:
                self._give_up_on_late()
                now = self._clock.monotonic()
                if self._results or self._woken or now >= end:
                    break
                limit = min((running.limit for running in self._running), default=math.inf)
                self._changed.wait(max(0.0, min(end, limit) - now))
            self._woken = False
            results, self._results = self._results, []
        return results

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        """The evaluations that no thread has started, in order; the pool forgets them."""
        with self._changed:
            taken = [(study.spec, evaluation) for study, evaluation in self._queue]
            self._queue.clear()
        return taken

    def wake(self) -> None:
        """Have a `poll` that is waiting, or else the next one, return early. May be called from any thread."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """Start nothing more; a thread that evaluates ends when its function returns. May be called twice."""
        with self._changed:
            if not self._closed:
                self._account(*self._running)
                self._usage.close()
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    @property
    def busy(self) -> int:
        """Threads that evaluate."""
        with self._changed:
            return len(self._running)

    @property
    def queued(self) -> int:
        """Evaluations that wait for a thread."""
        with self._changed:
            return len(self._queue)

    @property
    def busy_slot_seconds(self) -> float:
        """Seconds that threads spent evaluating, up to now."""
        with self._changed:
            return self._usage.busy(running.since for running in self._running)

    @property
    def available_slot_seconds(self) -> float:
        """Seconds from `start` to now, or to `close`, times the slots."""
        return self._usage.available

    def pss_bytes(self) -> int:
        """Proportional set size of this process, at most 5 seconds old, in bytes."""
        if self._memory.due():
            self._memory.look(())
        return self._memory.current

    @property
    def peak_pss_bytes(self) -> int:
        """The highest proportional set size that was seen, in bytes."""
        return self._memory.peak

    def _add_thread(self) -> None:
        self._threads_started += 1
        name = f"trialfleet-slot-{self._threads_started}"
        # A daemon: a function that never returns must not keep the program from ending.
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                study, evaluation = self._queue.popleft()
                now = self._clock.monotonic()
                deadline = study.spec.deadline_seconds
                limit = math.inf if deadline is None else now + deadline
                running = _Running(study, evaluation, self._free_slot(), now, limit)
                self._running.add(running)
                # A poll that is waiting has to know of the deadline.
                self._changed.notify_all()
            result = self._evaluate(study, evaluation)
            with self._changed:
                if running not in self._running:  # given up on: another thread has taken this one's place
                    return
                self._account(running)
                self._results.append((study.spec, msgspec.structs.replace(result, slot=running.slot)))
                self._changed.notify_all()

    def _free_slot(self) -> int:
        taken = {running.slot for running in self._running}
        return next(slot for slot in itertools.count() if slot not in taken)

    def _evaluate(self, study: _Study, evaluation: Evaluation) -> EvaluationResult:
        data = None
        if study.source is not None and study.objective.takes_data:
            try:
                data = study.source.split(
                    fold=evaluation.fold,
                    fraction=evaluation.fraction,
                    rung=evaluation.rung,
                    seed=study.spec.seed,
                    share=study.spec.share_memory,
                )
            except TrialfleetError as error:
                return failed(evaluation, Outcome.REFUSED, str(error), worker=self._name)
            except MemoryError:
                return failed(evaluation, Outcome.MEMORY, "the data do not fit into memory", worker=self._name)
            except Exception as error:  # noqa: BLE001  # without an answer the study would wait for ever
                reason = f"the data can not be had: {type(error).__name__}: {message_of(error)}"
                return failed(evaluation, Outcome.REFUSED, reason, worker=self._name)
        return evaluate(evaluation, data, study.objective, ThreadClock(), worker=self._name)

    def _account(self, *ended: _Running) -> None:
        now = self._clock.monotonic()
        for running in ended:
            self._running.discard(running)
            self._usage.add(now - running.since)

    def _give_up_on_late(self) -> None:
        now = self._clock.monotonic()
        for running in [running for running in self._running if running.limit <= now]:
            deadline = running.study.spec.deadline_seconds
            late = failed(
                running.evaluation,
                Outcome.TIMEOUT,
                f"given up on at its deadline of {deadline:g} s; its thread runs on",
                wall_seconds=now - running.since,
                worker=self._name,
                slot=running.slot,
                started_at=self._clock.time() - (now - running.since),
            )
            self._account(running)
            self.restarts["timeout"] += 1
            self._results.append((running.study.spec, late))
            self._add_thread()
