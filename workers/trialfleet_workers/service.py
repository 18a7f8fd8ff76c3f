"""What a worker does with the batches it is given, whatever they came through.

One thread, that of `WorkerService.run`, owns the slots: it starts evaluations, sends each result soon after it is
there, and says in heartbeats what it holds. Other threads hand batches in with `take`, see to what their study needs,
and learn when a batch is settled, that is, when all its results were sent, or it was handed back.

Leaving is a walk through three stages: serving -> draining (nothing new is taken, what has not started is handed back,
what runs is finished) -> gone; `abort` hands back what runs as well.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import NamedTuple, Protocol

from trialfleet_shared.clock import Clock
from trialfleet_shared.codec import parts
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.messages import (
    SCHEMA_VERSION,
    Evaluation,
    EvaluationBatch,
    EvaluationKey,
    EvaluationResult,
    Heartbeat,
    Outcome,
    ResultBatch,
    StudySpec,
)
from trialfleet_workers.evaluate import failed
from trialfleet_workers.pool_parts import LatestStudies
from trialfleet_workers.telemetry import NO_TELEMETRY, MeteredPool, PoolFigures, WorkerTelemetry

#: Seconds between two heartbeats.
HEARTBEAT_SECONDS = 1.0
#: Seconds after a heartbeat at which the next one goes, ahead of its time, if the worker has nothing to do any more: a
#: coordinator whose study has ended waits for what its workers measured.
IDLE_HEARTBEAT_SECONDS = 0.2
#: Seconds that a result waits for others to travel with: a confirmed message costs milliseconds.
GATHER_SECONDS = 0.02
#: Seconds that a refusal waits before it is sent. Whoever refuses is free again at once: without the wait a worker that
#: can evaluate nothing of a study would be the one that takes most of it.
REFUSAL_SECONDS = 1.0
#: Results that travel together at most.
MOST_RESULTS = 200
#: Seconds that evaluations wait behind leased ones before they are handed back.
STALL_SECONDS = 5.0
#: Seconds between two attempts to send while nobody takes it.
RETRY_SECONDS = 1.0


class Pool(MeteredPool, Protocol):
    """The slots; see `trialfleet_workers.slots.SlotPool`."""

    def preload(self, spec: StudySpec) -> None:
        """Begin to import the study's objective. Raises TrialfleetError when that can not be."""
        ...

    def submit(self, spec: StudySpec, *evaluations: Evaluation) -> None:
        """Queue evaluations."""
        ...

    def poll(self, timeout: float) -> list[tuple[StudySpec, EvaluationResult]]:
        """What came to its end, waiting up to `timeout` seconds for the first."""
        ...

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        """The evaluations that no slot has started."""
        ...

    def wake(self) -> None:
        """Have `poll` return early; from any thread."""
        ...


class Sending(Enum):
    """What became of results that were to be sent."""

    #: They are with whoever asked, or nobody wants them any more.
    SAFE = auto()
    #: Nothing can be sent now.
    AWAY = auto()
    #: These can not be sent to where they go now; others can.
    REFUSED = auto()


class Sink(Protocol):
    """Where a worker's messages go. Each method says whether the message is safe; if not, it is tried again."""

    def stop_taking(self) -> None:
        """Have `take` called no more, as far as that can be had; what comes all the same is handed back."""
        ...

    def send_results(self, address: str, batch: ResultBatch) -> Sending:
        """Answer the coordinator that hears at `address`."""
        ...

    def hand_back(self, batch: EvaluationBatch) -> bool:
        """Publish the batch again, for another worker."""
        ...

    def send_heartbeat(self, heartbeat: Heartbeat) -> bool:
        """Tell every coordinator."""
        ...


class Ticket:
    """A batch that was taken."""

    def __init__(self, batch: EvaluationBatch) -> None:
        self.batch = batch
        #: Whether its delivery was acknowledged before it was settled: only heartbeats tell that it is held.
        self.leased = False
        #: Whether `begin` or `refuse` was called for it; until then it waits for its data.
        self.begun = False
        #: Whether some of it is neither answered nor handed back by a worker that leaves: RabbitMQ is to deliver it again.
        self.forgotten = False
        self._settled = threading.Event()
        self._left = {(evaluation.key, evaluation.attempt): evaluation for evaluation in batch.evaluations}
        if not self._left:
            self._settled.set()

    def wait(self, timeout: float) -> bool:
        """Wait until every result was sent or handed back, up to `timeout` seconds; whether that is so."""
        return self._settled.wait(timeout)

    def unsettled(self) -> tuple[Evaluation, ...]:
        """What is still held of the batch."""
        return tuple(self._left.values())

    def settle(self, key: EvaluationKey, attempt: int) -> None:
        """One evaluation's result was sent, or it was handed back."""
        self._left.pop((key, attempt), None)
        if not self._left:
            self._settled.set()


class _Held(NamedTuple):
    """An evaluation as the worker tells it from others."""

    #: Where its answer goes.
    address: str
    key: EvaluationKey
    attempt: int

    @classmethod
    def of(cls, spec: StudySpec, one: Evaluation | EvaluationResult) -> "_Held":
        return cls(spec.reply_to, one.key, one.attempt)


class WorkerService:
    """The worker's loop. See the module's docstring.

    Args:
        pool: the slots; used by the thread of `run` alone.
        sink: where messages go; used by the thread of `run` alone.
        name: what the worker calls itself, unique in the fleet.
        clock: paces heartbeats.
        patience: seconds without any work after which `run` ends by itself; None: never.
        telemetry: watches.
    """

    def __init__(
        self,
        pool: Pool,
        sink: Sink,
        *,
        name: str,
        clock: Clock,
        patience: float | None = None,
        telemetry: WorkerTelemetry = NO_TELEMETRY,
    ) -> None:
        self._pool = pool
        self._sink = sink
        self._name = name
        self._clock = clock
        self._patience = patience
        self._telemetry = telemetry
        #: What other threads want done by the thread of `run`.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Set by signal handlers too, where a lock may be held by whom they interrupt: no events.
        self._draining = self._aborting = False
        self._stopped_taking = False
        #: Evaluations that are held, each with the tickets of the batches it came in: copies wait for the one answer.
        self._held: dict[_Held, list[Ticket]] = {}
        self._known = LatestStudies()
        self._outbox: dict[StudySpec, list[EvaluationResult]] = {}
        #: Refusals that wait, and when each is sent.
        self._refusals: deque[tuple[float, StudySpec, EvaluationResult]] = deque()
        #: When the gathered results are sent at the latest; None: there are none.
        self._send_at: float | None = None
        self._heartbeat_due = 0.0
        self._retry_at = 0.0
        self._idle_since = clock.monotonic()
        #: When an evaluation ended last, or none was waiting for a slot.
        self._moved_at = clock.monotonic()

    # From any thread

    def take(self, batch: EvaluationBatch) -> Ticket:
        """Hold a batch, which `begin` or `refuse` is called for next."""
        ticket = Ticket(batch)
        self._do(partial(self._hold, ticket))
        return ticket

    def begin(self, ticket: Ticket) -> None:
        """Evaluate it: what its study needs is here."""
        self._do(partial(self._begin, ticket))

    def refuse(self, ticket: Ticket, reason: str) -> None:
        """Answer that none of it can be evaluated here, after `REFUSAL_SECONDS`."""
        self._do(partial(self._refuse, ticket, reason))

    def lease(self, ticket: Ticket) -> None:
        """Its delivery is being acknowledged, though it is not settled."""
        self._do(partial(setattr, ticket, "leased", True))

    def give_back(self, ticket: Ticket) -> None:
        """Hand it back, which settles it, unless it has begun: it waits for data that other workers may have."""
        self._do(partial(self._give_back, ticket))

    def drain(self) -> None:
        """Take up nothing new, hand back what has not started, finish what runs; then `run` returns."""
        self._draining = True
        self._pool.wake()

    def abort(self) -> None:
        """Hand back what runs as well; then `run` returns."""
        self._draining = True
        self._aborting = True
        self._pool.wake()

    @property
    def draining(self) -> bool:
        """Whether the worker is about to leave."""
        return self._draining

    # The loop

    def run(self) -> None:
        """Serve until `drain` or `abort` is called, or the patience ends, and all that was held is settled."""
        while self.turn():
            pass

    def turn(self) -> bool:
        """One turn of `run`'s loop, which waits in `Pool.poll` alone; whether there is another."""
        if self._may_leave():
            self._farewell()
            return False
        self._take_in()
        if self.draining and not self._stopped_taking:
            # First of all: what is handed back must not come here again.
            self._sink.stop_taking()
            self._stopped_taking = True
        if self._stopped_taking:
            self._hand_back([held for held in self._held if not self._has_begun(held)])
        if self._stopped_taking or self._stalled():
            self._hand_back_waiting()
        for spec, result in self._pool.poll(self._pause()):
            self._moved_at = self._clock.monotonic()
            self._gather(spec, result)
        self._release_refusals()
        self._telemetry.turned(PoolFigures.of(self._pool, draining=self.draining))
        self._send_results()
        self._send_heartbeat()
        return True

    def _do(self, action: Callable[[], None]) -> None:
        self._inbox.put(action)
        self._pool.wake()

    def _may_leave(self) -> bool:
        now = self._clock.monotonic()
        if self._held or not self._inbox.empty():
            self._idle_since = now
        elif self._patience is not None and now - self._idle_since >= self._patience:
            self._draining = True
        if not self._stopped_taking:
            return False
        if self._aborting:
            self._take_in()
            self._hand_back(list(self._held))
            return True
        return not self._held and self._inbox.empty()

    def _take_in(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()()

    def _hold(self, ticket: Ticket) -> None:
        spec = ticket.batch.spec
        if spec not in self._known:
            # Its coordinator has just come, perhaps, and does not know yet who is there.
            self._heartbeat_due = self._clock.monotonic()
            if spec.data is not None and not self._stopped_taking:
                with suppress(TrialfleetError):  # it comes again when an evaluation is submitted
                    self._pool.preload(spec)  # while the data are brought in
        self._known.add(spec)
        for evaluation in ticket.batch.evaluations:
            self._held.setdefault(_Held.of(ticket.batch.spec, evaluation), []).append(ticket)

    def _begin(self, ticket: Ticket) -> None:
        ticket.begun = True
        if self._stopped_taking:
            self._hand_back([_Held.of(ticket.batch.spec, evaluation) for evaluation in self._own(ticket)])
            return
        self._pool.submit(ticket.batch.spec, *self._own(ticket))

    def _give_back(self, ticket: Ticket) -> None:
        if not ticket.begun:
            self._hand_back([_Held.of(ticket.batch.spec, evaluation) for evaluation in self._own(ticket)])

    def _refuse(self, ticket: Ticket, reason: str) -> None:
        ticket.begun = True
        for evaluation in self._own(ticket):
            self._gather(ticket.batch.spec, failed(evaluation, Outcome.REFUSED, reason, worker=self._name))

    def _own(self, ticket: Ticket) -> list[Evaluation]:
        """What of the batch no earlier one has brought already."""
        spec = ticket.batch.spec
        return [
            evaluation
            for evaluation in ticket.unsettled()
            if self._held.get(_Held.of(spec, evaluation), [None])[0] is ticket
        ]

    def _pause(self) -> float:
        """Seconds until something has to be done, if no evaluation ends before."""
        now = self._clock.monotonic()
        due = self._heartbeat_due
        if self._send_at is not None:
            due = min(due, max(self._send_at, self._retry_at))
        if self._refusals:
            due = min(due, self._refusals[0][0])
        return max(due - now, 0.0)

    def _gather(self, spec: StudySpec, result: EvaluationResult) -> None:
        self._telemetry.answered(spec.study, [result])
        if result.outcome is Outcome.REFUSED:
            self._refusals.append((self._clock.monotonic() + REFUSAL_SECONDS, spec, result))
        else:
            self._put_out(spec, result)

    def _release_refusals(self) -> None:
        """Those that are due; all of them once nothing more is taken."""
        while self._refusals and (self._stopped_taking or self._refusals[0][0] <= self._clock.monotonic()):
            _, spec, result = self._refusals.popleft()
            self._put_out(spec, result)

    def _put_out(self, spec: StudySpec, result: EvaluationResult) -> None:
        self._outbox.setdefault(spec, []).append(result)
        due = self._clock.monotonic() + GATHER_SECONDS
        self._send_at = due if self._send_at is None else min(self._send_at, due)

    def _send_results(self) -> None:
        """Send what has been gathered, once it is old or much enough."""
        now = self._clock.monotonic()
        if self._send_at is None or now < self._retry_at:
            return
        gathered = max(map(len, self._outbox.values()), default=0)
        if now < self._send_at and gathered < MOST_RESULTS and not self._idle():
            return
        for spec in list(self._outbox):
            sending = self._answer(spec)
            if sending is Sending.AWAY:
                self._retry_at = now + RETRY_SECONDS
                return
            if sending is Sending.REFUSED and self._stopped_taking:
                # They are not waited for: RabbitMQ has their deliveries, or their coordinator misses them.
                self._forget(_Held.of(spec, result) for result in self._outbox.pop(spec))
        self._send_at = now + RETRY_SECONDS if self._outbox else None

    def _answer(self, spec: StudySpec) -> Sending:
        """Send what there is for a study."""
        results = self._outbox[spec]
        for part in parts(tuple(results), MOST_RESULTS):
            batch = ResultBatch(spec.study, part)
            sending = self._sink.send_results(spec.reply_to, batch.as_of(self._version(spec, batch.results)))
            if sending is not Sending.SAFE:
                return sending
            del results[: len(part)]
            for result in batch.results:
                self._settle(_Held.of(spec, result))
        del self._outbox[spec]
        return Sending.SAFE

    def _version(self, spec: StudySpec, results: Sequence[EvaluationResult]) -> int:
        """The version that these were asked in."""
        tickets = (ticket for result in results for ticket in self._held.get(_Held.of(spec, result), []))
        return min((ticket.batch.version for ticket in tickets), default=SCHEMA_VERSION)

    def _idle(self) -> bool:
        """Whether a slot waits for what the coordinator makes of the results: then they go at once."""
        return self._pool.busy + self._pool.queued < self._pool.slots

    def _settle(self, held: _Held) -> None:
        for ticket in self._held.pop(held, []):
            ticket.settle(held.key, held.attempt)
        if not self._held:
            early = self._heartbeat_due - HEARTBEAT_SECONDS + IDLE_HEARTBEAT_SECONDS
            self._heartbeat_due = min(self._heartbeat_due, early)

    def _forget(self, chosen: Iterable[_Held]) -> None:
        for held in chosen:
            for ticket in self._held.pop(held, []):
                ticket.forgotten = True

    def _stalled(self) -> bool:
        """Whether evaluations wait here behind leased ones, which may take hours, while other workers may be idle.

        Deliveries that are not acknowledged keep RabbitMQ from sending more than the slots can take; leased evaluations
        do not.
        """
        now = self._clock.monotonic()
        if not self._pool.queued:
            self._moved_at = now
        return now - self._moved_at >= STALL_SECONDS and any(
            self._is_leased(held) and self._has_begun(held) for held in self._held
        )

    def _has_begun(self, held: _Held) -> bool:
        return any(ticket.begun for ticket in self._held[held])

    def _is_leased(self, held: _Held) -> bool:
        return all(ticket.leased for ticket in self._held[held])

    def _hand_back_waiting(self) -> None:
        waiting = self._pool.take_back()
        self._moved_at = self._clock.monotonic()
        if self._hand_back([_Held.of(*pair) for pair in waiting]):
            return
        for spec, evaluation in waiting:
            if _Held.of(spec, evaluation) in self._held:
                self._pool.submit(spec, evaluation)

    def _hand_back(self, chosen: Sequence[_Held]) -> bool:
        """Publish these again for other workers; whether the sink took all of them.

        When it does not, and the worker leaves, RabbitMQ still has their deliveries, and delivers them again.
        """
        studies: dict[StudySpec, dict[_Held, Evaluation]] = {}
        for held in chosen:
            ticket = self._held[held][0]
            evaluation = next(e for e in ticket.unsettled() if (e.key, e.attempt) == (held.key, held.attempt))
            studies.setdefault(ticket.batch.spec, {})[held] = evaluation
        for spec, evaluations in studies.items():
            version = min(self._held[held][0].batch.version for held in evaluations)
            for part in parts(tuple(evaluations.values())):
                if not self._sink.hand_back(EvaluationBatch(spec, part, version)):
                    if self.draining:
                        self._forget(chosen)
                    return False
                for evaluation in part:
                    self._settle(_Held.of(spec, evaluation))
        return True

    def _send_heartbeat(self, *, last: bool = False) -> None:
        now = self._clock.monotonic()
        if now < self._heartbeat_due and not last:
            return
        self._heartbeat_due = now + HEARTBEAT_SECONDS
        pool = self._pool
        self._sink.send_heartbeat(
            Heartbeat(
                worker=self._name,
                slots=0 if last or self.draining else pool.slots,
                busy=pool.busy,
                interval_seconds=HEARTBEAT_SECONDS,
                held=tuple((held.address, *held.key) for held in self._held),
                leased=tuple((held.address, *held.key) for held in self._held if self._is_leased(held)),
                draining=self.draining,
                busy_slot_seconds=pool.busy_slot_seconds,
                available_slot_seconds=pool.available_slot_seconds,
                pss_bytes=pool.pss_bytes(),
            )
        )

    def _farewell(self) -> None:
        self._retry_at = 0.0
        self._send_at = 0.0 if self._outbox else None
        self._send_results()
        self._send_heartbeat(last=True)
