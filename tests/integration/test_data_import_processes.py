"""Imports as processes: killed, several at once, in little memory, on a full disk."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trialfleet_shared.messages import DataSpec
from trialfleet_workers.adapters.lmdb_data import DataCache

IMPORT = """
    import sys
    from pathlib import Path
    from trialfleet_shared.messages import DataSpec, Resampling
    from trialfleet_workers.adapters.lmdb_data import DataCache

    folder = Path(sys.argv[1])
    print("ready", flush=True)
    info = DataCache(folder / "cache").import_data(
        DataSpec(source="big.csv", target="y", resampling=Resampling()), base=folder,
        progress=lambda rows: print(rows, flush=True),
    )
    print(info.digest, flush=True)
"""


def start_import(folder: Path, code: str = IMPORT) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def big(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.integers(0, 10**6, (250_000, 8)), columns=list("abcdefgh"))
    frame.assign(y=frame["a"] % 2).to_csv(tmp_path / "big.csv", index=False)
    return tmp_path


def test_an_import_that_is_killed_leaves_nothing_to_be_seen(big: Path) -> None:
    process = start_import(big)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit():
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((big / "cache").glob("*.mdb")) == []
    assert list((big / "cache").glob("import-*")), "it was killed in the middle"
    info = DataCache(big / "cache").import_data(DataSpec(source="big.csv", target="y"), base=big)
    assert [file.name for file in (big / "cache").glob("*.mdb")] == [f"{info.digest}.mdb"]
    assert list((big / "cache").glob("import-*")) == [], "what it left is cleared away"


def test_four_processes_at_once_import_once(big: Path) -> None:
    processes = [start_import(big) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert len({output[-1] for output in outputs}) == 1
    readers = [output for output in outputs if len(output) > 2]
    assert len(readers) == 1, "one of them reads the file, the others find what it made"


def test_private_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """The same import of a file and of one four times as large: what differs is a fraction of the data's difference."""
    peaks = {}
    columns = [f"x{index}" for index in range(40)]
    for rows in (100_000, 400_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        block = pd.DataFrame(np.random.default_rng(0).normal(size=(rows, 40)), columns=columns).assign(y=0.5)
        block.to_parquet(folder / "big.parquet", row_group_size=20_000)
        code = IMPORT.replace("big.csv", "big.parquet").replace('    print("ready", flush=True)\n', WATCH)
        process = start_import(folder, code + "    print(max(peaks))\n")
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        peaks[rows] = int(output.split()[-1])
    assert peaks[400_000] - peaks[100_000] < 300_000 * 41 * 8 / 4


WATCH = """
    import threading, time
    peaks = [0]
    def watch():
        while True:
            status = Path("/proc/self/status").read_text().splitlines()
            peaks.append(next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")))
            time.sleep(0.005)
    threading.Thread(target=watch, daemon=True).start()
"""


def test_a_full_disk_is_told_and_leaves_nothing(big: Path) -> None:
    limited = "import resource\n    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n    import signal\n"
    code = IMPORT.replace(
        "import sys", f"{limited}    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n    import sys", 1
    )
    process = start_import(big, code)
    _, errors = process.communicate(timeout=60)
    assert "DataError: the data cache at" in errors
    assert list((big / "cache").glob("*.mdb")) == []
    assert list((big / "cache").glob("import-*")) == []


FULL = """
    import sys
    from pathlib import Path
    import numpy as np
    import pandas as pd
    from trialfleet_shared.messages import DataSpec
    from trialfleet_workers.adapters.lmdb_data import DataCache

    data = pd.DataFrame(np.random.default_rng(0).normal(size=(100_000, 10))).assign(y=0.5)
    DataCache(Path(sys.argv[1])).import_object(data, DataSpec(source="memory:data", target="y"))
"""


@pytest.mark.parametrize("megabytes", [4, 12, 20])
def test_a_disk_that_fills_up_in_the_middle_is_told(megabytes: int, tmp_path: Path) -> None:
    """It fills up under the columns, the block, or the data set: 8.8 MB each; what is mapped must not end the process."""
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={megabytes}m none "$1" || exit 77; exec "$2" "$3" "$1/cache"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", disk, sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("this machine lets nobody mount a small disk")
    assert "DataError: the data cache at" in done.stderr
    assert "No space left on device" in done.stderr
