"""What the soak looks at, and the slope of it."""

from pathlib import Path

import lmdb
import numpy as np
import scipy.stats

#: A line is drawn through the medians of so many blocks of samples: neighbours are not independent, and what studies hold at
#: their peaks is no growth.
BLOCKS = 12


def handles(process: int) -> int:
    """Open file descriptors of a process; 0 of one that has ended."""
    try:
        return len(list(Path(f"/proc/{process}/fd").iterdir()))
    except OSError:
        return 0


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below a folder take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def reader_slots(folder: Path) -> int:
    """Reader slots of an LMDB environment that are or were in use: a table that leaks only grows."""
    if not (folder / "data.mdb").exists():  # made by whoever uses it first
        return 0
    environment = lmdb.open(str(folder), readonly=True, create=False, max_dbs=16)
    try:
        return int(environment.info()["num_readers"])
    finally:
        environment.close()


def slope(seconds: list[float], values: list[float]) -> tuple[float, float, float]:
    """Growth per hour, and the ends of its 95% confidence interval, by least squares through block medians."""
    times = np.array([block.mean() for block in np.array_split(np.asarray(seconds) / 3600, BLOCKS)])
    medians = np.array([np.median(block) for block in np.array_split(np.asarray(values, dtype=float), BLOCKS)])
    line = scipy.stats.linregress(times, medians)
    reach = scipy.stats.t.ppf(0.975, BLOCKS - 2) * line.stderr
    return float(line.slope), float(line.slope - reach), float(line.slope + reach)
