"""Time per trial of ask and tell, by the trials of the study and by parameters: trialfleet's TPE does not slow down.

    python benchmarks/sampler_cost.py --trials 1000 --trials 100000 --batch 32

Parameters are of all kinds in turn: float, logarithmic float, int, categorical, logarithmic int.
"""

import argparse
import random
import time

from trialfleet_coordinator.commands import Observation
from trialfleet_coordinator.sampling.tpe import TpeSampler
from trialfleet_coordinator.sampling.uniform import UniformSampler
from trialfleet_shared.space import Categorical, Distribution, Float, Int, SearchSpace

KINDS: list[Distribution] = [
    Float(0, 1),
    Float(1e-5, 1, log=True),
    Int(1, 50),
    Categorical(["a", "b", "c"]),
    Int(1, 1000, log=True),
]
#: Batches that are timed.
ROUNDS = 10


def microseconds_per_trial(*, trials: int, parameters: int, batch: int) -> float:
    """Time of ask and tell on a study that has so many trials; the median batch's, per trial."""
    space = SearchSpace({f"p{index}": KINDS[index % len(KINDS)] for index in range(parameters)})
    values = random.Random(0)
    earlier = UniformSampler(space, seed=1).ask(range(trials))
    sampler = TpeSampler(space, maximize=False, startup=10, seed=0)
    sampler.restore(
        [(number, *draw) for number, draw in enumerate(earlier)],
        [Observation(number, *draw, 0, values.random()) for number, draw in enumerate(earlier)],
    )
    times = []
    for start in range(trials, trials + ROUNDS * batch, batch):
        started = time.perf_counter()
        draws = sampler.ask(range(start, start + batch))
        sampler.tell([Observation(number, *draw, 0, values.random()) for number, draw in enumerate(draws, start)])
        times.append(time.perf_counter() - started)
    return 1e6 * sorted(times)[ROUNDS // 2] / batch


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, action="append", help="trials of the study; default 1000, 10000, 100000")
    parser.add_argument("--parameters", type=int, action="append", help="default 5, 20")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    sizes = options.trials or [1_000, 10_000, 100_000]
    print(f"microseconds per trial, batches of {options.batch}")
    print(f"{'parameters':>12}" + "".join(f"{size:>12,}" for size in sizes))
    for parameters in options.parameters or [5, 20]:
        row = [microseconds_per_trial(trials=size, parameters=parameters, batch=options.batch) for size in sizes]
        print(f"{parameters:>12}" + "".join(f"{one:>12.0f}" for one in row), flush=True)


if __name__ == "__main__":
    main()
