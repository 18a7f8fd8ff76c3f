import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from pika.exceptions import AMQPHeartbeatTimeout, ConnectionBlockedTimeout
from support.fleet_suite import make_evaluation, make_spec
from support.waiting import wait_until

from trialfleet_shared.adapters.rabbit import (
    EVALUATE,
    EVALUATIONS,
    MAX_MESSAGE_BYTES,
    Abandoned,
    FleetBroker,
    pack,
    unpack,
)
from trialfleet_shared.codec import MAX_PAYLOAD_BYTES, encode
from trialfleet_shared.errors import DecodeError
from trialfleet_shared.messages import SCHEMA_VERSION, EvaluationBatch, StudySpec
from trialfleet_workers.adapters.actors import declare_actor
from trialfleet_workers.adapters.study_data import Imports
from trialfleet_workers.telemetry import NO_TELEMETRY

TAG = 1


@pytest.fixture
def broker() -> FleetBroker:
    return FleetBroker("amqp://localhost")


def consumer(broker: FleetBroker) -> object:
    """One that has taken a delivery, without a connection."""
    made = object.__new__(broker.consumer_class)
    made.known_tags = {TAG}
    made.connection = SimpleNamespace(add_callback_threadsafe=lambda callback: None)
    made.channel = SimpleNamespace(basic_ack=print, basic_nack=print)
    return made


@pytest.mark.parametrize("how", ["ack", "nack"])
def test_a_delivery_of_an_earlier_connection_is_not_taken_for_one_of_this(broker: FleetBroker, how: str) -> None:
    earlier, now = consumer(broker), consumer(broker)
    getattr(now, how)(SimpleNamespace(_tag=TAG, consumer=earlier))
    assert now.known_tags == {TAG}  # type: ignore[attr-defined]  # dramatiq's
    getattr(now, how)(SimpleNamespace(_tag=TAG, consumer=now))
    assert now.known_tags == set()  # type: ignore[attr-defined]  # dramatiq's


def test_an_actor_that_raised_has_its_message_rejected_and_one_that_abandons_it_neither(broker: FleetBroker) -> None:
    failed: list[object] = []
    message = SimpleNamespace(consumer=object(), fail=lambda: failed.append(True))
    broker.emit_after("process_message", message, result=None)
    assert failed == []
    broker.emit_after("process_message", message, exception=Abandoned())
    assert (failed, message.consumer) == ([], None)
    broker.emit_after("process_message", message, exception=ValueError())
    assert failed == [True]


class Refusing:
    """A service that notes what it is to refuse, and what to begin."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.begun: list[object] = []

    def take(self, batch: EvaluationBatch) -> SimpleNamespace:
        return SimpleNamespace(batch=batch, wait=lambda _seconds: True)

    def refuse(self, _ticket: object, reason: str) -> None:
        self.refused.append(reason)

    def begin(self, ticket: object) -> None:
        self.begun.append(ticket)


BATCH = EvaluationBatch(make_spec("objectives.py:misbehave"), (make_evaluation(0),))
NO_MEMORY = OSError(12, "Cannot allocate memory")


def fail(*_: object) -> bool:
    raise NO_MEMORY


@pytest.mark.parametrize("data", [{"is_here": lambda _spec: True, "require": fail}, {"is_here": fail}])
def test_whatever_keeps_the_data_from_a_worker_is_answered(broker: FleetBroker, data: dict[str, Any]) -> None:
    """Held without an answer, the evaluations would be alive for as long as the worker is."""
    service: Any = Refusing()
    stand_in: Any = SimpleNamespace(**data)
    declare_actor(broker, service, Imports(service, stand_in), NO_TELEMETRY, threading.Event())
    broker.get_actor(EVALUATE).fn(pack(BATCH))
    assert service.refused == ["the study's data can not be had: OSError: [Errno 12] Cannot allocate memory"]


def test_a_delivery_that_is_forgotten_is_left_to_the_broker(broker: FleetBroker) -> None:
    service: Any = Refusing()
    service.take = lambda batch: SimpleNamespace(batch=batch, wait=lambda _seconds: False, forgotten=True)
    here: Any = SimpleNamespace(is_here=lambda _spec: True, require=lambda _spec: None)
    declare_actor(broker, service, Imports(service, here), NO_TELEMETRY, threading.Event())
    with pytest.raises(Abandoned):
        broker.get_actor(EVALUATE).fn(pack(BATCH))


def test_a_thread_that_can_not_be_started_is_answered_and_the_next_batch_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service: Any = Refusing()
    stand_in: Any = SimpleNamespace(is_here=lambda _spec: False, require=lambda _spec: None)
    imports = Imports(service, stand_in)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        imports.prepare(service.take(BATCH))
    assert len(service.refused) == 1
    imports.prepare(service.take(BATCH))
    wait_until(lambda: len(service.begun) == 1, "the data are there")


def test_batches_wait_for_one_import_of_their_study(broker: FleetBroker) -> None:
    service: Any = Refusing()
    brought, go = [], threading.Event()

    def require(spec: StudySpec) -> None:
        brought.append(spec)
        go.wait()

    stand_in: Any = SimpleNamespace(is_here=lambda _spec: False, require=require)
    imports = Imports(service, stand_in)
    given_back = service.take(BATCH)
    waiting = [SimpleNamespace(batch=BATCH, wait=lambda _seconds: False) for _ in range(3)]
    for ticket in (given_back, *waiting):
        imports.prepare(ticket)
    go.set()
    wait_until(lambda: service.begun, "the data are there")
    assert service.begun == waiting, "what was handed back meanwhile is forgotten"
    assert brought == [BATCH.spec]


def test_work_of_a_newer_coordinator_is_handed_back_over_a_connection_of_its_own(
    broker: FleetBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ ends one that nobody serves until the next time, and takes nothing at times."""
    monkeypatch.setattr("trialfleet_workers.adapters.actors.HAND_BACK_SECONDS", 0.0)
    happens: list[BaseException | None] = [ConnectionBlockedTimeout(), None, AMQPHeartbeatTimeout()]
    did: list[str] = []

    def publish(_broker: FleetBroker, queue: str, _body: bytes) -> None:
        did.append(queue)
        error = happens.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr(FleetBroker, "publish", publish)
    monkeypatch.setattr(FleetBroker, "drop_connection", lambda _broker: did.append("dropped"))
    service: Any = Refusing()
    declare_actor(broker, service, Imports(service, SimpleNamespace()), NO_TELEMETRY, threading.Event())  # type: ignore[arg-type]  # a stand-in
    fields = json.loads(pack(BATCH))
    inner = json.loads(fields["args"][0])
    fields["args"] = [json.dumps(inner | {"version": SCHEMA_VERSION + 1})]
    newer = json.dumps(fields).encode()
    broker.get_actor(EVALUATE).fn(newer)
    assert did == [EVALUATIONS, "dropped"] * 2
    with pytest.raises(Abandoned):
        broker.get_actor(EVALUATE).fn(newer)
    assert did == [EVALUATIONS, "dropped"] * 3


def test_no_queue_for_delayed_messages_is_declared(broker: FleetBroker) -> None:
    broker.declare_queue("work")
    assert broker.get_declared_queues() == {"work"}
    assert broker.get_declared_delay_queues() == set()


def test_work_is_a_message_as_dramatiq_writes_it() -> None:
    batch = EvaluationBatch(make_spec("objectives.py:double"), (make_evaluation(0, x='"\\é\x7f'),))
    body = pack(batch)
    fields = json.loads(body)
    assert (fields["queue_name"], fields["actor_name"], fields["options"]) == (EVALUATIONS, EVALUATE, {})
    assert unpack(body) == batch
    # Other writers of JSON escape what is not ASCII.
    assert unpack(json.dumps(fields).encode()) == batch


def test_the_worst_payload_fits_in_an_envelope() -> None:
    batch = EvaluationBatch(make_spec("objectives.py:double"), (make_evaluation(0, x="\\" * 4000 + '"' * 4000),))
    payload, body = encode(batch), pack(batch)
    assert len(body) <= MAX_MESSAGE_BYTES - 2 * (MAX_PAYLOAD_BYTES - len(payload))


def test_a_message_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(DecodeError, match=f"allowed are {MAX_MESSAGE_BYTES}"):
        unpack(b" " * (MAX_MESSAGE_BYTES + 1))
