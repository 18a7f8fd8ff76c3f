"""The report as a page: every trial is drawn, nothing of a study is taken for markup, odd studies are no trouble."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.chromium import open_page

import trialfleet
from trialfleet.engine import cache_figures_of
from trialfleet.html_report import render
from trialfleet.html_report.charts import MOST_LINES, MOST_POINTS, Span, history, parallel, slices, timeline
from trialfleet.html_report.svg import Scale
from trialfleet_coordinator.report import StudyReport, TrialSummary

HOSTILE = "<script>document.title = 'taken over'</script>"
EMPTY = trialfleet.optimize(
    lambda params: params["x"],
    {"x": trialfleet.Float(0, 1)},
    1,
    config=trialfleet.EfficiencyConfig(use_process_pool=False, enable_caching=False),
)["report"]


def trial(number: int, params: dict[str, Any], value: float | None, state: str = "complete") -> TrialSummary:
    return TrialSummary(
        number=number,
        state=state,
        params=params,
        value=value,
        rung=0,
        reason=HOSTILE,
        wall_seconds=1.0,
        cpu_seconds=1.0,
        evaluations=1,
        cached=0,
        metrics={},
    )


def a_report(*trials: TrialSummary, **changes: Any) -> StudyReport:
    best = next((t for t in trials if t.value is not None), None)
    return msgspec.structs.replace(EMPTY, trials=trials, best_params=None if best is None else best.params, **changes)


def mixed(count: int) -> list[TrialSummary]:
    return [
        trial(number, {"rate": 10.0 ** -(number % 7), "n": number, "kind": "ab"[number % 2]}, math.sin(number))
        for number in range(count)
    ]


def page(report: StudyReport, shares: dict[str, float] | None = None) -> str:
    return render(report, cache_figures_of(report), shares or {}, [])


def test_every_trial_is_a_point_of_each_chart() -> None:
    report = a_report(*mixed(50), trial(50, {"rate": 1.0, "n": 3, "kind": "a"}, None, "fail"))
    assert history(report).count("<circle") == 50
    assert [chart.count("<circle") for chart in slices(report).values()] == [50, 50, 50]
    assert parallel(report).count("<polyline") == 50


def test_large_studies_are_thinned_out() -> None:
    report = a_report(*mixed(3 * MOST_POINTS))
    assert MOST_POINTS / 2 <= history(report).count("<circle") <= MOST_POINTS
    assert parallel(report).count("<polyline") == MOST_LINES


def test_nothing_of_a_study_is_markup(tmp_path: Path) -> None:
    report = a_report(
        trial(0, {HOSTILE: HOSTILE, "x": 1.0}, 0.5),
        trial(1, {HOSTILE: "b", "x": 2.0}, 0.7),
        study=HOSTILE,
        ended_because=HOSTILE,
        failures=(HOSTILE,),
    )
    text = page(report, {HOSTILE: 1.0})
    assert "<script" not in text
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    shown = open_page(file.as_uri(), tmp_path / "profile")
    assert shown.console == []
    assert "<title>taken over" not in shown.document
    assert shown.document.count("<svg") == 6


@pytest.mark.parametrize(
    "trials",
    [
        (),
        (trial(0, {}, None, "fail"),),
        (trial(0, {"x": 0.5}, 1.0),),
        (trial(0, {"x": 0.5}, math.nan), trial(1, {"x": 0.5}, math.inf)),
        (trial(0, {"x": 0.5}, 1e300), trial(1, {"x": 0.5}, -1e300)),
        (trial(0, {"x": 1}, 1.0), trial(1, {"y": True}, 2.0), trial(2, {"x": "a", "y": None}, 3.0)),
        (trial(0, {"x": 0}, 0.0, "pruned"), trial(1, {"x": 10**9}, 0.0, "pruned")),
    ],
)
def test_odd_studies_are_drawn_too(trials: tuple[TrialSummary, ...]) -> None:
    text = page(a_report(*trials))
    assert not re.search(r'[",]-?(nan|inf)[",]', text), "a place on the drawing is a number"


def test_trials_at_the_same_time_are_drawn_in_rows_of_their_own() -> None:
    drawn = timeline([Span(0, 0.0, 2.0, "complete"), Span(1, 1.0, 3.0, "pruned"), Span(2, 2.5, 4.0, "fail")])
    heights = [part.split('y="')[1].split('"')[0] for part in drawn.split("<rect")[1:]]
    assert len(set(heights)) == 2
    assert heights[0] == heights[2]


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 10.0, 0.0, 1.0), [0, 2, 4, 6, 8, 10]),
        (Scale(-0.31, 0.42, 0.0, 1.0), [-0.2, 0.0, 0.2, 0.4]),
        (Scale(0.001, 1000.0, 0.0, 1.0, log=True), [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
        (Scale(2.0, 5.0, 0.0, 1.0, log=True), [2.0, 5.0]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)
