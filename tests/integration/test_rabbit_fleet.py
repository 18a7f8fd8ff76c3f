import json
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from support.fleet_suite import BASE, make_evaluation, make_spec
from support.queues import messages, put
from support.rabbit_node import ControlledNode
from support.waiting import wait_until
from support.workers import WorkerProcesses, poll_until, purge

from trialfleet_coordinator.adapters.rabbit_fleet import RabbitFleet
from trialfleet_shared.adapters.rabbit import DEAD, EVALUATIONS, HEARTBEATS, MAX_MESSAGE_BYTES, pack, results_queue
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import DataSpec, EvaluationBatch, EvaluationResult, Heartbeat, Outcome, StudySpec
from trialfleet_workers.adapters.lmdb_data import DataCache
from trialfleet_workers.digests import code_digest

pytestmark = pytest.mark.rabbitmq


class Coordinator:
    """A fleet, and everything that it said so far."""

    def __init__(self, fleet: RabbitFleet) -> None:
        self.fleet = fleet
        self.results: list[EvaluationResult] = []
        self.lost: list[LostEvaluation] = []

    def poll(self) -> None:
        results, lost = self.fleet.poll(0.1)
        self.results += results
        self.lost += lost
        self.fleet.acknowledge()

    def await_results(self, count: int) -> None:
        poll_until(self.poll, lambda: len(self.results) >= count, f"{count} results are there")

    def await_slots(self, slots: int) -> None:
        poll_until(self.poll, lambda: self.fleet.slots() == slots, f"the fleet has {slots} slots")


@pytest.fixture
def workers(rabbitmq: str, tmp_path: Path) -> Iterator[WorkerProcesses]:
    with WorkerProcesses(rabbitmq, tmp_path, BASE) as workers:
        yield workers


@pytest.fixture
def connect(rabbitmq: str) -> Iterator[Callable[..., Coordinator]]:
    """Makes coordinators; a given address is that of an earlier one."""
    fleets = []

    def connect(address: str = "", **fields: float) -> Coordinator:
        fleets.append(RabbitFleet(rabbitmq, address=address or uuid.uuid4().hex, clock=SystemClock(), **fields))
        return Coordinator(fleets[-1])

    yield connect
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def channel(rabbitmq: str) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def sleeps(count: int, seconds: float) -> list[object]:
    return [make_evaluation(trial, what="sleep", seconds=seconds) for trial in range(count)]


def test_a_worker_may_join_late_and_leave_when_there_is_nothing_to_do(
    workers: WorkerProcesses, connect: Callable[..., Coordinator]
) -> None:
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    assert coordinator.fleet.slots() == 0
    coordinator.fleet.submit([make_evaluation(trial, x=1.0) for trial in range(4)])
    coordinator.poll()
    assert coordinator.results == []
    worker = workers.start(burst=True)
    coordinator.await_results(4)
    assert coordinator.fleet.slots() == 2
    assert worker.wait(60) == 0
    coordinator.await_slots(0)


def test_a_worker_that_is_told_to_leave_hands_back_what_has_not_started(
    workers: WorkerProcesses, connect: Callable[..., Coordinator]
) -> None:
    first = workers.start()
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:misbehave"))
    coordinator.await_slots(2)
    coordinator.fleet.submit(sleeps(6, 1.0))  # type: ignore[arg-type]  # evaluations
    coordinator.await_results(1)
    first.send_signal(signal.SIGTERM)
    workers.start()
    assert first.wait(60) == 0
    coordinator.await_results(6)
    assert Counter(result.trial for result in coordinator.results) == Counter(range(6))
    assert {result.outcome for result in coordinator.results} == {Outcome.OK}
    assert len({result.worker for result in coordinator.results}) == 2
    assert coordinator.lost == []


def test_a_second_signal_hands_back_what_runs(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    first = workers.start()
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:misbehave"))
    coordinator.await_slots(2)
    coordinator.fleet.submit([make_evaluation(0, what="sleep", seconds=60.0)])
    poll_until(coordinator.poll, lambda: coordinator.fleet.report().busy_slot_seconds > 0, "it is being evaluated")
    first.send_signal(signal.SIGTERM)
    coordinator.await_slots(0)
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 128 + signal.SIGINT
    assert messages(channel, EVALUATIONS) == 1


def test_results_that_were_not_acknowledged_come_again_to_the_next_coordinator(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    workers.start()
    address = uuid.uuid4().hex
    dying = connect(address).fleet
    dying.start(make_spec("objectives.py:misbehave"))
    dying.submit([make_evaluation(0, what="return", x=1.0)])
    dying.submit([make_evaluation(1, what="sleep", seconds=2.0)])
    results: list[EvaluationResult] = []
    poll_until(lambda: results.extend(dying.poll(0.1)[0]), lambda: bool(results), "the first result is there")
    dying.close()
    again = connect(address)
    again.fleet.start(make_spec("objectives.py:misbehave"))
    again.await_results(2)
    assert sorted(result.trial for result in again.results) == [0, 1]
    again.fleet.close()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        messages(channel, results_queue(address))


def test_what_nobody_can_read_goes_to_the_dead_letters(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    workers.start()
    coordinator = connect(address="unreadable")
    coordinator.fleet.start(make_spec("objectives.py:double"))
    coordinator.await_slots(2)
    channel.queue_purge(DEAD)
    for queue, body in [
        (results_queue("unreadable"), b"\xff"),
        (results_queue("unreadable"), b'{"type":"heartbeat","worker":"w","slots":1,"busy":0,"interval_seconds":1.0}'),
        (EVALUATIONS, b"nonsense"),
        (EVALUATIONS, enveloped(args=["{}"])),
    ]:
        put(channel, queue, body)
    poll_until(coordinator.poll, lambda: messages(channel, DEAD) == 4, "the dead letters are there")
    coordinator.fleet.submit([make_evaluation(0, x=1.0)])
    coordinator.await_results(1)
    assert coordinator.results[0].value == 2.0


#: What dramatiq would believe, or stumble over: see `_Consumer`.
HOSTILE = {
    "another queue": {"queue_name": "elsewhere"},
    "a queue that is no name": {"queue_name": ["x"]},
    "an unknown actor": {"actor_name": "unknown"},
    "an actor that is no name": {"actor_name": {}},
    "held for ever": {"options": {"eta": 10**15}},
    "held until never": {"options": {"eta": "never"}},
    "an exception that is none": {"options": {"throws": "ValueError"}},
    "options that are none": {"options": 5},
    "keywords": {"kwargs": {"body": "x"}},
    "keywords that are none": {"kwargs": [1]},
    "arguments in excess": {"args": [1, 2]},
    "an argument that is no text": {"args": [{"__class__": "x"}]},
    "one field more": {"pipe_target": {}},
}


def enveloped(**fields: object) -> bytes:
    """A message for a worker, with other fields than a right one has."""
    right = json.loads(pack(EvaluationBatch(make_spec("objectives.py:double"), ())))
    return msgspec.json.encode({**right, **fields})


def test_no_envelope_ends_or_stalls_a_worker(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    workers.start()
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    channel.queue_purge(DEAD)
    bodies = [enveloped(**fields) for fields in HOSTILE.values()]
    deep = b"[" * 100_000
    bodies += [b"", b"null", b"[]", b"\x80\x04.", deep, enveloped(args=[deep.decode()])]
    bodies += [b'{"options":' * 10_000, b" " * (MAX_MESSAGE_BYTES + 1)]
    for body in bodies:
        put(channel, EVALUATIONS, body)
    poll_until(coordinator.poll, lambda: messages(channel, DEAD) == len(bodies), "the dead letters are there")
    # Of each of the two slots' threads more than one: had a message ended them, these would wait for ever.
    coordinator.fleet.submit([make_evaluation(trial, x=1.0) for trial in range(6)])
    coordinator.await_results(6)
    assert {result.value for result in coordinator.results} == {2.0}
    assert workers.processes[0].poll() is None
    channel.queue_purge(DEAD)


def test_work_of_a_newer_coordinator_is_handed_back_and_kept_from_the_dead_letters(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    workers.start()
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    channel.queue_declare(DEAD, passive=True)
    channel.queue_purge(DEAD)
    newer = json.dumps({"type": "evaluations", "version": 99, "spec": {"colour": "red"}, "evaluations": []})
    put(channel, EVALUATIONS, enveloped(args=[newer]))
    wait_until(lambda: b"update this worker" in workers.log(0).read_bytes(), "the worker says so")
    coordinator.fleet.submit([make_evaluation(0, x=1.0)])
    coordinator.await_results(1)
    assert coordinator.results[0].value == 2.0, "it goes on with what it can do"
    for process in workers.processes:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    wait_until(lambda: messages(channel, EVALUATIONS) == 1, "the work is there for another worker")
    assert messages(channel, DEAD) == 0


def test_results_that_nobody_wants_are_dropped(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    workers.start()
    gone = connect(address="gone")
    gone.fleet.start(make_spec("objectives.py:misbehave"))
    gone.fleet.submit([make_evaluation(0, what="sleep", seconds=0.5)])
    gone.fleet.close()
    channel.queue_delete(results_queue("gone"))
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    coordinator.fleet.submit([make_evaluation(trial, x=1.0) for trial in range(3)])
    coordinator.await_results(3)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        messages(channel, results_queue("gone"))


def test_evaluations_that_vanished_from_the_queue_are_lost(
    rabbitmq: str, workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    coordinator = connect(grace=2.0)
    coordinator.fleet.start(make_spec("objectives.py:double"))
    coordinator.fleet.submit([make_evaluation(7, attempt=2, x=1.0)])
    poll_until(coordinator.poll, lambda: messages(channel, EVALUATIONS) == 1, "it is in the queue")
    purge(rabbitmq)
    poll_until(coordinator.poll, lambda: bool(coordinator.lost), "it is lost")
    assert coordinator.lost == [
        LostEvaluation(make_evaluation(7).key, 2, "no worker has it and the queue is empty"),
    ]


def test_work_that_rabbitmq_refuses_is_offered_again(
    rabbitmq_node: ControlledNode,
    workers: WorkerProcesses,
    connect: Callable[..., Coordinator],
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    rabbitmq_node.control("set_policy", "full", f"^{EVALUATIONS}$", '{"max-length": 1, "overflow": "reject-publish"}')
    try:
        for trial in range(10):  # RabbitMQ begins to refuse a few messages late
            coordinator.fleet.submit([make_evaluation(trial, x=1.0)])
        poll_until(coordinator.poll, lambda: "NackError" in caplog.text, "RabbitMQ refuses")
    finally:
        rabbitmq_node.control("clear_policy", "full")
    workers.start()
    coordinator.await_results(10)
    assert {result.trial for result in coordinator.results} == set(range(10))
    assert coordinator.lost == []


def test_a_results_queue_that_the_broker_can_not_serve_is_made_anew(
    workers: WorkerProcesses,
    connect: Callable[..., Coordinator],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers.start()
    before = connect("broken").fleet
    before.start(make_spec("objectives.py:double"))
    before.submit([make_evaluation(0, x=1.0)])
    poll_until(lambda: None, lambda: bool(before.poll(0.1)[0]), "a result is there, and stays")
    before.close()
    # RabbitMQ would have to be killed half a second after the queue was declared, and takes a minute to find out.
    consume = BlockingChannel.basic_consume
    failing = [results_queue("broken")]

    def fail_once(self: BlockingChannel, queue: str, *args: Any, **fields: Any) -> Any:
        if queue in failing:
            failing.remove(queue)
            self.connection.close()
            raise pika.exceptions.ConnectionClosedByBroker(541, "INTERNAL_ERROR")
        return consume(self, queue, *args, **fields)

    monkeypatch.setattr(BlockingChannel, "basic_consume", fail_once)
    again = connect("broken")
    again.fleet.start(make_spec("objectives.py:double"))
    again.fleet.submit([make_evaluation(1, x=1.0)])
    again.await_results(1)
    assert [result.trial for result in again.results] == [1]
    assert "can not serve the queue trialfleet.v1.results.broken; making it anew" in caplog.text


def test_a_results_queue_that_is_deleted_is_made_anew(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    coordinator = connect("deleted")
    coordinator.fleet.start(make_spec("objectives.py:double"))
    workers.start()
    coordinator.fleet.submit([make_evaluation(0, x=1.0)])
    coordinator.await_results(1)
    channel.queue_delete(results_queue("deleted"))

    def is_back() -> bool:
        coordinator.poll()
        with channel.connection.channel() as asking:
            try:
                messages(asking, results_queue("deleted"))
            except pika.exceptions.ChannelClosedByBroker:
                return False
        return True

    wait_until(is_back, "the queue is there again")
    coordinator.fleet.submit([make_evaluation(1, x=1.0)])
    coordinator.await_results(2)
    assert [result.trial for result in coordinator.results] == [0, 1]


def test_workers_are_heard_after_their_exchange_was_deleted(
    workers: WorkerProcesses, connect: Callable[..., Coordinator], channel: BlockingChannel
) -> None:
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    workers.start()
    coordinator.await_slots(2)
    channel.exchange_delete(HEARTBEATS)
    workers.start()
    coordinator.await_slots(4)


def test_an_evaluation_may_outlive_its_delivery(
    rabbitmq: str, tmp_path: Path, connect: Callable[..., Coordinator]
) -> None:
    """RabbitMQ forgets it after HOLD_SECONDS: it is answered all the same, and lost when its worker dies."""
    coordinator = connect(grace=3.0)
    with WorkerProcesses(rabbitmq, tmp_path, BASE, hold_seconds=0.2) as workers:
        worker = workers.start()
        coordinator.fleet.start(make_spec("objectives.py:misbehave"))
        coordinator.await_slots(2)
        coordinator.fleet.submit([make_evaluation(0, what="sleep", seconds=6.0)])
        coordinator.await_results(1)
        assert coordinator.results[0].value == 6.0
        assert coordinator.lost == []
        coordinator.fleet.submit([make_evaluation(1, what="sleep", seconds=60.0)])
        seen = coordinator.fleet.report().busy_slot_seconds
        poll_until(coordinator.poll, lambda: coordinator.fleet.report().busy_slot_seconds > seen + 2.0, "it is leased")
        worker.kill()
        worker.wait()
        poll_until(coordinator.poll, lambda: bool(coordinator.lost), "it is lost")
    assert [(entry.key.trial, entry.attempt) for entry in coordinator.lost] == [(1, 0)]
    assert coordinator.lost[0].reason.endswith("is gone")


def test_what_a_worker_was_not_allowed_is_refused(
    workers: WorkerProcesses, connect: Callable[..., Coordinator]
) -> None:
    workers.start()
    coordinator = connect()
    spec = make_spec("objectives.py:double")
    coordinator.fleet.start(msgspec.structs.replace(spec, objective="os:getcwd"))
    coordinator.fleet.submit([make_evaluation(0, x=1.0)])
    coordinator.await_results(1)
    assert coordinator.results[0].outcome is Outcome.REFUSED
    assert "'os:getcwd' is not allowed here" in (coordinator.results[0].error or "")


def test_a_worker_imports_the_data_and_refuses_other_ones(
    rabbitmq: str, tmp_path: Path, connect: Callable[..., Coordinator]
) -> None:
    base = tmp_path / "study"
    base.mkdir()
    (base / "rows.csv").write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(200)))
    (base / "rows.py").write_text(
        "import os\nimport pandas as pd\n\n\ndef load():\n    print('loading')\n"
        "    return pd.DataFrame({'x': range(200), 'y': [0, 1] * 100})\n\n\n"
        "def count(params, data):\n    return float(len(data.y))\n"
    )
    cache = DataCache(tmp_path / "cache")
    with WorkerProcesses(rabbitmq, tmp_path, base) as workers:
        workers.start()
        for source, other, outcome, error in [
            ("rows.csv", "", Outcome.OK, ""),
            ("rows.py:load", "", Outcome.OK, ""),
            ("rows.csv", "abcdef01", Outcome.REFUSED, "abcdef01 in the study"),
            ("missing.csv", "abcdef01", Outcome.REFUSED, "missing.csv"),
            ("os:getcwd", "abcdef01", Outcome.REFUSED, "not allowed here"),
        ]:
            data = DataSpec(source=source, target="y")
            digest = other or cache.import_data(data, base=base).digest
            objective = "rows.py:count"
            spec = StudySpec(
                study=source,
                objective=objective,
                objective_digest=code_digest(objective, base),
                data=data,
                data_digest=digest,
            )
            coordinator = connect()
            coordinator.fleet.start(spec)
            coordinator.fleet.submit([make_evaluation(0)])
            coordinator.await_results(1)
            result = coordinator.results[0]
            assert result.outcome is outcome, result.error
            assert error in (result.error or "")
            assert result.value == (160.0 if outcome is Outcome.OK else None)
            coordinator.fleet.close()


class _Hearing(RabbitFleet):
    """Remembers what the heartbeats said last of deliveries that were acknowledged and not answered."""

    leased = 0

    def _on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        self.leased = len(heartbeat.leased)
        super()._on_heartbeat(heartbeat, now)


def test_data_that_take_long_to_import_hold_up_neither_their_delivery_nor_other_studies(
    rabbitmq: str, tmp_path: Path
) -> None:
    base = tmp_path / "study"
    base.mkdir()
    go = tmp_path / "go"
    go.touch()
    (base / "rows.csv").write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(200)))
    (base / "rows.py").write_text(
        "import time\nfrom pathlib import Path\nimport pandas as pd\n\n\ndef load():\n"
        f"    while not Path({str(go)!r}).exists():\n        time.sleep(0.01)\n"
        "    return pd.DataFrame({'x': range(100), 'y': [0, 1] * 50})\n\n\n"
        "def count(params, data):\n    return float(len(data.y))\n"
    )
    cache = DataCache(tmp_path / "cache")
    coordinators = []
    for source in ("rows.py:load", "rows.csv"):
        data = DataSpec(source=source, target="y")
        spec = StudySpec(
            study=source,
            objective="rows.py:count",
            objective_digest=code_digest("rows.py:count", base),
            data=data,
            data_digest=cache.import_data(data, base=base).digest,
        )
        fleet = _Hearing(rabbitmq, address=uuid.uuid4().hex, clock=SystemClock())
        fleet.start(spec)
        coordinators.append(Coordinator(fleet))
    go.unlink()
    slow, quick = coordinators
    with WorkerProcesses(rabbitmq, tmp_path, base, hold_seconds=0.2) as workers:
        workers.start()
        try:
            slow.fleet.submit([make_evaluation(0)])
            slow.await_slots(2)
            quick.fleet.submit([make_evaluation(0)])
            quick.await_results(1)
            assert slow.results == []
            assert slow.fleet.leased == 0  # type: ignore[attr-defined]  # it was handed back meanwhile, and came again
            go.touch()
            slow.await_results(1)
            assert [one.results[0].value for one in coordinators] == [80.0, 160.0]
        finally:
            go.touch()
            for coordinator in coordinators:
                coordinator.fleet.close()


def test_a_worker_that_imports_leaves_the_work_to_who_has_the_data(rabbitmq: str, tmp_path: Path) -> None:
    base = tmp_path / "study"
    base.mkdir()
    go, claimed = tmp_path / "go", tmp_path / "claimed"
    claimed.touch()
    (base / "rows.py").write_text(
        "import time\nfrom pathlib import Path\nimport pandas as pd\n\n\ndef load():\n"
        f"    try:\n        Path({str(claimed)!r}).touch(exist_ok=False)\n    except FileExistsError:\n        pass\n"
        f"    else:\n        while not Path({str(go)!r}).exists():\n            time.sleep(0.01)\n"
        "    return pd.DataFrame({'x': range(100), 'y': [0, 1] * 50})\n\n\n"
        "def count(params, data):\n    return float(len(data.y))\n"
    )
    data = DataSpec(source="rows.py:load", target="y")
    spec = StudySpec(
        study="rows",
        objective="rows.py:count",
        objective_digest=code_digest("rows.py:count", base),
        data=data,
        data_digest=DataCache(tmp_path / "cache").import_data(data, base=base).digest,
    )
    claimed.unlink()
    fleet = RabbitFleet(rabbitmq, address=uuid.uuid4().hex, clock=SystemClock())
    fleet.start(spec)
    coordinator = Coordinator(fleet)
    with WorkerProcesses(rabbitmq, tmp_path, base, hold_seconds=0.2) as workers:
        try:
            workers.start()
            fleet.submit([make_evaluation(trial) for trial in range(6)])
            poll_until(coordinator.poll, claimed.exists, "the first worker imports")
            workers.start()
            coordinator.await_results(6)
            assert not go.exists(), "it still does"
        finally:
            go.touch()
            fleet.close()


def test_the_password_is_nowhere_to_be_seen(
    rabbitmq: str, workers: WorkerProcesses, connect: Callable[..., Coordinator], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    worker = workers.start()
    coordinator = connect()
    coordinator.fleet.start(make_spec("objectives.py:double"))
    coordinator.fleet.submit([make_evaluation(0, x=1.0)])
    coordinator.await_results(1)
    arguments = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    password = rabbitmq.partition("@")[0].rpartition(":")[2]
    assert len(password) > 20
    assert password not in arguments
    assert password not in caplog.text
    assert password not in workers.log(0).read_text()
