from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import pytest
from support.simulated import SimulatedClock

from trialfleet_shared.codec import decode, encode
from trialfleet_shared.messages import (
    SCHEMA_VERSION,
    DataSpec,
    Evaluation,
    EvaluationBatch,
    EvaluationResult,
    Heartbeat,
    Outcome,
    ResultBatch,
    StudySpec,
)
from trialfleet_shared.space import TEXT_CHARACTERS
from trialfleet_workers.service import (
    HEARTBEAT_SECONDS,
    IDLE_HEARTBEAT_SECONDS,
    REFUSAL_SECONDS,
    STALL_SECONDS,
    Sending,
    Ticket,
    WorkerService,
)

SPEC = StudySpec(study="s", objective="o.py:f", objective_digest="", reply_to="here")
OTHER = StudySpec(study="t", objective="o.py:f", objective_digest="", reply_to="there")


class FakePool:
    """Slots whose evaluations end when `seconds` of simulated time have passed, those of trial 99 never."""

    def __init__(self, clock: SimulatedClock, slots: int = 2, seconds: float = 1.0) -> None:
        self.slots = slots
        self._clock = clock
        self._seconds = seconds
        self._running: list[tuple[float, StudySpec, Evaluation]] = []
        self._queue: list[tuple[StudySpec, Evaluation]] = []
        self.started: list[int] = []
        self.preloaded: list[str] = []
        #: Called at each poll: what happens meanwhile in other threads.
        self.meanwhile: Callable[[], None] = lambda: None
        self.answer: Callable[[Evaluation], EvaluationResult] = answer

    @property
    def busy(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._queue)

    restarts: Mapping[str, int] = MappingProxyType({})
    busy_slot_seconds = 0.0
    available_slot_seconds = 0.0

    def pss_bytes(self) -> int:
        return 1

    def wake(self) -> None:
        pass

    def preload(self, spec: StudySpec) -> None:
        self.preloaded.append(spec.study)

    def submit(self, spec: StudySpec, *evaluations: Evaluation) -> None:
        self._queue.extend((spec, evaluation) for evaluation in evaluations)
        self._start()

    def take_back(self) -> list[tuple[StudySpec, Evaluation]]:
        taken, self._queue = self._queue, []
        return taken

    def poll(self, timeout: float) -> list[tuple[StudySpec, EvaluationResult]]:
        self.meanwhile()
        self._clock.now += min(timeout, 0.1)
        ended = [entry for entry in self._running if entry[0] <= self._clock.now]
        self._running = [entry for entry in self._running if entry not in ended]
        self._start()
        return [(spec, self.answer(evaluation)) for _, spec, evaluation in ended]

    def _start(self) -> None:
        while self._queue and len(self._running) < self.slots:
            spec, evaluation = self._queue.pop(0)
            end = self._clock.now + (1e9 if evaluation.trial == 99 else self._seconds)
            self._running.append((end, spec, evaluation))
            self.started.append(evaluation.trial)


class FakeSink:
    """Remembers everything; takes nothing while `away`."""

    def __init__(self) -> None:
        self.away = False
        #: Addresses that nothing is taken for.
        self.refused: set[str] = set()
        self.stopped = False
        self.handed_back_before = 0
        self.results: list[tuple[str, EvaluationResult]] = []
        self.batches = 0
        self.answers: list[ResultBatch] = []
        self.returned: list[EvaluationBatch] = []
        self.handed_back: list[Evaluation] = []
        self.heartbeats: list[Heartbeat] = []

    def stop_taking(self) -> None:
        self.stopped = True
        self.handed_back_before = len(self.handed_back)

    def send_results(self, address: str, batch: ResultBatch) -> Sending:
        if self.away:
            return Sending.AWAY
        if address in self.refused:
            return Sending.REFUSED
        self.batches += 1
        self.answers.append(batch)
        self.results += [(address, result) for result in batch.results]
        return Sending.SAFE

    def hand_back(self, batch: EvaluationBatch) -> bool:
        if not self.away:
            self.handed_back += batch.evaluations
            self.returned.append(batch)
        return not self.away

    def send_heartbeat(self, heartbeat: Heartbeat) -> bool:
        self.heartbeats.append(heartbeat)
        return True


class Worker:
    """A service with a fake pool and sink."""

    def __init__(self, *, slots: int = 2, seconds: float = 1.0, patience: float | None = None) -> None:
        self.clock = SimulatedClock()
        self.pool = FakePool(self.clock, slots, seconds)
        self.sink = FakeSink()
        self.service = WorkerService(self.pool, self.sink, name="w", clock=self.clock, patience=patience)

    def run(self, *actions: tuple[float, Callable[[], object]]) -> None:
        """Run until the service ends; each action happens once so many seconds have passed."""
        begun = self.clock.now
        left = sorted(actions, key=lambda action: action[0])

        def meanwhile() -> None:
            assert self.clock.now < begun + 1000, "the service does not end"
            while left and self.clock.now - begun >= left[0][0]:
                left.pop(0)[1]()

        self.pool.meanwhile = meanwhile
        self.service.run()
        assert not left

    def answered(self) -> list[int]:
        return sorted(result.trial for _, result in self.sink.results)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def evaluations(*trials: int, attempt: int = 0) -> tuple[Evaluation, ...]:
    return tuple(Evaluation(trial=trial, rung=0, fold=0, fraction=1.0, params={}, attempt=attempt) for trial in trials)


def batch(*trials: int, spec: StudySpec = SPEC, attempt: int = 0) -> EvaluationBatch:
    return EvaluationBatch(spec, evaluations(*trials, attempt=attempt))


def answer(evaluation: Evaluation) -> EvaluationResult:
    return EvaluationResult(
        trial=evaluation.trial,
        rung=evaluation.rung,
        fold=evaluation.fold,
        attempt=evaluation.attempt,
        outcome=Outcome.OK,
        value=1.0,
        slot=1,
        started_at=5.0,
    )


def test_a_worker_that_leaves_does_not_wait_for_data(worker: Worker) -> None:
    ticket = worker.service.take(batch(0, 1))
    worker.service.lease(ticket)
    worker.run((1.0, worker.service.drain))
    assert [evaluation.trial for evaluation in worker.sink.handed_back] == [0, 1]
    assert ticket.wait(0.0)


def test_work_does_not_wait_behind_what_waits_for_its_data() -> None:
    """It is not handed back as that behind a leased evaluation is, which may have a slot for hours."""
    worker = Worker(slots=1, seconds=2 * STALL_SECONDS)
    worker.service.lease(worker.service.take(batch(99, spec=OTHER)))
    worker.service.begin(worker.service.take(batch(0, 1)))
    worker.run((4.2 * STALL_SECONDS, worker.service.drain))
    assert worker.answered() == [0, 1]
    assert [evaluation.trial for evaluation in worker.sink.handed_back] == [99]


def test_what_waits_too_long_for_its_data_is_given_back(worker: Worker) -> None:
    waits, begun = worker.service.take(batch(0, 1)), worker.service.take(batch(2))
    copy = worker.service.take(batch(1))
    worker.service.begin(begun)
    for ticket in (copy, waits, begun):
        worker.service.give_back(ticket)
    worker.run((0.5, lambda: worker.service.begin(waits)), (3.0, worker.service.drain))
    assert [evaluation.trial for evaluation in worker.sink.handed_back] == [0, 1]
    assert worker.answered() == [2], "what was given back is nobody's here, though its data came"
    assert waits.wait(0.0)
    assert copy.wait(0.0)


def test_what_can_not_be_given_back_yet_is_kept(worker: Worker) -> None:
    ticket = worker.service.take(batch(0))
    worker.sink.away = True
    worker.service.give_back(ticket)

    def come_back() -> None:
        assert not ticket.wait(0.0)
        worker.sink.away = False
        worker.service.begin(ticket)

    worker.run((1.0, come_back), (4.0, worker.service.drain))
    assert worker.answered() == [0]


def test_results_that_are_refused_hold_up_no_others(worker: Worker) -> None:
    refused, answered = worker.service.take(batch(0)), worker.service.take(batch(1, spec=OTHER))
    for ticket in (refused, answered):
        worker.service.begin(ticket)
    worker.sink.refused.add(SPEC.reply_to)
    late = worker.clock.now + 10.0

    def again() -> None:
        assert worker.answered() == [1]
        assert not refused.wait(0.0)
        worker.service.begin(worker.service.take(batch(2, spec=OTHER)))

    def take_it() -> None:
        assert worker.answered() == [1, 2]
        worker.sink.refused.clear()

    worker.run((5.0, again), (8.0, take_it), (12.0, worker.service.drain))
    assert worker.clock.now > late
    assert worker.answered() == [0, 1, 2]
    assert refused.wait(0.0)


def test_a_worker_that_leaves_does_not_wait_for_what_is_refused(worker: Worker) -> None:
    ticket = worker.service.take(batch(0))
    worker.service.begin(ticket)
    worker.sink.refused.add(SPEC.reply_to)
    worker.run((5.0, worker.service.drain))
    assert worker.answered() == []
    assert not ticket.wait(0.0)
    assert ticket.forgotten, "RabbitMQ delivers it again"


def test_what_can_not_be_handed_back_by_a_worker_that_leaves_is_not_acknowledged_later() -> None:
    """Its delivery is RabbitMQ's, also while what runs takes long to finish."""
    worker = Worker(slots=1, seconds=30.0)
    runs, waits = worker.service.take(batch(0)), worker.service.take(batch(1))
    for ticket in (runs, waits):
        worker.service.begin(ticket)

    def leave() -> None:
        worker.sink.away = True
        worker.service.drain()

    def look() -> None:
        assert (runs.forgotten, waits.forgotten) == (False, True)
        worker.sink.away = False

    worker.run((5.0, leave), (10.0, look))
    assert worker.answered() == [0]
    assert worker.sink.handed_back == []


def test_a_batch_is_settled_once_all_its_results_are_safe(worker: Worker) -> None:
    ticket = worker.service.take(batch(0, 1, 2))
    worker.service.begin(ticket)
    worker.sink.away = True
    seen: list[bool] = []

    def come_back() -> None:
        seen.append(ticket.wait(0))
        worker.sink.away = False

    worker.run((3.0, come_back), (5.0, worker.service.drain))
    assert seen == [False]
    assert ticket.wait(0)
    assert worker.answered() == [0, 1, 2]
    assert {address for address, _ in worker.sink.results} == {"here"}


def test_results_travel_together(worker: Worker) -> None:
    worker.service.begin(worker.service.take(batch(*range(8))))
    worker.run((6.0, worker.service.drain))
    assert worker.answered() == list(range(8))
    assert worker.sink.batches == 4


def test_each_study_is_answered_at_its_own_address(worker: Worker) -> None:
    worker.service.begin(worker.service.take(batch(0)))
    worker.service.begin(worker.service.take(batch(0, spec=OTHER)))
    worker.run((3.0, worker.service.drain))
    assert sorted(address for address, _ in worker.sink.results) == ["here", "there"]


def test_a_copy_of_what_is_held_waits_for_the_one_answer(worker: Worker) -> None:
    first, copy = worker.service.take(batch(0)), worker.service.take(batch(0))
    worker.service.begin(copy)
    worker.service.begin(first)
    again = worker.service.take(batch(0, attempt=1))
    worker.service.begin(again)
    early: list[bool] = []
    worker.run((0.5, lambda: early.extend([first.wait(0), copy.wait(0)])), (3.0, worker.service.drain))
    assert early == [False, False]
    assert first.wait(0)
    assert copy.wait(0)
    assert worker.pool.started == [0, 0]
    assert [result.attempt for _, result in worker.sink.results] == [0, 1]


def test_who_asks_in_an_earlier_version_is_answered_in_it(worker: Worker) -> None:
    asked = EvaluationBatch(SPEC, evaluations(0, 1), version=1)
    waiting = EvaluationBatch(SPEC, evaluations(2), version=1)
    newer = EvaluationBatch(OTHER, evaluations(5))
    worker.run(
        (0, lambda: worker.service.begin(worker.service.take(asked))),
        (0.5, lambda: worker.service.begin(worker.service.take(waiting))),
        (0.5, worker.service.drain),
    )
    again = Worker()
    again.run((0, lambda: again.service.begin(again.service.take(newer))), (3, again.service.drain))
    assert [batch.version for batch in worker.sink.answers] == [1]
    assert all(result.slot is result.started_at is None for _, result in worker.sink.results)
    assert [batch.version for batch in worker.sink.returned] == [1], "its coordinator's other workers may be older"
    assert [batch.version for batch in again.sink.answers] == [SCHEMA_VERSION]
    assert [(result.slot, result.started_at) for _, result in again.sink.results] == [(1, 5.0)]


def test_what_is_refused_is_answered(worker: Worker) -> None:
    worker.service.refuse(worker.service.take(batch(0, 1)), "no such data")
    worker.run((2 * REFUSAL_SECONDS, worker.service.drain))
    assert [(result.outcome, result.error, result.worker) for _, result in worker.sink.results] == [
        (Outcome.REFUSED, "no such data", "w")
    ] * 2
    assert worker.pool.started == []


def test_a_refusal_waits_and_is_held_so_that_others_get_the_work(worker: Worker) -> None:
    ticket = worker.service.take(batch(0))
    worker.service.refuse(ticket, "no such data")
    other = worker.service.take(batch(1))
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        seen.append((len(worker.sink.results), ticket.wait(0)))

    worker.run(
        (0.9 * REFUSAL_SECONDS, look),
        (0.9 * REFUSAL_SECONDS, lambda: worker.service.refuse(other, "no such data")),
        (1.3 * REFUSAL_SECONDS, look),
        (3 * REFUSAL_SECONDS, look),
        (3 * REFUSAL_SECONDS, worker.service.drain),
    )
    assert seen == [(0, False), (1, True), (2, True)]
    held = [beat.held for beat in worker.sink.heartbeats]
    assert held[0] == (("here", 0, 0, 0), ("here", 1, 0, 0))


def test_what_the_slots_refuse_waits_too(worker: Worker) -> None:
    worker.pool.answer = lambda one: EvaluationResult(*one.key, 0, Outcome.REFUSED, error="other code")
    worker.service.begin(worker.service.take(batch(0)))
    seen: list[int] = []
    worker.run(
        (1.0 + 0.8 * REFUSAL_SECONDS, lambda: seen.append(len(worker.sink.results))),
        (1.5 + REFUSAL_SECONDS, lambda: seen.append(len(worker.sink.results))),
        (1.5 + REFUSAL_SECONDS, worker.service.drain),
    )
    assert seen == [0, 1]


def test_a_worker_that_leaves_sends_its_refusals_at_once(worker: Worker) -> None:
    worker.service.refuse(worker.service.take(batch(0)), "no such data")
    begun = worker.clock.now
    worker.run((0.1, worker.service.drain))
    assert worker.answered() == [0]
    assert worker.clock.now - begun < REFUSAL_SECONDS


def test_a_worker_that_aborts_hands_back_what_it_was_about_to_refuse(worker: Worker) -> None:
    worker.service.refuse(worker.service.take(batch(0)), "no such data")
    worker.run((0.1, worker.service.abort))
    answered, handed_back = worker.answered(), [one.trial for one in worker.sink.handed_back]
    assert answered + handed_back == [0]


def test_heartbeats_tell_what_is_held_from_the_moment_it_is_taken(worker: Worker) -> None:
    ticket = worker.service.take(batch(0))
    worker.run((3.5, lambda: worker.service.begin(ticket)), (7.0, worker.service.drain))
    beats = worker.sink.heartbeats
    assert beats[0].interval_seconds == HEARTBEAT_SECONDS
    assert [beat.held for beat in beats[:3]] == [(("here", 0, 0, 0),)] * 3
    assert beats[-2].held == ()
    assert all(beat.leased == () for beat in beats)
    assert [beat.slots for beat in beats[:-1]] == [2] * (len(beats) - 1)
    assert (beats[-1].slots, beats[-1].draining) == (0, True)


def test_a_worker_says_soon_that_it_has_nothing_to_do_any_more() -> None:
    worker = Worker(seconds=1.3)
    times: list[tuple[float, int]] = []
    begun = worker.clock.now
    send = worker.sink.send_heartbeat
    worker.sink.send_heartbeat = lambda beat: times.append((worker.clock.now - begun, len(beat.held))) or send(beat)  # type: ignore[func-returns-value,method-assign]
    worker.service.begin(worker.service.take(batch(0)))
    worker.run((3.0, worker.service.drain))
    heard = next(time for time, held in times if not held)
    assert 1.3 <= heard < 1.3 + IDLE_HEARTBEAT_SECONDS + 0.1, "not only at the next full second"


def test_a_worker_announces_itself_to_a_coordinator_that_it_did_not_know(worker: Worker) -> None:
    worker.run(
        (2.5, lambda: worker.service.begin(worker.service.take(batch(0)))),
        (2.5, lambda: worker.service.begin(worker.service.take(batch(1)))),
        (3.0, lambda: worker.service.begin(worker.service.take(batch(2)))),
        (3.2, worker.service.abort),
    )
    heard = [len(beat.held) for beat in worker.sink.heartbeats]
    assert heard == [0, 0, 0, 2, 0], "every second, when the first of its batches came, and as the last word"
    assert worker.pool.preloaded == []


def test_an_objective_is_imported_while_the_data_are_brought_in(worker: Worker) -> None:
    spec = msgspec.structs.replace(SPEC, data=DataSpec(source="rows.csv"), data_digest="d" * 32)
    ticket = worker.service.take(batch(0, spec=spec))
    seen: list[tuple[list[str], list[int]]] = []
    worker.run(
        (0.5, lambda: seen.append((list(worker.pool.preloaded), list(worker.pool.started)))),
        (0.6, lambda: worker.service.begin(ticket)),
        (2.0, worker.service.drain),
    )
    assert seen == [(["s"], [])]
    assert worker.answered() == [0]


def test_draining_finishes_what_runs_and_hands_back_the_rest(worker: Worker) -> None:
    ticket = worker.service.take(batch(0, 1, 2, 3))
    worker.service.begin(ticket)
    worker.run((0.5, worker.service.drain))
    assert worker.sink.stopped
    assert worker.sink.handed_back_before == 0, "it would come here again"
    assert worker.answered() == [0, 1]
    assert [evaluation.trial for evaluation in worker.sink.handed_back] == [2, 3]
    assert ticket.wait(0)


def test_answers_and_what_is_handed_back_travel_in_messages_that_can_be_read() -> None:
    long = {f"{number:03}": "x" * TEXT_CHARACTERS for number in range(100)}
    work = tuple(Evaluation(trial=trial, rung=0, fold=0, fraction=1.0, params=long) for trial in range(40))
    worker = Worker(slots=20)
    metrics = {f"{number:03}" + "m" * 400: 0.123456789 for number in range(1000)}
    worker.pool.answer = lambda evaluation: msgspec.structs.replace(answer(evaluation), metrics=metrics)
    ticket = worker.service.take(EvaluationBatch(SPEC, work))
    worker.service.begin(ticket)
    worker.run((0.0, worker.service.drain))
    assert (worker.answered(), [one.trial for one in worker.sink.handed_back]) == ([*range(20)], [*range(20, 40)])
    for batch in (*worker.sink.answers, *worker.sink.returned):
        assert decode(encode(batch)) == batch
    assert (len(worker.sink.answers), len(worker.sink.returned)) == (2, 5)
    assert ticket.wait(0.0)


def test_what_arrives_while_draining_is_handed_back(worker: Worker) -> None:
    worker.service.begin(worker.service.take(batch(0)))
    waiting = worker.service.take(batch(5))
    worker.run((0.2, worker.service.drain), (0.6, lambda: worker.service.begin(waiting)))
    assert worker.answered() == [0]
    assert [evaluation.trial for evaluation in worker.sink.handed_back] == [5]


def test_what_is_taken_while_draining_is_handed_back_though_its_data_are_here(worker: Worker) -> None:
    worker.service.begin(worker.service.take(batch(0)))
    late: list[Ticket] = []

    def deliver() -> None:
        late.append(worker.service.take(batch(5)))
        worker.service.begin(late[0])

    worker.run((0.2, worker.service.drain), (0.6, deliver))
    assert worker.answered() == [0]
    assert [evaluation.trial for evaluation in worker.sink.handed_back] == [5]
    assert late[0].wait(0.0)


def test_a_batch_of_nothing_is_settled(worker: Worker) -> None:
    assert worker.service.take(batch()).wait(0.0), "nobody would acknowledge it"


def test_aborting_hands_back_what_runs_too(worker: Worker) -> None:
    ticket = worker.service.take(batch(99, 1, 2))
    worker.service.begin(ticket)
    worker.run((0.3, worker.service.drain), (0.6, worker.service.abort))
    assert sorted(evaluation.trial for evaluation in worker.sink.handed_back) == [1, 2, 99]
    assert worker.answered() == []
    assert ticket.wait(0)


def test_what_can_not_be_handed_back_is_left_to_its_delivery(worker: Worker) -> None:
    ticket = worker.service.take(batch(99, 1, 2))
    worker.service.begin(ticket)
    worker.sink.away = True
    worker.run((0.3, worker.service.abort))
    assert not ticket.wait(0)


def test_leased_evaluations_are_marked_and_those_behind_them_handed_back() -> None:
    worker = Worker(slots=1)
    long, short = worker.service.take(batch(99)), worker.service.take(batch(1))
    worker.service.begin(long)
    worker.service.begin(short)
    worker.run(
        (2.0, lambda: worker.service.lease(long)),
        (STALL_SECONDS + 2.0, worker.service.abort),
    )
    assert worker.sink.handed_back[0].trial == 1
    assert short.wait(0)
    assert ("here", 99, 0, 0) in worker.sink.heartbeats[-2].leased


def test_nothing_is_handed_back_while_no_lease_is_in_the_way() -> None:
    worker = Worker(slots=1, seconds=2 * STALL_SECONDS)
    worker.service.begin(worker.service.take(batch(0, 1)))
    worker.run((2.2 * 2 * STALL_SECONDS, worker.service.drain))
    assert worker.sink.handed_back == []
    assert worker.answered() == [0, 1]


def test_patience_ends_without_work() -> None:
    worker = Worker(patience=5.0)
    begun = worker.clock.now
    worker.service.begin(worker.service.take(batch(0)))
    worker.run()
    assert worker.answered() == [0]
    assert 6.0 <= worker.clock.now - begun < 8.0
    assert worker.sink.stopped
