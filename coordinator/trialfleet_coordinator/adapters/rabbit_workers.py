"""The workers of a fleet, as their heartbeats tell: `WorkerWatch`, and `hear_heartbeats` for others who want to hear them."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from dramatiq.errors import ConnectionClosed

from trialfleet_coordinator.leases import MISSED_HEARTBEATS
from trialfleet_coordinator.serving import WorkerState, WorkerStatus
from trialfleet_shared.adapters.rabbit import (
    BROKER_FAILURES,
    DEAD,
    EVALUATIONS,
    HEARTBEATS,
    FleetBroker,
    connect,
    redact,
)
from trialfleet_shared.clock import Clock
from trialfleet_shared.codec import decode
from trialfleet_shared.errors import DecodeError, NewerSchemaError, TrialfleetError
from trialfleet_shared.messages import Heartbeat

#: Seconds after which a worker that is not heard of any more is forgotten.
FORGET_SECONDS = 300.0
#: Seconds between two looks at the queues, and at whether to end.
_LOOK_SECONDS = 0.5
#: Seconds to wait before connecting again.
_PAUSE_SECONDS = 2.0
#: Seconds that closing may take: a broker that hangs may keep the thread longer.
_CLOSE_SECONDS = 10.0

_LOG = logging.getLogger("trialfleet.workers")


def hear_heartbeats(broker: FleetBroker, take: Callable[[Heartbeat], None], log: logging.Logger) -> Callable[[], None]:
    """Have `take` called with the heartbeats of all workers from now on, by whoever processes the connection's events.

    What can not be read is logged. The answer is to be called now and then: an exchange that somebody deleted the workers make
    anew, and this queue is not bound to it. Both raise one of `BROKER_FAILURES`; so does processing events once this queue, or
    another that the channel consumes, is deleted.
    """

    def on_message(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        try:
            heartbeat = decode(body)
        except NewerSchemaError as error:
            log.warning("a newer worker is not counted on; update this coordinator: %s", error)
            return
        except DecodeError as error:
            log.debug("a heartbeat can not be read: %s", error)
            return
        if isinstance(heartbeat, Heartbeat):
            take(heartbeat)

    queue = broker.channel.queue_declare("", exclusive=True, auto_delete=True).method.queue

    def bind() -> None:
        broker.declare_heartbeats()
        broker.channel.queue_bind(queue, HEARTBEATS)

    bind()
    broker.channel.add_on_cancel_callback(_gone)
    broker.channel.basic_consume(queue, on_message, auto_ack=True)
    return bind


def _gone(*_: object) -> None:
    """RabbitMQ ends a consumer whose queue is gone: another connection makes all anew."""
    raise ConnectionClosed("a queue was deleted")  # type: ignore[no-untyped-call]  # dramatiq's


class WorkerWatch:
    """Listens to every worker of the broker, in a thread of its own, from `start` to `close`.

    Args:
        url: the broker.
        clock: measures silence.
    """

    def __init__(self, url: str, *, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[str, tuple[Heartbeat, float]] = {}
        self._queues: dict[str, int] = {}
        self._trouble = "not connected yet"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trialfleet-watch", daemon=True)

    def start(self) -> None:
        """Begin to listen; a broker that is not there is waited for."""
        self._thread.start()

    def close(self) -> None:
        """End. May be called twice."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_SECONDS)

    def workers(self) -> list[WorkerStatus]:
        """The workers heard of within the last minutes, by name."""
        now = self._clock.monotonic()
        with self._lock:
            self._heard = {name: heard for name, heard in self._heard.items() if now - heard[1] < FORGET_SECONDS}
            heard = sorted(self._heard.items())
        return [_status(heartbeat, now - at) for _, (heartbeat, at) in heard]

    def queues(self) -> dict[str, int]:
        """Messages that wait with the broker, by queue; empty while it is out of reach."""
        with self._lock:
            return dict(self._queues)

    def trouble(self) -> str:
        """What is wrong with the connection; empty when nothing is."""
        with self._lock:
            return self._trouble

    # In the thread.

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._listen(connect(self._url, patience=0.0))
            except TrialfleetError as error:
                self._set_trouble(str(error))
            except BROKER_FAILURES as error:
                self._set_trouble(f"lost the broker at {redact(self._url)} ({type(error).__name__})")
            self._ending.wait(_PAUSE_SECONDS)

    def _listen(self, broker: FleetBroker) -> None:
        try:
            connection = broker.connection
            bind = hear_heartbeats(broker, self._on_heartbeat, _LOG)
            self._set_trouble("")
            while not self._ending.is_set():
                bind()
                waiting = {queue: broker.ready_messages(queue) for queue in (EVALUATIONS, DEAD)}
                with self._lock:
                    self._queues = waiting
                connection.process_data_events(time_limit=_LOOK_SECONDS)
        finally:
            with self._lock:
                self._queues = {}
            broker.drop_connection()

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        with self._lock:
            self._heard[heartbeat.worker] = (heartbeat, self._clock.monotonic())

    def _set_trouble(self, trouble: str) -> None:
        with self._lock:
            changed, self._trouble = trouble != self._trouble, trouble
        if changed:
            log: Callable[..., None] = _LOG.warning if trouble else _LOG.info
            log("%s", trouble or "connected to the broker")


def _status(heartbeat: Heartbeat, age: float) -> WorkerStatus:
    if age > MISSED_HEARTBEATS * heartbeat.interval_seconds:
        state = WorkerState.LOST
    elif heartbeat.draining or not heartbeat.slots:
        state = WorkerState.DRAINING
    else:
        state = WorkerState.LIVE
    return WorkerStatus(
        worker=heartbeat.worker,
        state=state,
        slots=heartbeat.slots,
        busy=heartbeat.busy,
        heartbeat_age_seconds=age,
        busy_slot_seconds=heartbeat.busy_slot_seconds,
        available_slot_seconds=heartbeat.available_slot_seconds,
        pss_bytes=heartbeat.pss_bytes,
        metrics_address=heartbeat.metrics_address,
    )
