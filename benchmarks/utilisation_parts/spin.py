"""The objective of all contestants: it computes for a set time, and writes down when it began and ended.

The file to write to stands in the environment, which every contestant's processes inherit. The clock is the system's
monotonic one, the same in all processes.
"""

import os
import struct
import time
from pathlib import Path
from typing import Any, NamedTuple

#: File that evaluations are written down in.
RECORD = "UTILISATION_RECORD"
_SPAN = struct.Struct("<qdd")


class Span(NamedTuple):
    """One evaluation: its process, and when it began and ended, in seconds of the monotonic clock."""

    process: int
    start: float
    end: float


def evaluate(params: dict[str, Any]) -> float:
    """Keep a core busy for so many `seconds`."""
    start = time.monotonic()
    end = start + params["seconds"]
    while (now := time.monotonic()) < end:
        pass
    # One write of few bytes to a file that is appended to: no two processes' mix.
    record = os.open(os.environ[RECORD], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(record, _SPAN.pack(os.getpid(), start, now))
    os.close(record)
    return float(params["share"])


def read_spans(path: Path) -> list[Span]:
    """All evaluations that were written down, by their start."""
    return sorted((Span(*span) for span in _SPAN.iter_unpack(path.read_bytes())), key=lambda span: span.start)
