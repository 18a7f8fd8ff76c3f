from types import SimpleNamespace

import pytest

from trialfleet_shared.adapters.rabbit import Abandoned, FleetBroker

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


def test_no_queue_for_delayed_messages_is_declared(broker: FleetBroker) -> None:
    broker.declare_queue("work")
    assert broker.get_declared_queues() == {"work"}
    assert broker.get_declared_delay_queues() == set()
