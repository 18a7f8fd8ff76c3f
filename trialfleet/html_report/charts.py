"""The charts of a study's report, each a function from values to SVG text."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trialfleet.html_report import svg
from trialfleet.progress import rung_name
from trialfleet_coordinator.report import StudyReport, TrialSummary

#: Points that one chart draws at most; of more trials, the best and the newest.
MOST_POINTS = 2000
#: Lines that the parallel coordinates draw at most: the best.
MOST_LINES = 300
#: A param whose largest value is so many times its smallest is drawn on a logarithmic axis.
_LOG_FROM = 500.0


def scored(report: StudyReport) -> list[TrialSummary]:
    """The trials with a value, by number; at most `MOST_POINTS` of them, the best and the newest."""
    trials = [trial for trial in report.trials if trial.value is not None and math.isfinite(trial.value)]
    if len(trials) <= MOST_POINTS:
        return trials
    ranked = ranked_best_first(report, trials)
    kept = {trial.number for trial in (*ranked[: MOST_POINTS // 2], *trials[-MOST_POINTS // 2 :])}
    return [trial for trial in trials if trial.number in kept]


def ranked_best_first(report: StudyReport, trials: Sequence[TrialSummary]) -> list[TrialSummary]:
    """The trials with a value, those of the highest rung first, and of these the best."""
    sign = -1.0 if report.direction == "maximize" else 1.0
    return sorted(trials, key=lambda trial: (-trial.rung, sign * (trial.value or 0.0)))


def history(report: StudyReport) -> str:
    """Each trial's value by its number, and the best complete one so far."""
    trials = scored(report)
    across = svg.scale([float(trial.number) for trial in trials], svg.LEFT, svg.WIDTH - svg.RIGHT)
    up = svg.scale(_inner([_value(trial) for trial in trials]), svg.HEIGHT - svg.BOTTOM, svg.TOP)
    marks: list[str] = []
    steps: list[tuple[float, float]] = []
    best: float | None = None
    for trial in trials:
        value = min(max(_value(trial), up.low), up.high)
        told = f"trial {trial.number}: {svg.number(_value(trial))}, {trial.state} ({trial.reason})"
        marks.append(
            svg.dot(across(trial.number), up(value), "complete" if trial.state == "complete" else "pruned", told)
        )
        if trial.state == "complete" and (best is None or _better(report, _value(trial), best)):
            if best is not None:
                steps.append((across(trial.number), up(min(max(best, up.low), up.high))))
            best = _value(trial)
            steps.append((across(trial.number), up(value)))
    if best is not None:
        steps.append((svg.WIDTH - svg.RIGHT, steps[-1][1]))
    content = svg.axes(across, up, "trial", "value") + "".join(marks) + svg.path(steps, "best")
    return svg.chart("History", f"Values of {len(trials)} trials, and the best complete one so far.", content)


def funnel(report: StudyReport) -> str:
    """How many trials reached each rung."""
    rungs = report.ladder.rungs
    reached = [sum(trial.rung >= rung for trial in report.trials) for rung in range(len(rungs))]
    height = 34.0 * len(rungs) + 10
    widest = max(reached, default=0) or 1
    parts = []
    for rung, count in enumerate(reached):
        y = 6 + 34.0 * rung
        width = (svg.WIDTH - 430) * count / widest
        name = rung_name(report.ladder, rung)
        note = ", then left out" if rung in report.left_out else ""
        told = f"{count} trials, {report.rung_evaluations[rung]} evaluations{note}"
        parts += [
            svg.text(130, y + 17, name, "tick", "end"),
            svg.bar(140, y, width, 24, "complete", f"{name}: {told}"),
            f'<text x="{146 + width:.1f}" y="{y + 17:.1f}" class="tick">{told}</text>',
        ]
    return svg.chart("Rungs", "How many trials reached each rung of the ladder.", "".join(parts), height=height)


def importances(shares: Mapping[str, float]) -> str:
    """How much each param explains of the differences between trials."""
    height = 28.0 * max(len(shares), 1) + 10
    parts = []
    for place, (name, share) in enumerate(sorted(shares.items(), key=lambda pair: -pair[1])):
        y = 6 + 28.0 * place
        width = (svg.WIDTH - 300) * share
        parts += [
            svg.text(190, y + 15, name, "tick", "end"),
            svg.bar(200, y, width, 20, "complete", f"{name}: {share:.1%}"),
            svg.text(206 + width, y + 15, f"{share:.0%}", "tick"),
        ]
    return svg.chart("Importances", "How much each param matters.", "".join(parts), height=height)


def slices(report: StudyReport) -> dict[str, str]:
    """For each param, the trials' values by it."""
    trials = scored(report)
    up = svg.scale(_inner([_value(trial) for trial in trials]), svg.HEIGHT - svg.BOTTOM, svg.TOP)
    drawn = {}
    for name in _names(trials):
        having = [trial for trial in trials if name in trial.params]
        param = _param(name, having, svg.LEFT + 8, svg.WIDTH - svg.RIGHT - 8)
        marks = [
            svg.dot(
                param.place(trial),
                up(min(max(_value(trial), up.low), up.high)),
                "complete" if trial.state == "complete" else "pruned",
                f"trial {trial.number}: {name} = {trial.params[name]}, value {svg.number(_value(trial))}",
            )
            for trial in having
        ]
        about = f"Values of {len(having)} trials by {name}."
        drawn[name] = svg.chart(f"Value by {name}", about, _axes(param, up, name) + "".join(marks))
    return drawn


def parallel(report: StudyReport) -> str:
    """The best trials as lines over all params; the better, the stronger."""
    trials = ranked_best_first(report, scored(report))[:MOST_LINES]
    names = _names(trials)
    step = (svg.WIDTH - 120) / max(len(names) - 1, 1)
    top, bottom = 34.0, svg.HEIGHT - 24
    parts: list[str] = []
    places: dict[str, tuple[float, Callable[[TrialSummary], float]]] = {}
    for index, name in enumerate(names):
        x = 60 + step * index
        param = _param(name, [trial for trial in trials if name in trial.params], bottom, top)
        places[name] = (x, param.place)
        low, high = _ends(param)
        parts += [
            svg.line(x, top, x, bottom, "axis"),
            svg.text(x, 12, name, "name", "middle"),
            svg.text(x, bottom + 16, low, "tick", "middle"),
            svg.text(x, top - 4, high, "tick", "middle"),
        ]
    lines = []
    for rank, trial in reversed(list(enumerate(trials))):
        points = [(x, place(trial)) for name, (x, place) in places.items() if name in trial.params]
        kind = "line best" if rank == 0 else "line good" if rank < len(trials) / 10 else "line other"
        lines.append(svg.path(points, kind))
    about = f"The {len(trials)} best trials as lines over {len(names)} params."
    return svg.chart("Parallel coordinates", about, "".join(lines) + "".join(parts))


class _Param(NamedTuple):
    """How the values of one param lie along an axis."""

    #: Of a trial that has the param.
    place: Callable[[TrialSummary], float]
    #: Of numbers; None for choices.
    scale: svg.Scale | None
    #: Of choices: where each is, and what it is called.
    choices: list[tuple[float, str]]


def _param(name: str, trials: Sequence[TrialSummary], start: float, end: float) -> _Param:
    values = [trial.params[name] for trial in trials]
    if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        log = min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_FROM
        scale = svg.scale(numbers, start, end, log=log)
        return _Param(lambda trial: scale(float(str(trial.params[name]))), scale, [])
    labels = sorted({str(value) for value in values})
    gap = (end - start) / max(len(labels), 1)
    places = {label: start + gap * (index + 0.5) for index, label in enumerate(labels)}
    return _Param(lambda trial: places[str(trial.params[name])], None, [(at, label) for label, at in places.items()])


def _axes(param: _Param, up: svg.Scale, name: str) -> str:
    if param.scale is not None:
        return svg.axes(param.scale, up, name)
    labels = [svg.text(x, svg.HEIGHT - svg.BOTTOM + 14, label, "tick", "middle") for x, label in param.choices]
    return svg.axes(None, up, name) + "".join(labels)


def _ends(param: _Param) -> tuple[str, str]:
    """What stands at both ends of an axis."""
    if param.scale is not None:
        return svg.number(param.scale.low), svg.number(param.scale.high)
    return (param.choices[0][1], param.choices[-1][1]) if param.choices else ("", "")


def _names(trials: Sequence[TrialSummary]) -> list[str]:
    names: dict[str, None] = {}
    for trial in trials:
        names |= dict.fromkeys(trial.params)
    return list(names)


def _value(trial: TrialSummary) -> float:
    assert trial.value is not None
    return trial.value


def _better(report: StudyReport, value: float, best: float) -> bool:
    return value > best if report.direction == "maximize" else value < best


def _inner(values: Sequence[float]) -> list[float]:
    """The values without far outliers, which would press all others into one line; those are drawn at the edge."""
    if len(values) < 10:
        return list(values)
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    reach = 3 * (high - low) or 1.0
    return [value for value in ordered if low - reach <= value <= high + reach]
