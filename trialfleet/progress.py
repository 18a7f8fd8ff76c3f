"""A running study on the screen: a live view on a terminal, plain lines everywhere else."""

import math
from types import TracebackType
from typing import Protocol, Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from trialfleet.words import words
from trialfleet_coordinator.report import Progress
from trialfleet_shared.clock import Clock
from trialfleet_shared.ladder import Ladder

#: Seconds between two drawings of the live view.
LIVE_SECONDS = 0.2
#: Seconds between two plain lines.
PLAIN_SECONDS = 5.0
#: What `ended` sets for the reason that nothing new is started.
_ENDED = "ended"


class ProgressView(Protocol):
    """What shows the progress of one study, as a context."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, progress: Progress) -> None:
        """Called once a tick; draws when it is time to."""
        ...


def progress_view(console: Console, clock: Clock) -> ProgressView:
    """The view that suits the console."""
    return LiveView(console, clock) if console.is_terminal else PlainView(console, clock)


class PlainView:
    """One line every few seconds, and one for the last state."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._drawn_at = -math.inf
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._draw(self._last)

    def __call__(self, progress: Progress) -> None:
        """Print when it is time to."""
        self._last = progress
        now = self._clock.monotonic()
        if now - self._drawn_at >= PLAIN_SECONDS:
            self._drawn_at = now
            self._draw(progress)
            self._last = None

    def _draw(self, progress: Progress) -> None:
        line = ", ".join(f"{name} {value}" for name, value in facts(progress))
        self._console.print(words(f"{progress.study}: {line}"), soft_wrap=True)


class LiveView:
    """A bar and a table, drawn in place."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._clock = clock
        self._drawn_at = -math.inf
        self._last: Progress | None = None
        # Drawn from the study's loop alone: a thread of its own would draw over what slots print.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._draw(self._last)
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Draw when it is time to."""
        self._last = progress
        now = self._clock.monotonic()
        if now - self._drawn_at >= LIVE_SECONDS:
            self._drawn_at = now
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        self._live.update(render_progress(progress), refresh=True)


def render_progress(progress: Progress) -> Group:
    """The live view of one moment."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        words(progress.study, style="bold"),
        ProgressBar(total=1.0, completed=done_share(progress) or 0.0, width=40),
        words(_state(progress), style="dim"),
    )
    body = Table.grid(padding=(0, 2))
    for name, value in facts(progress):
        body.add_row(words(name, style="dim"), words(value))
    return Group(head, body)


def facts(progress: Progress) -> list[tuple[str, str]]:
    """What is worth saying of a moment, as names and values."""
    budget = f" of {progress.trials_budget}" if progress.trials_budget is not None else ""
    states = f"{progress.complete} complete, {progress.pruned} pruned, {progress.failed} failed"
    others = undecided(progress)
    rungs = [
        f"{count} at {rung_name(progress.ladder, rung)}"
        for rung, count in enumerate(progress.rung_mix)
        if count or len(progress.ladder.rungs) == 1
    ]
    told = [
        ("trials", f"{progress.decided}{budget} decided ({states}){others}"),
        ("evaluations", f"{progress.evaluations} ({progress.cached} from the cache)"),
    ]
    if progress.best_value is not None:
        told.append(("best", f"{progress.best_value:.6g} (trial {progress.best_trial})"))
    if rungs:
        told.append(("rungs", " / ".join(rungs)))
    told.append(("slots", f"{progress.slots} ({progress.in_flight} in flight)"))
    told.append(("speed", f"{progress.trials_per_second:.3g} trials/s"))
    told.append(("time", f"{duration(progress.elapsed_seconds)}, {_left(progress)}"))
    return told


def undecided(progress: Progress) -> str:
    """The trials that run or wait for a promotion, as words to go on with: ", 4 undecided"; nothing where there are none."""
    return f", {progress.undecided} undecided" if progress.undecided else ""


def ended(progress: Progress) -> Progress:
    """The last moment of a study that has ended since: nothing of it is at work any more."""
    return msgspec.structs.replace(progress, closing=_ENDED, slots=0, in_flight=0)


def done_share(progress: Progress) -> float | None:
    """How much of the budget is used up, 0 to 1: of trials, seconds or CPU seconds, whichever is nearest to its end."""
    shares = []
    if progress.trials_budget:
        shares.append(min(progress.decided / progress.trials_budget, 1.0))
    if progress.seconds_budget:
        shares.append(min(progress.elapsed_seconds / progress.seconds_budget, 1.0))
    if progress.cpu_seconds_budget:
        shares.append(min(progress.cpu_seconds / progress.cpu_seconds_budget, 1.0))
    return max(shares, default=None)


def rung_name(ladder: Ladder, rung: int) -> str:
    """A rung in words: "30%", "100%", "100% x 5 folds"."""
    of = ladder.rungs[rung]
    share = f"{of.fraction * 100:.3g}%"
    return share if of.folds == 1 else f"{share} x {of.folds} folds"


def duration(seconds: float) -> str:
    """Seconds for people: "0.8 s", "42 s", "3:07", "2:05:00"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _left(progress: Progress) -> str:
    if progress.closing is not None or progress.slots == 0:
        return _state(progress)
    return "unknown time left" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"


def _state(progress: Progress) -> str:
    if progress.closing == _ENDED:
        return _ENDED
    if progress.slots == 0:
        return "waiting for workers"
    match progress.closing:
        case None:
            return "running"
        case "stopped":
            return "finishing what is in flight"
        case "patience":
            return "finishing early: nothing better came"
    return "finishing"
