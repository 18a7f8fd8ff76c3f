"""Searches by coverage for bytes that a target fails on: `make fuzz`, or

    python tests/fuzz/run.py TARGET [SECONDS]

Prints libFuzzer's figures at the end. A finding stops it, and stands in the file that it names; what covers new code is
kept in a folder of its own beside the corpus, from which `-merge=1` picks the little that is worth keeping.
"""

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent
#: Bytes of an input, MiB of memory, and seconds for one input, at most.
LONGEST, MOST_MEMORY, SLOWEST = 65_536, 1024, 10

sys.path[:0] = [str(HERE), str(HERE.parent)]
with atheris.instrument_imports(
    include=["trialfleet", "trialfleet_shared", "trialfleet_coordinator", "trialfleet_workers"]
):
    from targets import TARGETS


def main() -> None:
    """Fuzz one target."""
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    found = HERE / ".found" / name
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-rss_limit_mb={MOST_MEMORY}",
        f"-timeout={SLOWEST}",
        f"-artifact_prefix={found}/failed-",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    dictionary = HERE / f"{name}.dict"
    if dictionary.exists():
        options.append(f"-dict={dictionary}")
    (found / "kept").mkdir(exist_ok=True)
    atheris.Setup(
        [sys.argv[0], *options, *sys.argv[3:], str(found / "kept"), str(HERE / "corpus" / name)], TARGETS[name]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
