"""A worker on RabbitMQ: the one dramatiq actor, and what surrounds it.

dramatiq delivers a batch to the actor on one of its threads. The actor hands it to the service, which evaluates it on the
main thread's slots, and waits: it returns, which acknowledges the delivery, once every result is safe with the broker. An
evaluation that outlives `HOLD_SECONDS` is acknowledged all the same, before RabbitMQ's delivery timeout (30 minutes by
default) would take it back and start it elsewhere; from then on heartbeats hold it. One that waits so long for its data is
handed back: other workers may have them.
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
from typing import Any, NamedTuple

import dramatiq
import msgspec
from pika.exceptions import ConnectionBlockedTimeout, NackError

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
from trialfleet_shared.errors import DecodeError, NewerSchemaError
from trialfleet_shared.messages import EvaluationBatch, Heartbeat, ResultBatch
from trialfleet_workers.adapters.study_data import Imports, StudyData
from trialfleet_workers.allowance import Allowance
from trialfleet_workers.service import Sending, Ticket, WorkerService
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
#: Seconds for which a results queue that the broker refuses messages for is left alone: twice as long each time, up to a limit.
ASIDE_SECONDS = 60.0
MOST_ASIDE_SECONDS = 3600.0
#: Milliseconds that dramatiq's threads may take to end.
_STOP_MILLISECONDS = 10_000
#: Milliseconds after which idle dramatiq threads look whether they are to end.
_IDLE_MILLISECONDS = 200
#: Seconds to wait for the consumer to stop.
_STOP_SECONDS = 2.0


class _Aside(NamedTuple):
    """A results queue that is left alone for a while: RabbitMQ takes a minute to say that it has no leader."""

    until: float
    pause: float


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
        #: Results queues that the broker refuses messages for, by address.
        self._aside: dict[str, _Aside] = {}

    def stop_taking(self) -> None:
        """Have RabbitMQ deliver no more."""
        for broker in (self._broker, self._reserve):
            broker.stop_consuming(_STOP_SECONDS)

    def send_results(self, address: str, batch: ResultBatch) -> Sending:
        """Publish on the study's queue of results; where that is gone, nobody wants them any more."""
        aside = self._aside.get(address)
        if aside is not None and time.monotonic() < aside.until:
            return Sending.REFUSED

        def publish() -> None:
            if not self._broker.publish_results(address, batch):
                _LOG.info("nobody wants the results of study %s any more", batch.study, extra={"study": batch.study})

        sending = self._try(publish)
        if sending is Sending.REFUSED:
            pause = ASIDE_SECONDS if aside is None else min(2 * aside.pause, MOST_ASIDE_SECONDS)
            self._aside[address] = _Aside(time.monotonic() + pause, pause)
            _LOG.warning(
                "the broker refuses the results of study %s; they wait %g s",
                batch.study,
                pause,
                extra={"study": batch.study},
            )
        elif sending is Sending.SAFE:
            self._aside.pop(address, None)
        return sending

    def hand_back(self, batch: EvaluationBatch) -> bool:
        """Publish on the queue of evaluations."""
        return self._try(lambda: self._broker.publish(EVALUATIONS, pack(batch))) is Sending.SAFE

    def send_heartbeat(self, heartbeat: Heartbeat) -> bool:
        """Tell all coordinators, and where Prometheus finds the worker."""
        heartbeat = msgspec.structs.replace(heartbeat, metrics_address=self._metrics_address)
        self._on_heartbeat(heartbeat)
        return self._try(lambda: self._broker.publish_heartbeat(heartbeat)) is Sending.SAFE

    def _try(self, send: Callable[[], None]) -> Sending:
        """Do it, on a new connection if the one there was has ended meanwhile."""
        if time.monotonic() < self._blocked_until:
            return Sending.AWAY
        trouble = "is away"
        for _ in range(2):
            try:
                send()
            except ConnectionBlockedTimeout:
                self._broker.drop_connection()
                self._blocked_until = time.monotonic() + BLOCKED_PAUSE_SECONDS
                trouble = "takes no messages, for want of memory or disk"
                break  # nor would it from another connection
            except NackError:
                return Sending.REFUSED  # it is there, and this queue is full, or has no leader
            except BROKER_FAILURES:
                self._broker.drop_connection()
            else:
                if self._away:
                    _LOG.warning("the broker is back")
                    self._telemetry.reconnected()
                self._away = False
                return Sending.SAFE
        if not self._away:
            _LOG.warning("the broker %s; trying again", trouble)
        self._away = True
        return Sending.AWAY


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
            imports = Imports(service, StudyData(data_path, base, allowance, telemetry))
            pool.start()
            for each, threads in zip((broker, reserve), consumers, strict=True):
                declare_actor(each, service, imports, telemetry, gone)
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
    broker: FleetBroker, service: WorkerService, imports: Imports, telemetry: WorkerTelemetry, gone: threading.Event
) -> None:
    """Have what the broker delivers evaluated by the service.

    Args:
        broker: whose messages.
        service: evaluates.
        imports: sees to the data first.
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
        imports.prepare(ticket)
        _settle(service, ticket, gone)

    broker.add_middleware(_Redeliveries(telemetry))
    dramatiq.actor(actor_name=EVALUATE, queue_name=EVALUATIONS, broker=broker)(evaluate)


def _hand_back_later(broker: FleetBroker, body: bytes, gone: threading.Event) -> None:
    """Leave work to newer workers, slowly enough that it does not go round in circles where there are none."""
    while not gone.wait(HAND_BACK_SECONDS):
        try:
            broker.publish(EVALUATIONS, body)
        except ConnectionBlockedTimeout:
            continue  # it is there, and so is the connection that the message came over
        except BROKER_FAILURES:
            break
        else:
            return
        finally:
            # This thread's own, which nobody serves until the next time: RabbitMQ would end it.
            broker.drop_connection()
    raise Abandoned  # RabbitMQ still has it


def _settle(service: WorkerService, ticket: Ticket, gone: threading.Event) -> None:
    """Wait until the batch is settled or held long enough."""
    end = time.monotonic() + HOLD_SECONDS
    while not ticket.wait(_LOOK_SECONDS):
        if gone.is_set() or ticket.forgotten:
            raise Abandoned  # neither answered nor handed back
        if time.monotonic() < end:
            continue
        if ticket.begun:
            service.lease(ticket)
            return
        service.give_back(ticket)  # which settles it, once the broker has it


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
