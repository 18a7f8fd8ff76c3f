"""The timeline of slots: for each evaluation that ran, when and in which slot."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from trialfleet.html_report import svg
from trialfleet_coordinator.runs import Run
from trialfleet_shared.messages import Outcome

#: Rows drawn at most; of more slots, the first by the worker's name.
MOST_SLOTS = 64
#: Colours that rungs have on the page; higher rungs have the last one.
RUNG_COLOURS = 6
#: Width of what is drawn by itself, in the units of the drawing; shorter evaluations in a row share a bar.
_NARROWEST = 1.0
#: Seconds without any evaluation are shortened to this share of those with one.
_LONGEST_PAUSE = 0.05
#: Height of a row: of each where there are few, and where there are many; a bar takes this share of it.
_TALLEST, _LOWEST, _BAR = 26.0, 13.0, 0.75
#: Height of all rows together, if they are not too many for it.
_ALL = 160.0
#: Space for the slots' names on the left and their use on the right.
_LEFT, _RIGHT = 150.0, 48.0


class _Bar(NamedTuple):
    start: float
    end: float
    runs: list[Run]


def timeline(runs: Sequence[Run]) -> str:
    """A row for each slot, and in it a bar for each evaluation; its colour tells the rung."""
    time = _Time(runs)
    names = sorted({(run.worker, run.slot) for run in runs})
    workers = {worker for worker, _ in names}
    shown = {name: row for row, name in enumerate(names[:MOST_SLOTS])}
    row = min(max(_ALL / max(len(shown), 1), _LOWEST), _TALLEST)
    bottom = svg.TOP + row * len(shown)
    across = svg.scale([0.0, time.total], _LEFT, svg.WIDTH - _RIGHT)
    ticks = [tick for tick in across.ticks() if tick >= 0]
    parts = [svg.line(across(tick), svg.TOP, across(tick), bottom, "grid") for tick in ticks]
    parts += [svg.text(across(tick), bottom + 14, svg.number(tick), "tick", "middle") for tick in ticks]
    parts += [svg.line(across(cut), svg.TOP, across(cut), bottom, "cut") for cut in time.cuts]
    for name, of_slot in groupby(
        sorted(runs, key=attrgetter("worker", "slot", "started_at")), key=attrgetter("worker", "slot")
    ):
        if name not in shown:
            continue
        mine = list(of_slot)
        y = svg.TOP + row * shown[name]
        middle = y + row * _BAR / 2 + 4
        label = f"slot {name[1]}" if len(workers) == 1 else f"{_short(name[0])} {name[1]}"
        used = sum(run.wall_seconds for run in mine) / time.total if time.total > 0 else 0.0
        parts += [
            svg.text(_LEFT - 6, middle, label, "tick", "end"),
            svg.text(svg.WIDTH - _RIGHT + 6, middle, f"{min(used, 1.0):.0%}", "tick"),
        ]
        parts += [
            svg.bar(
                across(bar.start), y, across(bar.end) - across(bar.start), row * _BAR, _kind(bar.runs), _told(bar.runs)
            )
            for bar in _bars(mine, time, across)
        ]
    parts.append(svg.line(_LEFT, bottom, svg.WIDTH - _RIGHT, bottom, "axis"))
    parts.append(svg.text((_LEFT + svg.WIDTH - _RIGHT) / 2, bottom + 32, "seconds", "name", "middle"))
    about = f"{len(runs)} evaluations on {len(names)} slots, of which {len(shown)} are drawn."
    return svg.chart("Timeline of slots", about, "".join(parts), height=bottom + svg.BOTTOM)


def utilisation(runs: Sequence[Run]) -> float | None:
    """Share of the slots' time, pauses of all of them shortened, in which they evaluated; None without any run."""
    available = _Time(runs).total * len({(run.worker, run.slot) for run in runs})
    return min(sum(run.wall_seconds for run in runs) / available, 1.0) if available > 0 else None


class _Time:
    """Seconds since the first evaluation began, those without any evaluation cut short.

    A study may rest for a week between two sessions.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        busy: list[tuple[float, float]] = []
        for start, end in sorted((run.started_at, run.ended_at) for run in runs):
            if busy and start <= busy[-1][1]:
                busy[-1] = busy[-1][0], max(end, busy[-1][1])
            else:
                busy.append((start, end))
        longest = _LONGEST_PAUSE * sum(end - start for start, end in busy)
        #: Where seconds were cut out, in what is left.
        self.cuts: list[float] = []
        #: (time, what is to be taken off from there on), by time.
        self._offsets: list[tuple[float, float]] = []
        offset = busy[0][0] if busy else 0.0
        before = offset
        for start, end in busy:
            if start - before > longest:
                offset += start - before - longest
                self.cuts.append(start - offset - longest / 2)
            self._offsets.append((start, offset))
            before = end
        self.total = before - offset

    def spans(self, runs: Iterable[Run]) -> Iterable[tuple[float, float, Run]]:
        """Start and end of each, given by their start."""
        index = 0
        for run in runs:
            while index + 1 < len(self._offsets) and self._offsets[index + 1][0] <= run.started_at:
                index += 1
            offset = self._offsets[index][1]
            yield run.started_at - offset, run.ended_at - offset, run


def _bars(runs: Sequence[Run], time: _Time, across: svg.Scale) -> list[_Bar]:
    """The bars of one slot: one for each evaluation, or for several that are too short to be told apart."""
    bars: list[_Bar] = []
    for start, end, run in time.spans(runs):
        last = bars[-1] if bars else None
        if last is not None and across(end) - across(last.start) < _NARROWEST:
            last.runs.append(run)
            bars[-1] = last._replace(end=max(end, last.end))
        else:
            bars.append(_Bar(start, end, [run]))
    return bars


def _kind(runs: Sequence[Run]) -> str:
    """Its class: that of what took most of its seconds."""
    seconds: dict[str, float] = {}
    for run in runs:
        failed = run.outcome not in (Outcome.OK, Outcome.PRUNED)
        kind = "failed" if failed else f"rung{min(run.rung, RUNG_COLOURS - 1)}"
        seconds[kind] = seconds.get(kind, 0.0) + run.wall_seconds
    return max(seconds, key=lambda kind: seconds[kind])


def _told(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        rungs = ", ".join(
            f"{count} on rung {rung}" for rung, count in sorted(Counter(run.rung for run in runs).items())
        )
        return f"{len(runs)} evaluations: {rungs}"
    run = runs[0]
    fold = "test part" if run.fold < 0 else f"fold {run.fold}"
    return f"trial {run.trial}, rung {run.rung}, {fold}: {svg.number(run.wall_seconds)} s, {run.outcome.value}"


def _short(worker: str) -> str:
    """The end of a worker's name, which is what tells workers of one machine apart."""
    return worker if len(worker) <= 18 else f"…{worker[-17:]}"
