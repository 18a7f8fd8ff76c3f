"""A campaign of faults over real studies whose right answer is known.

    python tests/chaos/campaign.py [--faults 200] [--seed 0] [--minutes M] [--state FILE]

Study after study runs, embedded and on a fleet in turn, while it is attacked: processes are killed with -9 and stopped for
longer than every heartbeat, the network is cut, the disk filled, the clock stepped (`support/chaos_faults.py`). Every study
must end with each trial decided once, with the value that its params give, each evaluation counted once, and nothing
running afterwards. Recovery is the time from a fault's end to the next result in the record.

A seed plans the faults; when they strike depends on the machine. With --state, studies that are done are kept in that file,
and the same command goes on after the last one. Ctrl-C ends after cleaning up, with the summary of what was done.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.chaos_attack import attack

#: Of each study.
TRIALS, EVALUATION_SECONDS = 100, 0.3
FAULTS_EACH = 12


def show(studies: list[dict[str, Any]]) -> None:
    """The table of docs/chaos.md."""
    kinds: dict[str, list[float]] = {}
    for study in studies:
        for fault in study["faults"]:
            kinds.setdefault(f"{fault['fault']}, {'fleet' if study['fleet'] else 'embedded'}", []).append(
                fault["recovery"]
            )
    wrong = [study for study in studies if study["violations"]]
    faults, trials = sum(map(len, kinds.values())), sum(study["trials"] for study in studies)
    calls = sum(study["calls"] for study in studies)
    print(f"\n{len(studies)} studies, {trials} trials, {faults} faults; {len(wrong)} studies wrong; ", end="")
    print(f"{calls - trials:+d} evaluations beside one for each trial")
    for study in wrong:
        print(f"  study {study['study']}: {study['violations']}")
    for name, reason in sorted({item for study in studies for item in study["missing"].items()}):
        print(f"  not tried: {name}: {reason}")
    print("| fault | times | recovery: median, s | longest, s |\n| --- | --- | --- | --- |")
    for kind, recoveries in sorted(kinds.items()):
        print(f"| {kind} | {len(recoveries)} | {statistics.median(recoveries):.1f} | {max(recoveries):.1f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="faults in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no study after so long")
    parser.add_argument("--state", type=Path, help="file that keeps the studies that are done")
    parser.add_argument(
        "--kind", choices=["both", "embedded", "fleet"], default="both", help="studies of one kind only"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first study")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    kept = arguments.state.read_text().splitlines() if arguments.state and arguments.state.exists() else []
    studies = [json.loads(line) for line in kept]
    end = time.monotonic() + 60 * arguments.minutes
    try:
        while sum(len(study["faults"]) for study in studies) < arguments.faults and time.monotonic() < end:
            number = arguments.first + len(studies)
            study = attack(
                number,
                fleet=number % 2 == 1 if arguments.kind == "both" else arguments.kind == "fleet",
                seed=arguments.seed,
                faults=FAULTS_EACH,
                trials=TRIALS,
                seconds=EVALUATION_SECONDS,
                say=partial(print, flush=True),
            )
            studies.append(study)
            if arguments.state:
                with arguments.state.open("a") as file:
                    file.write(json.dumps(study) + "\n")
    except KeyboardInterrupt:
        print("ended early", flush=True)
    show(studies)
    return 1 if any(study["violations"] for study in studies) else 0


if __name__ == "__main__":
    sys.exit(main())
