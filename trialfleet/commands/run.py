"""`trialfleet run`."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from trialfleet.commands.output import error_console, results_only, say
from trialfleet.engine import OpenStudy, open_study
from trialfleet.environment import Environment
from trialfleet.flags import StudyFlags
from trialfleet.home import Home
from trialfleet.progress import PLAIN_SECONDS, progress_view
from trialfleet.rendering import one_line, print_json, print_report, report_document
from trialfleet.signals import StopSignals
from trialfleet.study_file import StudyRequest, load_study
from trialfleet.watching import Watching
from trialfleet_coordinator.report import StudyReport
from trialfleet_shared.clock import Clock, SystemClock
from trialfleet_shared.errors import ConfigurationError, StudyFailedError


def run_command(
    study_file: Path,
    flags: StudyFlags,
    environment: Environment,
    broker_url: str | None,
    *,
    metrics_port: int | None,
    as_json: bool,
) -> int:
    """Run the study; print its report; the exit status, which tells a signal that ended it."""
    with results_only() as results:
        notes = error_console()
        if broker_url is not None:
            status = _run_by_coordinator(
                study_file, flags, environment, results, metrics_port=metrics_port, as_json=as_json
            )
            if status is not None:
                return status
        request, warm_start = requested(study_file, flags, environment)
        return run_and_report(
            request,
            Home(environment.home),
            results,
            notes,
            broker_url=broker_url,
            warm_start=warm_start,
            metrics_port=metrics_port,
            as_json=as_json,
        )


def _run_by_coordinator(
    study_file: Path,
    flags: StudyFlags,
    environment: Environment,
    results: Console,
    *,
    metrics_port: int | None,
    as_json: bool,
) -> int | None:
    """Have a running coordinator run the study; the exit status, None where there is no coordinator."""
    from trialfleet.commands.service import run_there, running_coordinator  # noqa: PLC0415  # HTTP only with a fleet

    coordinator = running_coordinator(environment)
    if coordinator is None:
        return None
    if metrics_port is not None:
        raise ConfigurationError("--metrics-port: a coordinator runs the study and serves its metrics; leave it out")
    with coordinator:
        return run_there(coordinator, study_file, flags, environment, results, as_json=as_json)


def requested(study_file: Path, flags: StudyFlags, environment: Environment) -> tuple[StudyRequest, str | None]:
    """The study that is asked for, and the one that seeds its sampler."""
    request = load_study(study_file, flags.layered(environment))
    if flags.fork is None:
        return request, flags.warm_start
    return dataclasses.replace(request, name=flags.fork), flags.warm_start or request.name


def run_and_report(
    request: StudyRequest,
    home: Home,
    results: Console,
    notes: Console,
    *,
    broker_url: str | None,
    warm_start: str | None,
    metrics_port: int | None = None,
    as_json: bool,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Run the study to its end, or until a signal; print its report; 128 + the signal that ended it, else 0.

    `check` is called once a tick, and may raise to end the study.

    Raises:
        StudyFailedError: its first trials all failed; the report is printed.
    """
    with (
        _watched(home, metrics_port, embedded=broker_url is None) as watching,
        open_study(
            request,
            home,
            broker_url=broker_url,
            warm_start=warm_start,
            on_rows=_import_view(notes, SystemClock()),
            watching=watching,
        ) as study,
    ):
        status = 0
        report = study.finished()
        if report is not None:
            say(notes, f"{request.name} is finished already; a larger budget goes on with it")
        else:
            report, status = _run(study, notes, check)
        figures = study.cache_figures(report)
    if as_json:
        print_json(results, report_document(report, figures, home.path))
    else:
        print_report(results, report, figures, home.path)
    if report.ended == "failed":
        raise StudyFailedError(f"{request.name}: {one_line(report.ended_because)}")
    return status if report.ended == "stopped" else 0


@contextmanager
def _watched(home: Home, port: int | None, *, embedded: bool) -> Iterator[Watching | None]:
    """Serve the study's metrics; without a port nobody watches."""
    if port is None:
        yield None
        return
    from trialfleet.metrics import coordinator_metrics, metrics_served, worker_metrics  # noqa: PLC0415  # most studies are run without

    metrics, slots = coordinator_metrics(home.data), worker_metrics(home.data, alone=False)
    # Where others evaluate, this process has no slots to tell of.
    with metrics_served([metrics, slots] if embedded else [metrics], port):
        yield Watching(metrics, slots)


def _run(study: OpenStudy, notes: Console, check: Callable[[], None]) -> tuple[StudyReport, int]:
    """The report, and the exit status that the signals make."""
    definition = study.plan.definition
    trials = len(study.record.trials)
    if trials:
        say(notes, f"{definition.name}: goes on after {trials} trials")
    with (
        StopSignals(_say_how_to_stop(notes)) as signals,
        progress_view(notes, SystemClock()) as view,
    ):

        def stop() -> str | None:
            check()
            return signals.cause()

        return study.run(view, stop), signals.exit_status


def _import_view(notes: Console, clock: Clock) -> Callable[[int], None]:
    """Tells every few seconds how far the import of a data file is."""
    last = clock.monotonic()

    def tell(rows: int) -> None:
        nonlocal last
        if clock.monotonic() - last >= PLAIN_SECONDS:
            last = clock.monotonic()
            say(notes, f"importing the data: {rows:,} rows so far")

    return tell


def _say_how_to_stop(notes: Console) -> Callable[[str], None]:
    """Tells what the first signal does."""
    return lambda name: say(
        notes, f"{name}: finishing what is in flight; once more to give it up. The same command goes on later."
    )
