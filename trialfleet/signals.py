"""SIGINT and SIGTERM: the first asks to finish what is in flight, the second gives it up."""

import signal
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


class StopSignals:
    """While entered, the first signal is remembered in `cause` and the second raises `Interrupted`.

    Args:
        on_first: called in the main thread when the first signal came, with its name.
    """

    def __init__(self, on_first: Callable[[str], None]) -> None:
        self._on_first = on_first
        self._before: dict[signal.Signals, Any] = {}
        #: Why to stop; None: no signal came.
        self.cause: str | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.cause is not None:
            raise Interrupted(number)
        self.cause = signal.Signals(number).name
        self._on_first(self.cause)


class EndSignals:
    """While entered, the first signal raises `Interrupted` and the following ones are ignored: somebody cleans up."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._ended = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """From now on ignore signals: the cleaning up has begun."""
        self._ended = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._ended:
            self._ended = True
            raise Interrupted(number)
