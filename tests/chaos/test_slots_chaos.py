"""Objectives that do their worst, and processes that are killed: each costs what it has to and nothing else."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pools import collect, evaluation, is_alive, memory_spec, run
from support.waiting import wait_until

from trialfleet_shared.clock import SystemClock
from trialfleet_shared.messages import EvaluationResult, Outcome, StudySpec
from trialfleet_workers.digests import code_digest
from trialfleet_workers.slots import SlotPool

pytestmark = pytest.mark.chaos

MEGABYTE = 10**6


def well_behaved(params: dict[str, Any]) -> float:
    return float(params["x"])


def loop_in_native_code(params: dict[str, Any]) -> float:
    return sum(range(10**13))


def backtrack_for_ever(params: dict[str, Any]) -> float:
    return re.match(r"(a*)*b", "a" * 60) is None


def ignore_signals(params: dict[str, Any]) -> float:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def take_memory_without_end(params: dict[str, Any]) -> float:
    hoard = []
    while True:
        hoard.append(b"x" * MEGABYTE)


def take_memory_at_once(params: dict[str, Any]) -> float:
    import numpy as np

    return float(np.ones(10**9).sum())


def exit_at_once(params: dict[str, Any]) -> float:
    os._exit(3)


def exit_politely(params: dict[str, Any]) -> float:
    sys.exit("enough")


def dereference_null(params: dict[str, Any]) -> float:
    return float(ctypes.string_at(0)[0])


def abort(params: dict[str, Any]) -> float:
    os.abort()


def kill_itself(params: dict[str, Any]) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def recurse_for_ever(params: dict[str, Any]) -> float:
    return recurse_for_ever(params)


def close_every_descriptor(params: dict[str, Any]) -> float:
    os.closerange(3, 256)
    time.sleep(0.1)
    return 1.0


def write_nonsense_to_every_socket(params: dict[str, Any]) -> float:
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            socket.socket(fileno=os.dup(int(entry.name))).sendall(b"\x03\x00\x00\x00{}!")
        except OSError:
            continue
    time.sleep(5)
    return 1.0


def fork_and_let_the_child_return(params: dict[str, Any]) -> float:
    child = os.fork()
    if child == 0:
        return -1.0
    os.waitpid(child, 0)
    return 1.0


def raise_without_a_message(params: dict[str, Any]) -> float:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise SilentError


def flood_standard_output(params: dict[str, Any]) -> float:
    for _ in range(200):
        os.write(1, b"." * 10_000)
    return 1.0


#: What misbehaves, how it has to end, and what the message says.
CASES: list[tuple[Callable[[dict[str, Any]], float], Outcome, str]] = [
    (loop_in_native_code, Outcome.TIMEOUT, "ended at its deadline of 2 s"),
    (backtrack_for_ever, Outcome.TIMEOUT, "ended at its deadline of 2 s"),
    (ignore_signals, Outcome.TIMEOUT, "ended at its deadline of 2 s"),
    (take_memory_without_end, Outcome.MEMORY, "MemoryError"),
    (take_memory_at_once, Outcome.MEMORY, "Unable to allocate"),
    (exit_at_once, Outcome.CRASH, "exited with status 3"),
    (exit_politely, Outcome.ERROR, "SystemExit: enough"),
    (dereference_null, Outcome.CRASH, "killed by SIGSEGV"),
    (abort, Outcome.CRASH, "killed by SIGABRT"),
    (kill_itself, Outcome.CRASH, "killed by SIGKILL"),
    (recurse_for_ever, Outcome.ERROR, "RecursionError"),
    (close_every_descriptor, Outcome.CRASH, ""),
    (write_nonsense_to_every_socket, Outcome.CRASH, "killed by SIGKILL"),
    (fork_and_let_the_child_return, Outcome.OK, ""),
    (raise_without_a_message, Outcome.ERROR, "SilentError"),
    (flood_standard_output, Outcome.OK, ""),
    (lambda _: float("nan"), Outcome.ERROR, "objective returned nan; a finite number is needed"),
    (lambda _: float("-inf"), Outcome.ERROR, "objective returned -inf; a finite number is needed"),
    (lambda _: "3.5", Outcome.ERROR, "objective returned '3.5'; a finite number is needed"),  # type: ignore[return-value, arg-type]  # on purpose
    (lambda _: None, Outcome.ERROR, "objective returned None; a finite number is needed"),  # type: ignore[return-value, arg-type]  # on purpose
]


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., SlotPool]]:
    pools: list[SlotPool] = []

    def make(**functions: Callable[..., Any]) -> SlotPool:
        pools.append(SlotPool(slots=1, base=tmp_path, data_path=None, functions=functions, clock=SystemClock()))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.mark.parametrize(("objective", "outcome", "message"), CASES)
def test_the_worst_costs_one_evaluation(
    make_pool: Callable[..., SlotPool],
    objective: Callable[[dict[str, Any]], float],
    outcome: Outcome,
    message: str,
) -> None:
    """The slot before and after is the only one: it has to be replaced for the second evaluation to be answered."""
    pool = make_pool(worst=lambda params: objective(params) if params["worst"] else well_behaved(params))
    spec = memory_spec("worst", deadline_seconds=2.0, memory_limit_bytes=400 * MEGABYTE)
    if outcome is Outcome.MEMORY:
        spec = memory_spec("worst", memory_limit_bytes=100 * MEGABYTE)
    pool.prepare(spec)
    for trial in range(3):
        pool.submit(spec, evaluation(trial, worst=trial == 1, x=trial))
    results = collect(pool, 3)
    assert results[0].value == 0.0
    assert results[1].outcome is outcome
    assert message in (results[1].error or "")
    assert results[1].value == (1.0 if outcome is Outcome.OK else None)
    assert results[2].value == 2.0
    assert pool.poll(0.0) == []
    assert pool.busy == 0


def test_a_replacement_is_there_at_once(make_pool: Callable[..., SlotPool]) -> None:
    pool = make_pool(f=lambda params: os._exit(1) if params["x"] else 1.0)
    pool.prepare(memory_spec())
    run(pool, memory_spec(), evaluation(0, x=1))
    began = time.monotonic()
    run(pool, memory_spec(), evaluation(1, x=0))
    assert time.monotonic() - began < 10.0
    assert pool.restarts == {"crash": 1}


def test_grandchildren_end_with_their_slot(make_pool: Callable[..., SlotPool], tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def objective(params: dict[str, Any]) -> float:
        children = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        pids.write_text(" ".join(str(child.pid) for child in children))
        if params["how"] == "exit":
            os._exit(0)
        time.sleep(600)
        return 0.0

    pool = make_pool(f=objective)
    for trial, (how, outcome) in enumerate([("exit", Outcome.CRASH), ("hang", Outcome.TIMEOUT)]):
        spec = memory_spec(deadline_seconds=1.0)
        assert run(pool, spec, evaluation(trial, how=how))[trial].outcome is outcome
        grandchildren = [int(pid) for pid in pids.read_text().split()]
        assert len(grandchildren) == 2
        wait_until(lambda: not any(map(is_alive, grandchildren)), "the grandchildren are gone")  # noqa: B023  # called at once


@pytest.mark.parametrize("start_new_session", [False, True])
def test_what_an_evaluation_has_started_ends_at_its_deadline(
    start_new_session: bool, make_pool: Callable[..., SlotPool], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"

    def wait_for_ever(params: dict[str, Any]) -> float:
        script = f"sleep 600 & echo $! $$ > {pids}; wait"
        subprocess.run(["sh", "-c", script], start_new_session=start_new_session, check=True)
        return 1.0

    pool = make_pool(f=wait_for_ever)
    assert run(pool, memory_spec(deadline_seconds=1.0), evaluation(0))[0].outcome is Outcome.TIMEOUT
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    wait_until(lambda: not any(map(is_alive, started)), "what it started is gone")


def test_an_evaluation_that_leaves_its_group_ends_at_its_deadline(
    make_pool: Callable[..., SlotPool], tmp_path: Path
) -> None:
    note = tmp_path / "pid"

    def hide(params: dict[str, Any]) -> float:
        os.setpgid(0, os.getpgid(os.getppid()))
        note.write_text(str(os.getpid()))
        while True:
            time.sleep(1)

    pool = make_pool(f=hide)
    assert run(pool, memory_spec(deadline_seconds=1.0), evaluation(0))[0].outcome is Outcome.TIMEOUT
    wait_until(lambda: not is_alive(int(note.read_text())), "it is gone")


@pytest.mark.parametrize("crash", [False, True])
def test_what_leaves_the_group_ends_with_the_pool(
    make_pool: Callable[..., SlotPool], tmp_path: Path, crash: bool
) -> None:
    file = tmp_path / "pid"

    def objective(params: dict[str, Any]) -> float:
        # Its parent ends at once: what is still the evaluation's child when it crashes may end with it.
        subprocess.run(["sh", "-c", f"setsid sleep 600 >/dev/null 2>&1 & echo $! >{file}"], check=True)
        wait_until(lambda: os.getsid(int(file.read_text())) == int(file.read_text()), "it has left")
        if crash:
            os._exit(0)
        return 1.0

    pool = make_pool(f=objective)
    outcome = run(pool, memory_spec(), evaluation(0))[0].outcome
    assert outcome is (Outcome.CRASH if crash else Outcome.OK)
    assert is_alive(int(file.read_text()))
    pool.close()
    wait_until(lambda: not is_alive(int(file.read_text())), "the daemon is gone")


def test_a_lost_zygote_costs_nothing(make_pool: Callable[..., SlotPool], tmp_path: Path) -> None:
    """Its evaluations start again; one that was at work is run twice."""
    mark = tmp_path / "zygote"

    def objective(params: dict[str, Any]) -> float:
        if not mark.exists():
            mark.write_text(str(os.getppid()))
            time.sleep(600)
        return float(params["x"])

    pool = make_pool(f=objective)
    for trial in range(3):
        pool.submit(memory_spec(), evaluation(trial, x=trial))
    wait_until(lambda: pool.poll(0.01) == [] and mark.exists() and mark.read_text(), "the first one is at work")
    os.kill(int(mark.read_text()), signal.SIGKILL)
    assert {n: result.value for n, result in collect(pool, 3).items()} == {0: 0.0, 1: 1.0, 2: 2.0}
    assert pool.restarts["zygote"] == 1


@pytest.mark.parametrize(("kills", "outcome"), [(2, Outcome.OK), (99, Outcome.REFUSED)])
def test_an_import_that_is_killed_is_tried_again_but_not_for_ever(
    make_pool: Callable[..., SlotPool], tmp_path: Path, kills: int, outcome: Outcome
) -> None:
    """As the kernel does it for want of memory."""
    (tmp_path / "imported.py").write_text(
        "import os, pathlib, signal\n"
        "mark = pathlib.Path(__file__).with_suffix('.kills')\n"
        "kills = len(mark.read_text()) if mark.exists() else 0\n"
        f"if kills < {kills}:\n"
        "    mark.write_text('.' * (kills + 1))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def f(params):\n"
        "    return params['x']\n"
    )
    reference = "imported.py:f"
    spec = StudySpec(study="s", objective=reference, objective_digest=code_digest(reference, tmp_path))
    pool = make_pool()
    assert run(pool, spec, evaluation(0, x=1.0))[0].outcome is outcome
    assert pool.restarts["zygote"] == 2


def test_an_objective_that_kills_its_zygote_is_given_up(make_pool: Callable[..., SlotPool]) -> None:
    def objective(params: dict[str, Any]) -> float:
        if params["x"]:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return 1.0

    pool = make_pool(f=objective)
    results = run(pool, memory_spec(), evaluation(0, x=1), evaluation(1, x=0))
    assert results[0].outcome is Outcome.CRASH
    assert results[1].value == 1.0


def test_interrupts_of_the_whole_group_are_the_pools_business(make_pool: Callable[..., SlotPool]) -> None:
    """systemd's SIGTERM reaches every process of a unit; a worker that drains wants its evaluations to finish."""

    def objective(params: dict[str, Any]) -> float:
        if params["x"]:
            for pid in (os.getpid(), os.getppid()):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            time.sleep(0.2)
            # What it starts can be ended as ever.
            child = subprocess.Popen(["sleep", "600"])
            child.terminate()
            return float(child.wait())
        return 1.0

    pool = make_pool(f=objective)
    results = run(pool, memory_spec(), evaluation(0, x=1), evaluation(1, x=0))
    assert results[0].value == -signal.SIGTERM
    assert results[1].value == 1.0
    assert not pool.restarts


PROGRAM = """
import subprocess, sys, os, time
sys.path[:0] = {path!r}
from pathlib import Path
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.messages import Evaluation, StudySpec
from trialfleet_workers.slots import SlotPool

def objective(params):
    child = subprocess.Popen(["sleep", "600"])
    with open("pids", "a") as file:
        file.write(f"{{os.getppid()}} {{os.getpid()}} {{child.pid}}\\n")
    sum(range(10**13))

pool = SlotPool(slots=2, base=Path("."), data_path=None, functions={{"f": objective}}, clock=SystemClock())
for trial in range(4):
    pool.submit(StudySpec(study="s", objective="memory:f", objective_digest=""),
                Evaluation(trial=trial, rung=0, fold=0, fraction=1.0, params={{}}))
{then}
"""


def pids_of(file: Path) -> list[int]:
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


#: Ways in which the program goes on until it ends. In the last, a process it forked holds copies of its descriptors.
GOES_ON = {
    "killed": "pool.poll(600)",
    "ends": """
while not os.path.exists("pids") or len(open("pids").read().split()) < 6:
    pool.poll(0.1)
""",
    "killed and survived by a fork": """
if os.fork() == 0:
    with open("forked", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
pool.poll(600)
""",
}


@pytest.mark.parametrize("how", GOES_ON)
def test_nothing_is_left_when_the_program_ends_or_is_killed(tmp_path: Path, how: str) -> None:
    program = PROGRAM.format(path=sys.path, then=GOES_ON[how])
    pids, forked = tmp_path / "pids", tmp_path / "forked"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: len(pids_of(pids)) == 6, "two slots evaluate")
            assert any(map(is_alive, pids_of(pids)))
            if how != "ends":
                wait_until(lambda: "fork" not in how or pids_of(forked), "it has forked")
                process.kill()
            process.wait(60)
            wait_until(lambda: not any(map(is_alive, pids_of(pids))), "zygote, slots and grandchildren are gone")
            assert all(map(is_alive, pids_of(forked)))
        finally:
            for pid in filter(is_alive, pids_of(pids) + pids_of(forked)):
                os.kill(pid, signal.SIGKILL)


def test_a_kill_while_the_objective_is_imported_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, time\nopen('pids', 'w').write(str(os.getpid()))\ntime.sleep(600)\ndef f(params): pass\n"
    )
    program = PROGRAM.format(path=sys.path, then="pool.poll(600)").replace(
        '"memory:f", objective_digest=""', '"slow.py:f", objective_digest=digest'
    )
    program = program.replace(
        "pool = ",
        "from trialfleet_workers.digests import code_digest\ndigest = code_digest('slow.py:f', Path('.'))\npool = ",
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: pids_of(tmp_path / "pids"), "the import has begun")
        (zygote,) = pids_of(tmp_path / "pids")
        assert is_alive(zygote)
        process.kill()
        process.wait(60)
        wait_until(lambda: not is_alive(zygote), "the zygote is gone")


def test_results_of_a_storm_are_complete(make_pool: Callable[..., SlotPool], tmp_path: Path) -> None:
    """One in five evaluations kills its slot; every evaluation is answered once."""
    pool = SlotPool(
        slots=2,
        base=tmp_path,
        data_path=None,
        functions={"f": lambda params: os.kill(os.getpid(), signal.SIGKILL) if params["x"] % 5 == 0 else params["x"]},
        clock=SystemClock(),
    )
    answered: list[EvaluationResult] = []
    try:
        for trial in range(200):
            pool.submit(memory_spec(), evaluation(trial, x=trial))
        while len(answered) < 200:
            answered += [result for _, result in pool.poll(10.0)]
    finally:
        pool.close()
    assert sorted(result.trial for result in answered) == list(range(200))
    crashed = {result.trial for result in answered if result.outcome is Outcome.CRASH}
    assert crashed == set(range(0, 200, 5))
