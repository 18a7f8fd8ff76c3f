"""The fleet behind a link, on a link that does what the test says."""

from collections.abc import Sequence

import pytest
from support.simulated import SimulatedClock

from trialfleet_coordinator.remote_fleet import Delivery, Incoming, Mailbox, Ready, RemoteFleet
from trialfleet_shared.codec import decode, encode
from trialfleet_shared.errors import BrokerError
from trialfleet_shared.fleet import Poison
from trialfleet_shared.messages import (
    Evaluation,
    EvaluationBatch,
    EvaluationResult,
    Heartbeat,
    Outcome,
    ResultBatch,
    StudySpec,
)
from trialfleet_shared.space import TEXT_CHARACTERS

SPEC = StudySpec(study="s", objective="o.py:f", objective_digest="")
GRACE = 5.0


class ToldLink:
    """Gives what it was told to, moving the clock on when there is nothing."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self.incoming: list[Incoming] = [Heartbeat("w", 2, 0, 100.0)]
        self.published: list[EvaluationBatch] = []
        self.acknowledged: list[Delivery] = []
        self.buried: list[tuple[StudySpec, Poison]] = []
        self.nothing_outstanding: bool | None = None

    def publish(self, batch: EvaluationBatch) -> None:
        self.published.append(batch)

    def bury(self, spec: StudySpec, poison: Poison) -> None:
        self.buried.append((spec, poison))

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.acknowledged += deliveries

    def receive(self, timeout: float) -> list[Incoming]:
        incoming, self.incoming = self.incoming, []
        if not incoming:
            self._clock.now += timeout
        return incoming

    def stop(self, *, nothing_outstanding: bool) -> None:
        self.nothing_outstanding = nothing_outstanding


class Bench:
    """A fleet on the bench, with one evaluation published."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.link = ToldLink(self.clock)
        self.fleet = RemoteFleet(lambda: self.link, address="here", clock=self.clock, grace=GRACE)
        self.fleet.start(SPEC)
        self.publish(0)

    def publish(self, attempt: int) -> None:
        self.fleet.submit([Evaluation(0, 0, 0, 1.0, {}, attempt)])

    def lost_after_silence(self) -> list[int]:
        """Attempts that are given up when nobody is heard for long, with the queue empty."""
        lost = []
        for _ in range(int(2 * GRACE)):
            self.link.incoming.append(Ready(0))
            lost += self.fleet.poll(0.0)[1]
            self.clock.now += 1.0
        return [entry.attempt for entry in lost]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def answer(outcome: Outcome = Outcome.OK, *, attempt: int = 0, study: str = "s") -> ResultBatch:
    value = 1.0 if outcome is Outcome.OK else None
    return ResultBatch(study, (EvaluationResult(0, 0, 0, attempt, outcome, value, worker="w"),))


def test_nobody_need_have_been_heard_of_for_work_to_be_published() -> None:
    clock = SimulatedClock()
    link = ToldLink(clock)
    heartbeats, link.incoming = link.incoming, []
    fleet = RemoteFleet(lambda: link, address="here", clock=clock, grace=GRACE)
    begun = clock.now
    fleet.start(SPEC)
    fleet.submit([Evaluation(0, 0, 0, 1.0, {}, 0)])
    assert (clock.now, fleet.slots(), len(link.published)) == (begun, 0, 1)
    link.incoming = heartbeats
    assert fleet.poll(1.0) == ([], [])
    assert (clock.now, fleet.slots()) == (begun, 2), "it ends when there are slots"


def test_evaluations_travel_in_messages_that_can_be_read(bench: Bench) -> None:
    long = {f"{number:03}": "x" * TEXT_CHARACTERS for number in range(100)}
    asked = [Evaluation(trial, 0, 0, 1.0, long) for trial in range(1, 21)]
    before = len(bench.link.published)
    bench.fleet.submit(asked)
    published = bench.link.published[before:]
    assert [evaluation for batch in published for evaluation in batch.evaluations] == asked
    assert [decode(encode(batch)) for batch in published] == published
    assert len(published) == 5


def test_results_are_acknowledged_once_they_were_polled(bench: Bench) -> None:
    bench.link.incoming.append((answer(), Delivery(1, 7)))
    bench.fleet.acknowledge()
    assert bench.link.acknowledged == []
    assert [result.value for result in bench.fleet.poll(1.0)[0]] == [1.0]
    bench.fleet.acknowledge()
    bench.fleet.acknowledge()
    assert bench.link.acknowledged == [Delivery(1, 7)]
    bench.fleet.close()
    assert bench.link.nothing_outstanding is True


def test_the_results_of_another_study_are_nobodys(bench: Bench) -> None:
    """And they are not delivered again for ever."""
    bench.link.incoming.append((answer(study="another"), Delivery(1, 7)))
    assert bench.fleet.poll(1.0) == ([], [])
    bench.fleet.acknowledge()
    assert bench.link.acknowledged == [Delivery(1, 7)]
    assert bench.lost_after_silence() == [0]


@pytest.mark.parametrize("outcome", [each for each in Outcome if each.may_be_of_the_place])
def test_what_was_tried_in_vain_does_not_answer_what_was_published_since(bench: Bench, outcome: Outcome) -> None:
    bench.publish(1)
    bench.link.incoming.append((answer(outcome, attempt=0), Delivery(1, 7)))
    assert len(bench.fleet.poll(1.0)[0]) == 1
    assert bench.lost_after_silence() == [1]


def test_a_late_value_answers_what_was_published_since(bench: Bench) -> None:
    bench.publish(1)
    bench.link.incoming.append((answer(attempt=0), Delivery(1, 7)))
    assert len(bench.fleet.poll(1.0)[0]) == 1
    assert bench.lost_after_silence() == []


def worked(busy: int, busy_seconds: float, available_seconds: float) -> Heartbeat:
    return Heartbeat("w", 2, busy, 1.0, (), (), False, busy_seconds, available_seconds)


def test_a_report_does_not_wait_for_workers_that_have_told_all(bench: Bench) -> None:
    bench.link.incoming += [(answer(), Delivery(1, 7)), worked(0, 0.5, 2.0)]
    bench.fleet.poll(1.0)
    bench.clock.now += 0.5
    asked = bench.clock.now
    report = bench.fleet.report()
    assert bench.clock.now == asked
    assert report.busy_slot_seconds == 0.5
    assert report.available_slot_seconds == 2.0 + 2 * 0.5


@pytest.mark.parametrize("before", [worked(0, 0.0, 2.0), worked(1, 0.2, 2.0)])
def test_a_report_waits_for_what_was_done_since_a_worker_was_heard(bench: Bench, before: Heartbeat) -> None:
    bench.link.incoming += [before, (answer(), Delivery(1, 7))]
    bench.fleet.poll(1.0)
    bench.clock.now += 0.5
    bench.link.incoming.append(worked(1, 0.7, 3.0))
    report = bench.fleet.report()
    assert (report.busy_slot_seconds, report.available_slot_seconds) == (0.7, 3.0)


def test_what_a_worker_did_before_the_study_is_not_the_study_s(bench: Bench) -> None:
    def heartbeat(worker: str, busy_seconds: float, available_seconds: float) -> Heartbeat:
        return Heartbeat(worker, 2, 0, 100.0, (), (), False, busy_seconds, available_seconds)

    bench.fleet.poll(0.0)  # the link's own worker, which has done nothing
    bench.clock.now += 10.0
    # With two slots, one is up for 15 s, the other came 4 s ago.
    bench.link.incoming += [heartbeat("old", 12.0, 30.0), heartbeat("new", 1.0, 8.0)]
    bench.fleet.poll(0.0)
    before = bench.fleet.report()
    bench.link.incoming += [heartbeat("old", 15.0, 34.0), heartbeat("new", 1.5, 12.0)]
    bench.fleet.poll(0.0)
    after = bench.fleet.report()
    assert (before.busy_slot_seconds, after.busy_slot_seconds) == (1.0, 4.5)
    own = 2 * 10.0  # of which nothing was heard since
    assert (before.available_slot_seconds, after.available_slot_seconds) == (own + 8.0, own + 16.0)


def test_a_poll_waits_while_nothing_comes_that_it_would_tell_of(bench: Bench) -> None:
    bench.fleet.poll(0.0)
    told: list[list[Incoming]] = [[Ready(1)], [Heartbeat("w", 2, 1, 100.0)], [(answer(), Delivery(1, 7))], [Ready(0)]]
    bench.link.receive = lambda timeout: told.pop(0)  # type: ignore[method-assign]
    assert len(bench.fleet.poll(1.0)[0]) == 1
    assert told == [[Ready(0)]]


def test_what_could_not_be_published_is_published_again() -> None:
    mailbox = Mailbox()
    published: list[bytes] = []

    def publish(body: bytes) -> None:
        published.append(body)
        if len(published) == 2:
            raise ConnectionError

    for body in (b"a", b"b", b"c"):
        mailbox.publish(body)
    with pytest.raises(ConnectionError):
        mailbox.flush(1, publish, lambda tag: None)
    mailbox.flush(2, publish, lambda tag: None)
    assert published == [b"a", b"b", b"b", b"c"]


def test_deliveries_of_an_earlier_connection_are_not_acknowledged() -> None:
    mailbox = Mailbox()
    acknowledged: list[int] = []
    mailbox.acknowledge([Delivery(1, 5), Delivery(2, 6)])
    mailbox.flush(2, lambda body: None, acknowledged.append)
    assert acknowledged == [6]


def test_a_link_that_gives_up_says_so_once_all_that_came_is_taken() -> None:
    mailbox = Mailbox()
    mailbox.put(Ready(3))
    mailbox.fail(BrokerError("gone"))
    assert mailbox.receive(0.0) == [Ready(3)]
    with pytest.raises(BrokerError, match="gone"):
        mailbox.receive(0.0)


def test_workers_are_those_heard_of_lately(bench: Bench) -> None:
    bench.link.incoming.append(Heartbeat("v", 1, 0, 1.0))
    bench.fleet.poll(1.0)
    assert bench.fleet.workers() == {"v", "w"}
    bench.clock.now += 10.0
    assert bench.fleet.workers() == {"w"}


def test_memory_is_that_of_the_workers_that_were_there_at_a_time(bench: Bench) -> None:
    """A fleet whose workers are replaced again and again has no more of it than those that live."""
    for number in range(20):
        bench.link.incoming.append(Heartbeat(f"w{number}", 2, 0, 1.0, pss_bytes=100))
        bench.fleet.poll(1.0)
        bench.clock.now += 60.0
    bench.link.incoming += [Heartbeat(f"twin{number}", 2, 0, 1.0, pss_bytes=100) for number in range(2)]
    bench.fleet.poll(1.0)
    assert bench.fleet.report().pss_bytes == 200


def test_a_worker_that_is_heard_again_after_long_is_counted_once(bench: Bench) -> None:
    def beat(worker: str, busy: float) -> None:
        bench.link.incoming.append(
            Heartbeat(worker, 1, 0, 1.0, busy_slot_seconds=busy, available_slot_seconds=2 * busy, pss_bytes=5)
        )
        bench.fleet.poll(0.0)

    beat("away", 10.0)
    for second in range(400):
        bench.clock.now += 1.0
        beat("there", float(second))
    assert bench.fleet.workers() == {"there"}
    beat("away", 11.0)
    report = bench.fleet.report()
    assert (report.workers, report.busy_slot_seconds, report.available_slot_seconds) == (2, 399.0 + 1.0, 800.0)
    assert report.pss_bytes == 10
