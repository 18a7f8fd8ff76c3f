"""The evaluator processes' entry point: a zygote wired to the data cache.

Started by `handles.py` as `python -c ... <control fd> <parent pid> <data cache's path>`.
"""

import faulthandler
import io
import socket
import sys
from pathlib import Path

from trialfleet_shared.errors import DataError
from trialfleet_shared.messages import StudySpec
from trialfleet_workers.slot_process import DataSource, OpenData
from trialfleet_workers.zygote import run_zygote


def main(arguments: list[str]) -> None:
    """Run a zygote.

    Args:
        arguments: control socket's descriptor, parent's process id, and the data cache's path or "".
    """
    descriptor, parent, data_path = arguments
    # A crash in native code leaves a traceback on standard error.
    faulthandler.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what an objective prints is seen when it is printed
        sys.stdout.reconfigure(line_buffering=True)
    open_data = data_opener(Path(data_path) if data_path else None)
    with socket.socket(fileno=int(descriptor)) as control:
        run_zygote(control, int(parent), open_data)


def data_opener(path: Path | None) -> OpenData:
    """Opens data sets in the cache at `path`, one environment per process; without a path, raises DataError."""
    if path is None:
        return _no_data
    from trialfleet_workers.adapters.data_set import open_data_set  # noqa: PLC0415  # numpy only where data are

    return lambda spec: open_data_set(path, spec.data_digest)


def _no_data(spec: StudySpec) -> DataSource:
    raise DataError(f"study {spec.study!r} needs data, but its fleet was given no data cache")
