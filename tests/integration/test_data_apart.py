"""Imports in a process of their own: whatever a function that gives data does, is its own affair."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.pools import is_alive
from support.waiting import wait_until

from trialfleet import environment
from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import DataSpec
from trialfleet_workers.adapters.importing import import_function_apart

ROWS = 'pd.DataFrame({"a": range(50), "y": [float(i) for i in range(50)]})'
Import = Callable[..., DataInfo]


@pytest.fixture
def import_rows(tmp_path: Path) -> Import:
    """Import what a function gives that does all this before."""

    def run(before: str, check: Callable[[], None] = lambda: None) -> DataInfo:
        lines = [*before.splitlines(), f"return {ROWS}"]
        body = "".join(f"    {line}\n" for line in lines)
        (tmp_path / "source.py").write_text(f"import os, subprocess, sys\nimport pandas as pd\ndef rows():\n{body}")
        data = DataSpec(source="source.py:rows", target="y")
        return import_function_apart(data, tmp_path / "cache", tmp_path, check)[0]

    return run


def test_it_inherits_no_secrets(import_rows: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (environment.BROKER_URL, environment.BROKER_URL_FILE, environment.TOKEN, environment.TOKEN_FILE):
        monkeypatch.setenv(name, "amqp://user:hunter2@host")
    monkeypatch.setenv("OF_THE_SOURCE", "kept")
    seen = tmp_path / "seen"
    import_rows(f"open({str(seen)!r}, 'w').write(open('/proc/self/environ').read())")
    assert "OF_THE_SOURCE" in seen.read_text()
    assert "hunter2" not in seen.read_text()


@pytest.mark.parametrize(
    "leave",
    [
        "pid = subprocess.Popen(['sleep', '1000']).pid",
        "pid = subprocess.Popen(['sleep', '1000'], start_new_session=True).pid",
        (
            "import multiprocessing, time\nchild = multiprocessing.Process(target=time.sleep, args=(1000,))\n"
            "child.start()\npid = child.pid"
        ),
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\npid = os.getpid()",
    ],
)
def test_what_it_leaves_behind_is_not_waited_for(import_rows: Import, tmp_path: Path, leave: str) -> None:
    note = tmp_path / "pid"
    try:
        assert import_rows(f"{leave}\nopen({str(note)!r}, 'w').write(str(pid))").rows == 50
    finally:
        with suppress(ProcessLookupError):  # one in a session of its own is out of reach of the import
            os.kill(int(note.read_text()), signal.SIGKILL)


def test_what_it_leaves_behind_is_ended(import_rows: Import, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    import_rows(f"pid = subprocess.Popen(['sleep', '1000']).pid\nopen({str(note)!r}, 'w').write(str(pid))")
    wait_until(lambda: not is_alive(int(note.read_text())), "it is gone")


def test_its_output_goes_to_standard_error(import_rows: Import, capfd: pytest.CaptureFixture[str]) -> None:
    assert import_rows("print('half a line', end='')\nsubprocess.run(['echo', 'from a child'])").rows == 50
    out, err = capfd.readouterr()
    assert (out, "half a line" in err, "from a child" in err) == ("", True, True)


def test_its_end_is_told(import_rows: Import) -> None:
    with pytest.raises(DataError, match=r"'source\.py:rows': the process that imported them ended: 3"):
        import_rows("os._exit(3)")


def test_an_import_that_is_not_wanted_any_more_is_ended(import_rows: Import, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    class UnwantedError(Exception):
        pass

    def check() -> None:
        if note.exists() and note.read_text():
            raise UnwantedError

    with pytest.raises(UnwantedError):
        import_rows(f"open({str(note)!r}, 'w').write(str(os.getpid()))\nimport time\ntime.sleep(1000)", check)
    assert not Path(f"/proc/{note.read_text()}").exists()
