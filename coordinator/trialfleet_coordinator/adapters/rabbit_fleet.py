"""The fleet behind RabbitMQ, as the coordinator sees it: `RabbitFleet`, a `RemoteFleet` over the link of this module.

    driver's thread                        link's thread (owns the connection)
    publish, acknowledge ──> mailbox ────> publishes, keeps what is not confirmed; acknowledges
    receive              <── mailbox <──── results, heartbeats, the queue's length

The link reconnects by itself. What it can not mend, it tells `receive`, which raises.

RabbitMQ 3.10 writes down that a quorum queue is there half a second after it was declared. Killed before, it comes back
with a queue that nobody leads, and says so, as an internal error, to whoever has waited a minute to consume it. The link
then makes the results queue anew. What was on it is lost, and the leases see to that.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from pika.exceptions import ConnectionBlockedTimeout, ConnectionClosedByBroker

from trialfleet_coordinator.adapters.rabbit_workers import hear_heartbeats
from trialfleet_coordinator.remote_fleet import GRACE_SECONDS, Delivery, Incoming, Mailbox, Ready, RemoteFleet
from trialfleet_coordinator.telemetry import NO_TELEMETRY, Telemetry
from trialfleet_shared.adapters.dead_letters import bury
from trialfleet_shared.adapters.rabbit import (
    BROKER_FAILURES,
    DEAD,
    EVALUATIONS,
    INTERNAL_ERROR,
    FleetBroker,
    connect,
    pack,
    redact,
    refusal,
    results_queue,
    unpack_results,
)
from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import BrokerError, DecodeError, FleetError
from trialfleet_shared.fleet import Poison
from trialfleet_shared.messages import EvaluationBatch, StudySpec

#: Seconds that the broker may be out of reach while a study runs.
OUTAGE_SECONDS = 600.0
#: Seconds between two looks at the length of the evaluations queue.
_LOOK_SECONDS = 1.0
#: Results that may be on the way unacknowledged, in messages.
_PREFETCH = 1000
#: Seconds to wait before connecting again.
_PAUSE_SECONDS = 0.5
#: Seconds that closing may take.
_CLOSE_SECONDS = 10.0

_LOG = logging.getLogger("trialfleet.fleet")


class RabbitFleet(RemoteFleet):
    """Evaluates on the workers that listen at a broker. Starting it raises as `connect` of `rabbit.py` does.

    Args:
        url: amqp:// or amqps://.
        address: as of `RemoteFleet`.
        clock: measures leases and outages, and says when something died.
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
        def link() -> _Link:
            made = _Link(lambda: connect(url, patience=patience), redact(url), address, clock, outage, telemetry)
            made.start()
            return made

        super().__init__(link, address=address, clock=clock, grace=grace)


class _Link:
    """The connection, in a thread of its own.

    Args:
        connect: connects the thread for the first time.
        where: the broker's URL without its password.
        address: as of `RabbitFleet`.
        clock: measures outages, and says when something died.
        outage: as of `RabbitFleet`.
        telemetry: watches.
    """

    def __init__(
        self,
        connect: Callable[[], FleetBroker],
        where: str,
        address: str,
        clock: Clock,
        outage: float,
        telemetry: Telemetry,
    ) -> None:
        self._connect = connect
        self._where = where
        self._queue = results_queue(address)
        self._clock = clock
        self._outage = outage
        self._telemetry = telemetry
        self._mailbox = Mailbox()
        self._connected: Future[None] = Future()
        self._lock = threading.Condition()
        # All of these belong to the lock.
        self._wake: Callable[[], None] | None = None
        self._stopping = False
        self._remove_queue = False
        #: Letters, with the time of each in seconds since 1970: the broker may be away for a while.
        self._unburied: deque[tuple[bytes, dict[str, str], int]] = deque()
        # These belong to the thread.
        self._connections = 0
        #: Whether RabbitMQ can not serve the results queue, and whether it takes no messages, which was told.
        self._is_broken = self._is_blocked = False
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="trialfleet-link", daemon=True)

    def start(self) -> None:
        """Start the thread; returns once it is connected. Raises as `connect` does."""
        self._thread.start()
        try:
            self._connected.result()
        except BaseException:
            with self._lock:
                self._stopping = True
            raise

    def publish(self, batch: EvaluationBatch) -> None:
        """See `Link.publish`."""
        self._mailbox.publish(pack(batch))
        self._rouse()

    def bury(self, spec: StudySpec, poison: Poison) -> None:
        """See `Link.bury`."""
        trial = poison.evaluation.trial
        _LOG.warning(
            "an evaluation of trial %d of study %s goes to the dead letters: %s",
            *(trial, spec.study, poison.reason),
            extra={"study": spec.study, "trial": trial},
        )
        with self._lock:
            self._unburied.append((*bury(spec, poison), int(self._clock.time())))
        self._rouse()

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See `Link.acknowledge`."""
        self._mailbox.acknowledge(deliveries)
        self._rouse()

    def receive(self, timeout: float) -> list[Incoming]:
        """See `Link.receive`."""
        return self._mailbox.receive(timeout)

    def stop(self, *, nothing_outstanding: bool) -> None:
        """See `Link.stop`; ends the thread."""
        with self._lock:
            self._stopping = True
            self._remove_queue = nothing_outstanding
        self._rouse()
        self._thread.join(_CLOSE_SECONDS)

    def _rouse(self) -> None:
        with self._lock:
            wake = self._wake
        if wake is not None:
            wake()

    # In the thread.

    def _run(self) -> None:
        try:
            self._broker = self._connect()
        except Exception as error:  # noqa: BLE001  # for who waits for the connection
            self._connected.set_exception(error)
            return
        self._connected.set_result(None)
        lost_at: float | None = None
        while not self._stopping:
            before = self._connections
            try:
                self._session()
            except ConnectionBlockedTimeout:
                # It is there, and may be so for as long as it takes to make room.
                lost_at = None
                if not self._is_blocked:
                    _LOG.warning("the broker at %s takes no messages, for want of memory or disk; waiting", self._where)
                self._is_blocked = True
                self._mailbox.put(Ready(None))
                self._pause()
            except BROKER_FAILURES as error:
                now, refused = self._clock.monotonic(), refusal(error)
                if refused is not None and not self._connections:  # trying again does not change that
                    self._mailbox.fail(BrokerError(f"the broker at {self._where} refused: {refused}"))
                    return
                if self._connections > before or lost_at is None:
                    lost_at = now
                    why = refused or type(error).__name__
                    _LOG.warning("lost the broker at %s (%s); connecting again", self._where, why)
                self._mailbox.put(Ready(None))
                if now - lost_at > self._outage:
                    self._mailbox.fail(
                        BrokerError(f"the broker at {self._where} was out of reach for {self._outage:g} s")
                    )
                    return
                self._pause()
            except Exception as error:  # noqa: BLE001  # whatever it is, the driver must not wait for ever
                self._mailbox.fail(FleetError(f"the connection to the broker failed: {type(error).__name__}: {error}"))
                return
            finally:
                with self._lock:
                    self._wake = None
                self._broker.drop_connection()

    def _session(self) -> None:
        """Serve one connection, until it fails or the link is stopped."""
        broker = self._broker
        broker.ensure_again(EVALUATIONS)
        if self._is_broken:
            _LOG.warning("the broker can not serve the queue %s; making it anew", self._queue)
            broker.channel.queue_delete(self._queue)
            self._is_broken = False
        broker.ensure_again(self._queue)
        connection, channel = broker.connection, broker.channel
        channel.basic_qos(prefetch_count=_PREFETCH)
        try:
            channel.basic_consume(self._queue, self._on_results)
        except ConnectionClosedByBroker as error:
            self._is_broken = error.reply_code == INTERNAL_ERROR
            raise
        bind_heartbeats = hear_heartbeats(broker, self._mailbox.put, _LOG)
        self._connections += 1
        if self._connections > 1 and not self._is_blocked:
            _LOG.warning("connected to the broker at %s again", self._where)
            self._telemetry.reconnected()
        with self._lock:
            self._wake = lambda: _wake(connection)
        # Results first: who takes no messages may deliver some all the same.
        connection.process_data_events(time_limit=0)
        while True:
            self._flush()
            look = self._clock.monotonic() >= self._look_at
            if look or self._is_blocked:
                # In want of memory or disk the broker holds up heartbeats, and who publishes nothing would not know.
                broker.probe()
            if self._is_blocked:
                _LOG.warning("the broker at %s takes messages again", self._where)
                self._is_blocked = False
            with self._lock:
                stopping = self._stopping
            if stopping:
                break
            if look:
                self._look_at = self._clock.monotonic() + _LOOK_SECONDS
                bind_heartbeats()
                self._mailbox.put(Ready(broker.ready_messages(EVALUATIONS)))
            connection.process_data_events(time_limit=_LOOK_SECONDS)
        if self._remove_queue:
            channel.queue_delete(self._queue)

    def _flush(self) -> None:
        """Publish and acknowledge what there is."""
        self._mailbox.flush(
            self._connections, lambda body: self._broker.publish(EVALUATIONS, body), self._broker.channel.basic_ack
        )
        while self._unburied:
            body, headers, at = self._unburied[0]
            self._broker.publish(DEAD, body, headers=headers, timestamp=at)
            self._unburied.popleft()

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
        self._mailbox.put((batch, Delivery(self._connections, method.delivery_tag)))

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
