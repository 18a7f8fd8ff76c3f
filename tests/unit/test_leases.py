import pytest

from trialfleet_coordinator.leases import MISSED_HEARTBEATS, LeaseTable
from trialfleet_shared.fleet import LostEvaluation
from trialfleet_shared.messages import EvaluationKey

GRACE = 10.0
KEY = EvaluationKey(3, 1, 0)
OTHER = EvaluationKey(4, 0, 0)


@pytest.fixture
def table() -> LeaseTable:
    table = LeaseTable(grace=GRACE)
    table.publish(KEY, 0, 0.0)
    return table


def beat(table: LeaseTable, now: float, *held: EvaluationKey, worker: str = "w", slots: int = 2) -> None:
    table.heartbeat(worker, slots, 1.0, held=held, leased=(), now=now)


def looks(table: LeaseTable, ready: int | None, since: float, until: float) -> list[LostEvaluation]:
    """What looks at the queue give up on: one a second, and one at the end."""
    lost = []
    while since < until:
        lost += table.lost(ready, since)
        since += 1.0
    return lost + table.lost(ready, until)


def lost_keys(table: LeaseTable, ready: int | None, since: float, until: float | None = None) -> list[EvaluationKey]:
    return [entry.key for entry in looks(table, ready, since, since if until is None else until)]


def test_what_waits_in_the_queue_is_not_lost(table: LeaseTable) -> None:
    for now in range(100):
        assert lost_keys(table, 1, float(now)) == []


def test_what_nobody_holds_is_lost_once_the_queue_was_empty_for_the_grace(table: LeaseTable) -> None:
    assert lost_keys(table, 0, 1.0, 10.9) == []
    lost = table.lost(0, 11.0)
    assert [entry.key for entry in lost] == [KEY]
    assert lost[0].reason == "no worker has it and the queue is empty"


def test_a_loss_is_told_once(table: LeaseTable) -> None:
    assert lost_keys(table, 0, 0.0, 40.0) == [KEY]
    assert table.outstanding == 0


def test_a_queue_that_fills_again_starts_the_grace_again(table: LeaseTable) -> None:
    assert lost_keys(table, 0, 1.0, 9.0) == []
    assert lost_keys(table, 2, 10.0) == []
    assert lost_keys(table, 0, 11.0, 20.9) == []
    assert lost_keys(table, 0, 21.0) == [KEY]


def test_a_study_that_publishes_all_the_time_misses_what_vanished(table: LeaseTable) -> None:
    assert lost_keys(table, 0, 0.0, 6.0) == []
    table.publish(OTHER, 0, 6.5)
    assert lost_keys(table, 0, 7.0, 9.9) == []
    assert lost_keys(table, 0, 10.0) == [KEY]
    assert lost_keys(table, 0, 10.5, 16.4) == []
    assert lost_keys(table, 0, 16.5) == [OTHER]


@pytest.mark.parametrize("leased", [(), (KEY,)])
def test_silence_says_nothing_to_who_did_not_listen(table: LeaseTable, leased: tuple[EvaluationKey, ...]) -> None:
    """A coordinator that was stopped looks at the queue before it has heard what was said meanwhile."""
    for now in (0.0, 6.0):
        table.heartbeat("w", 2, 1.0, held=[KEY], leased=leased, now=now)
        assert lost_keys(table, 0, now) == []
    assert lost_keys(table, 0, 6.0 + 2 * GRACE) == []
    table.heartbeat("w", 2, 1.0, held=[KEY], leased=leased, now=6.1 + 2 * GRACE)
    assert lost_keys(table, 0, 7.0 + 2 * GRACE, 16.0 + 2 * GRACE) == []
    assert lost_keys(table, 0, 16.1 + 2 * GRACE, 17.0 + 2 * GRACE) == [KEY]


def test_a_heartbeat_renews_what_it_names(table: LeaseTable) -> None:
    table.publish(OTHER, 0, 0.0)
    for now in range(30):
        beat(table, float(now), KEY)
        assert lost_keys(table, 0, float(now)) == ([OTHER] if now == GRACE else [])


def test_an_evaluation_whose_holder_fell_silent_is_lost_and_its_holder_named(table: LeaseTable) -> None:
    beat(table, 5.0, KEY)
    assert [entry.reason for entry in looks(table, 0, 5.0, 15.0)] == ["worker w is gone"]


def test_an_evaluation_that_another_worker_got_is_not_lost(table: LeaseTable) -> None:
    lost_keys(table, 0, 0.0, 5.0)
    beat(table, 5.0, KEY, worker="dead")
    assert lost_keys(table, 0, 6.0, 14.0) == []
    beat(table, 14.0, KEY, worker="alive")
    assert lost_keys(table, 0, 15.0, 20.0) == []


def test_a_leased_evaluation_is_lost_with_its_worker_however_full_the_queue(table: LeaseTable) -> None:
    table.publish(OTHER, 0, 0.0)
    table.heartbeat("w", 2, 1.0, held=[KEY, OTHER], leased={KEY}, now=5.0)
    assert lost_keys(table, 7, 5.0, 14.9) == []
    assert lost_keys(table, 7, 15.0) == [KEY]


def test_silence_says_nothing_while_the_broker_is_away(table: LeaseTable) -> None:
    table.heartbeat("w", 2, 1.0, held=[KEY], leased={KEY}, now=5.0)
    assert lost_keys(table, None, 100.0) == []
    assert lost_keys(table, 0, 101.0, 109.9) == []
    assert lost_keys(table, 0, 111.0) == [KEY]


def test_an_answer_settles(table: LeaseTable) -> None:
    assert table.outstanding == 1
    table.answer(KEY)
    table.answer(KEY)
    assert table.outstanding == 0
    assert lost_keys(table, 0, 0.0, 100.0) == []


def test_the_lost_attempt_is_the_one_published_last(table: LeaseTable) -> None:
    table.publish(KEY, 4, 1.0)
    assert [entry.attempt for entry in looks(table, 0, 1.0, 20.0)] == [4]


def test_workers_are_alive_until_they_miss_their_heartbeats() -> None:
    table = LeaseTable(grace=GRACE)
    beat(table, 0.0, worker="a", slots=2)
    beat(table, 2.0, worker="b", slots=3)
    assert {name: worker.slots for name, worker in table.workers(3.0).items()} == {"a": 2, "b": 3}
    assert set(table.workers(float(MISSED_HEARTBEATS) + 0.5)) == {"b"}
    assert table.workers(10.0) == {}


def test_a_worker_is_alive_for_three_of_its_own_intervals() -> None:
    table = LeaseTable(grace=GRACE)
    table.heartbeat("slow", 1, 20.0, held=(), leased=(), now=5.0)
    table.heartbeat("quick", 1, 0.5, held=(), leased=(), now=5.0)
    assert set(table.workers(6.5)) == {"slow", "quick"}
    assert set(table.workers(6.6)) == {"slow"}
    assert set(table.workers(65.0)) == {"slow"}
    assert table.workers(65.1) == {}


def test_a_worker_without_slots_has_left_but_what_it_holds_it_holds(table: LeaseTable) -> None:
    beat(table, 0.0, KEY)
    lost_keys(table, 0, 0.0, 9.0)
    beat(table, 9.0, KEY, slots=0)
    assert table.workers(9.0) == {}
    assert lost_keys(table, 0, 10.0, 15.0) == []


def test_what_a_worker_holds_of_others_is_nobodys_business(table: LeaseTable) -> None:
    beat(table, 0.0, OTHER)
    assert table.outstanding == 1


def test_a_late_refusal_of_an_earlier_attempt_does_not_answer_a_later_one(table: LeaseTable) -> None:
    table.publish(KEY, 1, 1.0)
    table.answer(KEY, in_vain=0)
    assert table.outstanding == 1
    table.answer(KEY, in_vain=1)
    assert table.outstanding == 0


def test_workers_that_are_gone_for_long_are_forgotten() -> None:
    """A fleet's workers come and go for weeks."""
    table = LeaseTable(grace=GRACE)
    beat(table, 0.0, worker="old")
    beat(table, 8.0, worker="new")
    assert set(table.workers(0.0)) == {"old", "new"}
    beat(table, 12.0, worker="newer")
    assert set(table.workers(0.0)) == {"new", "newer"}
