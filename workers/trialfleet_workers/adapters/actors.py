"""A worker on RabbitMQ: the one dramatiq actor, and what surrounds it.

dramatiq delivers a batch to the actor on one of its threads. The actor hands it to the service, which evaluates it on the
main thread's slots, and waits: it returns, which acknowledges the delivery, once every result is safe with the broker. An
evaluation that outlives `HOLD_SECONDS`, or waits so long for its data, is acknowledged all the same, before RabbitMQ's
delivery timeout (30 minutes by default) would take it back and start it elsewhere; from then on heartbeats hold it.
"""

import logging
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import dramatiq
import msgspec
from pika.exceptions import ConnectionBlockedTimeout

from trialfleet_shared.adapters.lmdb_results import CacheStats, LmdbResultCache
from trialfleet_shared.adapters.rabbit import (
    BROKER_FAILURES,
    EVALUATE,
    EVALUATIONS,
    Abandoned,
    FleetBroker,
    connect,
    pack,
    redact,
    unpack,
)
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import DecodeError, NewerSchemaError, TrialfleetError, message_of
from trialfleet_shared.messages import EvaluationBatch, Heartbeat, ResultBatch, StudySpec
from trialfleet_workers.adapters.data_format import data_file
from trialfleet_workers.adapters.importing import import_apart
from trialfleet_workers.allowance import Allowance, resolve
from trialfleet_workers.service import Ticket, WorkerService
from trialfleet_workers.slots import SlotPool
from trialfleet_workers.telemetry import NO_TELEMETRY, WorkerTelemetry

_LOG = logging.getLogger("trialfleet.worker")

#: Seconds after which a delivery is acknowledged though its evaluations still run.
HOLD_SECONDS = 600.0
#: Seconds that a worker keeps work which it is too old for before it hands it back.
HAND_BACK_SECONDS = 2.0
#: Seconds without work after which a worker in burst mode leaves.
BURST_SECONDS = 5.0
#: Seconds between two looks whether the worker is gone, for a thread that waits for its batch.
_LOOK_SECONDS = 0.5
#: Priority of what takes work ahead of time; others have 0.
_RESERVE_PRIORITY = -1
#: Seconds between two attempts to send while the broker takes no messages: slots, deadlines and signals wait for each.
BLOCKED_PAUSE_SECONDS = 30.0
#: Milliseconds that dramatiq's threads may take to end.
_STOP_MILLISECONDS = 10_000
#: Milliseconds after which idle dramatiq threads look whether they are to end.
_IDLE_MILLISECONDS = 200
#: Seconds to wait for the consumer to stop.
_STOP_SECONDS = 2.0


class RabbitSink:
    """Implements `trialfleet_workers.service.Sink`; used by one thread.

    Args:
        broker: where messages go.
        reserve: where messages are taken from as well.
        on_heartbeat: is shown every heartbeat as well, be the broker there or not.
        telemetry: watches.
        metrics_address: host:port where the worker serves metrics; empty when it does not.
    """

    def __init__(
        self,
        broker: FleetBroker,
        reserve: FleetBroker,
        on_heartbeat: Callable[[Heartbeat], None],
        telemetry: WorkerTelemetry,
        metrics_address: str,
    ) -> None:
        self._broker = broker
        self._reserve = reserve
        self._on_heartbeat = on_heartbeat
        self._telemetry = telemetry
        self._metrics_address = metrics_address
        self._away = False
        #: Until when nothing is tried, because the broker takes no messages.
        self._blocked_until = 0.0

    def stop_taking(self) -> None:
        """Have RabbitMQ deliver no more."""
        for broker in (self._broker, self._reserve):
            broker.stop_consuming(_STOP_SECONDS)

    def send_results(self, address: str, batch: ResultBatch) -> bool:
        """Publish on the study's queue of results; where that is gone, nobody wants them any more."""

        def publish() -> None:
            if not self._broker.publish_results(address, batch):
                _LOG.info("nobody wants the results of study %s any more", batch.study, extra={"study": batch.study})

        return self._try(publish)

    def hand_back(self, batch: EvaluationBatch) -> bool:
        """Publish on the queue of evaluations."""
        return self._try(lambda: self._broker.publish(EVALUATIONS, pack(batch)))

    def send_heartbeat(self, heartbeat: Heartbeat) -> bool:
        """Tell all coordinators, and where Prometheus finds the worker."""
        heartbeat = msgspec.structs.replace(heartbeat, metrics_address=self._metrics_address)
        self._on_heartbeat(heartbeat)
        return self._try(lambda: self._broker.publish_heartbeat(heartbeat))

    def _try(self, send: Callable[[], None]) -> bool:
        """Do it, on a new connection if the one there was has ended meanwhile."""
        if time.monotonic() < self._blocked_until:
            return False
        trouble = "is away"
        for _ in range(2):
            try:
                send()
            except ConnectionBlockedTimeout:
                self._broker.drop_connection()
                self._blocked_until = time.monotonic() + BLOCKED_PAUSE_SECONDS
                trouble = "takes no messages, for want of memory or disk"
                break  # nor would it from another connection
            except BROKER_FAILURES:
                self._broker.drop_connection()
            else:
                if self._away:
                    _LOG.warning("the broker is back")
                    self._telemetry.reconnected()
                self._away = False
                return True
        if not self._away:
            _LOG.warning("the broker %s; trying again", trouble)
        self._away = True
        return False


class StudyData:
    """Sees to it that a study's data are in this host's cache before its evaluations start; for any thread.

    Args:
        path: the data cache.
        base: folder that data sources given as paths are relative to.
        allowance: which objectives, and functions that give data, may run.
        telemetry: watches.
    """

    def __init__(self, path: Path, base: Path, allowance: Allowance, telemetry: WorkerTelemetry) -> None:
        self._path = path
        self._base = base
        self._allowance = allowance
        self._telemetry = telemetry
        self._lock = threading.Lock()
        #: By digest: held by whoever looks after a data set, so that one study does not wait for the data of another.
        self._looked_after: dict[str, threading.Lock] = {}
        self._known: set[str] = set()

    def is_here(self, spec: StudySpec) -> bool:
        """Whether the study needs no data, or has had them and they are still here."""
        # Somebody may have made room in the cache since.
        return spec.data is None or (
            spec.data_digest in self._known and data_file(self._path, spec.data_digest).exists()
        )

    def require(self, spec: StudySpec) -> None:
        """Import the study's data unless they are here.

        Raises:
            ObjectiveError: the study's objective may not run here, so its data have no business here either.
            DataError: the data can not be imported, or are not the study's.
        """
        if spec.data is None:
            return
        resolve(spec.objective, spec.objective_digest, self._base, self._allowance)
        with self._lock:
            looked_after = self._looked_after.setdefault(spec.data_digest, threading.Lock())
        with looked_after:
            if self.is_here(spec):
                self._telemetry.data_found()
                return
            started = time.monotonic()
            size = import_apart(spec, self._path, self._base, self._allowance)
            self._known.add(spec.data_digest)
        if size:
            self._telemetry.data_imported(time.monotonic() - started, size)
        else:
            self._telemetry.data_found()


def run_worker(
    url: str,
    *,
    slots: int,
    allowance: Allowance,
    base: Path,
    data_path: Path,
    results_path: Path,
    cache_size: int,
    cache_ttl_hours: float,
    burst: bool = False,
    patience: float = 30.0,
    on_heartbeat: Callable[[Heartbeat], None] = lambda _: None,
    telemetry: WorkerTelemetry = NO_TELEMETRY,
    on_cache: Callable[[Callable[[], CacheStats]], None] = lambda _: None,
    metrics_address: str = "",
) -> int:
    """Evaluate for every study on the broker until a signal ends it; the exit status.

    The first SIGTERM or SIGINT drains: nothing new is taken, what has not started is handed back, what runs is finished.
    The second hands back what runs as well. Must be called from the main thread.

    Args:
        url: broker, amqp:// or amqps://.
        slots: evaluations at the same time.
        allowance: which objectives may run.
        base: folder that data sources given as paths are relative to.
        data_path: the data cache.
        results_path: the result cache.
        cache_size: entries of the result cache.
        cache_ttl_hours: their age at most.
        burst: leave after `BURST_SECONDS` without work.
        patience: seconds to try to reach the broker at the start.
        on_heartbeat: is shown every heartbeat.
        telemetry: watches.
        on_cache: is handed what looks at the result cache, for any thread, until the worker ends.
        metrics_address: host:port where they are served; empty when they are not.

    Raises:
        BrokerError: nobody answered at the start, or the server refused.
    """
    clock = SystemClock()
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    broker, reserve = connect(url, patience=patience), connect(url, patience=patience)
    reserve.priority = _RESERVE_PRIORITY
    cache = LmdbResultCache(results_path, size=cache_size, ttl_hours=cache_ttl_hours, clock=clock)
    pool = SlotPool(
        slots=slots, base=base, data_path=data_path, name=name, allowance=allowance, cache=cache, clock=clock
    )
    service = WorkerService(
        pool,
        RabbitSink(broker, reserve, on_heartbeat, telemetry, metrics_address),
        name=name,
        clock=clock,
        patience=BURST_SECONDS if burst else None,
        telemetry=telemetry,
    )
    on_cache(cache.stats)
    gone = threading.Event()
    consumers = [_consumers(each, slots) for each in (broker, reserve)]
    try:
        with _signals(service) as received:
            data = StudyData(data_path, base, allowance, telemetry)
            pool.start()
            for each, threads in zip((broker, reserve), consumers, strict=True):
                declare_actor(each, service, data, telemetry, gone)
                threads.start()
            _LOG.info(
                "worker %s serves %s with %d slots", name, redact(url), slots, extra={"worker": name, "slots": slots}
            )
            service.run()
    finally:
        gone.set()
        pool.close()
        cache.close()
        for threads in consumers:
            threads.stop(_STOP_MILLISECONDS)
        broker.close()
        reserve.close()
    return 128 + received[1] if len(received) > 1 else 0


def _consumers(broker: FleetBroker, slots: int) -> dramatiq.Worker:
    """The threads that take batches, one per slot.

    Those of the reserve take, by their priority, what finds all slots of all workers occupied, and so keep this worker's busy
    while its answers are on their way: none waits here while another worker idles.
    """
    worker = dramatiq.Worker(broker, queues={EVALUATIONS}, worker_timeout=_IDLE_MILLISECONDS, worker_threads=slots)
    worker.queue_prefetch = slots
    return worker


class _Redeliveries(dramatiq.Middleware):
    """Tells of messages that RabbitMQ delivered before, to this worker or another."""

    def __init__(self, telemetry: WorkerTelemetry) -> None:
        self._telemetry = telemetry

    def before_process_message(self, _broker: dramatiq.Broker, message: Any) -> None:
        """See `dramatiq.Middleware`."""
        if message.redelivered:
            self._telemetry.redelivered()


def declare_actor(
    broker: FleetBroker, service: WorkerService, data: StudyData, telemetry: WorkerTelemetry, gone: threading.Event
) -> None:
    """Have what the broker delivers evaluated by the service.

    Args:
        broker: whose messages.
        service: evaluates.
        data: sees to the data first.
        telemetry: watches.
        gone: set once the service has ended; what is held then is neither answered nor handed back.
    """

    def evaluate(body: bytes) -> None:
        """Settle one batch; returning acknowledges it, raising sends it to the dead letters."""
        try:
            batch = unpack(body)
        except NewerSchemaError as error:
            _LOG.warning("a newer coordinator's work is handed back; update this worker: %s", error)
            _hand_back_later(broker, body, gone)
            return
        except DecodeError as error:
            _LOG.warning("a message goes to the dead letters: %s", error)
            telemetry.unreadable()
            raise
        ticket = service.take(batch)
        if data.is_here(batch.spec):
            _prepare(service, ticket, data)
        else:  # apart: an import may take hours, and a delivery is not held so long
            threading.Thread(target=_prepare, args=(service, ticket, data), name="import", daemon=True).start()
        _settle(service, ticket, gone)

    broker.add_middleware(_Redeliveries(telemetry))
    dramatiq.actor(actor_name=EVALUATE, queue_name=EVALUATIONS, broker=broker)(evaluate)


def _hand_back_later(broker: FleetBroker, body: bytes, gone: threading.Event) -> None:
    """Leave work to newer workers, slowly enough that it does not go round in circles where there are none."""
    gone.wait(HAND_BACK_SECONDS)
    try:
        broker.publish(EVALUATIONS, body)
    except BROKER_FAILURES:
        raise Abandoned from None  # RabbitMQ still has it


def _prepare(service: WorkerService, ticket: Ticket, data: StudyData) -> None:
    """Have the batch evaluated once the study's data are here, or refused where they can not be had."""
    study = ticket.batch.spec.study
    try:
        data.require(ticket.batch.spec)
    except TrialfleetError as error:
        service.refuse(ticket, str(error))
    except Exception as error:  # noqa: BLE001  # no memory for a process, say; it is held until it is answered
        _LOG.exception("the data of study %s can not be had", study, extra={"study": study})
        service.refuse(ticket, f"the study's data can not be had: {type(error).__name__}: {message_of(error)}")
    else:
        service.begin(ticket)


def _settle(service: WorkerService, ticket: Ticket, gone: threading.Event) -> None:
    """Wait until the batch is settled or held long enough."""
    end = time.monotonic() + HOLD_SECONDS
    while not ticket.wait(_LOOK_SECONDS):
        if gone.is_set():
            raise Abandoned  # neither answered nor handed back
        if time.monotonic() >= end:
            service.lease(ticket)
            return


@contextmanager
def _signals(service: WorkerService) -> Iterator[list[int]]:
    """Has the signals drain and abort the service; gives the numbers of those that came."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            service.drain()
        else:
            service.abort()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
