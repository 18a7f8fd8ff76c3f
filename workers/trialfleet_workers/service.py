"""What a worker does with the batches it is given, whatever they came through.

One thread, that of `WorkerService.run`, owns the slots: it starts evaluations, sends each result soon after it is
there, and says in heartbeats what it holds. Other threads hand batches in with `take` and learn when a batch is settled, that
is, when all its results were sent, or it was handed back.

Leaving is a walk through three stages: serving -> draining (nothing new is taken, what has not started is handed back,
what runs is finished) -> gone; `abort` hands back what runs as well.
"""

import queue
import threading
from typing import Protocol

import msgspec

from trialfleet_shared.clock import Clock
from trialfleet_shared.messages import (
    ERROR_CHARACTERS,
    Evaluation,
    EvaluationBatch,
    EvaluationKey,
    EvaluationResult,
    Heartbeat,
    Outcome,
    ResultBatch,
    StudySpec,
)

#: Seconds between two heartbeats.
HEARTBEAT_SECONDS = 2.0
#: Seconds that a result waits for others to travel with: a confirmed message costs milliseconds.
GATHER_SECONDS = 0.02
#: Results that travel together at most.
MOST_RESULTS = 200
#: Seconds between two attempts to send while nobody takes it.
RETRY_SECONDS = 1.0


class Pool(Protocol):
    """The slots; see `trialfleet_workers.slots.SlotPool`."""

    slots: int

    @property
    def busy(self) -> int:
        """Slots that have an evaluation."""
        ...

    @property
    def queued(self) -> int:
        """Evaluations that wait for a slot."""
        ...

    @property
    def busy_slot_seconds(self) -> float:
        """Seconds that slots spent evaluating."""
        ...

    @property
    def available_slot_seconds(self) -> float:
        """Seconds that slots were there."""
        ...

    def submit(self, spec: StudySpec, evaluation: Evaluation) -> None:
        """Queue an evaluation."""
        ...

    def poll(self, timeout: float) -> list[tuple[StudySpec, EvaluationResult]]:
        """What came to its end, waiting up to `timeout` seconds for the first."""
        ...

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        """The evaluations that no slot has started."""
        ...

    def pss_bytes(self) -> int:
        """Proportional set size of this process and the slots."""
        ...

    def wake(self) -> None:
        """Have `poll` return early; from any thread."""
        ...


class Sink(Protocol):
    """Where a worker's messages go. Each method says whether the message is safe; if not, it is tried again."""

    def send_results(self, address: str, batch: ResultBatch) -> bool:
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
        self._settled = threading.Event()
        self._left = {evaluation.key: evaluation for evaluation in batch.evaluations}
        if not self._left:
            self._settled.set()

    def wait(self, timeout: float) -> bool:
        """Wait until every result was sent or handed back, up to `timeout` seconds; whether that is so."""
        return self._settled.wait(timeout)

    def unsettled(self) -> tuple[Evaluation, ...]:
        """What is still held of the batch."""
        return tuple(self._left.values())

    def settle(self, key: EvaluationKey) -> None:
        """One evaluation's result was sent, or it was handed back."""
        self._left.pop(key, None)
        if not self._left:
            self._settled.set()


#: An evaluation as the worker tells it from others: where its answer goes, and its key.
_Held = tuple[str, EvaluationKey]


class WorkerService:
    """The worker's loop. See the module's docstring.

    Args:
        pool: the slots; used by the thread of `run` alone.
        sink: where messages go; used by the thread of `run` alone.
        name: what the worker calls itself, unique in the fleet.
        clock: paces heartbeats.
        patience: seconds without any work after which `run` ends by itself; None: never.
    """

    def __init__(self, pool: Pool, sink: Sink, *, name: str, clock: Clock, patience: float | None = None) -> None:
        self._pool = pool
        self._sink = sink
        self._name = name
        self._clock = clock
        self._patience = patience
        self._inbox: queue.SimpleQueue[tuple[Ticket, str | None]] = queue.SimpleQueue()
        self._draining = threading.Event()
        self._aborting = threading.Event()
        #: Evaluations that are held, each with the ticket of its batch.
        self._held: dict[_Held, Ticket] = {}
        self._outbox: dict[StudySpec, list[EvaluationResult]] = {}
        self._gathering_since: float | None = None
        self._heartbeat_due = 0.0
        self._retry_at = 0.0
        self._idle_since = clock.monotonic()

    # From any thread

    def take(self, batch: EvaluationBatch, *, refused: str | None = None) -> Ticket:
        """Evaluate a batch.

        Args:
            batch: the evaluations.
            refused: why none of them can be evaluated here; None: they can.
        """
        ticket = Ticket(batch)
        self._inbox.put((ticket, refused))
        self._pool.wake()
        return ticket

    def drain(self) -> None:
        """Take up nothing new, hand back what has not started, finish what runs; then `run` returns."""
        self._draining.set()
        self._pool.wake()

    def abort(self) -> None:
        """Hand back what runs as well; then `run` returns."""
        self._draining.set()
        self._aborting.set()
        self._pool.wake()

    @property
    def draining(self) -> bool:
        """Whether the worker is about to leave."""
        return self._draining.is_set()

    # The loop

    def run(self) -> None:
        """Serve until `drain` or `abort` is called, or the patience ends, and all that was held is settled."""
        while not self._may_leave():
            self._take_in()
            if self._draining.is_set():
                self._hand_back_waiting()
            for spec, result in self._pool.poll(self._pause()):
                self._gather(spec, result)
            self._send_results()
            self._send_heartbeat()
        self._farewell()

    def _may_leave(self) -> bool:
        if self._aborting.is_set():
            self._take_in()
            self._hand_back(list(self._held))
            return True
        now = self._clock.monotonic()
        if self._held or not self._inbox.empty():
            self._idle_since = now
            return False
        if self._patience is not None and now - self._idle_since >= self._patience:
            self._draining.set()
        return self._draining.is_set()

    def _take_in(self) -> None:
        while not self._inbox.empty():
            ticket, refused = self._inbox.get_nowait()
            batch = ticket.batch
            for evaluation in batch.evaluations:
                held = (batch.spec.reply_to, evaluation.key)
                if held in self._held:
                    # A copy of what is evaluated here already: the one answer serves both.
                    ticket.settle(evaluation.key)
                    continue
                self._held[held] = ticket
                if refused is None:
                    self._pool.submit(batch.spec, evaluation)
                else:
                    self._gather(batch.spec, _refusal(evaluation, refused, self._name))

    def _pause(self) -> float:
        """Seconds until something has to be done, if no evaluation ends before."""
        now = self._clock.monotonic()
        due = self._heartbeat_due
        if self._gathering_since is not None:
            due = min(due, max(self._gathering_since + GATHER_SECONDS, self._retry_at))
        return max(due - now, 0.0)

    def _gather(self, spec: StudySpec, result: EvaluationResult) -> None:
        self._outbox.setdefault(spec, []).append(result)
        if self._gathering_since is None:
            self._gathering_since = self._clock.monotonic()

    def _send_results(self) -> None:
        """Send what has been gathered, once it is old or much enough."""
        now = self._clock.monotonic()
        if self._gathering_since is None or now < self._retry_at:
            return
        gathered = max(map(len, self._outbox.values()), default=0)
        if now - self._gathering_since < GATHER_SECONDS and gathered < MOST_RESULTS and not self._idle():
            return
        for spec, results in list(self._outbox.items()):
            while results:
                batch = ResultBatch(spec.study, tuple(results[:MOST_RESULTS]))
                if not self._sink.send_results(spec.reply_to, batch):
                    self._retry_at = now + RETRY_SECONDS
                    return
                del results[:MOST_RESULTS]
                for result in batch.results:
                    self._settle((spec.reply_to, result.key))
            del self._outbox[spec]
        self._gathering_since = None

    def _idle(self) -> bool:
        """Whether a slot waits for what the coordinator makes of the results: then they go at once."""
        return self._pool.busy + self._pool.queued < self._pool.slots

    def _settle(self, held: _Held) -> None:
        ticket = self._held.pop(held, None)
        if ticket is not None:
            ticket.settle(held[1])

    def _hand_back_waiting(self) -> None:
        waiting = [(spec.reply_to, evaluation.key) for spec, evaluation in self._pool.take_back()]
        self._hand_back(waiting)

    def _hand_back(self, keys: list[_Held]) -> None:
        """Publish these again for other workers; what the sink does not take goes back with its delivery."""
        chosen = set(keys)
        for ticket in {id(ticket): ticket for ticket in self._held.values()}.values():
            address = ticket.batch.spec.reply_to
            part = tuple(e for e in ticket.unsettled() if (address, e.key) in chosen)
            if part and self._sink.hand_back(msgspec.structs.replace(ticket.batch, evaluations=part)):
                for evaluation in part:
                    self._settle((address, evaluation.key))
            else:
                for evaluation in part:
                    self._held.pop((address, evaluation.key), None)

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
                held=tuple((address, *key) for address, key in self._held),
                draining=self.draining,
                busy_slot_seconds=pool.busy_slot_seconds,
                available_slot_seconds=pool.available_slot_seconds,
                pss_bytes=pool.pss_bytes(),
            )
        )

    def _farewell(self) -> None:
        self._retry_at = 0.0
        self._gathering_since = None if not self._outbox else 0.0
        self._send_results()
        self._send_heartbeat(last=True)


def _refusal(evaluation: Evaluation, reason: str, worker: str) -> EvaluationResult:
    return EvaluationResult(
        trial=evaluation.trial,
        rung=evaluation.rung,
        fold=evaluation.fold,
        attempt=evaluation.attempt,
        outcome=Outcome.REFUSED,
        error=reason[:ERROR_CHARACTERS],
        worker=worker,
    )
