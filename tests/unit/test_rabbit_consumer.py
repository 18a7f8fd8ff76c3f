import json
import threading
from types import SimpleNamespace

import pytest
from support.fleet_suite import make_evaluation, make_spec

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
from trialfleet_shared.messages import EvaluationBatch, StudySpec
from trialfleet_workers.adapters.actors import declare_actor
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


def test_whatever_keeps_the_data_from_a_worker_is_answered(broker: FleetBroker) -> None:
    """Held without an answer, the evaluations would be alive for as long as the worker is."""
    refused: list[str] = []

    def require(_spec: StudySpec) -> None:
        raise OSError(12, "Cannot allocate memory")

    service = SimpleNamespace(
        take=lambda batch: SimpleNamespace(batch=batch, wait=lambda _seconds: True),
        refuse=lambda _ticket, reason: refused.append(reason),
    )
    declare_actor(
        broker, service, SimpleNamespace(is_here=lambda _spec: True, require=require), NO_TELEMETRY, threading.Event()
    )  # type: ignore[arg-type]  # stand-ins
    broker.get_actor(EVALUATE).fn(pack(EvaluationBatch(make_spec("objectives.py:misbehave"), (make_evaluation(0),))))
    assert refused == ["the study's data can not be had: OSError: [Errno 12] Cannot allocate memory"]


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
