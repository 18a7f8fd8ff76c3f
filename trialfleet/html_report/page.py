"""The page around the charts."""

from collections.abc import Mapping, Sequence
from html import escape

from trialfleet.html_report import charts
from trialfleet.html_report.timeline import RUNG_COLOURS, timeline, utilisation
from trialfleet.progress import duration, rung_name
from trialfleet.rendering import CacheFigures, one_line, told
from trialfleet_coordinator.report import StudyReport, TrialSummary
from trialfleet_coordinator.runs import Run

#: Trials of the table of the best.
_BEST = 10
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --quiet: #666; --line: #8883; --complete: #0072b2; --pruned: #b8860b;
  --failed: #b3261e; --best: #009e73; --rung0: #9ecae1; --rung1: #4292c6; --rung2: #08519c; --rung3: #e6a817;
  --rung4: #a06a00; --rung5: #7a3b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --quiet: #a0a0a0; --complete: #56b4e9; --pruned: #d9a441;
  --failed: #ff897d; --best: #2fd0a0; --rung0: #2a6f97; --rung1: #4ba3d6; --rung2: #a9d9f5; --rung3: #b98a1b;
  --rung4: #e3b341; --rung5: #ffe08a; } }
body { color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { color: var(--quiet); margin: .2rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 500; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem 1rem .25rem 0; vertical-align: top; }
svg { display: block; height: auto; width: 100%; }
.half { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
.half svg text { font-size: 20px; }
svg .name { fill: var(--ink); }
.grid { stroke: var(--line); } .axis { stroke: var(--quiet); }
circle.complete, rect.complete { fill: var(--complete); }
circle.pruned { fill: none; stroke: var(--pruned); stroke-width: 1.2; opacity: .75; }
rect.pruned { fill: var(--pruned); opacity: .7; }
rect.failed { fill: var(--failed); }
rect.rung0 { fill: var(--rung0); } rect.rung1 { fill: var(--rung1); } rect.rung2 { fill: var(--rung2); }
rect.rung3 { fill: var(--rung3); } rect.rung4 { fill: var(--rung4); } rect.rung5 { fill: var(--rung5); }
.cut { stroke: var(--quiet); stroke-dasharray: 3 3; }
polyline { fill: none; } polyline.best { stroke: var(--best); stroke-width: 2.5; }
polyline.line { stroke-width: 1; } polyline.line.best { stroke-width: 3; }
polyline.good { stroke: var(--complete); opacity: .7; } polyline.other { stroke: var(--quiet); opacity: .15; }
.key span { margin-right: 1rem; }
.key i { border-radius: 50%; display: inline-block; height: .7em; margin-right: .3em; width: .7em; }
pre { overflow-x: auto; white-space: pre-wrap; }
"""
_SLOTS = (
    "<p>Each bar is an evaluation, or several that are too short to be told apart; at the right, how much of the time the "
    "slot evaluated. Answers of the cache took none. Pauses of all slots are cut short at dashed lines. Times are by each "
    "worker's own clock.</p>"
)
_PARTS = (
    "<p>A pruned trial's value was measured on fewer rows or folds: it may lie above the best and still be worse. Values far "
    "from the others stand at the edge.</p>"
)
_LEFT_OUT = (
    "<p>A rung that does not pay, as it costs nearly as much as the next or ranks trials otherwise, is left out from then "
    "on.</p>"
)
_KEY = (
    '<p class="key"><span><i style="background:var(--complete)"></i>complete</span>'
    '<span><i style="border:2px solid var(--pruned)"></i>pruned</span>'
    '<span><i style="background:var(--best)"></i>best so far</span></p>'
)


def render(report: StudyReport, cache: CacheFigures, shares: Mapping[str, float], runs: Sequence[Run]) -> str:
    """The report as one HTML document without scripts, which loads nothing.

    Args:
        report: the study.
        cache: how it used the result cache.
        shares: each param's importance, 0 to 1; empty when it is not known.
        runs: its evaluations that ran, each with its slot; empty when they are not known.
    """
    parts = [
        f"<h1>{escape(report.study)}</h1><p>{escape(one_line(report.ended_because))}; {report.direction}</p>",
        _section("Best", _best(report)),
        _section("History", _KEY + charts.history(report) + _PARTS),
        _section("Rungs", charts.funnel(report) + (_LEFT_OUT if report.left_out else "")),
    ]
    if shares:
        parts.append(_section("Importance of the params", charts.importances(shares)))
    if report.best_params is not None:
        parts.append(_section("Params together", charts.parallel(report)))
        parts.append(_section("Values by param", f'<div class="half">{"".join(charts.slices(report).values())}</div>'))
    if runs:
        parts.append(_section("Slots over time", _rung_key(report) + timeline(runs) + _SLOTS))
    parts.append(_section("Efficiency", _efficiency(report, cache, runs)))
    if report.failures:
        failures = "".join(f"<pre>{escape(failure)}</pre>" for failure in report.failures)
        parts.append(_section("Latest failures", failures))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.study)} - trialfleet</title><style>{_STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


def _rung_key(report: StudyReport) -> str:
    """What the colours of the timeline say."""
    colours = {
        rung_name(report.ladder, rung): f"rung{min(rung, RUNG_COLOURS - 1)}" for rung in range(len(report.ladder.rungs))
    } | {"failed": "failed"}
    names = [f'<span><i style="background:var(--{kind})"></i>{escape(name)}</span>' for name, kind in colours.items()]
    return f'<p class="key">{"".join(names)}</p>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _best(report: StudyReport) -> str:
    ranked = charts.ranked_best_first(report, charts.scored(report))[:_BEST]
    if not ranked:
        return "<p>No trial has a value.</p>"
    names: dict[str, None] = {}
    for trial in ranked:
        names |= dict.fromkeys(trial.params)
    head = ["trial", "value", "measured on", *names]
    rows = [_row(report, trial, list(names)) for trial in ranked]
    test = (
        "" if report.test_value is None else f"<p>The best one on the held-out test part: {report.test_value:.6g}</p>"
    )
    return test + _table(head, rows)


def _row(report: StudyReport, trial: TrialSummary, names: Sequence[str]) -> list[str]:
    params = [_shown(trial.params[name]) if name in trial.params else "" for name in names]
    return [str(trial.number), _shown(trial.value), rung_name(report.ladder, trial.rung), *params]


def _efficiency(report: StudyReport, cache: CacheFigures, runs: Sequence[Run]) -> str:
    metrics = report.efficiency_metrics
    saved = metrics.saved_cpu_seconds
    efficiency = metrics.parallel_efficiency
    if efficiency is None:
        # Nobody measured it; what ran tells nearly as much.
        efficiency = utilisation(runs)
    rows = [
        ["trials", f"{report.complete} complete, {report.pruned} pruned, {report.failed} failed"],
        ["total time", duration(metrics.total_time_seconds)],
        ["cache hit rate", f"{cache.hit_rate:.1%}"],
        ["parallel efficiency", told(efficiency, "{:.1%}")],
        ["memory", told(metrics.memory_usage_mb, "{:.0f} MB")],
        ["speed-up (estimated)", f"{metrics.speedup_factor:.2f} x"],
        ["CPU spent", f"{metrics.spent_cpu_seconds:.4g} s"],
        ["CPU without savings (estimated)", f"{metrics.baseline_cpu_seconds:.4g} s"],
        ["saved by stopping early (estimated)", f"{saved.stopping:.4g} s"],
        ["saved by pruning (estimated)", f"{saved.pruning:.4g} s"],
        ["saved by subsampling (estimated)", f"{saved.subsampling:.4g} s"],
        ["saved by caching", f"{saved.caching:.4g} s"],
    ]
    return _table([], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
