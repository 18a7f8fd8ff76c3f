"""Imports of data sets in a process of their own: a source may be a user's function, and a parser may crash."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NoReturn

import msgspec

from trialfleet_shared.data import DataInfo
from trialfleet_shared.errors import DataError, TrialfleetError
from trialfleet_shared.messages import DataSpec, StudySpec
from trialfleet_workers import linux, user_processes
from trialfleet_workers.adapters.sources import is_function
from trialfleet_workers.allowance import Allowance, find
from trialfleet_workers.user_modules import is_file

#: Characters of a digest that messages show.
_SHOWN = 8
#: Seconds between two looks whether an import is still wanted.
_LOOK_SECONDS = 0.5


class _Order(msgspec.Struct, frozen=True):
    """What the process is told."""

    data: DataSpec
    path: str
    base: str
    #: What its interpreter finds modules in.
    search: list[str]
    #: Process id of whoever asks.
    parent: int


class _Answer(msgspec.Struct, frozen=True):
    """What it answers."""

    info: DataInfo | None = None
    #: Bytes brought into the cache; 0 when all was there.
    imported_bytes: int = 0
    error: str = ""


def import_function_apart(data: DataSpec, path: Path, base: Path, check: Callable[[], None]) -> tuple[DataInfo, int]:
    """Have the data that a function gives in the data cache; what they are, and the bytes that were brought in.

    Args:
        data: their source is a function that may run here.
        path: the data cache.
        base: folder that the source is relative to.
        check: called now and then; what it raises ends the import.

    Raises:
        DataError: the data can not be imported.
    """
    return _run(_Order(data, str(path), str(base), sys.path, os.getpid()), check)


def import_apart(spec: StudySpec, path: Path, base: Path, allowance: Allowance) -> int:
    """Have the study's data in the data cache; the bytes that were brought in, 0 when all was there.

    Args:
        spec: a study with data.
        path: the data cache.
        base: folder that the source is relative to.
        allowance: which functions may give data.

    Raises:
        ObjectiveError: the source is a function that may not run here.
        DataError: the data can not be imported, or are not the study's.
    """
    assert spec.data is not None
    data = spec.data
    if is_function(data.source):
        found = find(data.source, base, allowance)
        data, base = msgspec.structs.replace(data, source=found.reference), found.base
    else:
        data = msgspec.structs.replace(data, source=_find_file(data.source, base, allowance))
    info, imported_bytes = _run(_Order(data, str(path), str(base), sys.path, os.getpid()), lambda: None)
    if info.digest != spec.data_digest:
        raise DataError(
            f"data {data.source!r} are {info.digest[:_SHOWN]} on this worker and {spec.data_digest[:_SHOWN]} in the study; "
            "bring the worker's copy up to date"
        )
    return imported_bytes


def _find_file(source: str, base: Path, allowance: Allowance) -> str:
    """This machine's copy of a file: where the study has it, or by a tail of its path below an allowed folder."""
    if "://" in source or (base / source).exists():
        return source
    parts = PurePosixPath(source).parts
    for start in range(1, len(parts)):
        for folder in allowance.folders:
            file = folder.joinpath(*parts[start:])
            if ".." not in parts and is_file(file):
                return str(file)
    return source


def _run(order: _Order, check: Callable[[], None]) -> tuple[DataInfo, int]:
    code = "import sys; from trialfleet_workers.adapters.importing import main; main(int(sys.argv[1]))"
    # A file, not a pipe: a pipe ends with the last of those who inherited it, and a source may leave processes behind.
    with tempfile.TemporaryFile() as answers:
        process = subprocess.Popen(  # our own interpreter and code
            [sys.executable, "-c", code, str(answers.fileno())],
            env=user_processes.environment(),
            stdin=subprocess.PIPE,
            stdout=user_processes.standard_output(),
            pass_fds=[answers.fileno()],
            process_group=0,
        )
        with process:
            try:
                _wait(process, msgspec.json.encode(order), check)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        answers.seek(0)
        told = answers.read()
    try:
        answer = msgspec.json.decode(told, type=_Answer)
    except msgspec.DecodeError:
        raise DataError(
            f"data {order.data.source!r}: the process that imported them ended: {process.returncode}"
        ) from None
    if answer.info is None:
        raise DataError(answer.error)
    return answer.info, answer.imported_bytes


def _wait(process: subprocess.Popen[bytes], order: bytes, check: Callable[[], None]) -> None:
    """Hand it the order, and wait for its end."""
    left: bytes | None = order
    while True:
        try:
            process.communicate(left, timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            left = None  # `communicate` goes on with what it was given
            check()
        else:
            return


def main(answers: int) -> NoReturn:
    """The process: an order on standard input, an answer written to a file.

    Args:
        answers: the file's descriptor.
    """
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    linux.die_with_parent(order.parent)
    sys.path[:] = order.search
    from trialfleet_workers.adapters.lmdb_data import DataCache  # noqa: PLC0415  # found by way of the path just set

    try:
        cache = DataCache(Path(order.path))
        info = cache.import_data(order.data, base=Path(order.base), own=True)
        answer = _Answer(info=info, imported_bytes=cache.imported_bytes)
    except TrialfleetError as error:
        answer = _Answer(error=str(error))
    with open(answers, "wb", closefd=False) as file:
        file.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    os._exit(0)  # a thread or a process that the source left behind would be waited for
