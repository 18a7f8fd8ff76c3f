"""The fleet behind a link, without IO: who holds what, what is lost, what was answered and may be acknowledged.

A link carries messages: `adapters.rabbit_fleet` over RabbitMQ, in a thread of its own, and the simulation's over a
simulated broker. Both keep what is under way in a `Mailbox`.

    submit ──> leases ──> outbox ────────> published, kept until confirmed
    poll   <── leases <── inbox  <──────── results, heartbeats, the queue's length
    acknowledge ────────> outbox ────────> deliveries of this connection
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from trialfleet_coordinator.leases import LeaseTable
from trialfleet_shared.clock import Clock
from trialfleet_shared.codec import parts
from trialfleet_shared.errors import FleetError, TrialfleetError
from trialfleet_shared.fleet import FleetReport, LostEvaluation, Poison
from trialfleet_shared.messages import (
    Evaluation,
    EvaluationBatch,
    EvaluationKey,
    EvaluationResult,
    Heartbeat,
    ResultBatch,
    StudySpec,
)

#: Seconds that nobody may say that they hold an evaluation before it is lost; several heartbeats.
GRACE_SECONDS = 15.0
#: Seconds that a report waits for fresh figures.
_REPORT_SECONDS = 3.0
#: Seconds between two looks at how much memory the live workers take together.
_PSS_SECONDS = 1.0


class Delivery(NamedTuple):
    """A message as it was delivered."""

    #: Which connection it came over: tags mean nothing on another.
    connection: int
    tag: int


class Ready(NamedTuple):
    """A look at the queue of evaluations: messages that wait there; None: it is out of reach."""

    messages: int | None


Incoming = tuple[ResultBatch, Delivery] | Heartbeat | Ready


class Link(Protocol):
    """What a `RemoteFleet` needs of a connection.

    It mends itself, and publishes again what was not confirmed: an evaluation may then be published twice, and a result
    may come twice; both are allowed.
    """

    def publish(self, batch: EvaluationBatch) -> None:
        """Publish a batch for the workers, as soon as that can be."""
        ...

    def bury(self, spec: StudySpec, poison: Poison) -> None:
        """Publish it where people can look at it, as soon as that can be."""
        ...

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Have these not delivered again."""
        ...

    def receive(self, timeout: float) -> list[Incoming]:
        """What arrived since the last call, waiting up to `timeout` seconds for the first; nothing is no error.

        Raises:
            TrialfleetError: the link gave up.
        """
        ...

    def stop(self, *, nothing_outstanding: bool) -> None:
        """Acknowledge what is to be acknowledged, and disconnect.

        Args:
            nothing_outstanding: no result will come, so nothing need be kept for a coordinator that goes on.
        """
        ...


class Mailbox:
    """What is under way on a link: what came in, and what is to go out. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._inbox: list[Incoming] = []
        self._unpublished: deque[bytes] = deque()
        self._unacknowledged: list[Delivery] = []
        self._failure: TrialfleetError | None = None

    def publish(self, body: bytes) -> None:
        """Have a message published at the next `flush`."""
        with self._lock:
            self._unpublished.append(body)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Have these acknowledged at the next `flush`."""
        with self._lock:
            self._unacknowledged += deliveries

    def flush(self, connection: int, publish: Callable[[bytes], None], acknowledge: Callable[[int], None]) -> None:
        """Publish and acknowledge what there is. What `publish` raises for stays, and is published again next time.

        Args:
            connection: the one there is; what came over an earlier one can not be acknowledged any more.
            publish: returns once the message is safe.
            acknowledge: acknowledges a tag.
        """
        while True:
            with self._lock:
                body = self._unpublished[0] if self._unpublished else None
                deliveries, self._unacknowledged = self._unacknowledged, []
            for delivery in deliveries:
                if delivery.connection == connection:
                    acknowledge(delivery.tag)
            if body is None:
                return
            publish(body)
            with self._lock:
                self._unpublished.popleft()

    def put(self, incoming: Incoming) -> None:
        """Something arrived."""
        with self._lock:
            self._inbox.append(incoming)
            self._lock.notify()

    def fail(self, failure: TrialfleetError) -> None:
        """The link gives up; `receive` raises this once all that arrived is taken."""
        with self._lock:
            self._failure = failure
            self._lock.notify()

    def receive(self, timeout: float) -> list[Incoming]:
        """See `Link.receive`."""
        with self._lock:
            if not self._inbox and self._failure is None:
                self._lock.wait(timeout)
            if self._failure is not None and not self._inbox:
                raise self._failure
            inbox, self._inbox = self._inbox, []
            return inbox


class _Figures:
    """What a worker measured since the study started on it; kept of all that ever came."""

    __slots__ = ("_available_before", "_busy_before", "available", "busy")

    def __init__(self, first: Heartbeat, running: float) -> None:
        uptime = first.available_slot_seconds / max(first.slots, 1)
        was_there = uptime > running
        self._busy_before = first.busy_slot_seconds if was_there else 0.0
        self._available_before = first.available_slot_seconds if was_there else 0.0
        self.busy = self.available = 0.0
        self.update(first)

    def update(self, heartbeat: Heartbeat) -> None:
        """A heartbeat came."""
        self.busy = max(self.busy, heartbeat.busy_slot_seconds - self._busy_before)
        self.available = max(self.available, heartbeat.available_slot_seconds - self._available_before)


class RemoteFleet:
    """Evaluates on workers behind a link. Implements `trialfleet_shared.fleet.Fleet`.

    Workers serve all coordinators, so the report's busy seconds are those of all studies of this time.

    Args:
        connect: makes the link, when the fleet is started. Its errors are those of `start`.
        address: where results are heard; a coordinator that goes on with the study gives the same one, and no other
            coordinator does. See `StudySpec.reply_to`.
        clock: measures leases.
        grace: as of `LeaseTable`.
    """

    def __init__(
        self, connect: Callable[[], Link], *, address: str, clock: Clock, grace: float = GRACE_SECONDS
    ) -> None:
        self._connect = connect
        self._address = address
        self._clock = clock
        self._leases = LeaseTable(grace=grace)
        self._figures: dict[str, _Figures] = {}
        #: What the live workers said last of their memory, and the most that it was together, in bytes.
        self._pss: dict[str, int] = {}
        self._peak_pss = 0
        self._pss_due = -math.inf
        #: When each live worker was heard last.
        self._heard: dict[str, float] = {}
        #: Slots of the workers that had nothing to do when they were heard last, and answered nothing since.
        self._idle: dict[str, int] = {}
        self._link: Link | None = None
        self._spec: StudySpec | None = None
        self._started = 0.0
        self._delivered: list[Delivery] = []
        self._results: list[EvaluationResult] = []
        self._lost: list[LostEvaluation] = []
        self._closed = False

    def start(self, spec: StudySpec) -> None:
        """Connect. Who is there is heard of later: what is submitted before goes to the first worker that takes it.

        Raises:
            TrialfleetError: the link can not be made.
            FleetError: the fleet is closed.
        """
        if self._closed:
            raise FleetError("the fleet is closed")
        self._link = self._connect()
        self._spec = msgspec.structs.replace(spec, reply_to=self._address)
        self._started = self._clock.monotonic()

    def slots(self) -> int:
        """Slots of the workers that were heard of lately."""
        return sum(worker.slots for worker in self._leases.workers(self._clock.monotonic()).values())

    def workers(self) -> frozenset[str]:
        """Names of the workers that were heard of lately."""
        return frozenset(self._leases.workers(self._clock.monotonic()))

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Publish them in as few messages as hold them. Raises FleetError when the fleet is not started, or closed."""
        link, spec = self._running()
        now = self._clock.monotonic()
        for evaluation in evaluations:
            self._leases.publish(evaluation.key, evaluation.attempt, now)
        for part in parts(evaluations):
            link.publish(EvaluationBatch(spec, part))

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """What came in, waiting up to `timeout` seconds for the first, or until slots come or go.

        Raises:
            TrialfleetError: the link failed in a way that it can not mend.
            FleetError: the fleet is not started, or closed.
        """
        self._running()
        end = self._clock.monotonic() + timeout
        slots = self.slots()
        self._take_in(0.0)
        while not self._results and not self._lost and self.slots() == slots:
            left = end - self._clock.monotonic()
            if left <= 0:
                break
            self._take_in(left)
        results, self._results = self._results, []
        lost, self._lost = self._lost, []
        return results, lost

    def acknowledge(self) -> None:
        """Acknowledge the results that `poll` returned."""
        link, _ = self._running()
        if self._delivered and not self._results:
            link.acknowledge(self._delivered)
            self._delivered = []

    def bury(self, poison: Poison) -> None:
        """Have it among the dead letters. Raises FleetError when the fleet is not started, or closed."""
        link, spec = self._running()
        link.bury(spec, poison)

    def report(self) -> FleetReport:
        """What the workers measured, as of now: of those that were busy, their next heartbeats tell.

        It can be asked after `close`.
        """
        asked = self._clock.monotonic()
        end = asked + _REPORT_SECONDS
        while not self._closed and self._link is not None and self._clock.monotonic() < end:
            live = self._leases.workers(self._clock.monotonic())
            if all(self._heard[name] > asked or name in self._idle for name in live):
                break
            self._take_in(end - self._clock.monotonic())
        live = self._leases.workers(asked)
        self._add_up_memory(asked)
        since = sum(max(asked - self._heard[name], 0.0) * slots for name, slots in self._idle.items() if name in live)
        return FleetReport(
            slots=sum(worker.slots for worker in live.values()),
            workers=len(live),
            busy_slot_seconds=sum(figures.busy for figures in self._figures.values()),
            available_slot_seconds=sum(figures.available for figures in self._figures.values()) + since,
            pss_bytes=self._peak_pss,
        )

    def close(self) -> None:
        """Disconnect. Results of what is in flight wait for a coordinator that goes on. May be called twice."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            link.stop(nothing_outstanding=not self._leases.outstanding)

    def _running(self) -> tuple[Link, StudySpec]:
        if self._closed:
            raise FleetError("the fleet is closed")
        if self._link is None or self._spec is None:
            raise FleetError("the fleet is not started")
        return self._link, self._spec

    def _take_in(self, timeout: float) -> None:
        """Handle what the link received, waiting up to `timeout` seconds for the first."""
        link, spec = self._running()
        for incoming in link.receive(timeout):
            now = self._clock.monotonic()
            match incoming:
                case Heartbeat():
                    self._on_heartbeat(incoming, now)
                case Ready(messages):
                    self._lost += self._leases.lost(messages, now)
                case (batch, delivery):
                    self._delivered.append(delivery)
                    if batch.study != spec.study:
                        continue  # whoever sent it takes our address for another's; it need not come again
                    for result in batch.results:
                        self._idle.pop(result.worker, None)
                        in_vain = result.attempt if result.outcome.may_be_of_the_place else None
                        self._leases.answer(result.key, in_vain=in_vain)
                        self._results.append(result)

    def _on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        self._heard[heartbeat.worker] = now
        self._idle.pop(heartbeat.worker, None)
        if not heartbeat.busy and not heartbeat.held:
            self._idle[heartbeat.worker] = heartbeat.slots
        self._leases.heartbeat(
            heartbeat.worker,
            0 if heartbeat.draining else heartbeat.slots,
            heartbeat.interval_seconds,
            held=[EvaluationKey(*key) for address, *key in heartbeat.held if address == self._address],
            leased={EvaluationKey(*key) for address, *key in heartbeat.leased if address == self._address},
            now=now,
        )
        known = self._figures.get(heartbeat.worker)
        if known is None:
            self._figures[heartbeat.worker] = _Figures(heartbeat, now - self._started)
        else:
            known.update(heartbeat)
        self._pss[heartbeat.worker] = heartbeat.pss_bytes
        if now >= self._pss_due:
            self._pss_due = now + _PSS_SECONDS
            self._add_up_memory(now)

    def _add_up_memory(self, now: float) -> None:
        """Of the live workers alone; the others are forgotten, but for what they measured."""
        live = self._leases.workers(now)
        self._pss = {name: size for name, size in self._pss.items() if name in live}
        self._heard = {name: at for name, at in self._heard.items() if name in live}
        self._idle = {name: slots for name, slots in self._idle.items() if name in live}
        self._peak_pss = max(self._peak_pss, sum(self._pss.values()))
