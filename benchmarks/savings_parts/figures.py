"""From the runs' JSON files to figures and a table."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring.results import interval
from savings_parts.runs import ABLATIONS, MODES, PARALLEL, Run
from savings_parts.tasks import TASKS, Task

#: Optuna's TPE draws so many trials at random before it trusts its model: they stand for a random configuration.
_RANDOM_TRIALS = 10
#: What is told of a mode on a task and seed.
Figures = dict[str, float]


class Measured:
    """All runs of a folder."""

    def __init__(self, out: Path, data: Path) -> None:
        self._runs: dict[Run, dict[str, Any]] = {}
        self.maximize = {name: Task(name, data, out).maximize for name in TASKS}
        variants = ("baseline", *MODES, *ABLATIONS, PARALLEL)
        for name in TASKS:
            for path in sorted(out.glob(f"{name}.*.baseline.json")):
                seed = int(path.name.split(".")[1])
                for run in (Run(name, seed, variant) for variant in variants):
                    if run.path(out).exists():
                        self._runs[run] = json.loads(run.path(out).read_text())

    def seeds(self, task: str, variant: str) -> list[int]:
        """Seeds with a result of this variant and of the baseline."""
        return sorted(run.seed for run in self._runs if run.task == task and run.variant == variant)

    def figures(self, task: str, seed: int, variant: str) -> Figures:
        """One run against its baseline."""
        base, run = self._runs[Run(task, seed, "baseline")], self._runs[Run(task, seed, variant)]
        regret = self._regret(task, seed)
        rival = _incumbent(base["trials"], run["cpu_seconds"], maximize=self.maximize[task])
        figures = {
            "cpu_seconds": run["cpu_seconds"],
            "cpu_saved": 1 - run["cpu_seconds"] / base["cpu_seconds"],
            "wall_seconds": run["wall_seconds"],
            "wall_saved": 1 - run["wall_seconds"] / base["wall_seconds"],
            "quality": self._ratio(task, run["test_value"], base["test_value"]),
            "cv_quality": self._ratio(task, run["best_value"], base["best_value"]),
            "regret": regret(run["best_value"]),
            "regret_baseline": regret(base["best_value"]),
            "regret_rival": regret(rival["value"]),
            "quality_rival": self._ratio(task, rival["test_value"], base["test_value"]),
            "rival_trials": float(rival["trials"]),
        }
        if variant == "baseline":
            return figures
        metrics = run["efficiency_metrics"]
        return figures | {
            "beats_rival": figures["regret_rival"] - figures["regret"],
            "import_cpu_seconds": run["import_cpu_seconds"],
            "evaluations_cpu_seconds": metrics["spent_cpu_seconds"],
            # What a study of any length saves: without the imports and the start, which both pay once.
            "evaluations_saved": 1 - metrics["spent_cpu_seconds"] / _trials_cpu(base),
            "other_cpu_seconds": run["cpu_seconds"] - metrics["spent_cpu_seconds"],
            # The report speaks of the trials alone, from the first one on: so is the baseline counted here.
            "estimate_baseline_cpu": metrics["baseline_cpu_seconds"] / _trials_cpu(base),
            # The baseline's wall seconds as they were estimated, and as they would have been under this run's conditions.
            "estimate_speedup": metrics["speedup_factor"]
            * metrics["total_time_seconds"]
            / (_trials_cpu(base) * run["wall_per_cpu"]),
            "trials": float(run["trials"]),
        }

    def _ratio(self, task: str, value: float, reference: float) -> float:
        return value / reference if self.maximize[task] else reference / value

    def _regret(self, task: str, seed: int) -> Callable[[float], float]:
        """Normalised: 0 is the best value that any run of this task and seed found, 1 that of a random configuration."""
        sign = 1.0 if self.maximize[task] else -1.0
        values = []
        for run, result in self._runs.items():
            if (run.task, run.seed) == (task, seed):
                complete = result.get("complete_values") or [result["best_value"]]
                values += [sign * value for value in complete]
        trials = self._runs[Run(task, seed, "baseline")]["trials"]
        scores = [sign * trial["value"] for trial in trials]
        best = max([*values, *scores])
        median = statistics.median(scores[:_RANDOM_TRIALS])
        return lambda value: (best - sign * value) / (best - median)

    def table(self, variants: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """By variant and task ("all": their mean): each figure as (mean, lower, upper)."""
        table: dict[str, dict[str, dict[str, Any]]] = {}
        for variant in variants:
            by_task = {
                task: {seed: self.figures(task, seed, variant) for seed in seeds}
                for task in TASKS
                if (seeds := self.seeds(task, variant))
            }
            if not by_task:
                continue
            common = set.intersection(*(set(by_seed) for by_seed in by_task.values()))
            means = [_mean([by_task[task][seed] for task in by_task]) for seed in sorted(common)]
            table[variant] = {task: _summary(list(by_seed.values())) for task, by_seed in by_task.items()}
            if means:
                table[variant]["all"] = _summary(means)
        return table

    def raw(self) -> list[dict[str, Any]]:
        """Each run's figures."""
        return [
            {"task": run.task, "seed": run.seed, "variant": run.variant}
            | self.figures(run.task, run.seed, run.variant)
            | {"value": result["best_value"], "test_value": result["test_value"]}
            for run, result in self._runs.items()
        ]


def _trials_cpu(base: Mapping[str, Any]) -> float:
    """CPU seconds of the baseline's trials without its start, which the first one's count includes."""
    first, *_, last = (trial["cpu_seconds"] for trial in base["trials"])
    count = len(base["trials"])
    return float(last - first) * count / (count - 1)


def _incumbent(trials: Sequence[Mapping[str, Any]], cpu_seconds: float, *, maximize: bool) -> dict[str, Any]:
    """The best of the baseline's trials that end within the CPU seconds; its first one if there is none."""
    within = [trial for trial in trials if trial["cpu_seconds"] <= cpu_seconds] or trials[:1]
    best = (max if maximize else min)(within, key=lambda trial: trial["value"])
    return {"value": best["value"], "test_value": best["test_value"], "trials": len(within)}


def _mean(figures: Sequence[Figures]) -> Figures:
    return {key: statistics.fmean(entry[key] for entry in figures) for key in figures[0]}


def _summary(figures: Sequence[Figures]) -> dict[str, Any]:
    entries: dict[str, Any] = {key: interval([entry[key] for entry in figures]) for key in figures[0]}
    return entries | {"seeds": len(figures)}


#: Columns of the table: heading, figure, format.
_COLUMNS = (
    ("CPU s", "cpu_seconds", "{:.1f}"),
    ("CPU saved", "cpu_saved", "{:.1%}"),
    ("of evals", "evaluations_saved", "{:.1%}"),
    ("wall saved", "wall_saved", "{:.1%}"),
    ("quality", "quality", "{:.4f}"),
    ("CV quality", "cv_quality", "{:.4f}"),
    ("regret", "regret", "{:.3f}"),
    ("baseline's", "regret_baseline", "{:.3f}"),
    ("rival's", "regret_rival", "{:.3f}"),
    ("less by", "beats_rival", "{:.3f}"),
    ("trials", "trials", "{:.0f}"),
    ("its trials", "rival_trials", "{:.0f}"),
    ("its quality", "quality_rival", "{:.4f}"),
    ("evals CPU s", "evaluations_cpu_seconds", "{:.1f}"),
    ("other CPU s", "other_cpu_seconds", "{:.1f}"),
    ("import", "import_cpu_seconds", "{:.2f}"),
    ("est. base", "estimate_baseline_cpu", "{:.2f}"),
    ("est. speedup", "estimate_speedup", "{:.2f}"),
)
#: Columns whose interval is printed as well.
_WITH_INTERVAL = ("cpu_saved", "quality", "regret", "beats_rival")


def printed(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The table as text, one block per variant."""
    lines = []
    for variant, by_task in table.items():
        rows = [[variant, "seeds", *(heading for heading, _, _ in _COLUMNS)]]
        for task, entries in by_task.items():
            cells = [_cell(entries.get(key), form, with_interval=key in _WITH_INTERVAL) for _, key, form in _COLUMNS]
            rows.append([task, str(entries["seeds"]), *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(entry: tuple[float, float, float] | None, form: str, *, with_interval: bool) -> str:
    if entry is None:
        return "-"
    mean, lower, upper = (form.format(number) for number in entry)
    return f"{mean} [{lower}, {upper}]" if with_interval and lower != upper else mean
