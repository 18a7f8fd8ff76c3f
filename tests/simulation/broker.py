"""A simulated RabbitMQ: two kinds of durable queues with confirms, redelivery and a delivery limit, and a fanout.

It keeps RabbitMQ's promises (at least once; unacknowledged deliveries come again when their connection ends; a message
that was delivered too often goes to the dead letters) and makes use of every freedom that they leave.
"""

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Protocol

from simulation.plan import Rates
from simulation.world import World
from trialfleet_shared.adapters.rabbit import DELIVERY_LIMIT

#: Seconds that a message is on its way; and one that is late, at most.
_WAY = (0.001, 0.01)
_LATE = 3.0
EVALUATIONS = "evaluations"


class Unreachable(ConnectionError):  # noqa: N818  # what the network says
    """The broker is not there, or its answer did not come."""


class Message:
    """A message on a queue."""

    __slots__ = ("body", "deliveries", "forged")

    def __init__(self, body: bytes, *, forged: bool) -> None:
        self.body = body
        self.deliveries = 0
        #: Whether a liar made it up.
        self.forged = forged


class Peer(Protocol):
    """Who has a connection."""

    def on_message(self, tag: int, message: Message) -> None:
        """A message was delivered."""
        ...

    def on_disconnected(self) -> None:
        """The connection has ended."""
        ...


class Connection:
    """A peer's connection, on which it consumes one queue.

    Args:
        preferred: messages that it takes before others take a second helping.
        capacity: messages that it takes unacknowledged, at most.
    """

    def __init__(self, peer: Peer, queue: str, *, preferred: int, capacity: int) -> None:
        self.peer = peer
        self.queue = queue
        self.preferred = preferred
        self.capacity = capacity
        self.unacknowledged: dict[int, Message] = {}
        self.open = True


class Broker:
    """See the module's docstring."""

    def __init__(self, world: World, rates: Rates) -> None:
        self._world = world
        #: Set to none when the faults stop.
        self.rates = rates
        self.up = True
        self.queues: dict[str, deque[Message]] = {EVALUATIONS: deque()}
        self.dead: list[Message] = []
        self._connections: list[Connection] = []
        self._listeners: dict[object, Callable[[bytes], None]] = {}
        self._tags = count(1)
        #: Is shown each message that is acknowledged, with its queue.
        self.on_acknowledged: Callable[[str, Message], None] = lambda queue, message: None

    # What peers do

    def connect(self, connection: Connection) -> None:
        """Have the queue, and consume. Raises Unreachable."""
        self._require()
        self.queues.setdefault(connection.queue, deque())
        self._connections.append(connection)
        self._pump(connection.queue)

    def disconnect(self, connection: Connection) -> None:
        """The connection ends, whoever ended it; the peer is told, unless it ended it itself by dying."""
        if not connection.open:
            return
        connection.open = False
        self._connections.remove(connection)
        for message in reversed(list(connection.unacknowledged.values())):
            self._put_back(connection.queue, message)
        connection.unacknowledged.clear()
        self._pump(connection.queue)

    def publish(self, queue: str, body: bytes, *, forged: bool = False) -> bool:
        """Publish, and have it confirmed; False where there is no such queue. Raises Unreachable."""
        self._require()
        if queue not in self.queues:
            return False
        chance = self._world.chance
        if not chance(self.rates.vanished):
            self.queues[queue].append(Message(body, forged=forged))
            if chance(self.rates.twice):
                self.queues[queue].append(Message(body, forged=forged))
            self._pump(queue)
        if chance(self.rates.unconfirmed):
            raise Unreachable
        return True

    def acknowledge(self, connection: Connection, tag: int) -> None:
        """The message need not come again. Raises Unreachable."""
        self._require(connection)
        message = connection.unacknowledged.pop(tag)
        self.on_acknowledged(connection.queue, message)
        self._pump(connection.queue)

    def reject(self, connection: Connection, tag: int) -> None:
        """The message can not be used. Raises Unreachable."""
        self._require(connection)
        self.dead.append(connection.unacknowledged.pop(tag))
        self._pump(connection.queue)

    def ready(self, queue: str) -> int:
        """Messages that wait. Raises Unreachable."""
        self._require()
        return len(self.queues[queue])

    def delete(self, queue: str) -> None:
        """Remove a queue with what is on it."""
        self.queues.pop(queue, None)

    def listen(self, listener: object, hear: Callable[[bytes], None]) -> None:
        """Have heartbeats heard."""
        self._listeners[listener] = hear

    def deafen(self, listener: object) -> None:
        """Have them heard no more."""
        self._listeners.pop(listener, None)

    def announce(self, body: bytes) -> None:
        """A heartbeat for everybody. Raises Unreachable."""
        self._require()
        for listener in list(self._listeners):
            if not self._world.chance(self.rates.unheard):
                self._world.after(self._way(), self._announce, listener, body)

    # What happens to it

    def stop(self, *, lose_queues: bool) -> None:
        """It goes down; what was confirmed is kept, unless its disk is lost as well."""
        self.up = False
        for connection in list(self._connections):
            self.disconnect(connection)
            connection.peer.on_disconnected()
        if lose_queues:
            self.queues = {EVALUATIONS: deque()}

    def start(self) -> None:
        """It is back."""
        self.up = True

    # Inside

    def _require(self, connection: Connection | None = None) -> None:
        if not self.up or (connection is not None and not connection.open):
            raise Unreachable

    def _announce(self, listener: object, body: bytes) -> None:
        hear = self._listeners.get(listener)
        if hear is not None:
            hear(body)

    def _way(self) -> float:
        if self._world.chance(self.rates.late):
            return self._world.random.uniform(0.0, _LATE)
        return self._world.random.uniform(*_WAY)

    def _put_back(self, queue: str, message: Message) -> None:
        if message.deliveries > DELIVERY_LIMIT:
            self.dead.append(message)
        elif queue in self.queues:
            self.queues[queue].appendleft(message)

    def _pump(self, queue: str) -> None:
        """Deliver what waits to whoever has room."""
        waiting = self.queues.get(queue)
        while waiting:
            takers = [one for one in self._connections if one.queue == queue and len(one.unacknowledged) < one.capacity]
            if not takers:
                return
            taker = min(takers, key=lambda one: (len(one.unacknowledged) >= one.preferred, len(one.unacknowledged)))
            message = waiting.popleft()
            message.deliveries += 1
            tag = next(self._tags)
            taker.unacknowledged[tag] = message
            self._world.after(self._way(), self._deliver, taker, tag, message)

    def _deliver(self, connection: Connection, tag: int, message: Message) -> None:
        if connection.open:
            connection.peer.on_message(tag, message)
