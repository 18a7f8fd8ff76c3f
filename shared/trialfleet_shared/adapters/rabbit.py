"""How trialfleet uses RabbitMQ: the queues, what is on them, and how a connection is made.

    trialfleet.v1.evaluations        work for any worker: a dramatiq message for the actor `evaluate`
    trialfleet.v1.results.<address>  answers for one study: a `ResultBatch` per message
    trialfleet.v1.dead               what nobody could read, or what killed whoever took it; kept for a week: `dead_letters`
    trialfleet.v1.heartbeats         a fanout exchange: every coordinator hears every worker; nothing is kept

The first two are durable quorum queues with a delivery limit, and every publish on them is confirmed. A results queue
goes away by itself when its study was not run for a month. The version in the names is that of the queues' arguments:
RabbitMQ refuses a queue that exists with others.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import dramatiq
import msgspec
import pika.exceptions
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer, _RabbitmqMessage
from dramatiq.errors import ConnectionClosed
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorException,
    AMQPConnectorSocketConnectError,
    AMQPConnectorStackTimeout,
)

from trialfleet_shared.codec import MAX_PAYLOAD_BYTES, decode, encode
from trialfleet_shared.errors import BrokerError, ConfigurationError, DecodeError
from trialfleet_shared.messages import EvaluationBatch, Heartbeat, ResultBatch

EVALUATIONS = "trialfleet.v1.evaluations"
HEARTBEATS = "trialfleet.v1.heartbeats"
DEAD = "trialfleet.v1.dead"
_RESULTS = "trialfleet.v1.results."
#: No queue.
_NOWHERE = "trialfleet.v1.nowhere"
#: Name of the actor that evaluates.
EVALUATE = "evaluate"
#: Longest message that is looked at, in bytes: a payload in an envelope, where quotes and backslashes need two bytes each.
MAX_MESSAGE_BYTES = 2 * MAX_PAYLOAD_BYTES + 1024
#: Deliveries after which a message goes to the dead letters: whoever takes it dies of it.
DELIVERY_LIMIT = 20
#: Milliseconds after which RabbitMQ removes a results queue that nobody listens on.
_RESULTS_EXPIRE = 30 * 24 * 3600 * 1000
#: Milliseconds that a dead letter is kept.
_DEAD_EXPIRE = 7 * 24 * 3600 * 1000
#: AMQP's reply code for a queue that is gone.
_NOT_FOUND = 404
#: AMQP's reply codes for what a user may not do, and for a queue that is there with other arguments.
_REFUSED = (403, 406)
#: AMQP's reply code for what the broker can not do though it should.
INTERNAL_ERROR = 541
#: First pause between two attempts to connect, in seconds; doubled each time.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0

#: Seconds that a broker short of memory or disk may take no messages before it counts as away, unless the URL says otherwise.
_BLOCKED_SECONDS = 10.0
#: Seconds between a connection's heartbeats, unless the URL says otherwise: one that hangs is noticed within a minute.
_HEARTBEAT_SECONDS = 20

#: What goes wrong when a broker is gone, as the libraries below say it. Pika fails assertions on half-open connections, and
#: where the port is open but nobody answers it raises what is no AMQPError.
BROKER_FAILURES = (ConnectionClosed, pika.exceptions.AMQPError, AMQPConnectorException, OSError, AssertionError)


def results_queue(address: str) -> str:
    """The queue on which a study's coordinator hears results.

    Args:
        address: `StudySpec.reply_to`.
    """
    return _RESULTS + address


class Abandoned(Exception):  # noqa: N818  # not an error, but how an actor ends
    """An actor leaves its message as it is: RabbitMQ delivers it again once this connection has ended."""


class _RejectFailed(dramatiq.Middleware):
    """Has a message whose actor raised go to the dead letters, where dramatiq alone would acknowledge it."""

    def after_process_message(
        self,
        _broker: Any,
        message: Any,
        *,
        result: Any = None,  # noqa: ARG002  # dramatiq gives it by name
        exception: BaseException | None = None,
    ) -> None:
        """An actor has ended."""
        if isinstance(exception, Abandoned):
            message.consumer = None
        elif exception is not None:
            message.fail()


class _Consumer(_RabbitmqConsumer):
    """dramatiq's, which can stop taking messages while those it has taken are worked on.

    It does not take an old delivery's tag for that of a new one after a reconnect. And whoever may publish has no say in
    what dramatiq does: the actor gets the body as it came, and reads the envelope itself (`unpack`). dramatiq would believe
    it: the name of another queue, or `throws` among the options, ends a thread; `eta` holds a message for ever.
    """

    def __init__(self, broker: "FleetBroker", queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)  # type: ignore[no-untyped-call]  # dramatiq's
        # Consuming begins with the first message asked for: dramatiq's own, without a priority, has not begun.
        self.iterator = self.channel.consume(
            queue_name, arguments={"x-priority": broker.priority}, inactivity_timeout=timeout / 1000
        )
        self._stopping = broker.stopping
        self._stopped = broker.stopped
        self._idle_seconds = timeout / 1000

    def __next__(self) -> Any:
        """The next message; None when none came within the timeout."""
        if self._stopping.is_set():
            self._idle()
            return None
        try:
            method, _, body = next(self.iterator)
        except BROKER_FAILURES as error:
            if isinstance(error, pika.exceptions.ChannelClosedByBroker) and error.reply_code == _NOT_FOUND:
                self.broker.queues_pending.add(self.queue_name)  # declared again before the next attempt
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]  # dramatiq's
        if method is None:
            return None
        envelope: dramatiq.Message[Any] = dramatiq.Message(self.queue_name, EVALUATE, (body,), {}, {})
        message: Any = _RabbitmqMessage(method.redelivered, method.delivery_tag, envelope)  # type: ignore[no-untyped-call]
        message.consumer = self
        self.known_tags.add(method.delivery_tag)
        return message

    def _idle(self) -> None:
        """Serve the connection without taking messages."""
        try:
            if not self._stopped.is_set():
                self.channel.cancel()
                self._stopped.set()
            self.connection.process_data_events(time_limit=self._idle_seconds)
        except BROKER_FAILURES as error:
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]  # dramatiq's

    def ack(self, message: Any) -> None:
        """Acknowledge a delivery of this connection; RabbitMQ delivers those of earlier ones again anyway."""
        if message.consumer is self:
            super().ack(message)  # type: ignore[no-untyped-call]  # dramatiq's

    def nack(self, message: Any) -> None:
        """Have a delivery of this connection go to the dead letters."""
        if message.consumer is self:
            super().nack(message)  # type: ignore[no-untyped-call]  # dramatiq's


class FleetBroker(RabbitmqBroker):
    """dramatiq's broker with quorum queues and confirms, without what nothing here uses (delays, retries).

    Each thread has a connection of its own.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url=url, confirm_delivery=True, middleware=[_RejectFailed()])
        parameters: Any = self.parameters  # of one URL, or of several that stand in one text
        for each in parameters if isinstance(parameters, list) else [parameters]:
            if each.blocked_connection_timeout is None:
                each.blocked_connection_timeout = _BLOCKED_SECONDS
            if each.heartbeat is None:
                each.heartbeat = _HEARTBEAT_SECONDS
        #: Of what consumes here: RabbitMQ delivers to a lower one only what those of a higher one have no room for.
        self.priority = 0
        #: Set to have no more messages taken.
        self.stopping = threading.Event()
        #: Set once none will be taken any more.
        self.stopped = threading.Event()

    @property
    def consumer_class(self) -> type[_Consumer]:
        """What consumes for dramatiq's worker."""
        return _Consumer

    def declare_queue(self, queue_name: str, *, ensure: bool = False) -> None:
        """Declare a queue, but none for delayed messages."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.queues_pending.add(queue_name)
            self.emit_after("declare_queue", queue_name)
        if ensure:
            self._ensure_queue(queue_name)  # type: ignore[no-untyped-call]  # dramatiq's

    def ensure_again(self, queue_name: str) -> None:
        """Declare a queue that the broker may have lost. Raises ConnectionClosed."""
        self.queues_pending.add(queue_name)
        self.declare_queue(queue_name, ensure=True)

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DEAD,
        }
        return arguments | ({"x-expires": _RESULTS_EXPIRE} if queue_name.startswith(_RESULTS) else {})

    def _declare_dq_queue(self, queue_name: str) -> None:
        """No queue for delayed messages."""

    def _declare_xq_queue(self, _queue_name: str) -> Any:
        """One queue for all dead letters."""
        return self.channel.queue_declare(queue=DEAD, durable=True, arguments={"x-message-ttl": _DEAD_EXPIRE})

    def stop_consuming(self, timeout: float) -> None:
        """Have dramatiq's worker take no more messages; waits until that is so.

        Args:
            timeout: seconds to wait: there is nobody to wait for while the broker is away.
        """
        self.stopping.set()
        self.stopped.wait(timeout)

    def publish(
        self, queue: str, body: bytes, *, headers: Mapping[str, str] | None = None, timestamp: int | None = None
    ) -> None:
        """Publish, and wait until RabbitMQ has it safe; tries once. Raises one of `BROKER_FAILURES`.

        Args:
            queue: where to.
            body: what.
            headers: what is said of it.
            timestamp: AMQP's, in seconds since 1970-01-01 UTC.
        """
        properties = pika.BasicProperties(
            delivery_mode=pika.DeliveryMode.Persistent, headers=headers, timestamp=timestamp
        )
        self.channel.basic_publish("", queue, body, properties, mandatory=True)

    def publish_results(self, address: str, batch: ResultBatch) -> bool:
        """Publish results; False when nobody wants them any more. Raises one of `BROKER_FAILURES`."""
        try:
            self.publish(results_queue(address), encode(batch))
        except pika.exceptions.UnroutableError:
            return False
        return True

    def publish_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Tell all coordinators, as far as there are any. Raises one of `BROKER_FAILURES`."""
        self.declare_heartbeats()
        self.channel.basic_publish(HEARTBEATS, "", encode(heartbeat))

    def declare_heartbeats(self) -> None:
        """Have the exchange that heartbeats go through. Raises one of `BROKER_FAILURES`."""
        self.channel.exchange_declare(HEARTBEATS, exchange_type="fanout", durable=True)

    def probe(self) -> None:
        """Publish what nobody gets: waits while the broker takes no messages. Raises one of `BROKER_FAILURES`."""
        self.channel.basic_publish("", _NOWHERE, b"")

    def ready_messages(self, queue: str) -> int:
        """Messages that wait for a consumer. Raises one of `BROKER_FAILURES`."""
        return int(self.channel.queue_declare(queue=queue, passive=True).method.message_count)

    def drop_connection(self) -> None:
        """Forget this thread's connection; the next use makes a new one."""
        del self.connection


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """dramatiq's message for the actor `evaluate`, and no other."""

    queue_name: Literal["trialfleet.v1.evaluations"]
    actor_name: Literal["evaluate"]
    args: tuple[str]
    kwargs: Annotated[dict[str, Any], msgspec.Meta(max_length=0)]
    options: Annotated[dict[str, Any], msgspec.Meta(max_length=0)]
    message_id: Annotated[str, msgspec.Meta(max_length=64)]
    message_timestamp: int


_ENVELOPES = msgspec.json.Decoder(_Envelope)


def pack(batch: EvaluationBatch) -> bytes:
    """The body of a message for the actor `evaluate`."""
    envelope: dramatiq.Message[Any] = dramatiq.Message(EVALUATIONS, EVALUATE, (encode(batch).decode(),), {}, {})
    return msgspec.json.encode(envelope.asdict())


def unpack(body: bytes) -> EvaluationBatch:
    """The batch in the body of a message for the actor `evaluate`.

    Raises:
        NewerSchemaError: it is of a newer version than this trialfleet reads.
        DecodeError: it is none of ours.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise DecodeError(f"message of {len(body)} bytes; allowed are {MAX_MESSAGE_BYTES}", payload=body)
    try:
        (argument,) = _ENVELOPES.decode(body).args
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a trialfleet message: {error}", payload=body) from error
    batch = decode(argument.encode())
    if not isinstance(batch, EvaluationBatch):
        raise DecodeError(f"a message of the kind {type(batch).__name__} is no work", payload=body)
    return batch


def unpack_results(body: bytes) -> ResultBatch:
    """The results in a message. Raises DecodeError."""
    batch = decode(body)
    if not isinstance(batch, ResultBatch):
        raise DecodeError(f"a message of the kind {type(batch).__name__} is no result", payload=body)
    return batch


def redact(url: str) -> str:
    """The URL without its password, for people to read; any other text without what may be one."""
    # Not parsed: what is no URL may hold a password all the same. A query may have one for a client's certificate.
    shown, _, query = url.partition("?")
    credentials, at, host = shown.rpartition("@")
    if not at:
        if "@" not in query:
            return shown
        credentials, host = shown, ""  # a password with a question mark, perhaps
    scheme, slashes, name = credentials.partition("//")
    user = (name if slashes else scheme).partition(":")[0]
    return f"{scheme}//{user}:***@{host}" if slashes else f"{user}:***@{host}"


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
        except (*_REFUSALS, *BROKER_FAILURES) as error:
            cause = _cause(error)
            if _is_refusal(cause):
                raise BrokerError(f"the broker at {redact(url)} refused the connection: {_words(cause)}") from None
            if monotonic() + pause > end:
                raise BrokerError(
                    f"the broker at {redact(url)} is not reachable after {patience:g} seconds: {_words(cause)}"
                ) from None
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return broker


def remove_results(url: str, address: str) -> None:
    """Remove the results queue of a study that is gone; where the broker is away, it does so by itself after a month."""
    try:
        broker = connect(url, patience=0.0)
        try:
            broker.channel.queue_delete(results_queue(address))
        finally:
            broker.close()
    except (BrokerError, *BROKER_FAILURES):
        return


def refusal(error: BaseException) -> str | None:
    """What the broker will not allow, in its words; None where it is something else that went wrong."""
    cause = _cause(error)
    is_one = isinstance(cause, pika.exceptions.ChannelClosedByBroker) and cause.reply_code in _REFUSED
    return _words(cause) if is_one else None


def quiet_libraries() -> None:
    """Let pika and dramatiq log nothing: they show tracebacks, and URLs, of what we mend or say in one line."""
    for name in ("pika", "dramatiq"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


#: Answers that trying again does not change.
_REFUSALS = (
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.AuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
    pika.exceptions.ChannelClosedByBroker,
)


def _is_refusal(error: BaseException) -> bool:
    """Whether it is one of the server. pika guesses one wherever a connection ends in that phase, as with a proxy's server."""
    guessed = isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.ProbableAccessDeniedError)
    return isinstance(error, _REFUSALS) and not (guessed and "StreamLostError" in str(error.args))


def _broker(url: str) -> FleetBroker:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("amqp", "amqps") and parts.hostname
    except ValueError:
        is_one = False
    if not is_one:
        raise ConfigurationError(
            f"broker URL {redact(url)!r} is none; allowed is amqp://user:password@host:5672/vhost, or amqps://"
        )
    try:
        return FleetBroker(url)
    except (ValueError, TypeError, LookupError, SyntaxError):
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
    if isinstance(error, pika.exceptions.ChannelClosedByBroker):
        return str(error.reply_text)
    names: Mapping[type[BaseException], str] = {
        pika.exceptions.ProbableAuthenticationError: "user or password is wrong",
        pika.exceptions.AuthenticationError: "user or password is wrong",
        pika.exceptions.ProbableAccessDeniedError: "no access to this virtual host",
        AMQPConnectorSocketConnectError: "nothing answers there",
        AMQPConnectorStackTimeout: "no answer in time",
    }
    return names.get(type(error), type(error).__name__)
