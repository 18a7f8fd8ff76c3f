"""Options that several commands have, and what every command does first."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from trialfleet.environment import Environment, read_environment
from trialfleet.logs import LogFormat, start_logging
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.settings import MODES

#: Below the help of every command that uses the home.
EPILOG = (
    "Studies, results and imported data are kept below --home: TRIALFLEET_HOME, else $XDG_DATA_HOME/trialfleet, "
    "else ~/.local/share/trialfleet."
)

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])


def _without_password(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    if url is not None and re.search(r"//[^/@]*:[^@]*@", url):
        raise click.BadParameter(
            "a password among the arguments is seen by all users of this machine; "
            "give the URL as TRIALFLEET_BROKER_URL, or in the file TRIALFLEET_BROKER_URL_FILE"
        )
    return url


home_option = click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), help="Folder for studies, results and data."
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log more; show where errors come from.")
broker_option = click.option(
    "--broker",
    metavar="URL",
    callback=_without_password,
    help="RabbitMQ server, amqp://host:5672/vhost. A URL with a password comes from TRIALFLEET_BROKER_URL or the file "
    "TRIALFLEET_BROKER_URL_FILE: other users see a command's arguments.",
)
metrics_option = click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve Prometheus metrics at /metrics on this port of 127.0.0.1.",
)
log_option = click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    help="How to write logs; default: text on a terminal, else JSON, one object per line.",
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Log warnings alone.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")


def study_options(command: CommandFunction) -> CommandFunction:
    """Give the command what `StudyFlags` takes."""
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


@dataclass
class Invocation:
    """What `main` knows of the command that it runs."""

    verbose: bool = False
    #: Whether standard error has log lines in JSON, and nothing else.
    logs_json: bool = False


def begin(
    home: Path | None,
    *,
    verbose: bool,
    daemon: bool = False,
    quiet: bool = False,
    log_format: LogFormat | None = None,
) -> Environment:
    """What every command does first; for those that run for months, see `start_logging`."""
    taken = start_logging(sys.stderr, SystemClock(), daemon=daemon, verbose=verbose, quiet=quiet, log_format=log_format)
    invocation = click.get_current_context().find_object(Invocation)
    if invocation is not None:
        invocation.verbose = verbose
        invocation.logs_json = taken == "json"
    environment = read_environment(os.environ)
    return environment if home is None else msgspec.structs.replace(environment, home=home)
