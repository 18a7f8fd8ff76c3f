"""What the processes that run the user's functions are given of this one: its environment, where to print."""

import os
import subprocess

#: Variables that the user's functions do not inherit: they need neither the broker nor the coordinator.
_KEPT_BACK = frozenset(f"TRIALFLEET_{name}{kind}" for name in ("BROKER_URL", "TOKEN") for kind in ("", "_FILE"))
#: One thread in every numerical library, set before it is loaded: slots are processes, and n slots of n threads each
#: would fight for n cores.
_SINGLE_THREADED = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "POLARS_MAX_THREADS",
    ),
    "1",
)


def environment(*, single_threaded: bool = False) -> dict[str, str]:
    """What they inherit of this process's environment.

    Args:
        single_threaded: whether numerical libraries are to have one thread each.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _KEPT_BACK}
    return {**inherited, **_SINGLE_THREADED} if single_threaded else inherited


def standard_output() -> int:
    """Where they print: to this process's standard error, if it has one. Its standard output is the program's."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2
