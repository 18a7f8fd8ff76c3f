"""Processes that this one starts and that are not to outlive it, however it ends."""

import shutil
import signal


def ended_with_us(number: signal.Signals) -> list[str]:
    """What stands before a process's command to have it sent a signal when this one, or the thread that started it, is killed.

    It is part of util-linux; where that is missing, whoever started the process has to end it.
    """
    program = shutil.which("setpriv")
    return [] if program is None else [program, "--pdeathsig", number.name.removeprefix("SIG")]
