"""What came of a study: as tables for people, as one JSON document for programs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table

from trialfleet.progress import duration, rung_name, undecided
from trialfleet.words import words
from trialfleet_coordinator.report import BestTrial, EfficiencyMetrics, StudyReport
from trialfleet_coordinator.serving import ServiceState, StudyStatus
from trialfleet_shared.visible import visible_in_json
from trialfleet_workers.user_modules import is_library

#: A frame of an objective's error.
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)$', re.MULTILINE)


class CacheFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The result cache, as a study used it."""

    #: None: nobody here knows, as of a coordinator's study.
    enabled: bool | None
    #: Evaluations of the study that a cache answered, and the others.
    hits: int
    misses: int
    hit_rate: float
    #: Entries it holds now, and the size that the study asked for; None when it is off, or the study is only looked at.
    entries: int | None
    cache_size: int | None


class StudySummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `trialfleet studies`."""

    study: str
    direction: str = ""
    trials: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    undecided: int = 0
    best_value: float | None = None
    best_is_complete: bool = False
    elapsed_seconds: float = 0.0
    #: Why it can not be read, and nothing else is known of it; empty when it can.
    trouble: str = ""


def report_document(report: StudyReport, cache: CacheFigures, home: Path | None) -> dict[str, Any]:
    """The report as JSON types; what is not a finite number is null."""
    document: dict[str, Any] = finite(report)
    document["cache_stats"] = finite(cache)
    document["home"] = None if home is None else str(home)
    return document


def finite(value: Any) -> Any:
    """`value` as JSON types, with None for each float that JSON can not hold."""
    return msgspec.json.decode(msgspec.json.encode(value))


def print_json(console: Console, document: Any) -> None:
    """One JSON document on one line each level, without colours or wrapping."""
    text = visible_in_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    # As it is: to print it, the console would take it apart character by character.
    console.file.write(f"{text}\n")
    console.file.flush()


def print_report(console: Console, report: StudyReport, cache: CacheFigures, home: Path | None) -> None:
    """The report for people."""
    console.print(render_report(report, cache, home))


def print_best(console: Console, best: BestTrial) -> None:
    """The best trial for people."""
    if best.params is None:
        console.print(words(f"{best.study}: no trial has a value."))
        return
    parts: list[RenderableType] = [words(f"{best.study}: trial {best.trial}", style="bold"), _params(best.params)]
    assert best.value is not None
    parts.append(words(f"value {_number(best.value)}{'' if best.complete else ' *'}"))
    if not best.complete:
        parts.append(words(_NOT_COMPLETE, style="dim"))
    console.print(Group(*parts))


def render_report(report: StudyReport, cache: CacheFigures, home: Path | None) -> RenderableType:
    """The report for people."""
    parts: list[RenderableType] = [words(f"{report.study}: {one_line(report.ended_because)}", style="bold")]
    if report.best_params is None:
        parts += [words(), words("No trial has a value.")]
    else:
        parts += _section(f"Best params (trial {report.best_trial})", _params(report.best_params))
        parts += _section(f"Values ({report.direction})", _values(report))
        if not report.best_is_complete:
            parts.append(words(_NOT_COMPLETE, style="dim"))
    parts += _section("Trials", _trials(report))
    parts += _section("Efficiency", _efficiency(report.efficiency_metrics, report, cache))
    parts.append(words(_ESTIMATED, style="dim"))
    if report.failures:
        parts += [words(), words("Latest failures", style="bold")]
        parts += [words(f"  {one_line(failure)}") for failure in report.failures]
    if home is not None:
        parts += [words(), words(f"Kept in {home}; see it again with: trialfleet report {report.study}", style="dim")]
    return Group(*parts)


def render_studies(studies: Sequence[StudySummary]) -> RenderableType:
    """The studies of a store as a table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("study", "direction", "trials", "complete", "pruned", "failed", "best", "time"):
        justify: JustifyMethod = "left" if name in ("study", "direction") else "right"
        table.add_column(name, justify=justify, no_wrap=name != "study", overflow="fold")
    for study in studies:
        if study.trouble:
            table.add_row(words(study.study), "damaged")
            continue
        best = "" if study.best_value is None else _number(study.best_value)
        table.add_row(
            words(study.study),
            study.direction,
            *(str(count) for count in (study.trials, study.complete, study.pruned, study.failed)),
            best if study.best_is_complete or not best else f"* {best}",
            duration(study.elapsed_seconds),
        )
    notes = [words(study.trouble) for study in studies if study.trouble]
    if any(study.best_value is not None and not study.best_is_complete for study in studies):
        notes.append(words(_NOT_COMPLETE, style="dim"))
    return Group(table, *notes)


def render_statuses(statuses: Sequence[StudyStatus]) -> RenderableType:
    """The studies of a coordinator as a table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("study", "state", "mode", "priority", "trials", "best", "trials/s", "slots", "time", ""):
        justify: JustifyMethod = "left" if name in ("study", "state", "mode", "") else "right"
        table.add_column(name, justify=justify, no_wrap=name not in ("study", ""), overflow="fold")
    for status in statuses:
        progress = status.progress
        cells = [""] * 5
        if progress is not None:
            budget = f" of {progress.trials_budget}" if progress.trials_budget is not None else ""
            running = status.state is ServiceState.RUNNING
            cells = [
                f"{progress.decided}{budget}{undecided(progress)}",
                "" if progress.best_value is None else _number(progress.best_value),
                f"{progress.trials_per_second:.3g}" if running else "",
                str(progress.slots) if running else "",
                duration(progress.elapsed_seconds),
            ]
        because = words(one_line(status.because))
        table.add_row(words(status.study), status.state, status.mode, str(status.priority), *cells, because)
    return table


_ESTIMATED = "* estimated from measured durations, against the same trials one by one on all rows and all folds"
_NOT_COMPLETE = "* not measured on all rows and all folds yet"


def _params(params: Mapping[str, Any]) -> Table:
    table = _table()
    for name, value in params.items():
        table.add_row(words(name), words(_number(value) if isinstance(value, float) else str(value)))
    return table


def _values(report: StudyReport) -> Table:
    table = _table()
    folds = report.ladder.rungs[-1].folds
    assert report.best_value is not None
    if report.best_is_complete:
        table.add_row(f"best, mean of {folds} folds" if folds > 1 else "best", _number(report.best_value))
    else:
        table.add_row("best so far *", _number(report.best_value))
    best = next(trial for trial in report.trials if trial.number == report.best_trial)
    for name, value in best.metrics.items():
        table.add_row(words(f"  {name}"), _number(value))
    if report.test_value is not None:
        table.add_row("on the held-out test part", _number(report.test_value))
    return table


def _trials(report: StudyReport) -> Table:
    table = _table()
    table.add_row("complete", str(report.complete))
    table.add_row("pruned", str(report.pruned))
    table.add_row("failed", str(report.failed))
    if report.undecided:
        table.add_row("undecided", str(report.undecided))
    for rung, count in enumerate(report.rung_evaluations):
        note = ", then left out: it did not pay" if rung in report.left_out else ""
        table.add_row(f"evaluations at {rung_name(report.ladder, rung)}", f"{count}{note}")
    return table


def _efficiency(metrics: EfficiencyMetrics, report: StudyReport, cache: CacheFigures) -> Table:
    saved = metrics.saved_cpu_seconds
    table = _table()
    table.add_row("total time", duration(metrics.total_time_seconds))
    table.add_row("time per trial", _seconds(metrics.avg_trial_time_seconds))
    share = f"{metrics.cache_hit_rate:.1%} ({report.cached} of {report.evaluations} evaluations)"
    table.add_row("cache hit rate", f"{share}; the cache is off" if cache.enabled is False else share)
    table.add_row("parallel efficiency", told(metrics.parallel_efficiency, "{:.1%}"))
    table.add_row("memory", told(metrics.memory_usage_mb, "{:.0f} MB"))
    table.add_row("speed-up *", f"{metrics.speedup_factor:.2f} x")
    table.add_row("CPU spent", _seconds(metrics.spent_cpu_seconds))
    table.add_row("CPU without savings *", _seconds(metrics.baseline_cpu_seconds))
    if saved.stopping:
        table.add_row("  saved by stopping early *", _seconds(saved.stopping))
    table.add_row("  saved by pruning *", _seconds(saved.pruning))
    table.add_row("  saved by subsampling *", _seconds(saved.subsampling))
    table.add_row("  saved by caching", _seconds(saved.caching))
    return table


def _section(title: str, table: Table) -> list[RenderableType]:
    return [words(), words(title, style="bold"), table]


def _table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")  # it may wrap: one that may not leaves a narrow terminal no place for the values
    table.add_column(overflow="fold")
    return table


def _number(value: float) -> str:
    return f"{value:.6g}"


def _seconds(seconds: float) -> str:
    """Seconds that may be small, large or negative."""
    if abs(seconds) < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"-{duration(-seconds)}" if seconds < 0 else duration(seconds)


def told(figure: float | None, form: str) -> str:
    """A figure in a format string's words; "-" where it is not known."""
    return "-" if figure is None else form.format(figure)


def one_line(text: str) -> str:
    """The first line of a text, shortened; of an objective's error, also where it was raised."""
    line = text.strip().partition("\n")[0].rstrip()
    line = line if len(line) <= 200 else f"{line[:199]}…"
    places = list(_FRAME.finditer(text))
    if places:
        # Of the user's code, where there is some: what a library's line says, the error says itself.
        place = next((each for each in reversed(places) if not is_library(each["file"])), places[-1])
        line += " ({}, line {}, in {})".format(Path(place["file"]).name, *place.group("line", "function"))
    return line
