"""What people and programs are shown of a study."""

import inspect
import io
import math
import re
import unicodedata
from pathlib import Path

import msgspec
import pandas as pd
import pytest
from rich.console import Console
from support.fake_workshop import a_status
from support.simulated import SimulatedClock

from trialfleet.commands.output import say
from trialfleet.exporting import write_parquet
from trialfleet.progress import (
    PLAIN_SECONDS,
    PlainView,
    done_share,
    duration,
    facts,
    progress_view,
    render_progress,
    rung_name,
)
from trialfleet.recorded import cache_figures_of
from trialfleet.rendering import (
    CacheFigures,
    StudySummary,
    finite,
    one_line,
    print_best,
    print_json,
    render_report,
    render_statuses,
    render_studies,
    report_document,
)
from trialfleet_coordinator.report import EfficiencyMetrics, Progress, SavedSeconds, StudyReport, TrialSummary, best_of
from trialfleet_coordinator.serving import ServiceState
from trialfleet_shared.ladder import Ladder, Rung
from trialfleet_workers.evaluate import describe_error

LADDER = Ladder((Rung(0.1, 1), Rung(1.0, 1), Rung(1.0, 5)))
PROGRESS = Progress(
    study="s[bold]:key:",
    direction="maximize",
    ladder=LADDER,
    elapsed_seconds=75.0,
    trials=12,
    trials_budget=100,
    seconds_budget=None,
    complete=2,
    pruned=3,
    failed=1,
    cached=4,
    evaluations=20,
    best_value=0.91,
    best_trial=7,
    rung_mix=(8, 0, 4),
    trials_per_second=0.5,
    seconds_left=188.0,
    slots=2,
    in_flight=4,
    evaluation_seconds=1.0,
    closing=None,
)
REPORT = StudyReport(
    study="s",
    direction="maximize",
    ended="stopped",
    ended_because="it was stopped; run it again to go on",
    best_trial=0,
    best_params={"kind": "[red]", "x": 0.1},
    best_value=0.5,
    best_is_complete=True,
    test_value=0.45,
    complete=1,
    pruned=0,
    failed=1,
    undecided=3,
    ladder=LADDER,
    left_out=(0,),
    rung_evaluations=(1, 1, 4),
    evaluations=6,
    cached=0,
    efficiency_metrics=EfficiencyMetrics(
        total_time_seconds=3700.0,
        avg_trial_time_seconds=0.01,
        cache_hit_rate=0.0,
        parallel_efficiency=0.5,
        memory_usage_mb=100.0,
        speedup_factor=math.inf,
        spent_cpu_seconds=10.0,
        baseline_cpu_seconds=100.0,
        saved_cpu_seconds=SavedSeconds(subsampling=-2.0, pruning=92.0, caching=0.0, stopping=0.0),
    ),
    failures=("trial 1: error: ValueError: no such luck\nTraceback …",),
    trials=(
        TrialSummary(
            number=0,
            state="complete",
            params={"kind": "[red]", "x": 0.1},
            value=0.5,
            rung=2,
            reason="complete",
            wall_seconds=1.0,
            cpu_seconds=1.0,
            evaluations=6,
            cached=0,
            metrics={"log_loss": 0.25},
        ),
    ),
)
CACHE = CacheFigures(enabled=True, hits=0, misses=6, hit_rate=0.0, entries=6, cache_size=1000)


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_tells_everything() -> None:
    text = shown(render_report(REPORT, CACHE, None))

    for words in (
        "kind  [red]",
        "best, mean of 5 folds",
        "log_loss",
        "on the held-out test part",
        "undecided",
        "evaluations at 10%",
        "evaluations at 100% x 5 folds",
        "1:01:40",
        "-2.0 s",
        "1:32",
        "no such luck",
    ):
        assert words in text
    assert "Traceback" not in text
    assert "not measured on all rows" not in text


def test_a_value_that_is_not_complete_is_marked() -> None:
    report = msgspec.structs.replace(REPORT, best_is_complete=False, test_value=None)

    text = shown(render_report(report, CACHE, None))

    assert "best so far *" in text
    assert "* not measured on all rows and all folds yet" in text
    assert "test part" not in text


@pytest.mark.parametrize(("enabled", "told"), [(True, False), (False, True), (None, False)])
def test_that_the_cache_was_off_is_told_where_it_is_known(enabled: bool | None, told: bool) -> None:
    cache = msgspec.structs.replace(CACHE, enabled=enabled)

    assert ("the cache is off" in shown(render_report(REPORT, cache, None))) == told
    assert report_document(REPORT, cache, None)["cache_stats"]["enabled"] is enabled
    assert cache_figures_of(REPORT).enabled is None


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_shows_all_values(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)

    console.print(render_report(REPORT, CACHE, None))

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    values = {"[red]", "0.5", "0.25", "0.45", "3", "4", "1:01:40", "50.0%", "100", "MB", "1:32"}
    assert values <= set(" ".join(lines).split())


#: Sets a terminal's title, and clears it in one byte more than ASCII has.
EVIL, EVIL_SHOWN = "\x1b]0;owned\x07\x9b2J", r"\x1b]0;owned\x07\x9b2J"
EVIL_TRIAL = msgspec.structs.replace(REPORT.trials[0], metrics={EVIL: 0.25})
EVIL_REPORT = msgspec.structs.replace(
    REPORT,
    study=EVIL,
    ended_because=EVIL,
    best_params={EVIL: EVIL},
    failures=(f"trial 1: error: ValueError: {EVIL}",),
    trials=(EVIL_TRIAL,),
)


@pytest.mark.parametrize(
    ("renderable", "times"),
    [
        (render_report(EVIL_REPORT, CACHE, Path("home")), 7),
        (render_studies([StudySummary(study=EVIL), StudySummary(study=EVIL, trouble=EVIL)]), 3),
        (
            render_statuses([msgspec.structs.replace(a_status(EVIL, ServiceState.FAILED), because=EVIL)]),
            2,
        ),
        (render_progress(msgspec.structs.replace(PROGRESS, study=EVIL)), 1),
    ],
)
def test_a_terminal_is_shown_nothing_that_it_would_obey(renderable: object, times: int) -> None:
    text = shown(renderable)
    assert text.count(EVIL_SHOWN) == times
    assert not [character for character in text if unicodedata.category(character) == "Cc" and character != "\n"]


def test_lines_and_documents_show_a_terminal_nothing_that_it_would_obey() -> None:
    console = Console(file=io.StringIO(), width=120)
    with PlainView(console, SimulatedClock()) as view:
        view(msgspec.structs.replace(PROGRESS, study=EVIL))
    print_best(console, best_of(EVIL_REPORT))
    print_best(console, best_of(msgspec.structs.replace(EVIL_REPORT, best_params=None)))
    say(console, EVIL)
    print_json(console, {"study": EVIL})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count(EVIL_SHOWN) == 6
    assert r"\u001b]0;owned\u0007\u009b2J" in text
    assert not [character for character in text if unicodedata.category(character) == "Cc" and character != "\n"]


def test_a_failure_is_told_in_a_line_with_the_place_that_it_comes_from() -> None:
    def objective(params: dict[str, float]) -> float:
        raise ValueError("no such luck\nof two lines")

    try:
        objective({})
    except ValueError as error:
        told = describe_error(error)
    line = inspect.getsourcelines(objective)[1] + 1
    assert one_line(told) == f"ValueError: no such luck (test_rendering.py, line {line}, in objective)"
    assert one_line("\n said by nobody \n") == "said by nobody"
    assert one_line("x" * 1000) == "x" * 199 + "…"


def test_a_report_without_values() -> None:
    report = msgspec.structs.replace(REPORT, best_params=None, best_trial=None, best_value=None, trials=())

    assert "No trial has a value." in shown(render_report(report, CACHE, None))


def test_json_holds_finite_numbers_or_null() -> None:
    document = report_document(REPORT, CACHE, None)

    assert document["efficiency_metrics"]["speedup_factor"] is None
    assert document["cache_stats"]["misses"] == 6
    assert finite({"a": [1.0, math.nan, (math.inf, "x")]}) == {"a": [1.0, None, [None, "x"]]}


def test_a_figure_that_nobody_measured_is_a_dash_or_null() -> None:
    metrics = msgspec.structs.replace(REPORT.efficiency_metrics, parallel_efficiency=None, memory_usage_mb=None)
    report = msgspec.structs.replace(REPORT, efficiency_metrics=metrics)

    rows = dict(
        re.findall(r"^(parallel efficiency|memory) +(.*?) *$", shown(render_report(report, CACHE, None)), re.MULTILINE)
    )
    assert rows == {"parallel efficiency": "-", "memory": "-"}
    document = report_document(report, CACHE, None)["efficiency_metrics"]
    assert (document["parallel_efficiency"], document["memory_usage_mb"]) == (None, None)


def test_the_list_of_studies_marks_values_that_are_not_complete() -> None:
    study = StudySummary(
        study="s",
        direction="minimize",
        trials=3,
        complete=0,
        pruned=1,
        failed=0,
        undecided=2,
        best_value=0.25,
        best_is_complete=False,
        elapsed_seconds=1.0,
    )

    assert "* 0.25" in shown(render_studies([study]))
    assert "not measured on all rows" in shown(render_studies([study]))
    assert "*" not in shown(render_studies([msgspec.structs.replace(study, best_is_complete=True)]))


def test_the_list_of_studies_tells_which_can_not_be_read() -> None:
    listed = shown(render_studies([StudySummary(study="s", trouble="the store is damaged: s has no end")]))
    assert re.search(r"^s +damaged *$", listed, re.MULTILINE)
    assert "the store is damaged: s has no end" in listed


def test_plain_lines_come_every_few_seconds_and_at_the_end() -> None:
    clock = SimulatedClock()
    console = Console(file=io.StringIO(), width=40)

    view = progress_view(console, clock)
    assert isinstance(view, PlainView)
    with view:
        for _ in range(100):
            view(PROGRESS)
            clock.now += PLAIN_SECONDS / 10
        view(msgspec.structs.replace(PROGRESS, complete=94, trials=98))

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == (
        "s[bold]:key:: trials 6 of 100 decided (2 complete, 3 pruned, 1 failed), 6 undecided, "
        "evaluations 20 (4 from the cache), best 0.91 (trial 7), rungs 8 at 10% / 4 at 100% x 5 folds, "
        "slots 2 (4 in flight), speed 0.5 trials/s, time 1:15, 3:08 left"
    )
    assert "98 of 100 decided (94 complete, 3 pruned, 1 failed), evaluations" in lines[-1]


@pytest.mark.parametrize(
    ("state", "changes", "told"),
    [
        (ServiceState.RUNNING, {}, "6 of 100, 6 undecided"),
        (ServiceState.PAUSED, {}, "6 of 100, 6 undecided"),
        (ServiceState.DONE, {"complete": 96, "trials": 100}, "100 of 100 "),
        (ServiceState.RUNNING, {"trials_budget": None}, "6, 6 undecided"),
    ],
)
def test_the_list_of_a_coordinator_tells_decided_and_undecided_trials(
    state: ServiceState, changes: dict[str, object], told: str
) -> None:
    status = a_status("s", state, msgspec.structs.replace(PROGRESS, **changes))
    assert f" {told} " in shown(render_statuses([status]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slots": 0}, "waiting for workers"),
        ({"closing": "stopped"}, "finishing what is in flight"),
        ({"closing": "trials"}, "finishing"),
        ({"closing": "patience"}, "finishing early: nothing better came"),
        ({"seconds_left": None}, "unknown time left"),
    ],
)
def test_the_state_of_a_study_is_told(changes: dict[str, object], told: str) -> None:
    assert dict(facts(msgspec.structs.replace(PROGRESS, **changes)))["time"] == f"1:15, {told}"


def test_the_share_done_is_of_the_budget_that_ends_first() -> None:
    assert done_share(PROGRESS) == 0.06
    assert done_share(msgspec.structs.replace(PROGRESS, seconds_budget=100.0)) == 0.75
    assert done_share(msgspec.structs.replace(PROGRESS, trials_budget=None)) is None
    assert done_share(msgspec.structs.replace(PROGRESS, cpu_seconds=9.0, cpu_seconds_budget=10.0)) == 0.9


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (59.7, "1:00"), (187, "3:07"), (7500, "2:05:00")],
)
def test_durations_are_short(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("rung", "told"),
    [
        (Rung(0.1, 1), "10%"),
        (Rung(0.333333, 1), "33.3%"),
        (Rung(0.0125, 1), "1.25%"),
        (Rung(1.0, 1), "100%"),
        (Rung(1.0, 3), "100% x 3 folds"),
    ],
)
def test_rungs_have_short_names(rung: Rung, told: str) -> None:
    assert rung_name(Ladder((rung,)), 0) == told


def test_a_long_name_leaves_the_figures_of_all_studies() -> None:
    listed = [
        StudySummary(study="x" * 200),
        StudySummary(study="short", trials=17, best_value=0.25, best_is_complete=True),
    ]
    text = shown(render_studies(listed))
    assert text.count("x") == 200
    (line,) = [line for line in text.splitlines() if "short" in line]
    assert "17" in line
    assert "0.25" in line


def test_numbers_that_some_trials_lack_stay_whole_in_a_parquet_file(tmp_path: Path) -> None:
    (trial,) = REPORT.trials
    trials = [
        msgspec.structs.replace(trial, number=number, params=params)
        for number, params in enumerate([{"depth": 3, "flag": True, "kind": 1}, {"kind": "a"}])
    ]
    write_parquet(msgspec.structs.replace(REPORT, trials=tuple(trials)), tmp_path / "trials.parquet")
    frame = pd.read_parquet(tmp_path / "trials.parquet")
    assert (str(frame["params.depth"].dtype), str(frame["params.flag"].dtype)) == ("Int64", "boolean")
    assert (frame["params.depth"][0], frame["params.flag"][0], frame["params.kind"].tolist()) == (3, True, ["1", "a"])
    assert frame["params.depth"].isna()[1]
