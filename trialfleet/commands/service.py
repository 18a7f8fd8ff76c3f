"""Commands that speak to a running coordinator: submit, list, status, watch, pause, resume, cancel."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trialfleet.client import WATCH_SECONDS, Client, CoordinatorError, Looks, NoCoordinatorError
from trialfleet.commands.output import error_console, results_only, say
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.environment import URL, Environment
from trialfleet.flags import StudyFlags
from trialfleet.progress import ended, progress_view
from trialfleet.recorded import cache_figures_of
from trialfleet.rendering import finite, print_json, print_report, render_statuses, report_document
from trialfleet.signals import StopSignals
from trialfleet.study_file import read_study, read_toml, with_settings
from trialfleet.tls import client_tls
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError, StudyBusyError, StudyFailedError, TrialfleetError


def connect(environment: Environment) -> Client:
    """The coordinator that the environment names, or the one of this home.

    Raises:
        ConfigurationError: neither says where one is.
    """
    files = CoordinatorFiles(environment.home)
    url = environment.url or files.url()
    if url is None:
        raise ConfigurationError(
            f"no coordinator runs on {environment.home}; start one with `trialfleet coordinator`, or give {URL} "
            "(what is recorded here is listed by `trialfleet studies`)"
        )
    token = environment.token if environment.token is not None else files.token()
    return Client(url, token=token, tls=client_tls(os.environ))


def running_coordinator(environment: Environment) -> Client | None:
    """The coordinator that the environment names, or the one of this home if it runs; None where there is none."""
    url = CoordinatorFiles(environment.home).url()
    if environment.url is None and url is None:
        return None
    client = connect(environment)
    if environment.url is None:
        try:
            client.studies()
        except CoordinatorError:  # it was killed: nobody listens where it did
            client.close()
            return None
    return client


def _submission(
    study_file: Path, flags: StudyFlags, environment: Environment, *, priority: int = 0, weight: float = 1.0
) -> Submission:
    """What is submitted for a study file; everything that can be checked without a coordinator is checked.

    Raises:
        ConfigurationError: as `load_study`.
    """
    tables = with_settings(read_toml(study_file), flags.layered(environment))
    base = study_file.resolve().parent
    request = read_study(tables, str(study_file), base)
    forked = flags.fork is not None
    return Submission(
        tables=tables,
        base=str(base),
        name=flags.fork if forked else request.name,
        warm_start=flags.warm_start or (request.name if forked else None),
        priority=priority,
        weight=weight,
    )


def submit_command(
    study_file: Path,
    flags: StudyFlags,
    environment: Environment,
    *,
    priority: int,
    weight: float,
    watch: bool,
    as_json: bool,
) -> int:
    """Queue a study; with `watch`, follow it to its end; the exit status, which tells a signal that ended the watching."""
    ended_by = 0
    with results_only() as results, connect(environment) as client:
        status = client.submit(_submission(study_file, flags, environment, priority=priority, weight=weight))
        if watch:
            status, ended_by = _follow(client, status.study)
        _print_status(results, status, as_json=as_json)
    if watch:
        _raise_for(status)
    return ended_by


def run_there(
    coordinator: Client,
    study_file: Path,
    flags: StudyFlags,
    environment: Environment,
    results: Console,
    *,
    as_json: bool,
) -> int:
    """Have a running coordinator run the study, and print its report once it has ended; the exit status.

    Raises:
        StudyFailedError: its first trials all failed.
        TrialfleetError: it was cancelled meanwhile; or it is another study than the one of the name that there is.
    """
    status, ended_by = _follow(coordinator, coordinator.submit(_submission(study_file, flags, environment)).study)
    if ended_by:
        return ended_by  # a signal came: the study goes on without being watched
    if status.refused:
        _raise_for(status)  # the report would be that of another submission
    try:
        report = coordinator.report(status.study)
    except StudyBusyError:
        _raise_for(status)  # it came to nothing, and says why
        raise
    if as_json:
        print_json(results, report_document(report, cache_figures_of(report), None))
    else:
        print_report(results, report, cache_figures_of(report), None)
    _raise_for(status)
    return 0


def list_command(environment: Environment, *, as_json: bool) -> None:
    """List the coordinator's studies."""
    with results_only() as results, connect(environment) as client:
        statuses = client.studies()
        if as_json:
            print_json(results, finite(statuses))
        elif statuses:
            results.print(render_statuses(statuses))
        else:
            say(results, "There are no studies yet.")


def status_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Show one study."""
    _one(environment, lambda client: client.status(study), as_json=as_json)


def watch_command(study: str, environment: Environment, *, as_json: bool) -> int:
    """Follow a study until it ends; Ctrl-C leaves it alone, and the exit status tells."""
    with results_only() as results, connect(environment) as client:
        status, ended_by = _follow(client, study)
        _print_status(results, status, as_json=as_json)
    _raise_for(status)
    return ended_by


def pause_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Have a study start nothing new."""
    _one(environment, lambda client: client.pause(study), as_json=as_json)


def resume_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Have a paused study go on."""
    _one(environment, lambda client: client.resume(study), as_json=as_json)


def cancel_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """End a study."""
    _one(environment, lambda client: client.cancel(study), as_json=as_json)


def _one(environment: Environment, ask: Callable[[Client], StudyStatus], *, as_json: bool) -> None:
    with results_only() as results, connect(environment) as client:
        _print_status(results, ask(client), as_json=as_json)


def _follow(client: Client, study: str) -> tuple[StudyStatus, int]:
    """Show the study's progress until it ended, or a signal came: 128 + the signal beside the status, else 0."""
    notes, looks = error_console(), Looks(SystemClock())
    told = ""

    def tell_once(words: str) -> None:
        nonlocal told
        if words != told:
            say(notes, words)
        told = words

    with (
        StopSignals(lambda name: say(notes, f"{name}: {study} goes on without being watched")) as signals,
        progress_view(notes, SystemClock()) as view,
    ):
        while True:
            try:
                status = client.status(study)
            except NoCoordinatorError as error:
                looks.missed(error)
                tell_once(f"waiting for the coordinator: {error}")
            else:
                looks.succeeded()
                words = f"{study} is {status.state}" + (f": {status.because}" if status.because else "")
                if status.state is ServiceState.RUNNING:
                    told = words
                tell_once(words)
                if status.progress is not None:
                    view(ended(status.progress) if status.state.ended else status.progress)
                if status.state.ended:
                    return status, 0
            if signals.cause() is not None:
                return status, signals.exit_status
            time.sleep(WATCH_SECONDS)


def _raise_for(status: StudyStatus) -> None:
    """Raise TrialfleetError, so that the exit status tells, when a study has ended but is not done as it was submitted."""
    if status.refused:
        raise StudyFailedError(f"{status.study} can not be run as submitted: {status.refused}")
    if not status.state.ended or status.state is ServiceState.DONE:
        return
    message = f"{status.study} is {status.state}: {status.because}"
    raise StudyFailedError(message) if status.state is ServiceState.FAILED else TrialfleetError(message)


def _print_status(results: Console, status: StudyStatus, *, as_json: bool) -> None:
    if as_json:
        document: Any = finite(status)
        print_json(results, document)
    else:
        results.print(render_statuses([status]))


#: The commands on one study, by name.
STUDY_COMMANDS: Mapping[str, Callable[..., int | None]] = {
    "status": status_command,
    "watch": watch_command,
    "pause": pause_command,
    "resume": resume_command,
    "cancel": cancel_command,
}
