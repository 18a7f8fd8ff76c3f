"""What the slots ask of the Linux kernel: limits, ties between processes, and what memory they take.

Everything here is best effort where the kernel or a sandbox does not offer it, except `limit_memory`.
"""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
#: From <malloc.h>.
_M_ARENA_MAX = -8
#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: Added to a slot's score when the kernel looks for something to kill: slots before the process that runs them.
_OOM_SCORE = 500
#: Threads that let go of their locks around a fork: jemalloc's (in pyarrow, and so in pandas) by pthread_atfork(3).
_FORK_SAFE = ("jemalloc_bg_thd",)
#: More memory than any machine has: cgroup v1 writes "no limit" as a number about this large.
_NO_LIMIT = 2**60
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; exit at once if that was before.

    Args:
        parent: process id of whoever started this process.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ended, instead of the init process."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int | None = None) -> list[int]:
    """Process ids of a process's children, whichever of its threads started them; of this process's, if none is named."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # the process is gone
        for task in (_PROC / ("self" if pid is None else str(pid)) / "task").iterdir():
            with contextlib.suppress(OSError):  # the thread is
                found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Process ids of a process's children and theirs, but for those whose own parent has ended."""
    found = children(pid)
    for each in found:  # which grows meanwhile
        found += children(each)
    return found


def threads() -> int:
    """How many threads this process has, those not counted that no fork can harm."""
    count = 0
    for task in (_PROC / "self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            count += (task / "comm").read_text().strip() not in _FORK_SAFE
    return count


def volunteer_for_oom_killer() -> None:
    """Have the kernel kill this process before the one that runs the slots."""
    with contextlib.suppress(OSError):
        (_PROC / "self/oom_score_adj").write_text(str(_OOM_SCORE))


def limit_memory(limit: int) -> None:
    """Let this process take `limit` bytes of private memory beyond what it has; a MemoryError is raised above that.

    The limit is on data (RLIMIT_DATA), not on address space: the memory map of a data set is no private memory.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + limit, resource.RLIM_INFINITY))


def unlimit_memory() -> None:
    """Undo `limit_memory`."""
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _data_bytes() -> int:
    for line in (_PROC / "self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def return_freed_memory() -> None:
    """Give memory that malloc keeps for later back to the system, where the C library can (glibc)."""
    with contextlib.suppress(AttributeError):
        _libc.malloc_trim(0)


def limit_arenas(most: int) -> None:
    """Have malloc keep no more than so many arenas, where the C library has them (glibc's M_ARENA_MAX).

    Else there are up to eight for each core, and where threads come and go all of them fill with what some thread freed.
    """
    with contextlib.suppress(AttributeError):
        _libc.mallopt(_M_ARENA_MAX, most)


def machine_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Bytes of memory this process may use: the machine's, or the smallest limit of its control groups."""
    total = _NO_LIMIT
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, name = cgroups, "memory.max"
            elif "memory" in controllers.split(","):
                root, name = cgroups / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = root / path.lstrip("/")
            # Within a container the path may be the host's, and its group is then mounted as the root itself.
            for folder in [group, *group.parents]:
                total = min(total, _limit(folder / name))
                if folder == root:
                    break
    return total


def _limit(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return _NO_LIMIT


def oom_kills(proc: Path = _PROC) -> int:
    """How many processes the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError):
        for line in (proc / "vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def cpu_seconds(pid: int, proc: Path = _PROC) -> float:
    """CPU seconds that a process and its ended children used so far; 0.0 when it is gone."""
    with contextlib.suppress(OSError):
        # The program's name, in parentheses, may contain anything; fields 14 to 17 of proc(5) are what is looked for.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def pss_bytes(pid: int, proc: Path = _PROC) -> int:
    """Proportional set size of a process (shared pages divided among their users), in bytes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def describe_status(status: int) -> str:
    """A wait status in words: "exited with status 3", "killed by SIGSEGV"."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"
