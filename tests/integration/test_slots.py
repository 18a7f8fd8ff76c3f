"""The slot pool on real processes: what it evaluates, and what it is asked."""

import functools
import importlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pools import collect, evaluation, file_spec, memory_spec, run
from support.waiting import wait_until

from trialfleet import environment
from trialfleet_shared.caching import CachedResult
from trialfleet_shared.errors import DataError, FleetError, ObjectiveError
from trialfleet_shared.messages import Outcome
from trialfleet_workers.allowance import Allowance, resolve
from trialfleet_workers.slots import SlotPool

MakePool = Callable[..., SlotPool]


#: What the environment may have that an objective must not.
SECRETS = (environment.BROKER_URL, environment.BROKER_URL_FILE, environment.TOKEN, environment.TOKEN_FILE)


def names_of_secrets(params: dict[str, Any]) -> float:
    """How many of the variables that hold secrets an objective can read."""
    given = Path("/proc/self/environ").read_text()
    return float(sum(name in os.environ or name in given for name in SECRETS))


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def score(self, params: dict[str, Any]) -> float:
        return self.factor * float(params["x"])


def scaled(factor: float, params: dict[str, Any]) -> float:
    return factor * float(params["x"])


def test_functions_that_exist_only_in_memory_are_evaluated(make_pool: MakePool) -> None:
    offset = 7

    def closure(params: dict[str, Any]) -> float:
        return float(params["x"]) + offset

    functions = {
        "closure": closure,
        "lambda": lambda params: params["x"] + 1,
        "method": Scaler(3.0).score,
        "partial": functools.partial(scaled, 10.0),
    }
    pool = make_pool(functions=functions)
    values = {name: run(pool, memory_spec(name), evaluation(0, x=2.0))[0].value for name in functions}
    assert values == {"closure": 9.0, "lambda": 3.0, "method": 6.0, "partial": 20.0}


def test_evaluators_have_the_settings_that_modules_have_by_now(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings_of_slots.py").write_text(
        "NOTHING = object()\nSCALE, WEIGHTS = 1.0, {'x': 1.0}\n"
        "def score(params, more=NOTHING):\n"
        "    return params['x'] * SCALE * WEIGHTS['x'] + (0.0 if more is NOTHING else 100.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = importlib.import_module("settings_of_slots")
    monkeypatch.setattr(settings, "SCALE", 2.0)
    monkeypatch.setattr(settings, "WEIGHTS", {"x": 3.0})

    def closure(params: dict[str, Any]) -> float:
        return float(params["x"]) * settings.SCALE + settings.WEIGHTS["x"]

    pool = make_pool(functions={"by reference": settings.score, "closure": closure})
    values = {name: run(pool, memory_spec(name), evaluation(0, x=5.0))[0].value for name in ("by reference", "closure")}
    assert values == {"by reference": 30.0, "closure": 13.0}
    monkeypatch.delitem(sys.modules, "settings_of_slots")


def test_a_function_that_can_not_be_sent_says_what_to_do(make_pool: MakePool) -> None:
    lock = threading.Lock()

    def objective(params: dict[str, Any]) -> float:
        with lock:
            return float(params["x"])

    with pytest.raises(ObjectiveError, match="use_process_pool=False"):
        make_pool(objective).prepare(memory_spec())


def test_an_objective_written_for_optuna_is_called_with_a_trial(make_pool: MakePool) -> None:
    def objective(trial: Any) -> float:
        trial.report(1.0, 0)
        assert not trial.should_prune()
        depth = trial.suggest_int("depth", 1, 9)
        return float(depth * trial.suggest_float("rate", 0.0, 1.0)) + trial.number

    pool = make_pool(objective)
    results = run(
        pool, memory_spec(), evaluation(0, depth=4, rate=0.5), evaluation(1, depth=4), evaluation(2, depth=10)
    )
    assert results[0].value == 2.0
    assert results[1].error == "trial.suggest_*('rate'): the study's space gave no such parameter; allowed are depth"
    assert "gave 10, outside of Int(min=1, max=9" in (results[2].error or "")


def test_studies_share_the_slots(make_pool: MakePool) -> None:
    pool = make_pool(functions={"one": lambda _: 1, "two": lambda _: 2})
    specs = [memory_spec("one"), memory_spec("two"), memory_spec("one", study="other", seed=3)]
    for trial in range(30):
        pool.submit(specs[trial % 3], evaluation(trial))
    results: list[tuple[str, float | None]] = []
    while len(results) < 30:
        results += [(spec.study, result.value) for spec, result in pool.poll(5.0)]
    assert sorted(results) == sorted([("one", 1.0), ("two", 2.0), ("other", 1.0)] * 10)


def test_more_studies_than_zygotes_are_kept(make_pool: MakePool) -> None:
    pool = make_pool(functions={str(n): functools.partial(scaled, float(n)) for n in range(6)})
    for n in [*range(6), 0]:
        assert run(pool, memory_spec(str(n)), evaluation(0, x=2.0))[0].value == 2.0 * n


def test_what_is_random_follows_from_the_evaluation(make_pool: MakePool) -> None:
    def objective(params: dict[str, Any]) -> float:
        return random.random() + float(np.random.random())  # noqa: NPY002  # the global one is what is tested

    def values(seed: int) -> list[float | None]:
        results = run(make_pool(objective), memory_spec(seed=seed), *(evaluation(n, x=n % 5) for n in range(10)))
        return [results[n].value for n in range(10)]

    first = values(0)
    assert first[:5] == first[5:]
    assert len(set(first)) == 5
    assert values(0) == first
    assert values(1) != first


def test_numerical_libraries_have_one_thread(make_pool: MakePool) -> None:
    def objective(params: dict[str, Any]) -> dict[str, float]:
        import threadpoolctl

        np.ones((50, 50)) @ np.ones((50, 50))
        libraries = threadpoolctl.threadpool_info()
        return {"value": len(libraries), "most": max(library["num_threads"] for library in libraries)}

    result = run(make_pool(objective), memory_spec(), evaluation(0))[0]
    assert result.value is not None
    assert result.value >= 1
    assert result.metrics == {"most": 1.0}


def test_output_goes_to_standard_error(make_pool: MakePool, capfd: pytest.CaptureFixture[str]) -> None:
    def objective(params: dict[str, Any]) -> float:
        print("said by the objective")  # noqa: T201  # as users do
        os.write(1, b"said by native code\n")
        return 1.0

    run(make_pool(objective), memory_spec(), evaluation(0))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "said by the objective" in captured.err
    assert "said by native code" in captured.err


@pytest.mark.parametrize("done", ["sys.stdout.close()", "sys.stdout = None", "sys.stdout = object()"])
@pytest.mark.parametrize(
    "code", ["{done}\ndef f(params): return params['x']", "def f(params): {done}; return params['x']"]
)
def test_an_objective_may_do_away_with_its_output(make_pool: MakePool, tmp_path: Path, code: str, done: str) -> None:
    (tmp_path / "silent.py").write_text(f"import sys\n{code.format(done=done)}\n")
    results = run(
        make_pool(slots=1), file_spec("silent.py:f", tmp_path), *(evaluation(number, x=number) for number in range(2))
    )
    assert [(results[number].value, results[number].error) for number in range(2)] == [(0.0, None), (1.0, None)]


def test_large_params_and_messages_travel(make_pool: MakePool) -> None:
    def objective(params: dict[str, Any]) -> float:
        if "fail" in params:
            raise ValueError("long" * 10**6)
        return sum(map(len, params.values()))

    texts = {f"text{number}": "x" * 10**4 for number in range(100)}
    results = run(make_pool(objective), memory_spec(), evaluation(0, **texts), evaluation(1, fail=True))
    assert results[0].value == 10**6
    assert results[1].outcome is Outcome.ERROR
    assert (results[1].error or "").startswith("ValueError: longlong")


def test_cpu_seconds_include_children(make_pool: MakePool) -> None:
    def objective(params: dict[str, Any]) -> float:
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
        return time.process_time()

    result = run(make_pool(objective), memory_spec(), evaluation(0))[0]
    assert 0.05 < result.cpu_seconds <= result.wall_seconds + 0.1


def test_what_is_not_started_can_be_taken_back(make_pool: MakePool) -> None:
    pool = make_pool(lambda params: time.sleep(params["x"]) or 1.0)
    spec = memory_spec()
    pool.prepare(spec)
    for trial in range(6):
        pool.submit(spec, evaluation(trial, x=0.3))
    assert (pool.busy, pool.queued) == (2, 4)
    assert {key.trial for _, key in pool.held} == set(range(6))
    assert [(taken.study, one.trial) for taken, one in pool.take_back()] == [("f", 2), ("f", 3), ("f", 4), ("f", 5)]
    assert (pool.busy, pool.queued) == (2, 0)
    assert sorted(collect(pool, 2)) == [0, 1]
    assert pool.poll(0.05) == []
    assert pool.held == []


def test_busy_time_is_integrated_while_an_evaluation_runs(make_pool: MakePool) -> None:
    pool = make_pool(lambda params: time.sleep(params["x"]) or 1.0)
    pool.prepare(memory_spec())
    began = time.monotonic()
    pool.submit(memory_spec(), evaluation(0, x=1.0))
    answered = pool.poll(0.4)
    assert 0.35 < pool.busy_slot_seconds <= time.monotonic() - began
    if not answered:  # it is, where this process was held up
        collect(pool, 1)
    busy = pool.busy_slot_seconds
    assert 0.95 < busy <= time.monotonic() - began
    assert pool.busy_slot_seconds == busy
    assert pool.available_slot_seconds > 2 * busy - 0.1


def test_a_waiting_poll_can_be_woken_from_another_thread(make_pool: MakePool) -> None:
    pool = make_pool(lambda _: 1.0)
    pool.prepare(memory_spec())
    timer = threading.Timer(0.1, pool.wake)
    timer.start()
    began = time.monotonic()
    assert pool.poll(30.0) == []
    assert time.monotonic() - began < 10.0
    timer.join()
    pool.close()
    pool.wake()


def test_a_closed_pool_says_so(make_pool: MakePool) -> None:
    pool = make_pool(lambda _: 1.0)
    pool.close()
    pool.close()
    with pytest.raises(FleetError, match="closed"):
        pool.submit(memory_spec(), evaluation(0))
    with pytest.raises(FleetError, match="closed"):
        pool.poll(0.0)


def test_no_slots_are_refused(make_pool: MakePool) -> None:
    with pytest.raises(FleetError, match="slots = 0"):
        make_pool(slots=0)


class RecordingCache:
    def __init__(self) -> None:
        self.entries: dict[bytes, CachedResult] = {}

    def get_many(self, keys: Sequence[bytes]) -> list[CachedResult | None]:
        return [self.entries.get(key) for key in keys]

    def put_many(self, entries: Sequence[tuple[bytes, CachedResult]]) -> None:
        self.entries.update(entries)

    def close(self) -> None:
        pass


def test_the_cache_answers_what_was_evaluated_before(make_pool: MakePool) -> None:
    cache = RecordingCache()
    pool = make_pool(lambda params: {"value": time.time_ns(), "loss": params["x"]}, cache=cache)
    first = run(pool, memory_spec(), evaluation(0, x=1), evaluation(1, x=2))
    again = run(pool, memory_spec(), evaluation(5, x=2), evaluation(6, x=3), evaluation(8, x=2.0))
    assert again[5].value == first[1].value
    assert again[5].metrics == {"loss": 2.0}
    assert again[5].cached
    assert again[5].wall_seconds == first[1].wall_seconds
    assert not again[6].cached
    assert not again[8].cached, "2.0 is not 2 to every objective"
    assert not run(pool, memory_spec(use_cache=False), evaluation(7, x=3))[7].cached


def test_failures_are_not_cached(make_pool: MakePool) -> None:
    cache = RecordingCache()
    run(make_pool(lambda _: None, cache=cache), memory_spec(), evaluation(0))
    assert cache.entries == {}


def test_only_allowed_objectives_run(make_pool: MakePool, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "tune.py").write_text("def objective(params): return 1.0\n")
    (outside / "other.py").write_text("def objective(params): return 2.0\n")
    pool = make_pool(base=inside, allowance=Allowance((inside,)))
    assert run(pool, file_spec("outside/tune.py:objective", tmp_path), evaluation(0))[0].value == 1.0
    refused = run(pool, file_spec("outside/other.py:objective", tmp_path), evaluation(1))[1]
    assert refused.outcome is Outcome.REFUSED
    assert "is not allowed here" in (refused.error or "")


@pytest.mark.parametrize(
    "name", ["tune.py", "my-tune.py"]
)  # one that can be imported by its name, and one that can not
def test_other_code_is_refused_until_it_is_updated(
    name: str, make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both files are of one size, and of the same second for the most part: bytecode does not tell them apart.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    file = tmp_path / name
    file.write_text("def objective(params): return 1.0\n")
    pool = make_pool()
    old = file_spec(f"{name}:objective", tmp_path)
    assert run(pool, old, evaluation(0))[0].value == 1.0
    file.write_text("def objective(params): return 2.0\n")
    new = file_spec(f"{name}:objective", tmp_path)
    assert run(pool, new, evaluation(1))[1].value == 2.0
    # What was imported before is still the old study's code.
    assert run(pool, old, evaluation(2))[2].value == 1.0
    with pytest.raises(ObjectiveError, match="update the worker's copy"):
        make_pool().prepare(old)


def test_an_objective_that_can_not_be_looked_at_costs_its_own_study_alone(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tune.py").write_text("def objective(params): return 1.0\n")
    (tmp_path / "broken.py").write_text("def objective(params): return 1.0\n")
    fine, broken = (file_spec(f"{name}.py:objective", tmp_path, study=name) for name in ("tune", "broken"))

    def look(reference: str, *arguments: Any) -> Any:
        if "broken" in reference:
            raise RuntimeError("nobody thought of this")
        return resolve(reference, *arguments)

    monkeypatch.setattr("trialfleet_workers.zygotes.resolve", look)
    pool = make_pool()
    with pytest.raises(ObjectiveError, match=r"'broken\.py:objective' can not be looked at: RuntimeError: nobody"):
        pool.preload(broken)
    refused = run(pool, broken, evaluation(0))[0]
    assert refused.outcome is Outcome.REFUSED
    assert "can not be looked at: RuntimeError: nobody thought of this" in (refused.error or "")
    assert run(pool, fine, evaluation(0))[0].value == 1.0


def test_a_function_travels_whole_though_a_signal_cuts_its_message(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between its parts has `sendmsg` send what has gone into the socket's buffer by then."""
    table = list(range(1000))

    def objective(params: dict[str, Any]) -> float:
        return float(sum(table))

    send = socket.send_fds

    def cut(sock: socket.socket, buffers: Sequence[bytes], *arguments: Any) -> int:
        return send(sock, [buffers[0][:7]], *arguments)

    monkeypatch.setattr(socket, "send_fds", cut)
    assert run(make_pool(objective), memory_spec(), evaluation(0))[0].value == 499500.0


def test_data_that_no_cache_has_is_told(make_pool: MakePool) -> None:
    with pytest.raises(DataError, match="no data cache"):
        make_pool(lambda params, data: 1.0).prepare(memory_spec(data_digest="ab"))


def test_an_objective_that_needs_data_is_told(make_pool: MakePool) -> None:
    with pytest.raises(ObjectiveError, match="has no data set"):
        make_pool(lambda params, data: 1.0).prepare(memory_spec())


def test_garbage_is_collected_at_the_interval(make_pool: MakePool) -> None:
    def objective(params: dict[str, Any]) -> float:
        import gc

        gc.disable()
        cycle: list[Any] = []
        cycle.append(cycle)
        return gc.get_count()[0] + 1000 * len(gc.get_stats()) + gc.get_stats()[2]["collections"] * 10**6

    pool = make_pool(objective, slots=1)
    results = run(pool, memory_spec(collect_interval=2), *(evaluation(n) for n in range(6)))
    collections = [int(results[n].value or 0) // 10**6 for n in range(6)]
    assert [later - collections[0] for later in collections] == [0, 0, 1, 1, 2, 2]


def test_memory_of_the_processes_is_measured(make_pool: MakePool) -> None:
    pool = make_pool(lambda _: 1.0)
    run(pool, memory_spec(), evaluation(0))
    assert pool.pss_bytes() > 10 * 2**20
    assert pool.peak_pss_bytes >= pool.pss_bytes()


def test_slots_are_processes_of_their_own_group(make_pool: MakePool) -> None:
    pool = make_pool(lambda _: os.getpid() if os.getpgrp() == os.getpid() else 0)
    results = run(pool, memory_spec(), *(evaluation(n) for n in range(20)))
    pids = {int(result.value or 0) for result in results.values()}
    assert 1 <= len(pids) <= 2
    assert pids.isdisjoint({0, os.getpid()})
    pool.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the slots are gone")


def test_evaluators_inherit_no_secrets(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "amqp://user:hunter2@host")
    assert run(make_pool(names_of_secrets), memory_spec(), evaluation(0))[0].value == 0.0
