"""How trialfleet uses RabbitMQ: the queues, what is on them, and how a connection is made.

    trialfleet.v1.evaluations        work for any worker: one dramatiq message carries an `EvaluationBatch`
    trialfleet.v1.results.<address>  answers for one study: one dramatiq message carries a `ResultBatch`
    trialfleet.v1.heartbeats         a fanout exchange: every coordinator hears every worker; nothing is kept

Both kinds of queue are durable quorum queues with a delivery limit and a dead-letter queue (`.XQ`), and every publish
is confirmed. The version in the names is that of the queues' arguments: RabbitMQ refuses one that exists with others.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dramatiq
import pika.exceptions
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed
from pika.adapters.utils.connection_workflow import AMQPConnectorSocketConnectError, AMQPConnectorStackTimeout

from trialfleet_shared.codec import decode, encode
from trialfleet_shared.errors import BrokerError, ConfigurationError, DecodeError
from trialfleet_shared.messages import EvaluationBatch, Heartbeat, Message, ResultBatch

EVALUATIONS = "trialfleet.v1.evaluations"
HEARTBEATS = "trialfleet.v1.heartbeats"
#: Name of the actor that evaluates.
EVALUATE = "evaluate"
#: Name under which results are sent; the coordinator takes them off the queue itself.
RESULTS = "results"
#: Deliveries after which a message goes to the dead letters: whoever takes it dies of it.
DELIVERY_LIMIT = 20
#: First pause between two attempts to connect, in seconds; doubled each time.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0

#: What goes wrong when a broker is gone, as the libraries below say it.
BROKER_FAILURES = (ConnectionClosed, pika.exceptions.AMQPError, OSError)


def results_queue(address: str) -> str:
    """The queue on which a study's coordinator hears results.

    Args:
        address: `StudySpec.reply_to`.
    """
    return f"trialfleet.v1.results.{address}"


class FleetBroker(RabbitmqBroker):
    """dramatiq's broker with quorum queues, confirms, and without what nothing here uses (delays, retries)."""

    def __init__(self, url: str) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=[])

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Declare a queue and its dead-letter queue, but no queue for delayed messages."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.queues_pending.add(queue_name)
            self.emit_after("declare_queue", queue_name)
        if ensure:
            self._ensure_queue(queue_name)  # type: ignore[no-untyped-call]  # dramatiq's

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]  # dramatiq's
        return arguments | {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}

    def _declare_dq_queue(self, queue_name: str) -> None:
        """No queue for delayed messages."""

    def send(self, queue: str, actor: str, message: EvaluationBatch | ResultBatch) -> None:
        """Publish on `queue`, and wait until RabbitMQ has it safe. Raises BrokerError when it stays unreachable."""
        envelope: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=queue, actor_name=actor, args=(encode(message).decode(),), kwargs={}, options={}
        )
        try:
            self.enqueue(envelope)
        except BROKER_FAILURES as error:
            raise BrokerError(f"could not publish: {type(error).__name__}") from None

    def send_heartbeat(self, heartbeat: Heartbeat) -> bool:
        """Tell all coordinators, as far as there are any; whether the broker took it."""
        try:
            self.channel.exchange_declare(HEARTBEATS, exchange_type="fanout", durable=True)
            self.channel.basic_publish(HEARTBEATS, "", encode(heartbeat))
        except BROKER_FAILURES:
            self.drop_connection()
            return False
        return True

    def ready_messages(self, queue: str) -> int | None:
        """Messages that wait for a consumer; None when the broker can not be asked."""
        try:
            return int(self.channel.queue_declare(queue=queue, passive=True).method.message_count)
        except BROKER_FAILURES:
            self.drop_connection()
            return None

    def drop_connection(self) -> None:
        """Forget this thread's connection; the next use makes a new one."""
        del self.connection


def unpack(arguments: tuple[Any, ...] | list[Any]) -> Message:
    """The message in a dramatiq message's arguments. Raises DecodeError."""
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise DecodeError("not a trialfleet message", payload=json.dumps(arguments, default=repr).encode())
    return decode(arguments[0].encode())


def redact(url: str) -> str:
    """The URL without its password, for people to read."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    credentials, _, host = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    # A query may carry a password of its own, for a client certificate.
    return urlunsplit((parts.scheme, f"{user}:***@{host}", parts.path, "", ""))


def connect(
    url: str,
    *,
    patience: float,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> FleetBroker:
    """A broker that answered.

    Args:
        url: amqp:// or amqps://.
        patience: seconds to keep trying.
        sleep: waits.
        monotonic: measures the patience.

    Raises:
        ConfigurationError: the URL is none.
        BrokerError: nobody answered within `patience`, or the server refused; the password is never shown.
    """
    quiet_libraries()
    broker = _broker(url)
    end = monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            broker.declare_queue(EVALUATIONS, ensure=True)
        except (ConnectionClosed, *_REFUSALS, pika.exceptions.AMQPError, OSError) as error:
            cause = _cause(error)
            if isinstance(cause, _REFUSALS):
                raise BrokerError(f"the broker at {redact(url)} refused the connection: {_words(cause)}") from None
            if monotonic() + pause > end:
                raise BrokerError(
                    f"the broker at {redact(url)} is not reachable after {patience:g} seconds: {_words(cause)}"
                ) from None
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return broker


def quiet_libraries() -> None:
    """Let pika and dramatiq log nothing: they show tracebacks, and URLs, of what we mend or say in one line."""
    for name in ("pika", "dramatiq"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


#: Answers that trying again does not change.
_REFUSALS = (
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.AuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)


def _broker(url: str) -> FleetBroker:
    parts = urlsplit(url)
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise ConfigurationError(
            f"broker URL {redact(url)!r} is none; allowed is amqp://user:password@host:5672/vhost, or amqps://"
        )
    try:
        return FleetBroker(url)
    except (ValueError, TypeError, LookupError):
        raise ConfigurationError(f"broker URL {redact(url)!r} can not be read") from None


def _cause(error: BaseException) -> BaseException:
    """What the libraries wrapped."""
    inner: object = error
    while isinstance(inner, BaseException) and inner.args:
        first = inner.args[0]
        if isinstance(first, BaseException):
            inner = first
        elif isinstance(getattr(inner, "exception", None), BaseException):
            inner = inner.exception  # type: ignore[attr-defined]  # just looked for
        else:
            break
    assert isinstance(inner, BaseException)
    return inner


def _words(error: BaseException) -> str:
    """The kind of failure; a library's own text may show the URL."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    names: Mapping[type[BaseException], str] = {
        pika.exceptions.ProbableAuthenticationError: "user or password is wrong",
        pika.exceptions.AuthenticationError: "user or password is wrong",
        pika.exceptions.ProbableAccessDeniedError: "no access to this virtual host",
        AMQPConnectorSocketConnectError: "nothing answers there",
        AMQPConnectorStackTimeout: "no answer in time",
    }
    return names.get(type(error), type(error).__name__)
