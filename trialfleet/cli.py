"""The `trialfleet` command.

Results go to standard output, everything else to standard error. Exit statuses: 0 done, 1 failure, 2 usage or
configuration, 3 broker, 4 store, 128 + n when signal n ended it.
"""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from trialfleet.environment import URL, Environment, read_environment
from trialfleet.flags import StudyFlags
from trialfleet.logs import LogFormat, start_logging
from trialfleet.signals import Interrupted
from trialfleet_coordinator.serving import HIGHEST_PRIORITY, LOWEST_PRIORITY
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.settings import MODES

#: Commands import what they need when they run, so that --help is quick.
_EPILOG = (
    "Studies, results and imported data are kept below --home: TRIALFLEET_HOME, else $XDG_DATA_HOME/trialfleet, "
    "else ~/.local/share/trialfleet."
)
_LOG = logging.getLogger("trialfleet")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _home_option(command: _Command) -> _Command:
    return click.option(
        "--home", type=click.Path(path_type=Path, file_okay=False), help="Folder for studies, results and data."
    )(command)


def _verbose_option(command: _Command) -> _Command:
    return click.option("-v", "--verbose", is_flag=True, help="Log more; show where errors come from.")(command)


def _without_password(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    if url is not None and re.search(r"//[^/@]*:[^@]*@", url):
        raise click.BadParameter(
            "a password among the arguments is seen by all users of this machine; "
            "give the URL as TRIALFLEET_BROKER_URL, or in the file TRIALFLEET_BROKER_URL_FILE"
        )
    return url


def _broker_option(command: _Command) -> _Command:
    return click.option(
        "--broker",
        metavar="URL",
        callback=_without_password,
        help="RabbitMQ server, amqp://host:5672/vhost. A URL with a password comes from TRIALFLEET_BROKER_URL or the file "
        "TRIALFLEET_BROKER_URL_FILE: other users see a command's arguments.",
    )(command)


def _metrics_option(command: _Command) -> _Command:
    return click.option(
        "--metrics-port",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help="Serve Prometheus metrics at /metrics on this port of 127.0.0.1.",
    )(command)


def _log_option(command: _Command) -> _Command:
    return click.option(
        "--log-format",
        type=click.Choice(["json", "text"]),
        help="How to write logs; default: text on a terminal, else JSON, one object per line.",
    )(command)


def _quiet_option(command: _Command) -> _Command:
    return click.option("-q", "--quiet", is_flag=True, help="Log warnings alone.")(command)


def _json_option(command: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")(command)


def _study_options(command: _Command) -> _Command:
    options = (
        click.option("--mode", type=click.Choice(MODES), help="Preset of settings."),
        click.option("--trials", metavar="N", help="Trials to start."),
        click.option("--seconds", metavar="S", help="Seconds to run, over all sessions."),
        click.option("--name", metavar="NAME", help="Name of the study."),
        click.option("--seed", metavar="N", help="Seed of the sampler and of the data's order."),
        click.option("--slots", "--max-workers", "slots", metavar="N", help="Evaluations at the same time here."),
        click.option("--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="Any other setting."),
        click.option("--fork", metavar="NEW", help="Run a changed study as NEW, seeded by what the old one learned."),
        click.option("--warm-start", metavar="STUDY", help="Seed the sampler with another study's trials."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trialfleet", message="%(prog)s %(version)s")
def cli() -> None:
    """Tune hyperparameters on all cores of this machine, or on a fleet of machines."""


@cli.command(epilog=_EPILOG)
@click.argument("study_file", type=click.Path(path_type=Path))
@_broker_option
@_study_options
@_metrics_option
@_json_option
@_home_option
@_verbose_option
def run(
    study_file: Path,
    broker: str | None,
    *,
    metrics_port: int | None,
    as_json: bool,
    home: Path | None,
    verbose: bool,
    **flags: Any,
) -> None:
    """Run the study that STUDY_FILE describes, or go on with it.

    Without --broker it is evaluated on this machine; with it, on the workers that were started with the same broker.
    Ctrl-C finishes what is in flight, and the same command goes on from there; Ctrl-C twice gives up what is in flight.
    """
    from trialfleet.commands.run import run_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose)
    run_command(
        study_file,
        StudyFlags(**flags),
        environment,
        broker or environment.broker_url,
        metrics_port=metrics_port,
        as_json=as_json,
    )


@cli.command(epilog=_EPILOG)
@_broker_option
@click.option("--slots", type=click.IntRange(min=1), help="Evaluations at the same time; default: the cores.")
@click.option(
    "--objective-path",
    "paths",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Folder whose objectives may run here; may be given again. Default: the present one.",
)
@click.option(
    "--objective",
    "references",
    metavar="REF",
    multiple=True,
    help="Module whose objectives may run here: package, package.module or package.module:function; may be given again.",
)
@click.option("--burst", is_flag=True, help="Leave when there is nothing to do.")
@_metrics_option
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve metrics at; 0.0.0.0 is all of this machine's, for a Prometheus elsewhere.",
)
@_log_option
@_quiet_option
@_home_option
@_verbose_option
def worker(  # click passes options by name
    broker: str | None,
    slots: int | None,
    paths: tuple[Path, ...],
    references: tuple[str, ...],
    burst: bool,
    metrics_port: int | None,
    metrics_host: str,
    log_format: LogFormat | None,
    quiet: bool,
    home: Path | None,
    verbose: bool,
) -> int:
    """Evaluate for studies that are run with the same broker.

    Only objectives below an --objective-path, or named by --objective, are run, and only if their code is the study's;
    without either option, those below the folder that the worker is started in. SIGTERM or Ctrl-C finishes what is
    being evaluated and leaves; a second one hands it back at once.
    """
    from trialfleet.commands.worker import worker_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose, daemon=True, quiet=quiet, log_format=log_format)
    return worker_command(
        environment,
        broker or environment.broker_url,
        slots=slots,
        paths=paths,
        references=references,
        burst=burst,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
    )


@cli.command(epilog=_EPILOG)
@click.argument("study_file", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes.")
@_study_options
@_json_option
@_home_option
@_verbose_option
def up(study_file: Path, workers: int, *, as_json: bool, home: Path | None, verbose: bool, **flags: Any) -> None:
    """Run a study on a fleet of its own: a private RabbitMQ node and workers, all on this machine.

    Needs the rabbitmq-server program, but neither a service nor root rights. Everything is stopped at the end.
    """
    from trialfleet.commands.up import up_command  # noqa: PLC0415  # see _EPILOG

    up_command(study_file, StudyFlags(**flags), _begin(home, verbose=verbose), workers=workers, as_json=as_json)


@cli.command(epilog=_EPILOG)
@_json_option
@_home_option
@_verbose_option
def studies(*, as_json: bool, home: Path | None, verbose: bool) -> None:
    """List the studies."""
    from trialfleet.commands.report import studies_command  # noqa: PLC0415  # see _EPILOG

    studies_command(_begin(home, verbose=verbose), as_json=as_json)


@cli.command(epilog=_EPILOG)
@click.argument("study")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it as a page, with charts."
)
@_json_option
@_home_option
@_verbose_option
def report(study: str, *, html: Path | None, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Show what came of STUDY so far, running or not."""
    from trialfleet.commands.report import report_command  # noqa: PLC0415  # see _EPILOG

    report_command(study, _begin(home, verbose=verbose), as_json=as_json, html=html)


@cli.command(epilog=_EPILOG)
@click.argument("study")
@_json_option
@_home_option
@_verbose_option
def best(study: str, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Show the best trial of STUDY so far."""
    from trialfleet.commands.recorded import best_command  # noqa: PLC0415  # see _EPILOG

    best_command(study, _begin(home, verbose=verbose), as_json=as_json)


@cli.command(epilog=_EPILOG)
@click.argument("study")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet", "json", "optuna"]),
    default="csv",
    show_default=True,
    help="A table with a row for each trial, the whole report, or a study in one of Optuna's storages.",
)
@click.option("--output", metavar="FILE", help="File, or URL of an Optuna storage; default: standard output.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print what was written where as a JSON document; needs --output."
)
@_home_option
@_verbose_option
def export(study: str, *, kind: Any, output: str | None, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Write the trials of STUDY for other tools."""
    from trialfleet.commands.recorded import export_command  # noqa: PLC0415  # see _EPILOG

    export_command(study, _begin(home, verbose=verbose), kind=kind, output=output, as_json=as_json)


@cli.command(epilog=_EPILOG)
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json_option
@_home_option
@_verbose_option
def delete(study: str, *, yes: bool, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Delete STUDY, which nobody runs, and its record."""
    from trialfleet.commands.recorded import delete_command  # noqa: PLC0415  # see _EPILOG

    delete_command(study, _begin(home, verbose=verbose), yes=yes, as_json=as_json)


@cli.command(epilog=_EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: any free one.")
@_home_option
@_verbose_option
def dashboard(*, host: str, port: int, home: Path | None, verbose: bool) -> None:
    """Show all studies in a browser, running ones too: optuna-dashboard, which can change nothing here.

    Needs the extra: pip install 'trialfleet[dashboard]'.
    """
    from trialfleet.commands.dashboard import dashboard_command  # noqa: PLC0415  # see _EPILOG

    dashboard_command(_begin(home, verbose=verbose), host=host, port=port)


@cli.command(epilog=_EPILOG)
@click.option("--repair", is_flag=True, help="Mend what can be mended; see ops/README.md for what that means.")
@_json_option
@_home_option
@_verbose_option
def doctor(*, repair: bool, as_json: bool, home: Path | None, verbose: bool) -> int:
    """Look whether everything in the home is as it was written: exit status 0 when it is, 1 when something is damaged.

    It may be run while studies run.
    """
    from trialfleet.commands.care import doctor_command  # noqa: PLC0415  # see _EPILOG

    return doctor_command(_begin(home, verbose=verbose), repair=repair, as_json=as_json)


@cli.command(epilog=_EPILOG)
@click.argument("target", type=click.Path(path_type=Path))
@_home_option
@_verbose_option
def backup(target: Path, *, home: Path | None, verbose: bool) -> None:
    """Copy the studies of the home, running or not, to the new folder TARGET."""
    from trialfleet.commands.care import backup_command  # noqa: PLC0415  # see _EPILOG

    backup_command(_begin(home, verbose=verbose), target)


@cli.command(epilog=_EPILOG)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the studies that are there.")
@_home_option
@_verbose_option
def restore(source: Path, *, force: bool, home: Path | None, verbose: bool) -> None:
    """Put the backup SOURCE into the home, which nobody may use meanwhile."""
    from trialfleet.commands.care import restore_command  # noqa: PLC0415  # see _EPILOG

    restore_command(_begin(home, verbose=verbose), source, force=force)


@cli.command()
@click.option(
    "--url",
    envvar=URL,
    default="http://127.0.0.1:8765",
    show_default=True,
    metavar="URL",
    help=f"Where the coordinator listens; also {URL}.",
)
def health(url: str) -> int:
    """Ask a coordinator whether it can do its work: exit status 0 when it can, 1 when not."""
    from trialfleet.commands.health import health_command  # noqa: PLC0415  # see _EPILOG

    return health_command(url)


@cli.command(epilog=_EPILOG)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="fleet.toml; without one, its defaults."
)
@_broker_option
@_log_option
@_quiet_option
@_home_option
@_verbose_option
def coordinator(
    config: Path | None,
    broker: str | None,
    *,
    log_format: LogFormat | None,
    quiet: bool,
    home: Path | None,
    verbose: bool,
) -> None:
    """Serve many studies at once over the workers of one broker, until a signal ends it.

    Studies come by `trialfleet submit`, or over HTTP. Whoever speaks to it shows the token in TRIALFLEET_TOKEN or
    TRIALFLEET_TOKEN_FILE; without one, a random one is made and kept in the home, where commands find it. A coordinator that
    ended, however it did, goes on where it was when it is started again.
    """
    from trialfleet.commands.coordinator import coordinator_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose, daemon=True, quiet=quiet, log_format=log_format)
    if broker is not None:
        environment = msgspec.structs.replace(environment, broker_url=broker)
    coordinator_command(config, environment)


@cli.command(epilog=_EPILOG)
@click.argument("study_file", type=click.Path(path_type=Path))
@_study_options
@click.option(
    "--priority",
    type=click.IntRange(LOWEST_PRIORITY, HIGHEST_PRIORITY),
    default=0,
    show_default=True,
    help="A higher one overtakes at the next free slot.",
)
@click.option(
    "--weight",
    type=click.FloatRange(0, 1000, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the slots among studies of the same priority.",
)
@click.option("--watch", is_flag=True, help="Show its progress until it ends.")
@_json_option
@_home_option
@_verbose_option
def submit(
    study_file: Path,
    *,
    priority: int,
    weight: float,
    watch: bool,
    as_json: bool,
    home: Path | None,
    verbose: bool,
    **flags: Any,
) -> None:
    """Give the study that STUDY_FILE describes to a running coordinator."""
    from trialfleet.commands.service import submit_command  # noqa: PLC0415  # see _EPILOG

    submit_command(
        study_file,
        StudyFlags(**flags),
        _begin(home, verbose=verbose),
        priority=priority,
        weight=weight,
        watch=watch,
        as_json=as_json,
    )


@cli.command("list", epilog=_EPILOG)
@_json_option
@_home_option
@_verbose_option
def list_studies(*, as_json: bool, home: Path | None, verbose: bool) -> None:
    """List the studies of a running coordinator."""
    from trialfleet.commands.service import list_command  # noqa: PLC0415  # see _EPILOG

    list_command(_begin(home, verbose=verbose), as_json=as_json)


def _add_study_command(name: str, about: str) -> None:
    """A command that asks a running coordinator something about one study."""

    @cli.command(name, help=about, epilog=_EPILOG)
    @click.argument("study")
    @_json_option
    @_home_option
    @_verbose_option
    def command(study: str, *, as_json: bool, home: Path | None, verbose: bool) -> None:
        from trialfleet.commands import service  # noqa: PLC0415  # see _EPILOG

        service.STUDY_COMMANDS[name](study, _begin(home, verbose=verbose), as_json=as_json)


_add_study_command("status", "Show how STUDY of a running coordinator is.")
_add_study_command(
    "watch",
    "Show the progress of STUDY until it ends: exit status 0 when it is done, 1 when it failed or was cancelled.",
)
_add_study_command("pause", "Have a running coordinator start nothing new of STUDY.")
_add_study_command("resume", "Have a running coordinator go on with STUDY, which is paused.")
_add_study_command("cancel", "Have a running coordinator end STUDY; what is recorded stays.")


@cli.group(epilog=_EPILOG)
def deadletters() -> None:
    """Look at messages that could not be read, and at evaluations that killed whoever took them; or take them away."""


def _dead_letter_command(name: str) -> Callable[[_Command], _Command]:
    """A command on a broker's dead letters."""
    options = (deadletters.command(name, epilog=_EPILOG), _broker_option, _json_option, _home_option, _verbose_option)

    def decorate(command: _Command) -> _Command:
        decorated: Any = command
        for option in reversed(options):
            decorated = option(decorated)
        return command

    return decorate


_all_option = click.option("--all", "every", is_flag=True, help="All there are.")


@_dead_letter_command("list")
def list_dead_letters(broker: str | None, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """List them, oldest first."""
    from trialfleet.commands.deadletters import list_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose)
    list_command(broker or environment.broker_url, as_json=as_json)


@_dead_letter_command("show")
@click.argument("name", metavar="ID")
def show_dead_letter(name: str, broker: str | None, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Show the dead letter ID, with what came of it each time."""
    from trialfleet.commands.deadletters import show_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose)
    show_command(name, broker or environment.broker_url, as_json=as_json)


@_dead_letter_command("requeue")
@click.argument("names", metavar="[ID]...", nargs=-1)
@_all_option
def requeue_dead_letters(
    names: tuple[str, ...], broker: str | None, *, every: bool, as_json: bool, home: Path | None, verbose: bool
) -> None:
    """Have dead letters evaluated again: those that are evaluations, and that somebody still waits for.

    The others stay, and the exit status is 1.
    """
    from trialfleet.commands.deadletters import requeue_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose)
    requeue_command(names, environment, broker or environment.broker_url, every=every, as_json=as_json)


@_dead_letter_command("drop")
@click.argument("names", metavar="[ID]...", nargs=-1)
@_all_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_dead_letters(
    names: tuple[str, ...],
    broker: str | None,
    *,
    every: bool,
    yes: bool,
    as_json: bool,
    home: Path | None,
    verbose: bool,
) -> None:
    """Take dead letters away for good."""
    from trialfleet.commands.deadletters import drop_command  # noqa: PLC0415  # see _EPILOG

    environment = _begin(home, verbose=verbose)
    drop_command(names, broker or environment.broker_url, every=every, yes=yes, as_json=as_json)


@dataclass
class _Invocation:
    """What `main` knows of the command that it runs."""

    verbose: bool = False
    #: Whether standard error has log lines in JSON, and nothing else.
    logs_json: bool = False


def _begin(
    home: Path | None,
    *,
    verbose: bool,
    daemon: bool = False,
    quiet: bool = False,
    log_format: LogFormat | None = None,
) -> Environment:
    """What every command does first; for those that run for months, see `start_logging`."""
    taken = start_logging(sys.stderr, SystemClock(), daemon=daemon, verbose=verbose, quiet=quiet, log_format=log_format)
    invocation = click.get_current_context().find_object(_Invocation)
    if invocation is not None:
        invocation.verbose = verbose
        invocation.logs_json = taken == "json"
    if not verbose:
        # They log a traceback of what our one line says.
        for noisy in ("pika", "dramatiq"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
    environment = read_environment(os.environ)
    return environment if home is None else msgspec.structs.replace(environment, home=home)


def main() -> None:
    """The entry point: every way to end becomes an exit status, every error one line."""
    sys.exit(_status(sys.argv[1:], _Invocation()))


def _status(arguments: Sequence[str], invocation: _Invocation) -> int:
    try:
        # --help, --version and workers end with a status, other commands with nothing.
        return cli.main(list(arguments), prog_name="trialfleet", standalone_mode=False, obj=invocation) or 0
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see {error.ctx.command_path} --help)"
        _complain(f"{error.format_message()}{hint}", invocation)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except Interrupted as interrupted:
        return interrupted.exit_status
    except BrokenPipeError:
        # Whoever read our output has gone; nothing may be flushed to it at exit. (rich ends with the same status.)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TrialfleetError as error:
        _complain(str(error), invocation)
        return error.exit_status
    except Exception as error:
        if invocation.verbose and not invocation.logs_json:
            raise
        where = "" if invocation.verbose else ", -v shows where"
        _complain(f"unexpected {type(error).__name__}: {error}; this is a bug in trialfleet{where}", invocation)
        return 1


def _complain(message: str, invocation: _Invocation) -> None:
    """One line on standard error about the error that is being handled; where it comes from, to those who want to know."""
    if invocation.logs_json:
        _LOG.error(message, exc_info=invocation.verbose)
        return
    click.echo(f"error: {' '.join(message.split())}", err=True)
    if invocation.verbose:
        traceback.print_exc()
