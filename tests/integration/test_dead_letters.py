"""Dead letters on a real broker: whoever wrote them, they are listed, put back to work only if wanted, and dropped."""

import json
import uuid
from collections.abc import Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from support.fleet_suite import make_evaluation, make_spec
from support.queues import messages, put
from support.waiting import wait_until

from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.adapters.dead_letters import DeadLetters, Refusal
from trialfleet_shared.adapters.rabbit import DEAD, EVALUATIONS, connect, pack
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.fleet import Attempt, Poison
from trialfleet_shared.messages import EvaluationBatch

pytestmark = pytest.mark.rabbitmq

SPEC = make_spec("objectives.py:misbehave")
ATTEMPTS = (Attempt(0, 1e9, "one", "killed by SIGSEGV"), Attempt(1, 1e9 + 5, "two", "killed by SIGKILL"))
#: When a coordinator gives up on evaluations, in seconds since 1970.
NOW = 1_700_000_000.9
#: Evaluations that somebody waits for.
WANTED = lambda spec, evaluation: None  # noqa: E731


class StandingClock(SystemClock):
    """It is always the same time of day."""

    def time(self) -> float:
        return NOW


@pytest.fixture
def channel(rabbitmq: str) -> Iterator[BlockingChannel]:
    """A channel of a broker that has the queues, all empty."""
    connect(rabbitmq, patience=5.0).close()
    with pika.BlockingConnection(pika.URLParameters(rabbitmq)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for queue in (DEAD, EVALUATIONS):
            channel.queue_purge(queue)
        yield channel
        for queue in (DEAD, EVALUATIONS):
            channel.queue_purge(queue)


@pytest.fixture
def dead(rabbitmq: str, channel: BlockingChannel) -> Iterator[DeadLetters]:
    with DeadLetters(rabbitmq) as dead:
        yield dead


@pytest.fixture
def fleet(rabbitmq: str, channel: BlockingChannel) -> Iterator[RabbitFleet]:
    """A coordinator that waits for results."""
    fleet = RabbitFleet(rabbitmq, address=uuid.uuid4().hex, clock=StandingClock())
    fleet.start(SPEC)
    yield fleet
    fleet.close()


def bury(fleet: RabbitFleet, dead: DeadLetters, trial: int = 7, **params: object) -> str:
    """Have an evaluation given up on; the letter's name."""
    known = {letter.id for letter in dead.letters()}
    fleet.bury(Poison(make_evaluation(trial, attempt=1, **params), "killed its slot 2 times", ATTEMPTS))
    wait_until(lambda: len(dead.letters()) > len(known), "the letter is there")
    return next(letter.id for letter in dead.letters() if letter.id not in known)


def reject(channel: BlockingChannel, body: bytes, properties: pika.BasicProperties | None = None) -> None:
    """Have RabbitMQ put a message among the dead letters."""
    put(channel, EVALUATIONS, body, properties)
    wait_until(lambda: _rejected(channel), "it is rejected")


def _rejected(channel: BlockingChannel) -> bool:
    method, _, _ = channel.basic_get(EVALUATIONS)
    if method is not None:
        channel.basic_reject(method.delivery_tag, requeue=False)
    return method is not None


def test_an_evaluation_given_up_on_comes_with_its_history(fleet: RabbitFleet, dead: DeadLetters) -> None:
    name = bury(fleet, dead, what="segfault")
    (letter,) = dead.letters()
    assert letter.id == name
    assert letter.reason == "killed its slot 2 times"
    assert letter.at == 1_700_000_000, "AMQP's timestamps are whole seconds"
    assert letter.attempts == ATTEMPTS
    assert letter.evaluations == (make_evaluation(7, attempt=1, what="segfault"),)
    assert (letter.study, letter.objective, letter.problem) == ("suite", "objectives.py:misbehave", None)
    assert dead.letters() == [letter], "looking takes nothing away"


def test_what_nobody_can_read_is_listed_too(dead: DeadLetters, channel: BlockingChannel) -> None:
    bodies = [b"poison", b"\xff\x00", b"[]", json.dumps({"args": [1, 2]}).encode(), json.dumps({"args": [3]}).encode()]
    for body in bodies:
        reject(channel, body)
    wait_until(lambda: messages(channel, DEAD) == len(bodies), "all are there")
    letters = dead.letters()
    assert len({letter.id for letter in letters}) == len(bodies)
    for letter in letters:
        assert letter.problem
        assert letter.reason == "rejected by its consumer"
        assert letter.queue == EVALUATIONS
        assert letter.at is not None
    assert "poison" in {letter.excerpt for letter in letters}
    requeued, refused = dead.requeue(None, WANTED)
    assert requeued == []
    assert len(refused) == len(bodies)
    assert all("it is no evaluation" in one.reason for one in refused)
    assert messages(channel, EVALUATIONS) == 0


def test_a_message_died_when_rabbitmq_says_so_not_when_it_was_sent(dead: DeadLetters, channel: BlockingChannel) -> None:
    reject(channel, b"poison", pika.BasicProperties(timestamp=1))
    wait_until(lambda: messages(channel, DEAD) == 1, "it is there")
    (letter,) = dead.letters()
    assert letter.at is not None
    assert letter.at > NOW


def test_a_history_that_somebody_forged_is_none(dead: DeadLetters, channel: BlockingChannel) -> None:
    headers = {"trialfleet-history": '[{"attempt": "x"}]', "trialfleet-reason": 5}
    put(channel, DEAD, pack(EvaluationBatch(SPEC, ())), pika.BasicProperties(headers=headers))
    (letter,) = dead.letters()
    assert (letter.attempts, letter.reason) == ((), "not said")


def test_what_somebody_waits_for_is_put_back_to_work(
    fleet: RabbitFleet, dead: DeadLetters, channel: BlockingChannel
) -> None:
    name = bury(fleet, dead, what="return", x=1.0)
    assert dead.requeue([name], WANTED) == ([name], [])
    assert dead.letters() == []
    wait_until(lambda: messages(channel, EVALUATIONS) == 1, "it waits for a worker")


def test_what_nobody_waits_for_stays(fleet: RabbitFleet, dead: DeadLetters, channel: BlockingChannel) -> None:
    first, second = bury(fleet, dead, 1, x=1.0), bury(fleet, dead, 2, x=2.0)
    decided = {1: "trial 1 is decided"}
    requeued, refused = dead.requeue(None, lambda spec, evaluation: decided.get(evaluation.trial))
    assert (requeued, refused) == ([second], [Refusal(first, "trial 1 is decided")])
    fleet.close()
    assert dead.requeue([first], WANTED) == ([], [Refusal(first, "nobody waits for results of study 'suite' any more")])
    assert [letter.id for letter in dead.letters()] == [first]


def test_letters_are_dropped_by_name(fleet: RabbitFleet, dead: DeadLetters, channel: BlockingChannel) -> None:
    first, second = bury(fleet, dead, 1, x=1.0), bury(fleet, dead, 2, x=2.0)
    with pytest.raises(ConfigurationError, match=f"there is no dead letter 'nothing'; there are: {first}, {second}"):
        dead.drop([first, "nothing"])
    assert dead.drop([first]) == [first]
    assert [letter.id for letter in dead.letters()] == [second]
    assert dead.drop(None) == [second]
    assert messages(channel, DEAD) == 0


def test_what_is_shown_of_a_letter_has_no_secrets(dead: DeadLetters, channel: BlockingChannel) -> None:
    secret = "hunter2" * 20
    evaluation = make_evaluation(0, where=f"s3://key:{secret}@bucket")
    history = json.dumps([{"attempt": 0, "at": 0.0, "worker": "w", "what": f"s3://key:{secret}@bucket is gone"}])
    properties = pika.BasicProperties(headers={"trialfleet-history": history})
    put(channel, DEAD, pack(EvaluationBatch(SPEC, (evaluation,))), properties)
    put(channel, DEAD, f"{'x' * 150} s3://key:{secret}@bucket".encode())
    wait_until(lambda: len(dead.letters()) == 2, "both are there")
    assert "hunter2" not in str(dead.letters())
