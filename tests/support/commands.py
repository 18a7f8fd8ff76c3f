"""The installed command, run as its users run it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Seconds that a command of a small study may take on a busy machine.
PATIENCE = 90.0


def environment(home: Path) -> dict[str, str]:
    """The environment of this process without settings of trialfleet, and with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIALFLEET_")}
    return {**kept, "TRIALFLEET_HOME": str(home), "COLUMNS": "120"}


def trialfleet(arguments: Sequence[str | Path], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `trialfleet` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "trialfleet", *map(str, arguments)],
        env={**environment(home), **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start_trialfleet(arguments: Sequence[str | Path], home: Path, **variables: str) -> subprocess.Popen[str]:
    """Run `trialfleet` beside the test, in a process group of its own, as a terminal would."""
    return subprocess.Popen(
        [sys.executable, "-m", "trialfleet", *map(str, arguments)],
        env={**environment(home), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def document(output: str) -> Any:
    """The one JSON document that `output` is; a number that JSON does not know is an error."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(output, parse_constant=refuse)
