"""Work that busy slots are offered: begun without the pool, taken back while it has not begun, done once in any case."""

import ctypes
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pools import PATIENCE, collect, evaluation, memory_spec
from support.waiting import wait_until

from trialfleet_shared.clock import Clock, SystemClock
from trialfleet_shared.messages import Evaluation, Outcome, StudySpec
from trialfleet_workers.handles import SlotState
from trialfleet_workers.slots import SlotPool

MakePool = Callable[..., SlotPool]
SPEC = memory_spec()


def objective(params: dict[str, Any]) -> float:
    """Say in a file that it began; do harm or wait for another file, if so told."""
    folder = Path(params["folder"])
    with (folder / "begun").open("a") as begun:
        begun.write(f"{params['name']}\n")
    if params["do"] == "crash":
        ctypes.string_at(0)
    elif params["do"] == "exhaust":
        raise MemoryError
    elif params["do"] == "wait":
        while not (folder / params["name"]).exists():
            time.sleep(0.001)
    return float(os.getpid())


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[MakePool]:
    pools: list[SlotPool] = []

    def make(spec: StudySpec = SPEC, slots: int = 1, clock: Clock | None = None) -> SlotPool:
        pool = SlotPool(
            slots=slots, base=tmp_path, data_path=None, functions={"f": objective}, clock=clock or SystemClock()
        )
        pools.append(pool)
        pool.prepare(spec)
        while _ready(pool) < slots:
            pool.poll(0.01)
        return pool

    yield make
    for pool in pools:
        pool.close()


def _ready(pool: SlotPool) -> int:
    """Slots that wait for work; nothing but the pool's own record tells."""
    return sum(slot.state is SlotState.IDLE for slot in pool._live)


def ask(tmp_path: Path, trial: int, do: str = "return") -> Evaluation:
    return evaluation(trial, name=str(trial), folder=str(tmp_path), do=do)


def begun(tmp_path: Path) -> list[str]:
    record = tmp_path / "begun"
    return record.read_text().split() if record.exists() else []


def release(tmp_path: Path, trial: int) -> None:
    (tmp_path / str(trial)).touch()


class LateClock(SystemClock):
    """Runs ahead by so many seconds."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


def quick(pool: SlotPool, tmp_path: Path, spec: StudySpec = SPEC) -> SlotPool:
    """Have every slot do what takes next to nothing until it is offered several at a time, as its own record tells."""
    end = time.monotonic() + PATIENCE
    while any(slot.offers._most < 4 for slot in pool._live):
        assert time.monotonic() < end, "an evaluation takes a millisecond and more"
        pool.submit(spec, *(ask(tmp_path, trial) for trial in range(pool.slots)))
        collect(pool, pool.slots)
    (tmp_path / "begun").unlink()
    return pool


def test_a_slot_goes_on_while_the_pool_does_nothing(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    for trial in range(3):
        pool.submit(SPEC, ask(tmp_path, trial, "wait"))
    assert (pool.busy, pool.queued) == (1, 2)
    release(tmp_path, 0)
    wait_until(lambda: begun(tmp_path) == ["0", "1"], "the slot begins what it was offered")
    release(tmp_path, 1)
    release(tmp_path, 2)
    assert len({result.value for result in collect(pool, 3).values()}) == 1


def test_a_slot_that_is_idle_gets_what_another_was_offered(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(slots=2)
    pool.submit(SPEC, ask(tmp_path, 0, "wait"))
    pool.submit(SPEC, ask(tmp_path, 1, "wait"))
    for trial in range(2, 8):
        pool.submit(SPEC, ask(tmp_path, trial))
    release(tmp_path, 1)
    assert set(collect(pool, 7)) == set(range(1, 8))
    release(tmp_path, 0)
    assert set(collect(pool, 1)) == {0}
    assert Counter(begun(tmp_path)) == Counter(map(str, range(8)))


def test_what_was_withdrawn_is_not_begun_and_others_are(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    for trial in range(3):
        pool.submit(SPEC, ask(tmp_path, trial, "wait" if trial == 0 else "return"))
    assert [one.trial for _, one in pool.take_back()] == [1, 2]
    pool.submit(SPEC, ask(tmp_path, 3))
    release(tmp_path, 0)
    assert set(collect(pool, 2)) == {0, 3}
    pool.submit(SPEC, ask(tmp_path, 4))
    assert set(collect(pool, 1)) == {4}
    assert begun(tmp_path) == ["0", "3", "4"]
    assert pool.held == []


@pytest.mark.parametrize(("harm", "outcome"), [("crash", Outcome.CRASH), ("exhaust", Outcome.MEMORY)])
def test_the_next_does_not_suffer_from_the_one_before(
    make_pool: MakePool, tmp_path: Path, harm: str, outcome: Outcome
) -> None:
    pool = make_pool()
    pool.submit(SPEC, ask(tmp_path, 0, harm))
    pool.submit(SPEC, ask(tmp_path, 1))
    pool.submit(SPEC, ask(tmp_path, 2, harm))
    pool.submit(SPEC, ask(tmp_path, 3))
    outcomes = {trial: result.outcome for trial, result in collect(pool, 4).items()}
    assert outcomes == {0: outcome, 1: Outcome.OK, 2: outcome, 3: Outcome.OK}
    assert begun(tmp_path) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("harm", "outcome"), [("crash", Outcome.CRASH), ("exhaust", Outcome.MEMORY)])
def test_of_many_that_are_offered_none_suffers_from_the_one_before(
    make_pool: MakePool, tmp_path: Path, harm: str, outcome: Outcome
) -> None:
    pool = quick(make_pool(), tmp_path)
    pool.submit(SPEC, *(ask(tmp_path, trial, harm if trial in {3, 4} else "return") for trial in range(8)))
    outcomes = {trial: result.outcome for trial, result in collect(pool, 8).items()}
    assert outcomes == {trial: outcome if trial in {3, 4} else Outcome.OK for trial in range(8)}
    assert begun(tmp_path) == [str(trial) for trial in range(8)]


def test_where_evaluations_are_quick_a_slot_goes_on_with_many(make_pool: MakePool, tmp_path: Path) -> None:
    pool = quick(make_pool(), tmp_path)
    pool.submit(SPEC, *(ask(tmp_path, trial) for trial in range(5)))
    wait_until(lambda: begun(tmp_path) == ["0", "1", "2", "3", "4"], "all are begun")
    assert set(collect(pool, 5)) == set(range(5))


def test_of_many_that_are_offered_those_not_begun_are_taken_back(make_pool: MakePool, tmp_path: Path) -> None:
    pool = quick(make_pool(), tmp_path)
    pool.submit(SPEC, *(ask(tmp_path, trial, "wait" if trial == 2 else "return") for trial in range(6)))
    wait_until(lambda: begun(tmp_path) == ["0", "1", "2"], "the slot is at the one that waits")
    assert {key.trial for _, key in pool.held} == set(range(6))
    assert [one.trial for _, one in pool.take_back()] == [3, 4, 5]
    pool.submit(SPEC, ask(tmp_path, 6), ask(tmp_path, 7))
    release(tmp_path, 2)
    assert set(collect(pool, 5)) == {0, 1, 2, 6, 7}
    assert begun(tmp_path) == ["0", "1", "2", "6", "7"]


def test_that_one_study_is_quick_says_nothing_of_another(make_pool: MakePool, tmp_path: Path) -> None:
    pool = quick(make_pool(), tmp_path)
    other = memory_spec(study="other")
    pool.submit(other, *(ask(tmp_path, trial, "wait") for trial in range(4)))
    while begun(tmp_path) != ["0"]:
        pool.poll(0.01)
    assert (pool._live.offered, pool.queued) == (1, 3)
    for trial in range(4):
        release(tmp_path, trial)
    assert set(collect(pool, 4)) == set(range(4))


def test_many_that_were_offered_to_a_slot_that_is_held_up_are_done_by_another(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = quick(make_pool(slots=2), tmp_path)
    pool.submit(SPEC, *(ask(tmp_path, trial, "wait" if trial == 0 else "return") for trial in range(12)))
    assert set(collect(pool, 11)) == set(range(1, 12))
    release(tmp_path, 0)
    assert set(collect(pool, 1)) == {0}
    assert Counter(begun(tmp_path)) == Counter(map(str, range(12)))


def test_the_next_has_a_deadline_of_its_own(make_pool: MakePool, tmp_path: Path) -> None:
    spec = memory_spec(deadline_seconds=0.5)
    pool = make_pool(spec)
    began = time.monotonic()
    for trial in range(3):
        pool.submit(spec, ask(tmp_path, trial, "wait"))
    results = collect(pool, 3)
    assert {result.outcome for result in results.values()} == {Outcome.TIMEOUT}
    assert all(0.45 < result.wall_seconds <= time.monotonic() - began for result in results.values())


def test_what_ends_while_it_is_judged_late_is_done_once_and_so_is_all_that_follows(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LateClock()
    spec = memory_spec(deadline_seconds=30.0)
    pool = quick(make_pool(spec, clock=clock), tmp_path, spec)
    pool.submit(spec, *(ask(tmp_path, trial, "return" if trial else "wait") for trial in range(4)))
    select = pool._selector.select

    def hear_too_early(timeout: float | None = None) -> Any:
        monkeypatch.undo()
        heard = select(0.0)
        release(tmp_path, 0)
        wait_until(lambda: begun(tmp_path) == ["0", "1", "2", "3"], "the slot goes on")
        clock.ahead = 60.0
        return heard

    wait_until(lambda: begun(tmp_path) == ["0"], "the slot is at the one that waits")
    monkeypatch.setattr(pool._selector, "select", hear_too_early)
    results = {result.trial: result for _, result in pool.poll(0.0)}
    results |= collect(pool, 4 - len(results))
    assert {trial: result.outcome for trial, result in results.items()} == dict.fromkeys(range(4), Outcome.OK)
    assert begun(tmp_path) == ["0", "1", "2", "3"]


def test_what_waits_behind_one_that_takes_its_time_is_done_by_others_however_much_comes(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = quick(make_pool(slots=2), tmp_path)
    pool.submit(SPEC, *(ask(tmp_path, trial, "wait" if trial == 0 else "return") for trial in range(12)))
    answered: set[int] = set()
    end, submitted = time.monotonic() + PATIENCE, 12
    while len(answered & set(range(1, 12))) < 10:  # one is still to be begun next by the slot that is held up
        assert time.monotonic() < end, f"only {sorted(answered)[:12]} are done"
        # The other slot is never without work.
        pool.submit(SPEC, *(ask(tmp_path, trial) for trial in range(submitted, submitted + 20)))
        submitted += 20
        answered |= {result.trial for _, result in pool.poll(0.1)}
    release(tmp_path, 0)
    collect(pool, submitted - len(answered))


def test_what_is_too_long_to_be_offered_waits(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    pool.submit(SPEC, ask(tmp_path, 0, "wait"))
    long = {f"long{part}": "x" * 9000 for part in range(3)}
    pool.submit(SPEC, evaluation(1, name="1", folder=str(tmp_path), do="return", **long))
    release(tmp_path, 0)
    assert {trial: result.outcome for trial, result in collect(pool, 2).items()} == dict.fromkeys((0, 1), Outcome.OK)


def test_many_quick_ones_are_each_done_once(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(slots=3)
    answered: Counter[int] = Counter()
    submitted = 0
    while sum(answered.values()) < 600:
        # As few in flight as slots at times, as many as three for each at others: offers come and are withdrawn.
        for _ in range(min(600 - submitted, 9 if submitted % 5 else 3)):
            if submitted - sum(answered.values()) < 9:
                pool.submit(SPEC, ask(tmp_path, submitted))
                submitted += 1
        answered.update(result.trial for _, result in pool.poll(5.0))
    assert answered == Counter(range(600))
    assert Counter(begun(tmp_path)) == Counter(map(str, range(600)))
