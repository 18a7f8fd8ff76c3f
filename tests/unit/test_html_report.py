"""The report as a page: every trial is drawn, nothing of a study is taken for markup, odd studies are no trouble."""

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.chromium import open_page

import trialfleet
from trialfleet.html_report import render
from trialfleet.html_report.charts import MOST_LINES, MOST_POINTS, history, parallel, slices
from trialfleet.html_report.svg import Scale
from trialfleet.html_report.timeline import MOST_SLOTS, timeline, utilisation
from trialfleet.recorded import cache_figures_of
from trialfleet_coordinator.report import StudyReport, TrialSummary
from trialfleet_coordinator.runs import Run
from trialfleet_shared.messages import Outcome

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
    return render(report, cache_figures_of(report), shares or {}, [a_run(0, 0, 1, worker=HOSTILE), a_run(0, 1, 2)])


def test_every_trial_is_a_point_of_each_chart() -> None:
    report = a_report(*mixed(50), trial(50, {"rate": 1.0, "n": 3, "kind": "a"}, None, "fail"))
    assert history(report).count("<circle") == 50
    assert [chart.count("<circle") for chart in slices(report).values()] == [50, 50, 50]
    assert parallel(report).count("<polyline") == 50


def test_a_rung_that_was_left_out_is_said_to_be() -> None:
    assert "left out" not in page(a_report(*mixed(3)))
    assert ", then left out</text>" in page(a_report(*mixed(3), left_out=(0,)))


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
    assert shown.document.count("<svg") == 7


def test_a_browser_shows_a_study_of_two_thousand_trials(tmp_path: Path) -> None:
    runs = [a_run(number % 16, number // 16, number // 16 + 0.9, rung=number % 4) for number in range(5000)]
    report = a_report(*mixed(2000))
    file = tmp_path / "report.html"
    file.write_text(render(report, cache_figures_of(report), {"rate": 0.7, "n": 0.3}, runs), encoding="utf-8")
    assert file.stat().st_size < 2_000_000
    shown = open_page(file.as_uri(), tmp_path / "profile")
    assert shown.console == []
    assert shown.document.count("<circle") == 4 * 2000, "the history and a slice for each param"
    assert shown.document.rstrip().endswith("</html>")


@pytest.mark.parametrize(
    "trials",
    [
        (),
        (trial(0, {}, None, "fail"),),
        (trial(0, {"x": 0.5}, 1.0),),
        (trial(0, {"x": 0.5}, math.nan), trial(1, {"x": 0.5}, math.inf)),
        (trial(0, {"x": 0.5}, 1e300), trial(1, {"x": 0.5}, -1e300)),
        (trial(0, {"x": 1.7e308}, 1.7e308), trial(1, {"x": -1.7e308}, -1.7e308)),
        (trial(0, {"x": 5e-324}, 5e-324), trial(1, {"x": 0.0}, 0.0)),
        (trial(0, {"x": 1}, 1.0), trial(1, {"y": True}, 2.0), trial(2, {"x": "a", "y": None}, 3.0)),
        (trial(0, {"x": 0}, 0.0, "pruned"), trial(1, {"x": 10**9}, 0.0, "pruned")),
    ],
)
def test_odd_studies_are_drawn_too(trials: tuple[TrialSummary, ...]) -> None:
    text = page(a_report(*trials))
    assert not re.search(r'[",]-?(nan|inf)[",]', text), "a place on the drawing is a number"


def a_run(
    slot: int, start: float, end: float, *, worker: str = "w", rung: int = 0, outcome: Outcome = Outcome.OK
) -> Run:
    return Run(
        trial=0,
        rung=rung,
        fold=0,
        outcome=outcome,
        worker=worker,
        slot=slot,
        started_at=1.7e9 + start,
        wall_seconds=end - start,
    )


def drawn_bars(runs: list[Run]) -> list[dict[str, str]]:
    """The attributes of each bar of the timeline."""
    return [dict(re.findall(r'(\w+)="([^"]*)"', part.split(">")[0])) for part in timeline(runs).split("<rect")[1:]]


def test_an_evaluation_is_a_bar_in_its_slots_row_from_its_start_to_its_end() -> None:
    runs = [
        a_run(0, 0, 4),
        a_run(1, 2, 6, rung=1),
        a_run(0, 4, 8, rung=9, outcome=Outcome.CRASH),
        a_run(1, 6, 10, rung=9),
    ]
    bars = drawn_bars(runs)
    assert [bar["class"] for bar in bars] == ["rung0", "failed", "rung1", "rung5"]
    assert len({bar["y"] for bar in bars[:2]}) == len({bar["y"] for bar in bars[2:]}) == 1
    assert bars[0]["y"] != bars[2]["y"]
    at = [float(bar["x"]) for bar in bars]
    assert at[1] == pytest.approx(at[0] + float(bars[0]["width"]), abs=0.2)
    assert at[2] - at[0] == pytest.approx((at[1] - at[0]) / 2, abs=0.2)
    assert timeline(runs).count("80%") == 2, "each slot evaluated for 8 of 10 seconds"
    assert utilisation(runs) == pytest.approx(0.8)


def test_a_figure_that_nobody_measured_is_a_dash() -> None:
    metrics = msgspec.structs.replace(EMPTY.efficiency_metrics, parallel_efficiency=None, memory_usage_mb=None)
    report = a_report(*mixed(3), efficiency_metrics=metrics)
    told = render(report, cache_figures_of(report), {}, [])
    assert "<tr><td>parallel efficiency</td><td>-</td></tr><tr><td>memory</td><td>-</td></tr>" in told
    # What ran tells nearly as much of the slots.
    told = render(report, cache_figures_of(report), {}, [a_run(0, 0, 4), a_run(1, 0, 2), a_run(1, 2, 3)])
    assert "<tr><td>parallel efficiency</td><td>87.5%</td></tr><tr><td>memory</td><td>-</td></tr>" in told


def test_workers_have_rows_of_their_own_and_names_that_are_told_apart() -> None:
    names = [f"machine-of-the-fleet-{number:03}" for number in range(MOST_SLOTS + 5)]
    drawn = timeline([a_run(0, number, number + 3, worker=name) for number, name in enumerate(names)])
    assert drawn.count("<rect") == MOST_SLOTS
    assert f"of which {MOST_SLOTS} are drawn" in drawn
    assert "of-the-fleet-000 0" in drawn


def test_evaluations_too_short_to_be_told_apart_share_a_bar() -> None:
    runs = [a_run(0, number * 0.01, number * 0.01 + 0.009, rung=int(number % 4 == 0)) for number in range(10_000)]
    bars = drawn_bars(runs)
    assert 300 < len(bars) < 700
    assert {bar["class"] for bar in bars} == {"rung0"}, "the colour is that of most of the time"


def test_a_study_that_rested_for_a_week_is_still_seen() -> None:
    runs = [a_run(0, 0, 10), a_run(0, 7 * 86400, 7 * 86400 + 10, rung=1)]
    assert all(float(bar["width"]) > 200 for bar in drawn_bars(runs))
    assert timeline(runs).count('class="cut"') == 1
    assert 'class="cut"' not in timeline([a_run(0, 0, 10), a_run(0, 10.5, 20)])


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 10.0, 0.0, 1.0), [0, 2, 4, 6, 8, 10]),
        (Scale(-0.31, 0.42, 0.0, 1.0), [-0.2, 0.0, 0.2, 0.4]),
        (Scale(0.001, 1000.0, 0.0, 1.0, log=True), [0.001, 0.01, 0.1, 1, 10, 100, 1000]),
        (Scale(2.0, 5.0, 0.0, 1.0, log=True), [2.0, 5.0]),
        (Scale(-1.7e308, 1.7e308, 0.0, 1.0), [-1e308, 0.0, 1e308]),
        (Scale(0.0, 5e-324, 0.0, 1.0), [0.0]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)
