"""What a run's evaluations tell of its slots."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from utilisation_parts.spin import Span


class Figures(NamedTuple):
    """How one run used its slots; see the table in `docs/benchmarks.md`."""

    #: Busy / available slot-seconds from the first evaluation's start to the last one's: all the while there is work.
    working: float
    #: The same from the call to its return.
    whole: float
    #: Milliseconds that a slot waits from one evaluation to its next: median, and the longest but one in a hundred.
    gap: float
    long_gap: float
    #: Available less busy slot-seconds per evaluation, from the first start to the last end, in milliseconds.
    overhead: float
    #: Seconds from the call to the first evaluation.
    start: float
    #: Idle slot-seconds from the last evaluation's start to the last one's end: there is nothing left to give them.
    tail: float
    #: Seconds from the last evaluation's end to the return.
    end: float


def figures(spans: Sequence[Span], *, slots: int, called: float, returned: float) -> Figures:
    """Of the evaluations of one call, by their start."""
    first, last_start = spans[0].start, spans[-1].start
    last_end = max(span.end for span in spans)
    busy = sum(span.end - span.start for span in spans)
    busy_late = sum(span.end - max(span.start, last_start) for span in spans if span.end > last_start)
    gaps = sorted(_gaps(spans))
    return Figures(
        working=(busy - busy_late) / (slots * (last_start - first)),
        whole=busy / (slots * (returned - called)),
        gap=1000 * statistics.median(gaps),
        long_gap=1000 * gaps[int(0.99 * (len(gaps) - 1))],
        overhead=1000 * (slots * (last_end - first) - busy) / len(spans),
        start=first - called,
        tail=slots * (last_end - last_start) - busy_late,
        end=returned - last_end,
    )


def _gaps(spans: Sequence[Span]) -> list[float]:
    by_process: dict[int, list[Span]] = {}
    for span in spans:
        by_process.setdefault(span.process, []).append(span)
    return [after.start - before.end for mine in by_process.values() for before, after in pairwise(mine)]
