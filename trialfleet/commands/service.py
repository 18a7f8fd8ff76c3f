"""Commands that speak to a running coordinator: submit, list, status, watch, pause, resume, cancel."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from trialfleet.client import Client
from trialfleet.commands.output import error_console, results_only, say
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.environment import URL, Environment
from trialfleet.flags import StudyFlags
from trialfleet.progress import progress_view
from trialfleet.rendering import finite, print_json, render_statuses
from trialfleet.signals import StopSignals
from trialfleet.study_file import read_study, read_toml, with_settings
from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError, StudyFailedError, TrialfleetError

#: Seconds between two looks at a study that is watched.
_WATCH_SECONDS = 0.5


def connect(environment: Environment) -> Client:
    """The coordinator that the environment names, or the one of this home.

    Raises:
        ConfigurationError: neither says where one is.
    """
    files = CoordinatorFiles(environment.home)
    url = environment.url or files.url()
    if url is None:
        raise ConfigurationError(
            f"no coordinator runs on {environment.home}; start one with `trialfleet coordinator`, or give {URL}"
        )
    token = environment.token if environment.token is not None else files.token()
    return Client(url, token=token)


def submission(
    study_file: Path, flags: StudyFlags, environment: Environment, *, priority: int, weight: float
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
) -> None:
    """Queue a study; with `watch`, follow it to its end."""
    with results_only() as results, connect(environment) as client:
        status = client.submit(submission(study_file, flags, environment, priority=priority, weight=weight))
        if watch:
            status = _follow(client, status.study)
        _print_status(results, status, as_json=as_json)
    _raise_for(status, watched=watch)


def list_command(environment: Environment, *, as_json: bool) -> None:
    """List the coordinator's studies."""
    with results_only() as results, connect(environment) as client:
        statuses = client.studies()
        if as_json:
            print_json(results, finite(msgspec.to_builtins(statuses)))
        elif statuses:
            results.print(render_statuses(statuses))
        else:
            say(results, "There are no studies yet.")


def status_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Show one study."""
    _one(environment, lambda client: client.status(study), as_json=as_json)


def watch_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Follow a study until it ends; Ctrl-C leaves it alone."""
    with results_only() as results, connect(environment) as client:
        status = _follow(client, study)
        _print_status(results, status, as_json=as_json)
    _raise_for(status, watched=True)


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


def _follow(client: Client, study: str) -> StudyStatus:
    """Show the study's progress until it ended, or a signal came."""
    notes = error_console()
    told = ""
    with (
        StopSignals(lambda name: say(notes, f"{name}: {study} goes on without being watched")) as signals,
        progress_view(notes, SystemClock()) as view,
    ):
        while True:
            status = client.status(study)
            words = f"{study} is {status.state}" + (f": {status.because}" if status.because else "")
            if status.state is not ServiceState.RUNNING and words != told:
                say(notes, words)
            told = words
            if status.progress is not None:
                view(status.progress)
            if status.state.ended or signals.cause() is not None:
                return status
            time.sleep(_WATCH_SECONDS)


def _raise_for(status: StudyStatus, *, watched: bool) -> None:
    """Have the exit status tell how a study ended that was watched."""
    if not watched or not status.state.ended or status.state is ServiceState.DONE:
        return
    message = f"{status.study} is {status.state}: {status.because}"
    raise StudyFailedError(message) if status.state is ServiceState.FAILED else TrialfleetError(message)


def _print_status(results: Console, status: StudyStatus, *, as_json: bool) -> None:
    if as_json:
        document: Any = finite(msgspec.to_builtins(status))
        print_json(results, document)
    else:
        results.print(render_statuses([status]))


#: The commands on one study, by name.
STUDY_COMMANDS: Mapping[str, Callable[..., None]] = {
    "status": status_command,
    "watch": watch_command,
    "pause": pause_command,
    "resume": resume_command,
    "cancel": cancel_command,
}
