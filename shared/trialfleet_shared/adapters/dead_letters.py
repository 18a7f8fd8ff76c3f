"""The dead letters: looking at them, and taking them away.

Two write them. RabbitMQ puts there what a consumer rejected because it can not be read, and what it delivered again and
again to consumers that died; it says so in the header x-death. Coordinators put there the evaluations that they gave up on,
with the reason and the history in headers of ours, and the time as AMQP's timestamp. A letter has no name of its own: it is
called by a digest of what it says.

RabbitMQ hands out letters only to be taken away or put back: while one looks, another one who looks finds fewer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import msgspec
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from trialfleet_shared.adapters.rabbit import (
    BROKER_FAILURES,
    DEAD,
    EVALUATIONS,
    connect,
    pack,
    redact,
    results_queue,
    unpack,
)
from trialfleet_shared.errors import BrokerError, ConfigurationError, DecodeError
from trialfleet_shared.fingerprint import digest_bytes
from trialfleet_shared.fleet import Attempt, Poison
from trialfleet_shared.messages import Evaluation, EvaluationBatch, StudySpec
from trialfleet_shared.redaction import without_secrets

#: Headers of an evaluation that a coordinator gave up on: why, and its attempts as JSON.
REASON, HISTORY = "trialfleet-reason", "trialfleet-history"
#: Letters that are looked at, at most.
MOST_LETTERS = 10_000
#: Characters of a letter's name.
_NAME_CHARACTERS = 12
#: Characters that are shown of what can not be read.
_SHOWN = 200
#: Seconds to try to reach the broker.
_PATIENCE = 10.0


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter, without what is secret."""

    id: str
    #: When it died, in seconds since 1970-01-01 UTC; None when nobody said.
    at: float | None
    #: Why it died, for people.
    reason: str
    #: The queue that it was on.
    queue: str
    size_bytes: int
    #: Why it can not be read; None: it is evaluations.
    problem: str | None
    #: The beginning of what can not be read.
    excerpt: str | None
    study: str | None
    objective: str | None
    evaluations: tuple[Evaluation, ...]
    #: What came of the evaluation each time, oldest first, as far as that is known.
    attempts: tuple[Attempt, ...]


class Refusal(msgspec.Struct, frozen=True):
    """A letter that was not put back to work."""

    id: str
    reason: str


def bury(spec: StudySpec, poison: Poison) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the letter for an evaluation that a coordinator gave up on."""
    history = msgspec.json.encode(poison.attempts).decode()
    return pack(EvaluationBatch(spec, (poison.evaluation,))), {REASON: poison.reason, HISTORY: history}


class DeadLetters:
    """The dead letters of a broker; a context manager.

    Args:
        url: amqp:// or amqps://, of a user who may read them: the coordinator's, as ops/ sets it up.

    Raises:
        ConfigurationError: the URL is none.
        BrokerError: the broker can not be reached, or refuses.
    """

    def __init__(self, url: str) -> None:
        self._where = redact(url)
        self._broker = connect(url, patience=_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broker.close()

    def letters(self) -> list[Letter]:
        """All of them, oldest first. Raises BrokerError."""
        with self._channel() as channel:
            return [letter for _, letter, _ in _scan(channel)]

    def drop(self, names: Sequence[str] | None) -> list[str]:
        """Take letters away for good; the names of those.

        Args:
            names: which; None: all.

        Raises:
            ConfigurationError: there is none of a name; nothing was done.
            BrokerError: the broker can not be reached, or refuses.
        """
        with self._channel() as channel:
            chosen = _chosen(channel, names)
            for tag, _, _ in chosen:
                channel.basic_ack(tag)
            return [letter.id for _, letter, _ in chosen]

    def requeue(
        self, names: Sequence[str] | None, unwanted: Callable[[StudySpec, Evaluation], str | None]
    ) -> tuple[list[str], list[Refusal]]:
        """Have letters evaluated, those that are evaluations which somebody waits for; the others stay.

        Args:
            names: which; None: all.
            unwanted: why nobody waits for an evaluation; None: somebody may.

        Returns:
            The names of those that are on their way to the workers, and why others are not.

        Raises:
            ConfigurationError: there is none of a name; nothing was done.
            BrokerError: the broker can not be reached, or refuses.
        """
        requeued: list[str] = []
        refused: list[Refusal] = []
        with self._channel() as channel:
            for tag, letter, batch in _chosen(channel, names):
                reason = self._why_not(batch, letter, unwanted)
                if reason is not None:
                    refused.append(Refusal(letter.id, reason))
                    continue
                assert batch is not None
                # In this order: whoever dies in between leaves the letter as well, and a second copy does no harm.
                self._broker.publish(EVALUATIONS, pack(batch))
                channel.basic_ack(tag)
                requeued.append(letter.id)
        return requeued, refused

    def _why_not(
        self, batch: EvaluationBatch | None, letter: Letter, unwanted: Callable[[StudySpec, Evaluation], str | None]
    ) -> str | None:
        if batch is None:
            return f"it is no evaluation: {letter.problem}"
        if not batch.spec.reply_to or not self._exists(results_queue(batch.spec.reply_to)):
            return f"nobody waits for results of study {batch.spec.study!r} any more"
        reasons = [unwanted(batch.spec, evaluation) for evaluation in batch.evaluations]
        if reasons and None not in reasons:
            return "; ".join(dict.fromkeys(filter(None, reasons)))
        return None

    def _exists(self, queue: str) -> bool:
        channel = self._broker.connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        channel.close()
        return True

    @contextmanager
    def _channel(self) -> Iterator[BlockingChannel]:
        """A channel, whose end puts back what was not taken away."""
        try:
            channel = self._broker.connection.channel()
            try:
                yield channel
            finally:
                if channel.is_open:
                    channel.close()
        except pika.exceptions.ChannelClosedByBroker as error:
            raise BrokerError(f"the broker at {self._where} refused: {error.reply_text}") from None
        except BROKER_FAILURES as error:
            raise BrokerError(f"the broker at {self._where} is gone: {type(error).__name__}") from None


_Found = tuple[int, Letter, EvaluationBatch | None]


def _scan(channel: BlockingChannel) -> Iterator[_Found]:
    """What is there, taken but not taken away: delivery tag, letter, and its evaluations if it has some."""
    for _ in range(MOST_LETTERS):
        method, properties, body = channel.basic_get(DEAD)
        if method is None:
            return
        letter, batch = read(body, properties)
        yield method.delivery_tag, letter, batch


def _chosen(channel: BlockingChannel, names: Sequence[str] | None) -> list[_Found]:
    found = list(_scan(channel))
    if names is None:
        return found
    missing = [name for name in names if all(letter.id != name for _, letter, _ in found)]
    if missing:
        known = ", ".join(dict.fromkeys(letter.id for _, letter, _ in found)) or "none"
        raise ConfigurationError(f"there is no dead letter {missing[0]!r}; there are: {known}")
    return [one for one in found if one[1].id in names]


def read(body: bytes, properties: Any) -> tuple[Letter, EvaluationBatch | None]:
    """A letter as RabbitMQ hands it out, whatever is in it."""
    headers = properties.headers or {}
    batch, problem = None, None
    try:
        batch = unpack(body)
    except DecodeError as error:
        problem = str(error)
    died = _death(headers)
    reason = headers.get(REASON)
    history = headers.get(HISTORY)
    letter = Letter(
        id=digest_bytes(body, str(history).encode())[:_NAME_CHARACTERS],
        at=_when(died.at, properties.timestamp),
        reason=without_secrets(reason) if isinstance(reason, str) else died.reason,
        queue=died.queue or EVALUATIONS,
        size_bytes=len(body),
        problem=None if problem is None else without_secrets(problem),
        # All of it is cleaned before it is cut: half of a URL does not look like one.
        excerpt=None if batch is not None else without_secrets(body.decode(errors="replace"))[:_SHOWN],
        study=None if batch is None else batch.spec.study,
        objective=None if batch is None else batch.spec.objective,
        evaluations=() if batch is None else tuple(_shown(evaluation) for evaluation in batch.evaluations),
        attempts=_attempts(history),
    )
    return letter, batch


def _when(died: float | None, timestamp: int | None) -> float | None:
    """When it died: as RabbitMQ says, else as who buried it says. Of what RabbitMQ gave up on, that is when it was sent."""
    return float(timestamp) if died is None and timestamp is not None else died


def _shown(evaluation: Evaluation) -> Evaluation:
    params = {
        name: without_secrets(value) if isinstance(value, str) else value for name, value in evaluation.params.items()
    }
    return msgspec.structs.replace(evaluation, params=params)


def _attempts(history: object) -> tuple[Attempt, ...]:
    """The attempts that our header tells of; none if somebody else wrote it."""
    if not isinstance(history, str):
        return ()
    try:
        attempts = msgspec.json.decode(history, type=tuple[Attempt, ...])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return ()
    return tuple(msgspec.structs.replace(attempt, what=without_secrets(attempt.what)) for attempt in attempts)


class _Death(msgspec.Struct, frozen=True):
    """What RabbitMQ says of it."""

    at: float | None
    reason: str
    queue: str


#: Why RabbitMQ gives up on a message, as it says it and for people.
_REASONS = {
    "rejected": "rejected by its consumer",
    "delivery_limit": "delivered again and again: whoever took it died or lost its connection",
    "expired": "nobody took it in time",
    "maxlen": "the queue was full",
}


def _death(headers: dict[str, Any]) -> _Death:
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    at, reason = latest.get("time"), latest.get("reason")
    return _Death(
        at=at.timestamp() if isinstance(at, datetime) else None,
        reason=_REASONS.get(str(reason), str(reason or "not said")),
        queue=str(latest.get("queue") or ""),
    )
