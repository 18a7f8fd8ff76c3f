"""Running evaluations on a pool of slots."""

import time
from pathlib import Path
from typing import Any

from trialfleet_shared.messages import Evaluation, EvaluationResult, StudySpec
from trialfleet_workers.digests import code_digest
from trialfleet_workers.slots import SlotPool
from trialfleet_workers.threads import ThreadPool

#: Seconds until a test that waits for results fails.
PATIENCE = 60.0


def file_spec(reference: str, base: Path, **fields: Any) -> StudySpec:
    """A study whose objective is in a file."""
    digest = code_digest(reference, base)
    return StudySpec(study=fields.pop("study", "files"), objective=reference, objective_digest=digest, **fields)


def memory_spec(name: str = "f", **fields: Any) -> StudySpec:
    """A study of the function handed over as `name`."""
    return StudySpec(study=fields.pop("study", name), objective=f"memory:{name}", objective_digest="", **fields)


def evaluation(trial: int, **params: Any) -> Evaluation:
    return Evaluation(trial=trial, rung=0, fold=0, fraction=1.0, params=params)


def collect(pool: SlotPool | ThreadPool, count: int) -> dict[int, EvaluationResult]:
    """The next `count` results, by trial."""
    results: dict[int, EvaluationResult] = {}
    end = time.monotonic() + PATIENCE
    while len(results) < count:
        assert time.monotonic() < end, f"{len(results)} of {count} results after {PATIENCE:g} s"
        results.update((result.trial, result) for _, result in pool.poll(1.0))
    return results


def run(pool: SlotPool | ThreadPool, spec: StudySpec, *evaluations: Evaluation) -> dict[int, EvaluationResult]:
    """Evaluate, and return the results by trial."""
    for one in evaluations:
        pool.submit(spec, one)
    return collect(pool, len(evaluations))


def is_alive(pid: int) -> bool:
    """Whether a process runs: it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
