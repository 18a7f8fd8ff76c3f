"""Simulated workers: the real `WorkerService` on simulated slots, with what dramatiq's threads do around it as events."""

import heapq
import itertools
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from simulation.broker import EVALUATIONS, Broker, Connection, Message, Unreachable
from simulation.liar import false_heartbeat, lie
from simulation.objective import Objective
from simulation.plan import Plan
from simulation.world import World
from trialfleet_shared.codec import decode, encode
from trialfleet_shared.errors import DecodeError, NewerSchemaError
from trialfleet_shared.messages import (
    Evaluation,
    EvaluationBatch,
    EvaluationResult,
    Heartbeat,
    ResultBatch,
    StudySpec,
)
from trialfleet_workers.service import Sending, Ticket, WorkerService

#: Seconds until a worker whose connection ended has a new one.
_RECONNECT_SECONDS = 0.5
#: Seconds that a worker keeps what it is too old for.
_HAND_BACK_SECONDS = 2.0


class _Running(NamedTuple):
    """An evaluation on a slot; they are in the order of their ends."""

    end: float
    order: int
    seconds: float
    spec: StudySpec
    evaluation: Evaluation


class _Taken(NamedTuple):
    """A delivery that is worked on."""

    ticket: Ticket
    connection: Connection
    tag: int
    #: When it is acknowledged though it is not settled.
    hold_until: float


class SimulatedPool:
    """Implements `trialfleet_workers.service.Pool`; its `poll` returns at once and remembers until when to wait."""

    restarts: Mapping[str, int] = MappingProxyType({})

    def __init__(self, world: World, objective: Objective, slots: int, name: str, worker: "SimulatedWorker") -> None:
        self.slots = slots
        self.busy_slot_seconds = 0.0
        self._world = world
        self._objective = objective
        self._name = name
        self._worker = worker
        self._queue: deque[tuple[StudySpec, Evaluation]] = deque()
        self._running: list[_Running] = []
        self._order = itertools.count()
        self._born = world.now
        #: When the service wants its next turn.
        self.next_turn = world.now

    @property
    def busy(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def available_slot_seconds(self) -> float:
        return (self._world.now - self._born) * self.slots

    def pss_bytes(self) -> int:
        return 1

    def submit(self, spec: StudySpec, *evaluations: Evaluation) -> None:
        self._queue.extend((spec, evaluation) for evaluation in evaluations)
        self._start()

    def poll(self, timeout: float) -> list[tuple[StudySpec, EvaluationResult]]:
        now, ended = self._world.now, []
        while self._running and self._running[0].end <= now:
            one = heapq.heappop(self._running)
            self.busy_slot_seconds += one.seconds
            ended.append((one.spec, self._objective.answer(one.evaluation, one.seconds, self._name)))
        self._start()
        self.next_turn = now if ended else now + timeout
        if self._running:
            self.next_turn = min(self.next_turn, self._running[0].end)
        return ended

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        taken = list(self._queue)
        self._queue.clear()
        return taken

    def wake(self) -> None:
        self._worker.rouse()

    def _start(self) -> None:
        while self._queue and len(self._running) < self.slots:
            spec, evaluation = self._queue.popleft()
            seconds = self._objective.seconds(evaluation)
            heapq.heappush(
                self._running, _Running(self._world.now + seconds, next(self._order), seconds, spec, evaluation)
            )


class SimulatedWorker:
    """A worker process on its host. Implements `trialfleet_workers.service.Sink` and the broker's `Peer`."""

    def __init__(
        self, world: World, broker: Broker, objective: Objective, plan: Plan, *, name: str, slots: int, honest: bool
    ) -> None:
        self.name = name
        self.slots = slots
        self.honest = honest
        #: Whether its process is there, is stopped (SIGSTOP), and is cut off from the network.
        self.alive = True
        self.paused = False
        self.cut_off = False
        self._world = world
        self._broker = broker
        self._plan = plan
        self._connection: Connection | None = None
        self._taken: list[_Taken] = []
        self._turn_at = float("inf")
        self._stopped_taking = False
        pool = SimulatedPool(world, objective, slots, name, self)
        self._pool = pool
        self._service = WorkerService(pool, self, name=name, clock=world)
        self._connect()
        self.rouse()

    # The process

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = False
        if self._connection is not None:
            self._broker.disconnect(self._connection)

    def pause(self) -> None:
        """SIGSTOP; the broker notices only after several of its heartbeats, if at all."""
        self.paused = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.paused = False
        self.rouse()

    def drain(self) -> None:
        """SIGTERM."""
        self._service.drain()

    def cut(self) -> None:
        """The network is gone."""
        self.cut_off = True

    def mend(self) -> None:
        """The network is back."""
        self.cut_off = False
        self.rouse()

    def lose_connection(self) -> None:
        """The broker gives the connection up: it has heard nothing for too long."""
        if self._connection is not None:
            self._broker.disconnect(self._connection)
            self.on_disconnected()

    def rouse(self) -> None:
        """Have a turn now."""
        self._turn_later(self._world.now)

    def _turn_later(self, when: float) -> None:
        if when < self._turn_at:
            self._turn_at = when
            self._world.after(when - self._world.now, self._turn, when)

    def _turn(self, when: float) -> None:
        if when != self._turn_at:
            return  # an earlier one was arranged meanwhile
        self._turn_at = float("inf")
        if not self.alive or self.paused:
            return
        goes_on = self._service.turn()
        self._acknowledge()
        if goes_on:
            self._turn_later(self._pool.next_turn)
        else:
            self.kill()

    # What dramatiq's threads do

    def _connect(self) -> None:
        if not self.alive or self._connection is not None or self._stopped_taking:
            return
        if self.cut_off or self.paused or not self._broker.up:
            self._world.after(_RECONNECT_SECONDS, self._connect)
            return
        self._connection = Connection(self, EVALUATIONS, preferred=self.slots, capacity=2 * self.slots)
        self._broker.connect(self._connection)

    def on_disconnected(self) -> None:
        self._connection = None
        self._world.after(_RECONNECT_SECONDS, self._connect)

    def on_message(self, tag: int, message: Message) -> None:
        if not self.alive or self._connection is None:
            return
        if self.paused or self.cut_off or self._stopped_taking:
            # It lies in the socket, and is read if the connection is still there then.
            self._world.after(_RECONNECT_SECONDS, self._read_later, self._connection, tag, message)
            return
        try:
            batch = decode(message.body)
        except NewerSchemaError:
            self._world.after(_HAND_BACK_SECONDS, self._hand_back_later, self._connection, tag, message)
            return
        except DecodeError:
            self._broker.reject(self._connection, tag)
            return
        if not isinstance(batch, EvaluationBatch):
            self._broker.reject(self._connection, tag)
            return
        hold_until = self._world.now + self._plan.fleet.hold
        ticket = self._service.take(batch)
        self._taken.append(_Taken(ticket, self._connection, tag, hold_until))
        if self._world.chance(self._broker.rates.refuses):
            self._service.refuse(ticket, "its code is another")
        elif self._world.chance(self._broker.rates.late):
            # The study's data have to be imported first.
            self._world.after(self._world.random.uniform(0.0, 1.0), self._begin, ticket)
        else:
            self._service.begin(ticket)

    def _begin(self, ticket: Ticket) -> None:
        if self.alive:
            self._service.begin(ticket)

    def _read_later(self, connection: Connection, tag: int, message: Message) -> None:
        if connection.open and not self._stopped_taking:
            self.on_message(tag, message)

    def _hand_back_later(self, connection: Connection, tag: int, message: Message) -> None:
        if self.alive and connection.open and not self.cut_off and self._broker.up:
            try:
                self._broker.publish(EVALUATIONS, message.body, forged=message.forged)
                self._broker.acknowledge(connection, tag)
            except Unreachable:
                self.lose_connection()

    def _acknowledge(self) -> None:
        """Acknowledge deliveries that are settled, or held for long enough."""
        left = []
        for taken in self._taken:
            settled = taken.ticket.wait(0)
            if not settled and self._world.now < taken.hold_until:
                left.append(taken)
                continue
            if not settled and not taken.ticket.leased:
                self._service.lease(taken.ticket)
            if taken.connection.open and self.cut_off:
                left.append(taken)  # it is sent once the network is back, if the connection is still there then
            elif taken.connection.open:
                self._broker.acknowledge(taken.connection, taken.tag)
        self._taken = left

    # The sink

    def stop_taking(self) -> None:
        self._stopped_taking = True
        if self._connection is not None:
            self._connection.capacity = 0

    def send_results(self, address: str, batch: ResultBatch) -> Sending:
        if not self.honest and self._world.chance(self._broker.rates.lies):
            spec = self._spec(address, batch.study)
            try:
                self._require()
                for result in batch.results:
                    self._broker.publish(address, lie(self._world, spec, result), forged=True)
                self._broker.announce(false_heartbeat(self._world, spec, batch.results[0]))
            except Unreachable:
                return Sending.AWAY
            if self._world.chance(0.3):
                return Sending.SAFE  # and nothing else: the honest answer never comes
        return Sending.SAFE if self._try(address, encode(batch)) else Sending.AWAY

    def hand_back(self, batch: EvaluationBatch) -> bool:
        return self._try(EVALUATIONS, encode(batch))

    def send_heartbeat(self, heartbeat: Heartbeat) -> bool:
        try:
            self._require()
            self._broker.announce(encode(heartbeat))
        except Unreachable:
            return False
        return True

    def _try(self, queue: str, body: bytes) -> bool:
        try:
            self._require()
            self._broker.publish(queue, body)
        except Unreachable:
            return False
        return True

    def _require(self) -> None:
        if self.cut_off:
            raise Unreachable

    @staticmethod
    def _spec(address: str, study: str) -> StudySpec:
        return StudySpec(study=study, objective="simulated", objective_digest="", reply_to=address)
