"""The coordinator's link over the simulated broker: what `adapters.rabbit_fleet` does in a thread, as events."""

from collections.abc import Callable, Sequence

from simulation.broker import EVALUATIONS, Broker, Connection, Message, Unreachable
from simulation.world import World
from trialfleet_coordinator.remote_fleet import Delivery, Incoming, Mailbox, Ready
from trialfleet_shared.adapters.rabbit import unpack_results
from trialfleet_shared.codec import decode, encode
from trialfleet_shared.errors import BrokerError, DecodeError
from trialfleet_shared.fleet import Poison
from trialfleet_shared.messages import EvaluationBatch, Heartbeat, StudySpec

#: Results that may be on the way unacknowledged, in messages.
_PREFETCH = 1000
_LOOK_SECONDS = 1.0
_PAUSE_SECONDS = 0.5
#: Seconds until the link's thread sees to what it was asked to do; how often it does so at once.
_ROUSED = 0.0005
_QUICK = 0.5


class SimulatedLink:
    """Implements `trialfleet_coordinator.remote_fleet.Link`.

    Args:
        outage: seconds that the broker may be away.
        step: called whenever the coordinator comes here: it may be killed.

    Raises:
        BrokerError: the broker is not there.
    """

    def __init__(
        self, world: World, broker: Broker, address: str, *, outage: float, step: Callable[[], None], cut_off: bool
    ) -> None:
        self._world = world
        self._broker = broker
        self._address = address
        self._outage = outage
        self._step = step
        self._mailbox = Mailbox()
        self._arrived = 0
        self._connections = 0
        self._connection: Connection | None = None
        self._gone = self._failed = False
        self._lost_at = world.now
        #: Whether the network between broker and coordinator is down.
        self.cut_off = cut_off
        if cut_off or not broker.up:
            raise BrokerError("the broker is not reachable")
        self._connect()

    # What the fleet asks for

    def publish(self, batch: EvaluationBatch) -> None:
        self._step()
        self._mailbox.publish(encode(batch))
        self._rouse()

    def bury(self, spec: StudySpec, poison: Poison) -> None:
        self._step()
        self._broker.dead.append(Message(f"{spec.study}: {poison}".encode(), forged=False))

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._step()
        self._mailbox.acknowledge(deliveries)
        self._rouse()

    def receive(self, timeout: float) -> list[Incoming]:
        self._step()
        if not self._arrived and not self._failed:
            self._world.run(self._world.now + timeout, lambda: self._arrived)
        self._step()
        if not self._arrived and not self._failed:
            return []
        self._arrived = 0
        return self._mailbox.receive(0.0)

    def stop(self, *, nothing_outstanding: bool) -> None:
        self._step()
        self._flush()
        if nothing_outstanding and self._connection is not None:
            self._broker.delete(self._address)
        self.die()

    # What happens to it

    def die(self) -> None:
        """The process has ended: the broker sees the connection end."""
        self._gone = True
        self._broker.deafen(self)
        connection, self._connection = self._connection, None
        if connection is not None:
            self._broker.disconnect(connection)

    def cut(self) -> None:
        """The network between broker and coordinator goes down."""
        self.cut_off = True
        if self._connection is not None:
            self._broker.disconnect(self._connection)
            self.on_disconnected()

    def on_disconnected(self) -> None:
        self._broker.deafen(self)
        self._connection = None
        self._lost_at = self._world.now
        self._put(Ready(None))
        self._world.after(_PAUSE_SECONDS, self._reconnect)

    def on_message(self, tag: int, message: Message) -> None:
        assert self._connection is not None
        try:
            batch = unpack_results(message.body)
        except DecodeError:
            self._broker.reject(self._connection, tag)
            return
        self._put((batch, Delivery(self._connections, tag)))

    # Inside

    def _connect(self) -> None:
        connection = Connection(self, self._address, preferred=_PREFETCH, capacity=_PREFETCH)
        self._connections += 1
        self._connection = connection
        self._broker.connect(connection)
        self._broker.listen(self, self._on_heartbeat)
        self._look(connection)
        self._rouse()

    def _reconnect(self) -> None:
        if self._gone or self._connection is not None:
            return
        if not self.cut_off and self._broker.up:
            self._connect()
            return
        self._put(Ready(None))
        if self._world.now - self._lost_at > self._outage:
            self._mailbox.fail(BrokerError("the broker was out of reach for too long"))
            self._failed = True
            return
        self._world.after(_PAUSE_SECONDS, self._reconnect)

    def _look(self, connection: Connection) -> None:
        if connection is self._connection:
            self._put(Ready(self._broker.ready(EVALUATIONS)))
            self._world.after(_LOOK_SECONDS, self._look, connection)

    def _rouse(self) -> None:
        """The thread may be quicker than the driver, which goes on, or not."""
        if self._world.random.random() < _QUICK:
            self._flush()
        else:
            self._world.after(_ROUSED, self._flush)

    def _flush(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            self._mailbox.flush(
                self._connections,
                self._publish,
                lambda tag: self._broker.acknowledge(connection, tag),
            )
        except Unreachable:
            self._broker.disconnect(connection)
            self.on_disconnected()

    def _publish(self, body: bytes) -> None:
        self._broker.publish(EVALUATIONS, body)

    def _on_heartbeat(self, body: bytes) -> None:
        try:
            heartbeat = decode(body)
        except DecodeError:
            return
        if isinstance(heartbeat, Heartbeat):
            self._put(heartbeat)

    def _put(self, incoming: Incoming) -> None:
        self._mailbox.put(incoming)
        self._arrived += 1
