#!/usr/bin/env python3
"""Writes the dashboards in ops/grafana/dashboards: `python ops/grafana/build.py`. A test holds the files to this program."""

import json
from pathlib import Path
from typing import Any, NamedTuple

DASHBOARDS = Path(__file__).parent / "dashboards"
#: As ops/grafana/provisioning/datasources names it.
DATASOURCE = {"type": "prometheus", "uid": "trialfleet-prometheus"}
# In queries the study stands as `${study:doublequote}`, a quoted text: names may have what a pattern takes for something else.
#: Panels of one row, and the size of each in Grafana's units.
COLUMNS, WIDTH, HEIGHT = 3, 8, 8


class Panel(NamedTuple):
    """One panel."""

    title: str
    description: str
    unit: str
    #: Legend, in Grafana's notation, by query.
    queries: dict[str, str]
    #: Value from which it is drawn in which colour; the first one has no value.
    thresholds: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    kind: str = "timeseries"


_BAD_IF_ANY = ((None, "green"), (1.0, "red"))
_SHARE = ((None, "red"), (0.7, "yellow"), (0.9, "green"))

FLEET = (
    Panel(
        "Workers", "Workers by what they were when they were heard last.", "short", {"trialfleet_workers": "{{state}}"}
    ),
    Panel(
        "Slots",
        "Slots of the live workers, and those that are evaluating.",
        "short",
        {"trialfleet_fleet_slots": "slots", "trialfleet_fleet_slots_busy": "busy"},
    ),
    Panel(
        "Parallel efficiency",
        "Busy slot-seconds over available slot-seconds of all workers.",
        "percentunit",
        {
            "sum(rate(trialfleet_worker_busy_slot_seconds_total[$__rate_interval]))"
            " / sum(rate(trialfleet_worker_available_slot_seconds_total[$__rate_interval]))": "all workers"
        },
        _SHARE,
    ),
    Panel("Studies", "Studies of the coordinator by state.", "short", {"trialfleet_studies": "{{state}}"}),
    Panel(
        "Trials decided",
        "Trials that were decided each second, by study.",
        "short",
        {"sum by (study) (rate(trialfleet_trials_total[$__rate_interval]))": "{{study}}"},
    ),
    Panel(
        "Evaluations",
        "Evaluations that were answered each second, by outcome.",
        "short",
        {"sum by (outcome) (rate(trialfleet_evaluations_total[$__rate_interval]))": "{{outcome}}"},
    ),
    Panel(
        "Speed-up by saved work",
        "Estimate: CPU seconds without savings over CPU seconds spent, since the coordinator took each study up.",
        "short",
        {"sum(trialfleet_baseline_cpu_seconds_total) / sum(trialfleet_spent_cpu_seconds_total)": "all studies"},
    ),
    Panel(
        "CPU saved",
        "Estimate: CPU seconds saved each second, by what saved them.",
        "short",
        {"sum by (source) (rate(trialfleet_saved_cpu_seconds_total[$__rate_interval]))": "{{source}}"},
    ),
    Panel(
        "Memory",
        "Proportional set size of the coordinator and of each worker with its slots.",
        "bytes",
        {"trialfleet_coordinator_pss_bytes": "coordinator", "trialfleet_worker_pss_bytes": "{{instance}}"},
    ),
)
STUDY = (
    Panel(
        "Best value",
        "The best value so far.",
        "short",
        {"trialfleet_study_best_value{study=${study:doublequote}}": "{{study}}"},
    ),
    Panel(
        "Trials",
        "Trials started and decided over all sessions of the study, and the budget.",
        "short",
        {
            "sum(trialfleet_study_trials{study=${study:doublequote}})": "started",
            'sum(trialfleet_study_trials{study=${study:doublequote},state!="undecided"})': "decided",
            "trialfleet_study_trials_target{study=${study:doublequote}}": "budget",
        },
    ),
    Panel(
        "Trials by state",
        "Trials of all sessions, by the state they were given; those undecided are evaluated, or wait for a promotion.",
        "short",
        {"trialfleet_study_trials{study=${study:doublequote}}": "{{state}}"},
    ),
    Panel(
        "Seconds of an evaluation",
        "The median of the evaluations that ran, by rung.",
        "s",
        {
            "histogram_quantile(0.5, sum by (le, rung) "
            "(rate(trialfleet_evaluation_seconds_bucket{study=${study:doublequote}}[$__rate_interval])))": "rung {{rung}}"
        },
    ),
    Panel(
        "Wait",
        "Seconds on the way and in queues, of nine in ten evaluations.",
        "s",
        {
            "histogram_quantile(0.9, sum by (le) "
            "(rate(trialfleet_queue_wait_seconds_bucket{study=${study:doublequote}}[$__rate_interval])))": "90%"
        },
    ),
    Panel(
        "In flight",
        "Evaluations published and not answered, and the slots that the study may use.",
        "short",
        {
            "trialfleet_evaluations_in_flight{study=${study:doublequote}}": "in flight",
            "trialfleet_study_slots{study=${study:doublequote}}": "slots",
        },
    ),
    Panel(
        "Sampler and store",
        "Seconds each second that the coordinator spends on drawing and learning, and on commits.",
        "percentunit",
        {
            "sum by (operation)"
            " (rate(trialfleet_sampler_seconds_sum{study=${study:doublequote}}[$__rate_interval]))": "{{operation}}",
            "sum(rate(trialfleet_commit_seconds_sum{study=${study:doublequote}}[$__rate_interval]))": "commit",
        },
    ),
    Panel(
        "CPU spent and saved",
        "Estimate: CPU seconds since the coordinator took the study up, by what became of them.",
        "s",
        {
            "trialfleet_spent_cpu_seconds_total{study=${study:doublequote}}": "spent",
            "trialfleet_saved_cpu_seconds_total{study=${study:doublequote}}": "saved by {{source}}",
        },
    ),
    Panel(
        "Result cache",
        "Share of the look-ups that the result cache answered.",
        "percentunit",
        {
            'sum(trialfleet_result_cache_requests_total{study=${study:doublequote},result="hit"})'
            " / sum(trialfleet_result_cache_requests_total{study=${study:doublequote}})": "hits"
        },
    ),
)
WORKER = (
    Panel(
        "Slots",
        "Slots of the worker, and those that are evaluating.",
        "short",
        {
            'trialfleet_worker_slots{instance=~"$instance"}': "slots of {{instance}}",
            'trialfleet_worker_slots_busy{instance=~"$instance"}': "busy of {{instance}}",
        },
    ),
    Panel(
        "Parallel efficiency",
        "Busy slot-seconds over available slot-seconds.",
        "percentunit",
        {
            'rate(trialfleet_worker_busy_slot_seconds_total{instance=~"$instance"}[$__rate_interval])'
            ' / rate(trialfleet_worker_available_slot_seconds_total{instance=~"$instance"}[$__rate_interval])': "{{instance}}"
        },
        _SHARE,
    ),
    Panel(
        "Evaluations",
        "Evaluations that the worker answered each second, by outcome.",
        "short",
        {
            "sum by (outcome) "
            '(rate(trialfleet_worker_evaluations_total{instance=~"$instance"}[$__rate_interval]))': "{{outcome}}"
        },
    ),
    Panel(
        "Slots ended early",
        "Slots that were ended, or died, by the reason.",
        "short",
        {'trialfleet_worker_slot_restarts_total{instance=~"$instance"}': "{{reason}} on {{instance}}"},
        _BAD_IF_ANY,
    ),
    Panel(
        "Memory",
        "Proportional set size of the worker and its slots.",
        "bytes",
        {'trialfleet_worker_pss_bytes{instance=~"$instance"}': "{{instance}}"},
    ),
    Panel(
        "Caches",
        "Bytes of the worker's caches.",
        "bytes",
        {
            'trialfleet_worker_result_cache_bytes{instance=~"$instance"}': "results of {{instance}}",
            'trialfleet_worker_data_cache_bytes{instance=~"$instance"}': "data of {{instance}}",
        },
    ),
)
BROKER = (
    Panel(
        "Messages that wait",
        "Messages that no consumer has taken, as the coordinator sees them.",
        "short",
        {"trialfleet_queue_messages": "{{queue}}"},
    ),
    Panel(
        "Dead letters",
        "Messages that nobody could read, or that killed whoever took them.",
        "short",
        {'trialfleet_queue_messages{queue="trialfleet.v1.dead"}': "dead letters"},
        _BAD_IF_ANY,
        "stat",
    ),
    Panel(
        "Queues",
        "Ready and unacknowledged messages of each queue, as RabbitMQ counts them.",
        "short",
        {
            "rabbitmq_detailed_queue_messages_ready": "{{queue}} ready",
            "rabbitmq_detailed_queue_messages_unacked": "{{queue}} unacknowledged",
        },
    ),
    Panel("Consumers", "Consumers of each queue.", "short", {"rabbitmq_detailed_queue_consumers": "{{queue}}"}),
)
#: By file: title, panels, and the variable with the query for its values.
ALL: dict[str, tuple[str, tuple[Panel, ...], tuple[str, str] | None]] = {
    "fleet": ("trialfleet: fleet", FLEET, None),
    "study": ("trialfleet: one study", STUDY, ("study", "label_values(trialfleet_study_elapsed_seconds, study)")),
    "worker": ("trialfleet: one worker", WORKER, ("instance", "label_values(trialfleet_worker_slots, instance)")),
    "broker": ("trialfleet: broker", BROKER, None),
}


def dashboard(name: str) -> dict[str, Any]:
    """The dashboard that the file `name` holds, in Grafana's classic model."""
    title, panels, variable = ALL[name]
    return {
        "uid": f"trialfleet-{name}",
        "title": title,
        "tags": ["trialfleet"],
        "schemaVersion": 41,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [] if variable is None else [_variable(*variable)]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": name == "instance",
        "multi": name == "instance",
        "sort": 1,
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": color} for value, color in panel.thresholds]
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.description,
        "type": panel.kind,
        "datasource": DATASOURCE,
        "gridPos": {
            "x": WIDTH * (number % COLUMNS),
            "y": HEIGHT * (number // COLUMNS),
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0 if panel.unit == "percentunit" else None,
                         "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
            for place, (expression, legend) in enumerate(panel.queries.items())
        ],
    }  # fmt: skip


def text(name: str) -> str:
    """What the file `name` holds."""
    return json.dumps(dashboard(name), indent=2) + "\n"


if __name__ == "__main__":
    DASHBOARDS.mkdir(exist_ok=True)
    for file in ALL:
        (DASHBOARDS / f"{file}.json").write_text(text(file))
