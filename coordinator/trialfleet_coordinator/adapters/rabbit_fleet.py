"""The fleet behind RabbitMQ, as the coordinator sees it: `RabbitFleet`.

    driver's thread                        link's thread (owns the connection)
    submit ──> leases ──> outbox ────────> publishes, keeps what is not confirmed
    poll   <── leases <── inbox  <──────── results, heartbeats, the queue's length
    acknowledge ────────> outbox ────────> acknowledges deliveries of this connection

The link reconnects by itself and publishes again what was not confirmed: an evaluation may then be published twice, and
a result may come twice; both are allowed. What it can not mend, it tells `poll`, which raises.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from trialfleet_coordinator.leases import LeaseTable
from trialfleet_coordinator.telemetry import NO_TELEMETRY, Telemetry
from trialfleet_shared.adapters.rabbit import (
    BROKER_FAILURES,
    EVALUATIONS,
    HEARTBEATS,
    FleetBroker,
    connect,
    pack,
    redact,
    results_queue,
    unpack_results,
)
from trialfleet_shared.clock import Clock
from trialfleet_shared.codec import decode
from trialfleet_shared.errors import BrokerError, DecodeError, FleetError, NewerSchemaError, TrialfleetError
from trialfleet_shared.fleet import FleetReport, LostEvaluation
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
#: Seconds that the broker may be out of reach while a study runs.
OUTAGE_SECONDS = 600.0
#: Seconds to wait at the start for the workers that are there to be heard.
_FIRST_HEARTBEATS = 2.0
#: Seconds between two looks at the length of the evaluations queue.
_LOOK_SECONDS = 1.0
#: Seconds that a report waits for fresh figures.
_REPORT_SECONDS = 3.0
#: Results that may be on the way unacknowledged, in messages.
_PREFETCH = 1000
#: Seconds to wait before connecting again.
_PAUSE_SECONDS = 0.5
#: Seconds that closing may take.
_CLOSE_SECONDS = 10.0

_LOG = logging.getLogger("trialfleet.fleet")


class _Delivery(NamedTuple):
    """A message as RabbitMQ delivered it."""

    #: Which connection it came over: tags mean nothing on another.
    connection: int
    tag: int


class _Ready(NamedTuple):
    """A look at the evaluations queue: messages that wait; None: the broker is out of reach."""

    messages: int | None


_Incoming = tuple[ResultBatch, _Delivery] | Heartbeat | _Ready


class _Figures:
    """What a worker measured since the study started on it."""

    def __init__(self, first: Heartbeat, running: float) -> None:
        uptime = first.available_slot_seconds / max(first.slots, 1)
        was_there = uptime > running
        self._busy_before = first.busy_slot_seconds if was_there else 0.0
        self._available_before = first.available_slot_seconds if was_there else 0.0
        self.pss_bytes = 0
        self.busy = self.available = 0.0
        self.update(first)

    def update(self, heartbeat: Heartbeat) -> None:
        """A heartbeat came."""
        self.busy = max(self.busy, heartbeat.busy_slot_seconds - self._busy_before)
        self.available = max(self.available, heartbeat.available_slot_seconds - self._available_before)
        self.pss_bytes = max(self.pss_bytes, heartbeat.pss_bytes)


class RabbitFleet:
    """Evaluates on the workers that listen at a broker. Implements `trialfleet_shared.fleet.Fleet`.

    Workers serve all coordinators of the broker, so the report's busy seconds are those of all studies of this time.

    Args:
        url: amqp:// or amqps://.
        address: where results are heard; a coordinator that goes on with the study gives the same one, and no other
            coordinator of the broker does. See `StudySpec.reply_to`.
        clock: measures leases.
        patience: seconds to wait for the broker at the start.
        grace: as of `LeaseTable`.
        outage: seconds that the broker may be out of reach later.
        telemetry: watches.
    """

    def __init__(
        self,
        url: str,
        *,
        address: str,
        clock: Clock,
        patience: float = 30.0,
        grace: float = GRACE_SECONDS,
        outage: float = OUTAGE_SECONDS,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._url = url
        self._address = address
        self._clock = clock
        self._patience = patience
        self._outage = outage
        self._telemetry = telemetry
        self._leases = LeaseTable(grace=grace)
        self._figures: dict[str, _Figures] = {}
        #: When each worker was heard last.
        self._heard: dict[str, float] = {}
        self._link: _Link | None = None
        self._spec: StudySpec | None = None
        self._started = 0.0
        self._delivered: list[_Delivery] = []
        self._results: list[EvaluationResult] = []
        self._lost: list[LostEvaluation] = []
        self._closed = False

    def start(self, spec: StudySpec) -> None:
        """Connect, have the queues, and hear who is there.

        Raises:
            ConfigurationError: the URL is none.
            BrokerError: the broker can not be reached, or refuses.
            FleetError: the fleet is closed.
        """
        if self._closed:
            raise FleetError("the fleet is closed")
        broker = connect(self._url, patience=self._patience)
        broker.drop_connection()  # the link's thread makes its own
        self._spec = msgspec.structs.replace(spec, reply_to=self._address)
        self._started = self._clock.monotonic()
        self._link = _Link(broker, redact(self._url), self._address, self._clock, self._outage, self._telemetry)
        self._link.start()
        end = self._started + _FIRST_HEARTBEATS
        while not self.slots() and self._clock.monotonic() < end:
            self._take_in(end - self._clock.monotonic())

    def slots(self) -> int:
        """Slots of the workers that were heard of lately."""
        return sum(worker.slots for worker in self._leases.workers(self._clock.monotonic()).values())

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Publish them in one message. Raises FleetError when the fleet is not started, or closed."""
        link, spec = self._running()
        now = self._clock.monotonic()
        for evaluation in evaluations:
            self._leases.publish(evaluation.key, evaluation.attempt, now)
        link.publish(pack(EvaluationBatch(spec, tuple(evaluations))))

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """What came in, waiting up to `timeout` seconds for the first.

        Raises:
            BrokerError: the broker has been out of reach for too long, or refuses.
            FleetError: the fleet is not started, or closed.
        """
        self._running()
        end = self._clock.monotonic() + timeout
        self._take_in(0.0)
        while not self._results and not self._lost:
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

    def report(self) -> FleetReport:
        """What the workers measured, as of their next heartbeats. It can be asked after `close`."""
        asked = self._clock.monotonic()
        end = asked + _REPORT_SECONDS
        while not self._closed and self._link is not None and self._clock.monotonic() < end:
            live = self._leases.workers(self._clock.monotonic())
            if all(self._heard[name] > asked for name in live):
                break
            self._take_in(end - self._clock.monotonic())
        live = self._leases.workers(asked)
        return FleetReport(
            slots=sum(worker.slots for worker in live.values()),
            workers=len(live),
            busy_slot_seconds=sum(figures.busy for figures in self._figures.values()),
            available_slot_seconds=sum(figures.available for figures in self._figures.values()),
            pss_bytes=sum(figures.pss_bytes for figures in self._figures.values()),
        )

    def close(self) -> None:
        """Disconnect. Results of what is in flight wait for a coordinator that goes on. May be called twice."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            link.stop(remove_queue=not self._leases.outstanding)

    def _running(self) -> "tuple[_Link, StudySpec]":
        if self._closed:
            raise FleetError("the fleet is closed")
        if self._link is None or self._spec is None:
            raise FleetError("the fleet is not started")
        return self._link, self._spec

    def _take_in(self, timeout: float) -> None:
        """Handle what the link received, waiting up to `timeout` seconds for the first."""
        link, _ = self._running()
        for incoming in link.receive(timeout):
            now = self._clock.monotonic()
            match incoming:
                case Heartbeat():
                    self._on_heartbeat(incoming, now)
                case _Ready(messages):
                    self._lost += self._leases.lost(messages, now)
                case (batch, delivery):
                    self._delivered.append(delivery)
                    for result in batch.results:
                        self._leases.answer(result.key)
                        self._results.append(result)

    def _on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        self._heard[heartbeat.worker] = now
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


class _Link:
    """The connection, in a thread of its own.

    Args:
        broker: connects the thread.
        where: the broker's URL without its password.
        address: as of `RabbitFleet`.
        clock: measures outages.
        outage: as of `RabbitFleet`.
        telemetry: watches.
    """

    def __init__(
        self, broker: FleetBroker, where: str, address: str, clock: Clock, outage: float, telemetry: Telemetry
    ) -> None:
        self._broker = broker
        self._where = where
        self._queue = results_queue(address)
        self._clock = clock
        self._outage = outage
        self._telemetry = telemetry
        self._lock = threading.Condition()
        # All of these belong to the lock.
        self._inbox: list[_Incoming] = []
        self._unpublished: deque[bytes] = deque()
        self._unacknowledged: list[_Delivery] = []
        self._failure: TrialfleetError | None = None
        self._wake: Callable[[], None] | None = None
        self._stopping = False
        self._remove_queue = False
        # These belong to the thread.
        self._connections = 0
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="trialfleet-link", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def publish(self, body: bytes) -> None:
        """Publish a message for the workers, as soon as the broker takes it."""
        with self._lock:
            self._unpublished.append(body)
        self._rouse()

    def acknowledge(self, deliveries: Sequence[_Delivery]) -> None:
        """Have these not delivered again."""
        with self._lock:
            self._unacknowledged += deliveries
        self._rouse()

    def receive(self, timeout: float) -> list[_Incoming]:
        """What arrived since the last call. Raises the TrialfleetError for which the thread gave up."""
        with self._lock:
            if not self._inbox and self._failure is None:
                self._lock.wait(timeout)
            if self._failure is not None and not self._inbox:
                raise self._failure
            inbox, self._inbox = self._inbox, []
            return inbox

    def stop(self, *, remove_queue: bool) -> None:
        """Acknowledge what is to be acknowledged, and end the thread."""
        with self._lock:
            self._stopping = True
            self._remove_queue = remove_queue
        self._rouse()
        self._thread.join(_CLOSE_SECONDS)

    def _rouse(self) -> None:
        with self._lock:
            wake = self._wake
        if wake is not None:
            wake()

    # In the thread.

    def _run(self) -> None:
        lost_at: float | None = None
        while not self._stopping:
            before = self._connections
            try:
                self._session()
            except BROKER_FAILURES as error:
                now = self._clock.monotonic()
                if self._connections > before or lost_at is None:
                    lost_at = now
                    _LOG.warning("lost the broker at %s (%s); connecting again", self._where, type(error).__name__)
                self._put(_Ready(None))
                if now - lost_at > self._outage:
                    self._fail(BrokerError(f"the broker at {self._where} was out of reach for {self._outage:g} s"))
                    return
                self._pause()
            except Exception as error:  # noqa: BLE001  # whatever it is, the driver must not wait for ever
                self._fail(FleetError(f"the connection to the broker failed: {type(error).__name__}: {error}"))
                return
            finally:
                with self._lock:
                    self._wake = None
                self._broker.drop_connection()

    def _session(self) -> None:
        """Serve one connection, until it fails or the link is stopped."""
        broker = self._broker
        broker.ensure_again(EVALUATIONS)
        broker.ensure_again(self._queue)
        broker.declare_heartbeats()
        connection, channel = broker.connection, broker.channel
        heartbeats = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
        channel.queue_bind(heartbeats, HEARTBEATS)
        channel.basic_qos(prefetch_count=_PREFETCH)
        channel.basic_consume(self._queue, self._on_results)
        channel.basic_consume(heartbeats, self._on_heartbeat, auto_ack=True)
        self._connections += 1
        if self._connections > 1:
            _LOG.warning("connected to the broker at %s again", self._where)
            self._telemetry.reconnected()
        with self._lock:
            self._wake = lambda: _wake(connection)
        while True:
            self._flush()
            with self._lock:
                stopping = self._stopping
            if stopping:
                break
            if self._clock.monotonic() >= self._look_at:
                self._look_at = self._clock.monotonic() + _LOOK_SECONDS
                self._put(_Ready(broker.ready_messages(EVALUATIONS)))
            connection.process_data_events(time_limit=_LOOK_SECONDS)
        if self._remove_queue:
            channel.queue_delete(self._queue)

    def _flush(self) -> None:
        """Publish and acknowledge what there is."""
        while True:
            with self._lock:
                body = self._unpublished[0] if self._unpublished else None
                deliveries, self._unacknowledged = self._unacknowledged, []
            for delivery in deliveries:
                if delivery.connection == self._connections:
                    self._broker.channel.basic_ack(delivery.tag)
            if body is None:
                return
            self._broker.publish(EVALUATIONS, body)
            with self._lock:
                self._unpublished.popleft()

    def _on_results(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        if method.redelivered:
            self._telemetry.redelivered()
        try:
            batch = unpack_results(body)
        except DecodeError as error:
            _LOG.warning("a message on %s goes to the dead letters: %s", self._queue, error)
            channel.basic_reject(method.delivery_tag, requeue=False)
            self._telemetry.unreadable()
            return
        self._put((batch, _Delivery(self._connections, method.delivery_tag)))

    def _on_heartbeat(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        try:
            heartbeat = decode(body)
        except NewerSchemaError as error:
            _LOG.warning("a newer worker is not counted on; update this coordinator: %s", error)
            return
        except DecodeError as error:
            _LOG.debug("a heartbeat can not be read: %s", error)
            return
        if isinstance(heartbeat, Heartbeat):
            self._put(heartbeat)

    def _put(self, incoming: _Incoming) -> None:
        with self._lock:
            self._inbox.append(incoming)
            self._lock.notify()

    def _fail(self, failure: TrialfleetError) -> None:
        with self._lock:
            self._failure = failure
            self._lock.notify()

    def _pause(self) -> None:
        """Wait, unless the link is stopped meanwhile."""
        end = self._clock.monotonic() + _PAUSE_SECONDS
        with self._lock:
            self._wake = None
            self._lock.wait_for(lambda: self._stopping, max(0.0, end - self._clock.monotonic()))


def _wake(connection: Any) -> None:
    """Have `process_data_events` return."""
    try:
        connection.add_callback_threadsafe(lambda: None)
    except BROKER_FAILURES:
        return  # it is closed: its thread has noticed, or will
