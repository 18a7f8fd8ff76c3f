"""What is read from the kernel, on files that look like the kernel's."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trialfleet_workers import linux

GIGABYTE = 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal:  {16 * GIGABYTE // 1024} kB\nMemFree: 1 kB\n")
    return proc


def test_without_groups_the_machine_counts(proc: Path, tmp_path: Path) -> None:
    assert linux.machine_memory(proc, tmp_path / "none") == 16 * GIGABYTE
    (proc / "self/cgroup").write_text("0::/\n")
    assert linux.machine_memory(proc, tmp_path / "none") == 16 * GIGABYTE


def test_the_smallest_limit_of_the_groups_counts(proc: Path, tmp_path: Path) -> None:
    cgroups = tmp_path / "cgroup"
    inner = cgroups / "user.slice" / "worker.service"
    inner.mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/user.slice/worker.service\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{4 * GIGABYTE}\n")
    assert linux.machine_memory(proc, cgroups) == 4 * GIGABYTE
    (inner / "memory.max").write_text(f"{2 * GIGABYTE}\n")
    assert linux.machine_memory(proc, cgroups) == 2 * GIGABYTE


def test_in_a_container_the_groups_root_is_its_own(proc: Path, tmp_path: Path) -> None:
    cgroups = tmp_path / "cgroup"
    (cgroups / "memory").mkdir(parents=True)
    (proc / "self/cgroup").write_text("11:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n")
    (cgroups / "memory" / "memory.limit_in_bytes").write_text(f"{3 * GIGABYTE}\n")
    assert linux.machine_memory(proc, cgroups) == 3 * GIGABYTE
    (cgroups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert linux.machine_memory(proc, cgroups) == 16 * GIGABYTE


def test_this_machine_has_memory_and_this_process_uses_some() -> None:
    assert 2**24 < linux.pss_bytes(os.getpid()) < linux.machine_memory()
    assert linux.pss_bytes(2**22 + 1) == 0
    assert linux.cpu_seconds(os.getpid()) > 0
    assert linux.cpu_seconds(2**22 + 1) == 0.0


def test_cpu_seconds_are_found_behind_any_name(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b (c)) R 1 1 1 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 1 0 9 9 9\n")
    assert linux.cpu_seconds(7, tmp_path) == 124 / os.sysconf("SC_CLK_TCK")


def test_the_kernels_kills_are_counted(proc: Path) -> None:
    assert linux.oom_kills(proc) == 0
    (proc / "vmstat").write_text("nr_free_pages 1\noom_kill 5\n")
    assert linux.oom_kills(proc) == 5


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3 << 8, "exited with status 3"),
        (0, "exited with status 0"),
        (signal.SIGSEGV, "killed by SIGSEGV"),
        (signal.SIGABRT | 0x80, "killed by SIGABRT"),
        (40, "killed by signal 40"),
    ],
)
def test_a_status_is_told_in_words(status: int, words: str) -> None:
    assert linux.describe_status(status) == words


#: Prints what malloc says of itself, after so many threads at a time have allocated.
THREADS = """
import ctypes, sys, threading
from trialfleet_workers import linux
if sys.argv[1] != "as many":
    linux.limit_arenas(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(8)
def work():
    together.wait()
    libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


def arenas(most: str) -> int:
    shown = subprocess.run([sys.executable, "-c", THREADS, most], check=True, capture_output=True, text=True).stdout
    return shown.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no arenas")
def test_threads_share_arenas() -> None:
    assert arenas("as many") > 2
    assert arenas("2") == 2


def test_threads_that_end_while_they_are_counted_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in ((1, "python"), (2, "jemalloc_bg_thd"), (3, None), (4, "other")):
        task = tmp_path / "self" / "task" / str(number)
        task.mkdir(parents=True)
        if name is not None:
            (task / "comm").write_text(f"{name}\n")
    monkeypatch.setattr(linux, "_PROC", tmp_path)
    assert linux.threads() == 2
