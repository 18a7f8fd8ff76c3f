"""Results of benchmarks as JSON files: what was measured, where, with which settings."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

#: Where the full runs' results are kept; `docs/benchmarks.md` and its plots are made from them.
RESULTS = Path(__file__).parents[1] / "results"
#: Draws of a bootstrap.
DRAWS = 5000


def machine(packages: Sequence[str] = ("trialfleet", "optuna", "numpy")) -> dict[str, Any]:
    """Where this runs: cores, processor, Python, versions of `packages`, date."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cores": os.cpu_count(),
        "processor": names[0] if names else platform.machine(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


def save(
    topic: str,
    *,
    settings: dict[str, Any],
    results: Any,
    quick: bool = False,
    packages: Sequence[str] = ("trialfleet", "optuna", "numpy"),
) -> None:
    """Write `results/<topic>.json`; a quick run's go nowhere, as they are no measurement to keep."""
    if quick:
        return
    RESULTS.mkdir(exist_ok=True)
    document = {"machine": machine(packages), "settings": settings, "results": results}
    (RESULTS / f"{topic}.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def interval(samples: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the samples and its bootstrap interval, as (mean, lower, upper)."""
    values = np.asarray(samples, dtype=float)
    draws = np.random.default_rng(0).choice(values, size=(DRAWS, len(values))).mean(axis=1)
    lower, upper = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(lower), float(upper)
