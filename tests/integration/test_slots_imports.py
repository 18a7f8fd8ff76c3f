"""The slot pool on real processes: how objectives are imported, and what becomes of that."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pools import collect, evaluation, file_spec, is_alive, memory_spec, run
from support.waiting import wait_until

from trialfleet_shared.errors import ObjectiveError
from trialfleet_workers.slots import SlotPool

MakePool = Callable[..., SlotPool]


#: A file that starts its own study when it is imported.
STARTS_ITSELF = """
from pathlib import Path
from trialfleet_workers.objective import load_function
load_function("tune.py:objective", Path(__file__).parent)
"""


def test_imports_beside_the_file_work_and_are_done_once(make_pool: MakePool, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "helper.py").write_text(f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\nfactor = 4\n")
    (project / "tune.py").write_text("import helper\ndef objective(params): return helper.factor * params['x']\n")
    pool = make_pool()
    results = run(pool, file_spec("project/tune.py:objective", tmp_path), *(evaluation(n, x=n) for n in range(6)))
    assert [results[n].value for n in range(6)] == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]
    assert (tmp_path / "imports").read_text() == "x"


def test_a_slow_import_holds_up_nobody_else(make_pool: MakePool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    (tmp_path / "slow.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\ndef objective(params): return 7.0\n"
    )
    pool = make_pool(lambda params: params["x"])
    pool.prepare(memory_spec())
    slow = file_spec("slow.py:objective", tmp_path)
    for trial in range(3):
        pool.submit(slow, evaluation(100 + trial))
    assert run(pool, memory_spec(), evaluation(0, x=1.0), evaluation(1, x=2.0))[1].value == 2.0
    assert (pool.busy, pool.queued) == (0, 3)
    assert {key.trial for _, key in pool.held} == {100, 101, 102}
    assert [one.trial for _, one in pool.take_back()] == [100, 101, 102]
    pool.submit(slow, evaluation(103))
    go.touch()
    assert collect(pool, 1)[103].value == 7.0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nosuchmodule", "No module named 'nosuchmodule'"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("import os; os._exit(4)", "exited with status 4"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        (STARTS_ITSELF, "put what starts it below"),
    ],
)
def test_an_import_that_fails_is_told(make_pool: MakePool, tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "tune.py").write_text(f"def objective(params): return 1.0\n{code}\n")
    with pytest.raises(ObjectiveError, match=message):
        make_pool().prepare(file_spec("tune.py:objective", tmp_path))


def test_an_import_that_starts_threads_is_done_in_the_slots(make_pool: MakePool, tmp_path: Path) -> None:
    """A lock that the other thread holds at the fork would never be released in the slot."""
    (tmp_path / "tune.py").write_text(
        textwrap.dedent("""
        import threading
        lock = threading.Lock()
        def hold():
            while True:
                with lock:
                    threading.Event().wait(0.05)
                threading.Event().wait(0.005)  # a lock is not fair: without a pause the objective may wait for ever
        threading.Thread(target=hold, daemon=True).start()
        def objective(params):
            with lock:
                return threading.active_count()
        """)
    )
    spec = file_spec("tune.py:objective", tmp_path, deadline_seconds=20.0)
    results = run(make_pool(), spec, *(evaluation(n) for n in range(4)))
    assert {result.value for result in results.values()} == {2.0}


def test_usual_imports_are_done_once_in_the_zygote(make_pool: MakePool, tmp_path: Path) -> None:
    """pyarrow, which pandas imports, starts a thread that a fork does not harm."""
    (tmp_path / "tune.py").write_text(
        f"""
import pandas, pyarrow
open({str(tmp_path / "imports")!r}, "a").write("x")
def objective(params):
    return float(pandas.DataFrame({{"a": pyarrow.array([1.0, 2.0]).to_pandas()}})["a"].sum())
"""
    )
    results = run(make_pool(), file_spec("tune.py:objective", tmp_path), *(evaluation(n) for n in range(4)))
    assert {result.value for result in results.values()} == {3.0}
    assert (tmp_path / "imports").read_text() == "x"


#: Its import notes that it has begun, and where it ends.
SLOW_IMPORT = """
import pathlib, time
here = pathlib.Path(__file__).parent
(here / "began").open("a").write("x")
time.sleep({seconds})
(here / "ended").touch()
def objective(params):
    return 1.0
"""


def test_an_import_can_begin_before_the_study_is_prepared(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(SLOW_IMPORT.format(seconds=0))
    spec, pool = file_spec("tune.py:objective", tmp_path), make_pool()
    pool.preload(spec)
    wait_until((tmp_path / "ended").exists, "the objective is imported")
    pool.prepare(spec)
    assert run(pool, spec, evaluation(0))[0].value == 1.0
    assert (tmp_path / "began").read_text() == "x"


def test_what_an_import_has_started_ends_with_it(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trialfleet_workers.handles._END_SECONDS", 0.1)
    note = tmp_path / "pid"
    (tmp_path / "tune.py").write_text(
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\nchild.wait()\ndef objective(params): return 1.0\n"
    )
    pool, spec = make_pool(), file_spec("tune.py:objective", tmp_path)
    pool.preload(spec)
    wait_until(lambda: note.exists() and note.read_text(), "its child runs")
    (zygote,) = pool._zygotes
    zygote.limit = 0.0  # however slow the machine is
    with pytest.raises(ObjectiveError, match="its import took more than"):
        pool.prepare(spec)
    wait_until(lambda: not is_alive(int(note.read_text())), "it is gone")


def test_a_zygote_that_is_killed_is_missed_though_its_import_left_a_process_behind(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """That process keeps the zygote's socket open, as a `multiprocessing.Manager` does."""
    (tmp_path / "tune.py").write_text(
        "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\n"
        "def objective(params):\n    time.sleep(params['seconds'])\n    return 1.0\n"
    )
    pool, spec = make_pool(slots=1), file_spec("tune.py:objective", tmp_path)
    pool.prepare(spec)
    pool.submit(spec, evaluation(0, seconds=0.5))
    (zygote,) = pool._zygotes
    os.kill(zygote.pid, signal.SIGKILL)
    assert collect(pool, 1)[0].value == 1.0
    assert pool.restarts["zygote"] == 1


def test_closing_does_not_wait_for_an_import(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(SLOW_IMPORT.format(seconds=4))  # a zygote has 5 to end in order
    pool = make_pool()
    pool.preload(file_spec("tune.py:objective", tmp_path))
    wait_until((tmp_path / "began").exists, "the import has begun")
    pool.close()
    assert not (tmp_path / "ended").exists()


#: Says whether pandas is there before it asks for a frame.
HAS_PANDAS = """
'No frame is asked for in words.'
import sys
def objective(params, data=None):
    found = "pandas" in sys.modules
    return float(found){asks}
"""


@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        ("", 0.0),
        (" if data is None else data.frame.size", 1.0),
        (" if data is None else data.frame_valid.size", 1.0),
    ],
)
def test_pandas_is_imported_once_where_frames_are_asked_for(
    asks: str, expected: float, make_pool: MakePool, tmp_path: Path
) -> None:
    (tmp_path / "tune.py").write_text(HAS_PANDAS.format(asks=asks))
    assert run(make_pool(), file_spec("tune.py:objective", tmp_path), evaluation(0))[0].value == expected
    in_memory: dict[str, Any] = {}
    exec(HAS_PANDAS.format(asks=asks), in_memory)  # as typed into a notebook
    assert run(make_pool(in_memory["objective"]), memory_spec(), evaluation(0))[0].value == expected


def test_a_program_needs_no_guard_and_may_come_from_standard_input(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.messages import Evaluation, StudySpec
from trialfleet_workers.slots import SlotPool

factor = 21

def objective(params):
    return factor * params["x"]

pool = SlotPool(slots=1, base=Path("."), data_path=None, functions={{"f": objective}}, clock=SystemClock())
pool.submit(StudySpec(study="s", objective="memory:f", objective_digest=""),
            Evaluation(trial=0, rung=0, fold=0, fraction=1.0, params={{"x": 2}}))
print(pool.poll(30.0)[0][1].value)
pool.close()
"""
    finished = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True
    )
    assert finished.stdout == "42.0\n"
