"""SIGINT and SIGTERM: the first asks to finish what is in flight, the second gives it up."""

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A second signal came: give up what is in flight. Like KeyboardInterrupt, it passes every `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        #: What the process returns, as shells do for a process that a signal ended.
        self.exit_status = 128 + number


class _Signals(ABC):
    """Has `_handle` called for the signals while it is entered, and what was there before called afterwards."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @abstractmethod
    def _handle(self, number: int, _frame: FrameType | None) -> None: ...


class StopSignals(_Signals):
    """While entered, the first signal is remembered and the second raises `Interrupted`.

    Args:
        on_first: called by the first `cause` after the first signal, with the signal's name; not by the signal's handler,
            which may interrupt a print and would have its own lost.
    """

    def __init__(self, on_first: Callable[[str], None]) -> None:
        super().__init__()
        self._on_first = on_first
        self._first: signal.Signals | None = None
        self._told = False

    @property
    def exit_status(self) -> int:
        """What a process returns that the first signal ended, as shells do; 0: no signal came."""
        return 0 if self._first is None else 128 + self._first

    def cause(self) -> str | None:
        """Why to stop, the first signal's name; None: no signal came."""
        if self._first is not None and not self._told:
            self._told = True
            self._on_first(self._first.name)
        return None if self._first is None else self._first.name

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._first is not None:
            raise Interrupted(number)
        self._first = signal.Signals(number)


class EndSignals(_Signals):
    """While entered, the first signal raises `Interrupted` and the following ones are ignored: somebody cleans up."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = False

    def ignore(self) -> None:
        """From now on ignore signals: the cleaning up has begun."""
        self._ended = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._ended:
            self._ended = True
            raise Interrupted(number)
