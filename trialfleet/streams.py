"""The standard streams: all three are there, and standard output tells what keeps it from being written.

A program that is started with a stream closed (`>&-`) would get its next file in the stream's place, and write there. So
what is closed is opened first: standard output such that writing fails, standard error such that it is lost, standard input
such that it has nothing.
"""

import io
import os
import sys
from typing import TextIO, cast

from trialfleet_shared.errors import TrialfleetError


class _Output(io.FileIO):
    """Results on their way out. What follows an error is lost too, so that the error is told once."""

    _failed = False

    def write(self, data: "bytes | memoryview[int]", /) -> int:  # type: ignore[override]  # bytes-like, says typeshed
        """Write to the descriptor.

        Raises:
            BrokenPipeError: whoever read has gone.
            TrialfleetError: it can not be written for another reason.
        """
        if not self._failed:
            try:
                return super().write(data)
            except OSError as error:
                self._failed = True
                if isinstance(error, BrokenPipeError):
                    raise
                words = error.strerror or error
                raise TrialfleetError(f"standard output can not be written: {words}") from error
        return memoryview(data).nbytes


def output(
    descriptor: int, *, errors: str | None, line_buffering: bool = False, close: bool = True
) -> io.TextIOWrapper:
    """Text to a descriptor, in the encoding of standard output; errors are `TrialfleetError`, but for a closed pipe's."""
    raw = cast("io.RawIOBase", _Output(descriptor, "w", closefd=close))
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=sys.stdout.encoding, errors=errors, line_buffering=line_buffering
    )


def prepare() -> None:
    """Have all three streams be there, and errors of standard output be told as such; before any file is opened."""
    if sys.stdin is None:
        sys.stdin = _opened(os.O_RDONLY, "r")
    if sys.stdout is None:
        sys.stdout = _opened(os.O_RDONLY, "w")
    if sys.stderr is None:
        sys.stderr = _opened(os.O_WRONLY, "w")
    sys.stdout = output(1, errors=sys.stdout.errors, line_buffering=sys.stdout.isatty(), close=False)


def _opened(access: int, mode: str) -> TextIO:
    """A stream on the lowest descriptor that is free, which is the one that was closed; for processes of ours too."""
    descriptor = os.open(os.devnull, access)
    os.set_inheritable(descriptor, True)
    return cast("TextIO", os.fdopen(descriptor, mode, closefd=False))
