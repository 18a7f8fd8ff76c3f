"""Telling the service manager how a service is: `Notifier`, the protocol of sd_notify(3) without its library.

systemd names a datagram socket in NOTIFY_SOCKET, and in WATCHDOG_USEC how long the service may be silent before it is
killed and started again. Without them nothing is sent, so that a command is the same by hand and as a service.
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Self

#: How often a service speaks up within the time that its watchdog allows; systemd advises at least twice.
_PER_WATCHDOG = 4
#: Seconds to wait for a service manager that is behind with reading, for what is said only once.
_PATIENCE = 1.0


class Notifier:
    """Speaks for this process; `alive` is for the thread that does the work, the others for any.

    A service manager that does not listen is no reason to fail: what can not be sent is left out.

    Args:
        address: of the socket; an abstract one begins with `@`. Empty: nobody listens.
        watchdog_seconds: how long the service may be silent; infinite: nobody watches.
        monotonic: seconds, to space what `alive` sends.
    """

    def __init__(
        self,
        address: str,
        watchdog_seconds: float = math.inf,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._pause = watchdog_seconds / _PER_WATCHDOG
        self._monotonic = monotonic
        self._due = -math.inf if math.isfinite(watchdog_seconds) else math.inf
        self._ready = False
        self._stopping = False

    @classmethod
    def from_environment(cls, variables: Mapping[str, str], *, pid: int | None = None) -> Self:
        """What the service manager left in the environment.

        Args:
            variables: the environment.
            pid: of this process; the watchdog may be meant for another. Default: as it is.
        """
        seconds = math.inf
        if variables.get("WATCHDOG_PID", own := str(os.getpid() if pid is None else pid)) == own:
            with contextlib.suppress(KeyError, ValueError):
                seconds = int(variables["WATCHDOG_USEC"]) / 1e6
        return cls(variables.get("NOTIFY_SOCKET", ""), seconds if seconds > 0 else math.inf)

    def ready(self) -> None:
        """The service does its work from now on; said once."""
        if not self._ready:
            self._ready = True
            self._send("READY=1", _PATIENCE)

    def stopping(self) -> None:
        """The service is about to leave; said once."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1", _PATIENCE)

    def alive(self) -> None:
        """The loop goes round; to be called at each of its turns, which costs nothing but when the watchdog is due."""
        now = self._monotonic()
        if now >= self._due:
            self._due = now + self._pause
            self._send("WATCHDOG=1", 0.0)  # the next one does as well, and the work goes on

    def _send(self, state: str, patience: float) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(patience)
            sender.sendto(state.encode(), address)
