"""Processes of this machine as the kernel shows them: who belongs together, and what memory they take."""

from pathlib import Path


def family(root: int) -> list[int]:
    """A process and its descendants."""
    found, new = [], [root]
    while new:
        process = new.pop()
        found.append(process)
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                new.extend(map(int, task.read_text().split()))
            except OSError:  # it has just ended
                continue
    return found


def rollup(process: int, field: str) -> int:
    """Bytes of a field of /proc/<pid>/smaps_rollup; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
