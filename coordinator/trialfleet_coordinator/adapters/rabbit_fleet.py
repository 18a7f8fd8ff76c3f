"""The fleet of workers behind RabbitMQ. The core sees `Fleet`; queues, deliveries and reconnects stay here.

Results are consumed by a thread of their own and acknowledged only after the coordinator has recorded them, so that a
coordinator that dies finds them again. While the broker is away, what is to be published waits here, and everything
reconnects by itself.
"""

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import pika
from dramatiq.broker import Consumer, MessageProxy

from trialfleet_coordinator.leases import LeaseTable
from trialfleet_shared.adapters.rabbit import (
    BROKER_FAILURES,
    EVALUATE,
    EVALUATIONS,
    HEARTBEATS,
    FleetBroker,
    connect,
    redact,
    results_queue,
    unpack,
)
from trialfleet_shared.clock import Clock
from trialfleet_shared.codec import decode
from trialfleet_shared.errors import BrokerError, DecodeError, FleetError
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

_LOG = logging.getLogger("trialfleet.fleet")

#: Result messages that are under way to the coordinator unacknowledged, at most.
_PREFETCH = 200
#: Seconds between two looks at what may be lost.
_SWEEP_SECONDS = 2.0
#: Seconds that an evaluation may be heard of from nobody before it is lost: several heartbeats.
_GRACE_SECONDS = 15.0
#: Seconds between two attempts to reach a broker that is away.
_RETRY_SECONDS = 1.0
#: Seconds that the broker may be away from a running study before it gives up; nothing recorded is lost then.
_PATIENCE_SECONDS = 600.0
#: Seconds after which waiting threads look whether they are to end, in milliseconds for dramatiq.
_LOOK_MILLISECONDS = 500


class _Delivery(NamedTuple):
    """Results, and what acknowledges them."""

    consumer: Consumer
    message: MessageProxy
    batch: ResultBatch


class _Usage:
    """What a worker said of its slot-seconds: at its first heartbeat of this session, and at its last."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.first = self.last = heartbeat


class RabbitFleet:
    """Implements `trialfleet_shared.fleet.Fleet` over RabbitMQ.

    Args:
        url: broker, amqp:// or amqps://.
        address: where results are heard: the same for every session of a study, different from all other studies'.
        clock: measures leases and patience.
        patience: seconds to try to reach the broker at the start.
    """

    def __init__(self, url: str, *, address: str, clock: Clock, patience: float = 15.0) -> None:
        self._url = url
        self._address = address
        self._clock = clock
        self._patience = patience
        self._broker: FleetBroker | None = None
        self._spec: StudySpec | None = None
        self._leases = LeaseTable(grace=_GRACE_SECONDS)
        self._inbox: queue.SimpleQueue[_Delivery | Heartbeat] = queue.SimpleQueue()
        self._unacknowledged: list[_Delivery] = []
        self._outbox: deque[EvaluationBatch] = deque()
        self._usage: dict[str, _Usage] = {}
        self._peak_pss = 0
        self._away_since: float | None = None
        self._tried_at = 0.0
        self._swept_at = 0.0
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, spec: StudySpec) -> None:
        """Connect, and begin to listen. Raises BrokerError when nobody answers or the broker refuses."""
        self._spec = msgspec.structs.replace(spec, reply_to=self._address)
        self._broker = connect(self._url, patience=self._patience)
        self._broker.declare_queue(results_queue(self._address), ensure=True)
        for target in (self._hear_results, self._hear_workers):
            thread = threading.Thread(target=target, name=f"trialfleet {target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def slots(self) -> int:
        """Slots of all workers that were heard of lately."""
        return sum(worker.slots for worker in self._leases.workers(self._clock.monotonic()).values())

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Publish them as one message; while the broker is away it waits here."""
        if self._spec is None:
            raise FleetError("the fleet is not started")
        self._outbox.append(EvaluationBatch(self._spec, tuple(evaluations)))
        now = self._clock.monotonic()
        for evaluation in evaluations:
            self._leases.publish(evaluation.key, evaluation.attempt, now)
        if self._away_since is None:
            self._publish()

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """What came in, waiting up to `timeout` seconds for the first result.

        Raises:
            BrokerError: the broker has been away for longer than a running study waits for it.
        """
        now = self._clock.monotonic()
        if self._outbox and now - self._tried_at >= _RETRY_SECONDS:
            self._publish()
        end = now + timeout
        results: list[EvaluationResult] = []
        while not results:
            left = end - self._clock.monotonic()
            try:
                arrived = self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait()
            except queue.Empty:
                break
            results += self._take(arrived)
        while not self._inbox.empty():
            results += self._take(self._inbox.get_nowait())
        return results, self._sweep()

    def acknowledge(self) -> None:
        """Take the results polled so far off the broker's queue."""
        for delivery in self._unacknowledged:
            # After a reconnect the broker delivers again what it has no acknowledgement of; a copy changes nothing.
            with contextlib.suppress(*BROKER_FAILURES):
                delivery.consumer.ack(delivery.message)
        self._unacknowledged.clear()

    def report(self) -> FleetReport:
        """Summed over all workers that were heard of since the start."""
        live = self._leases.workers(self._clock.monotonic())
        usages = self._usage.values()
        return FleetReport(
            slots=sum(worker.slots for worker in live.values()),
            workers=len(live),
            busy_slot_seconds=sum(u.last.busy_slot_seconds - u.first.busy_slot_seconds for u in usages),
            available_slot_seconds=sum(u.last.available_slot_seconds - u.first.available_slot_seconds for u in usages),
            pss_bytes=self._peak_pss,
        )

    def close(self) -> None:
        """Stop listening. Where nothing is left to be answered, the study's queue is removed. May be called twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        for thread in self._threads:
            thread.join()
        if self._broker is not None:
            if not self._leases.open():
                self._remove_queue(self._broker)
            self._broker.close()

    # The coordinator's thread

    def _take(self, arrived: "_Delivery | Heartbeat") -> list[EvaluationResult]:
        if isinstance(arrived, Heartbeat):
            self._note(arrived)
            return []
        self._unacknowledged.append(arrived)
        for result in arrived.batch.results:
            self._leases.answer(result.key)
        return list(arrived.batch.results)

    def _note(self, heartbeat: Heartbeat) -> None:
        held = [EvaluationKey(*key) for address, *key in heartbeat.held if address == self._address]
        self._leases.heartbeat(
            heartbeat.worker, heartbeat.slots, heartbeat.interval_seconds, held, self._clock.monotonic()
        )
        self._usage.setdefault(heartbeat.worker, _Usage(heartbeat)).last = heartbeat
        live = self._leases.workers(self._clock.monotonic())
        pss = sum(usage.last.pss_bytes for name, usage in self._usage.items() if name in live)
        self._peak_pss = max(self._peak_pss, pss)

    def _publish(self) -> None:
        """Send what waits, as far as the broker takes it."""
        assert self._broker is not None
        self._tried_at = self._clock.monotonic()
        try:
            while self._outbox:
                self._broker.send(EVALUATIONS, EVALUATE, self._outbox[0])
                self._outbox.popleft()
        except BrokerError:
            if self._away_since is None:
                self._away_since = self._tried_at
                _LOG.warning("the broker at %s is away; trying again", redact(self._url))
            elif self._tried_at - self._away_since > _PATIENCE_SECONDS:
                raise BrokerError(
                    f"the broker at {redact(self._url)} has been away for {_PATIENCE_SECONDS:g} seconds; "
                    "run the study again once it is back"
                ) from None
        else:
            if self._away_since is not None:
                _LOG.warning("the broker is back")
            self._away_since = None

    def _sweep(self) -> list[LostEvaluation]:
        now = self._clock.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS or self._broker is None or self._away_since is not None:
            return []
        self._swept_at = now
        ready = None if self._outbox else self._broker.ready_messages(EVALUATIONS)
        return self._leases.lost(ready, now)

    def _remove_queue(self, broker: FleetBroker) -> None:
        name = results_queue(self._address)
        with contextlib.suppress(*BROKER_FAILURES):
            broker.channel.queue_delete(name)
            dead = f"{name}.XQ"
            if broker.ready_messages(dead) == 0:
                broker.channel.queue_delete(dead)

    # Threads

    def _hear_results(self) -> None:
        assert self._broker is not None
        while not self._closing.is_set():
            with contextlib.suppress(*BROKER_FAILURES):
                consumer = self._broker.consume(
                    results_queue(self._address), prefetch=_PREFETCH, timeout=_LOOK_MILLISECONDS
                )
                try:
                    self._consume(consumer)
                finally:
                    consumer.close()
            self._closing.wait(_RETRY_SECONDS)

    def _consume(self, consumer: Consumer) -> None:
        for message in consumer:
            if self._closing.is_set():
                return
            if message is None:
                continue
            try:
                batch = _results(message)
            except DecodeError as error:
                _LOG.warning("a message on %s goes to the dead letters: %s", results_queue(self._address), error)
                consumer.nack(message)
            else:
                self._inbox.put(_Delivery(consumer, message, batch))

    def _hear_workers(self) -> None:
        assert self._broker is not None
        while not self._closing.is_set():
            with contextlib.suppress(*BROKER_FAILURES), pika.BlockingConnection(self._broker.parameters) as connection:
                channel = connection.channel()
                channel.exchange_declare(HEARTBEATS, exchange_type="fanout", durable=True)
                name = channel.queue_declare("", exclusive=True).method.queue
                channel.queue_bind(name, HEARTBEATS)
                for method, _, body in channel.consume(
                    name, auto_ack=True, inactivity_timeout=_LOOK_MILLISECONDS / 1000
                ):
                    if self._closing.is_set():
                        break
                    if method is not None:
                        self._hear(body)
            self._closing.wait(_RETRY_SECONDS)

    def _hear(self, body: bytes) -> None:
        try:
            message = decode(body)
        except DecodeError as error:
            _LOG.warning("a heartbeat can not be read: %s", error)
        else:
            if isinstance(message, Heartbeat):
                self._inbox.put(message)


def _results(message: MessageProxy) -> ResultBatch:
    batch = unpack(message.args)
    if not isinstance(batch, ResultBatch):
        raise DecodeError(f"{type(batch).__name__} on a queue of results")
    return batch
