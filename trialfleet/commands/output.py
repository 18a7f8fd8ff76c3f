"""Standard output is for results alone, whatever else writes to it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from trialfleet.streams import output
from trialfleet.words import words

#: Columns of output that is not on a terminal.
_FILE_WIDTH = 160


def error_console() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True)


def say(console: Console, remark: str) -> None:
    """Print one line as it is."""
    console.print(words(remark), soft_wrap=True)


@contextmanager
def results_only() -> Iterator[Console]:
    """A console on standard output; meanwhile everything else that writes there reaches standard error.

    The redirection is one of file descriptors, because objectives are imported and data loaded in this process, and
    libraries in C print past `sys.stdout`.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with output(kept, errors="replace") as results:
        try:
            # A file or pipe has no width: tables are as wide as they are.
            yield Console(file=results, width=None if results.isatty() else _FILE_WIDTH)
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
