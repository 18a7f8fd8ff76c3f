import logging
import time
import traceback
import uuid

import pika
import pytest
from pika.exceptions import ProbableAccessDeniedError, ProbableAuthenticationError, StreamLostError

from trialfleet_shared.adapters import rabbit
from trialfleet_shared.adapters.rabbit import connect
from trialfleet_shared.errors import BrokerError

pytestmark = pytest.mark.rabbitmq


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("@", "x@"), "refused the connection: user or password is wrong"),
        (("%2F", "elsewhere"), "refused the connection: no access to this virtual host"),
    ],
)
def test_a_refusal_is_told_at_once_without_the_password(
    rabbitmq: str, change: tuple[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    began = time.monotonic()
    with pytest.raises(BrokerError, match=words) as caught:
        connect(rabbitmq.replace(*change), patience=60.0)
    assert time.monotonic() - began < 20.0
    password = rabbitmq.partition("@")[0].rpartition(":")[2]
    assert password not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.parametrize("guess", [ProbableAuthenticationError, ProbableAccessDeniedError])
def test_a_connection_that_ends_while_it_is_made_is_no_refusal(
    guess: type[Exception], rabbitmq: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy whose server is not up yet; pika guesses that the password is wrong."""
    errors = [guess(repr(StreamLostError("Transport indicated EOF")))] * 2
    declare = rabbit.FleetBroker.declare_queue

    def declare_or_fail(broker: rabbit.FleetBroker, queue: str, *, ensure: bool = False) -> None:
        if errors:
            raise errors.pop()
        declare(broker, queue, ensure=ensure)

    monkeypatch.setattr(rabbit.FleetBroker, "declare_queue", declare_or_fail)
    connect(rabbitmq, patience=60.0, sleep=lambda _: None).close()
    assert errors == []


def test_queues_of_other_arguments_are_told_at_once(rabbitmq: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = f"taken-{uuid.uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(rabbitmq)) as connection:
        connection.channel().queue_declare(taken, durable=True)
        monkeypatch.setattr(rabbit, "EVALUATIONS", taken)
        with pytest.raises(BrokerError, match="refused the connection: PRECONDITION_FAILED - inequivalent arg"):
            connect(rabbitmq, patience=60.0)
        connection.channel().queue_delete(taken)
