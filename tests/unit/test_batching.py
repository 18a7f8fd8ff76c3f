"""How much is in flight, and in how large messages."""

from trialfleet_coordinator.batching import GATHERING_SECONDS, Pacing


def paced(seconds: float, *, largest: int = 100, answered: int = 10_000) -> Pacing:
    pacing = Pacing(largest)
    for _ in range(answered):
        pacing.observe(seconds)
    return pacing


def test_before_anything_is_known_one_evaluation_is_ahead_of_each_slot_and_travels_alone() -> None:
    pacing = Pacing(100)
    assert pacing.in_flight(4) == 8
    assert pacing.in_flight(4, seconds_left=60.0) == 4, "each may take longer than that"
    assert pacing.batch(8, 4) == 1


def test_slow_evaluations_are_never_kept_ahead_nor_bundled() -> None:
    assert paced(60.0).in_flight(4) == 4
    assert paced(60.0).batch(4, 4) == 1


def test_quick_evaluations_are_bundled_up_to_the_largest_batch() -> None:
    assert paced(1e-3).in_flight(2) == 2 * 101
    assert paced(1e-5).batch(200, 2) == 100
    assert paced(1e-5, largest=10).batch(200, 2) == 10


def test_where_evaluations_take_next_to_nothing_several_messages_are_ahead() -> None:
    assert paced(1e-4, largest=32).in_flight(2) == 2 * 101, "ten milliseconds of work"
    assert paced(1e-5, largest=32).in_flight(2) == 2 * (1 + 4 * 32), "no more than four messages"
    assert paced(1e-3, largest=32).in_flight(2) == 2 * 33, "one message is more than ten milliseconds"


def test_little_is_in_flight_while_little_is_known() -> None:
    assert [paced(1e-5, answered=answered).in_flight(2) for answered in (1, 16, 100, 400)] == [4, 4, 25, 100]


def test_nothing_is_kept_ahead_that_would_begin_after_the_end() -> None:
    assert paced(3.0).in_flight(2, seconds_left=4.0) == 4
    assert paced(3.0).in_flight(2, seconds_left=2.9) == 2
    assert paced(0.02).in_flight(2, seconds_left=0.05) == 2 * 3
    assert paced(0.02).in_flight(2, seconds_left=-1.0) == 2


def test_a_message_leaves_work_for_the_other_slots() -> None:
    assert paced(1e-5).batch(6, 4) == 2


def test_the_pace_follows_the_evaluations() -> None:
    pacing = paced(10.0, answered=1)
    for _ in range(200):
        pacing.observe(0.01)
    assert pacing.in_flight(1) == 11


def test_no_slots_and_no_time_are_no_division_by_zero() -> None:
    assert paced(0.0).in_flight(0) == 0
    assert paced(0.0).batch(5, 0) == 5


def test_results_are_gathered_only_where_evaluations_take_less_than_the_wait() -> None:
    assert Pacing(100).gathering_seconds == 0.0, "nothing is known"
    assert paced(GATHERING_SECONDS / 2).gathering_seconds == GATHERING_SECONDS
    assert paced(GATHERING_SECONDS * 2).gathering_seconds == 0.0
