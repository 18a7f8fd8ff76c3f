"""Slots that are threads."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pools import collect, evaluation, memory_spec, run
from support.waiting import wait_until

from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import DataError, FleetError, ObjectiveError
from trialfleet_shared.messages import Evaluation, Outcome, StudySpec
from trialfleet_workers.threads import ThreadPool

MakePool = Callable[..., ThreadPool]


class Source:
    """A data set whose splits say what they were asked for."""

    def split(self, **asked: Any) -> Any:
        if asked["fold"] == 8:
            raise OSError("the disk is gone")
        if asked["fold"] > 1:
            raise DataError(f"fold = {asked['fold']}; allowed are 0 and 1")
        return asked


def open_source(spec: StudySpec) -> Source:
    if spec.data_digest == "00":
        raise DataError("no such data")
    return Source()


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[MakePool]:
    pools: list[ThreadPool] = []

    def make(function: Callable[..., Any], slots: int = 2) -> ThreadPool:
        pools.append(
            ThreadPool(
                slots=slots, base=tmp_path, open_data=open_source, functions={"f": function}, clock=SystemClock()
            )
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_an_objective_sees_its_share_of_the_data(make_pool: MakePool) -> None:
    asked: list[Any] = []
    pool = make_pool(lambda params, data: asked.append(data) or 1.0)
    spec = memory_spec(data_digest="ab", seed=5, share_memory=False)
    run(pool, spec, Evaluation(trial=0, rung=2, fold=1, fraction=0.3, params={}))
    assert asked == [{"fold": 1, "fraction": 0.3, "rung": 2, "seed": 5, "share": False}]


def test_data_that_can_not_be_had_refuse_the_evaluation(make_pool: MakePool) -> None:
    pool = make_pool(lambda params, data: 1.0)
    bad = Evaluation(trial=0, rung=0, fold=7, fraction=1.0, params={})
    refused = run(pool, memory_spec(data_digest="ab"), bad)[0]
    assert (refused.outcome, refused.error) == (Outcome.REFUSED, "fold = 7; allowed are 0 and 1")
    unreadable = Evaluation(trial=2, rung=0, fold=8, fraction=1.0, params={})
    refused = run(pool, memory_spec(data_digest="ab"), unreadable)[2]
    assert (refused.outcome, refused.error) == (Outcome.REFUSED, "the data can not be had: OSError: the disk is gone")
    refused = run(pool, memory_spec(data_digest="00"), evaluation(1))[1]
    assert (refused.outcome, refused.error) == (Outcome.REFUSED, "no such data")
    with pytest.raises(DataError, match="no such data"):
        pool.prepare(memory_spec(data_digest="00"))
    with pytest.raises(ObjectiveError, match="has no data set"):
        pool.prepare(memory_spec())


def test_a_late_answer_is_ignored_and_another_thread_takes_over(make_pool: MakePool) -> None:
    release, ended = threading.Event(), threading.Event()

    def objective(params: dict[str, Any]) -> float:
        if params["late"]:
            release.wait(30.0)
            ended.set()
        return 1.0

    pool = make_pool(objective, slots=1)
    results = run(pool, memory_spec(deadline_seconds=0.2), evaluation(0, late=True), evaluation(1, late=False))
    assert results[0].outcome is Outcome.TIMEOUT
    assert results[0].error == "given up on at its deadline of 0.2 s; its thread runs on"
    assert results[1].value == 1.0
    assert pool.restarts == {"timeout": 1}
    release.set()
    assert ended.wait(10.0)
    assert run(pool, memory_spec(), evaluation(2, late=False))[2].value == 1.0
    assert pool.poll(0.0) == []


def test_what_is_not_started_can_be_taken_back(make_pool: MakePool) -> None:
    release = threading.Event()
    pool = make_pool(lambda params: release.wait(30.0))
    for trial in range(5):
        pool.submit(memory_spec(), evaluation(trial))
    wait_until(lambda: pool.busy == 2, "both threads are busy")
    assert pool.queued == 3
    assert [one.trial for _, one in pool.take_back()] == [2, 3, 4]
    release.set()
    assert sorted(collect(pool, 2)) == [0, 1]


def test_a_waiting_poll_can_be_woken(make_pool: MakePool) -> None:
    pool = make_pool(lambda params: 1.0)
    timer = threading.Timer(0.05, pool.wake)
    timer.start()
    began = time.monotonic()
    assert pool.poll(30.0) == []
    assert time.monotonic() - began < 10.0
    timer.join()


def test_threads_end_with_the_pool(make_pool: MakePool) -> None:
    before = set(threading.enumerate())
    pool = make_pool(lambda params: 1.0)
    run(pool, memory_spec(), evaluation(0))
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    pool.close()
    wait_until(lambda: not any(thread.is_alive() for thread in mine), "the threads have ended")
    available = pool.available_slot_seconds
    assert pool.available_slot_seconds == available
    with pytest.raises(FleetError, match="closed"):
        pool.submit(memory_spec(), evaluation(1))


def test_the_memory_is_looked_at_every_few_seconds_only(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([200, 300])
    monkeypatch.setattr("trialfleet_workers.linux.pss_bytes", lambda pid: next(looks))
    pool = make_pool(lambda params: 1.0)
    assert [pool.pss_bytes() for _ in range(100)] == [200] * 100
    assert pool.peak_pss_bytes == 200
