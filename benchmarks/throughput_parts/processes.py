"""What the processes of a fleet on this machine compute, as the kernel counts it."""

import os
from collections import Counter
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def descendants_cpu() -> Counter[str]:
    """CPU seconds of this process's living descendants so far, by what they are: slots, workers, broker."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        # Those that it has buried are counted with it.
        seconds[pid] = _TICK * sum(map(int, fields[11:15]))
    used: Counter[str] = Counter()
    for pid, each in seconds.items():
        line = _ancestors(pid, parents)
        if line is not None:
            used[_group([pid, *line])] += each
    return used


def _ancestors(pid: int, parents: dict[int, int]) -> list[int] | None:
    """Those between this process and that one, nearest to that one first; None when it is no descendant."""
    line: list[int] = []
    while (pid := parents.get(pid, 0)) != os.getpid():
        if pid == 0:
            return None
        line.append(pid)
    return line


def _group(line: list[int]) -> str:
    commands = [_command(pid) for pid in line]
    if any("rabbit" in command or "epmd" in command for command in commands):
        return "broker"
    # A worker's children are its slots' processes; embedded, all are.
    return "workers" if len(line) == 1 and " worker " in f" {commands[0]} " else "slots"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
