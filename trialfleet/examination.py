"""Looks at a store or a cache in a process of its own, which a damaged one may end by a signal."""

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from trialfleet_shared.errors import StoreError, StoreUnavailableError, TrialfleetError


class _Answer(msgspec.Struct, frozen=True):
    """What the process answers."""

    found: Any = None
    error: str = ""
    #: Whether the error says nothing of what was to be read.
    unavailable: bool = False


def apart(work: str, *arguments: str) -> Any:
    """What one of the functions below found.

    Raises:
        StoreUnavailableError: it can not be opened as things are.
        StoreError: it is damaged; also where the process was ended by a signal.
    """
    code = "from trialfleet.examination import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, work, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode < 0:
        raise StoreError(f"reading it ends a process by {signal.Signals(-done.returncode).name}: it is damaged")
    try:
        answer = msgspec.json.decode(done.stdout.rpartition(b"\n")[2], type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StoreError(f"the process that read it ended with status {done.returncode}") from None
    if answer.error:
        raise StoreUnavailableError(answer.error) if answer.unavailable else StoreError(answer.error)
    return answer.found


def store(path: str) -> list[Any]:
    """See `examine_store`."""
    from trialfleet_coordinator.adapters.store_care import examine_store  # noqa: PLC0415  # it takes a while

    return [list(each) for each in examine_store(Path(path))]


def salvage(path: str, target: str) -> list[str]:
    """See `salvage_store`."""
    from trialfleet_coordinator.adapters.store_care import salvage_store  # noqa: PLC0415  # as above

    return salvage_store(Path(path), Path(target))


def results(path: str, repair: str) -> list[int]:
    """See `examine_results`."""
    from trialfleet_shared.adapters.lmdb_results import examine_results  # noqa: PLC0415  # only here

    return list(examine_results(Path(path), repair=repair == "repair"))


#: By name.
WORK: Mapping[str, Callable[..., Any]] = {"store": store, "salvage": salvage, "results": results}


def main() -> None:
    """The process: a work's name and its arguments in the command line, an answer as the last line of output."""
    try:
        answer = _Answer(found=WORK[sys.argv[1]](*sys.argv[2:]))
    except TrialfleetError as error:
        answer = _Answer(error=str(error), unavailable=isinstance(error, StoreUnavailableError))
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer))
