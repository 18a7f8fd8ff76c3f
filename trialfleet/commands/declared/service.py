"""The coordinator that serves many studies, and the commands that speak to a running one."""

from pathlib import Path
from typing import Any

import click
import msgspec

from trialfleet.commands.declared.options import (
    EPILOG,
    begin,
    broker_option,
    home_option,
    json_option,
    log_option,
    quiet_option,
    study_options,
    verbose_option,
)
from trialfleet.coordinator_files import SERVED_AT
from trialfleet.environment import URL
from trialfleet.flags import StudyFlags
from trialfleet.logs import LogFormat
from trialfleet_coordinator.serving import HIGHEST_PRIORITY, LOWEST_PRIORITY


@click.command(epilog=EPILOG)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="fleet.toml; without one, its defaults."
)
@broker_option
@log_option
@quiet_option
@home_option
@verbose_option
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
    from trialfleet.commands.coordinator import coordinator_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose, daemon=True, quiet=quiet, log_format=log_format)
    if broker is not None:
        environment = msgspec.structs.replace(environment, broker_url=broker)
    coordinator_command(config, environment)


@click.command()
@click.option(
    "--url",
    envvar=URL,
    metavar="URL",
    help=f"Where the coordinator listens; also {URL}. By default that of this machine's home, else {SERVED_AT}.",
)
def health(url: str | None) -> int:
    """Ask a coordinator whether it can do its work: exit status 0 when it can, 1 when not."""
    from trialfleet.commands.health import health_command  # noqa: PLC0415  # see the package

    return health_command(url)


@click.command(epilog=EPILOG)
@click.argument("study_file", type=click.Path(path_type=Path))
@study_options
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
@json_option
@home_option
@verbose_option
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
) -> int:
    """Give the study that STUDY_FILE describes to a running coordinator."""
    from trialfleet.commands.service import submit_command  # noqa: PLC0415  # see the package

    return submit_command(
        study_file,
        StudyFlags(**flags),
        begin(home, verbose=verbose),
        priority=priority,
        weight=weight,
        watch=watch,
        as_json=as_json,
    )


@click.command("list", epilog=EPILOG)
@json_option
@home_option
@verbose_option
def list_studies(*, as_json: bool, home: Path | None, verbose: bool) -> None:
    """List the studies of a running coordinator."""
    from trialfleet.commands.service import list_command  # noqa: PLC0415  # see the package

    list_command(begin(home, verbose=verbose), as_json=as_json)


def _study_command(name: str, about: str) -> click.Command:
    """A command that asks a running coordinator something about one study."""

    @click.command(name, help=about, epilog=EPILOG)
    @click.argument("study")
    @json_option
    @home_option
    @verbose_option
    def command(study: str, *, as_json: bool, home: Path | None, verbose: bool) -> int | None:
        from trialfleet.commands import service  # noqa: PLC0415  # see the package

        return service.STUDY_COMMANDS[name](study, begin(home, verbose=verbose), as_json=as_json)

    return command


#: What the program has of this theme.
COMMANDS = (
    coordinator,
    health,
    submit,
    list_studies,
    _study_command("status", "Show how STUDY of a running coordinator is."),
    _study_command(
        "watch",
        "Show the progress of STUDY until it ends: exit status 0 when it is done, 1 when it failed or was cancelled.",
    ),
    _study_command("pause", "Have a running coordinator start nothing new of STUDY."),
    _study_command("resume", "Have a running coordinator go on with STUDY, which is paused."),
    _study_command("cancel", "Have a running coordinator end STUDY; what is recorded stays."),
)
