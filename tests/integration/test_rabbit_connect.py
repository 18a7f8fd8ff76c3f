import logging
import time
import traceback
import uuid

import pika
import pytest

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


def test_queues_of_other_arguments_are_told_at_once(rabbitmq: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = f"taken-{uuid.uuid4().hex}"
    with pika.BlockingConnection(pika.URLParameters(rabbitmq)) as connection:
        connection.channel().queue_declare(taken, durable=True)
        monkeypatch.setattr(rabbit, "EVALUATIONS", taken)
        with pytest.raises(BrokerError, match="refused the connection: PRECONDITION_FAILED - inequivalent arg"):
            connect(rabbitmq, patience=60.0)
        connection.channel().queue_delete(taken)
