"""`trialfleet deadletters` and its commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trialfleet.commands.declared.options import (
    EPILOG,
    CommandFunction,
    begin,
    broker_option,
    home_option,
    json_option,
    verbose_option,
)


@click.group(epilog=EPILOG)
def deadletters() -> None:
    """Look at messages that could not be read, and at evaluations that killed whoever took them; or take them away."""


def _dead_letter_command(name: str) -> Callable[[CommandFunction], CommandFunction]:
    """A command on a broker's dead letters."""
    options = (deadletters.command(name, epilog=EPILOG), broker_option, json_option, home_option, verbose_option)

    def decorate(command: CommandFunction) -> CommandFunction:
        decorated: Any = command
        for option in reversed(options):
            decorated = option(decorated)
        return command

    return decorate


_all_option = click.option("--all", "every", is_flag=True, help="All there are.")


@_dead_letter_command("list")
def list_dead_letters(broker: str | None, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """List them, oldest first."""
    from trialfleet.commands.deadletters import list_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose)
    list_command(broker or environment.broker_url, as_json=as_json)


@_dead_letter_command("show")
@click.argument("name", metavar="ID")
def show_dead_letter(name: str, broker: str | None, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Show the dead letter ID, with what came of it each time."""
    from trialfleet.commands.deadletters import show_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose)
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
    from trialfleet.commands.deadletters import requeue_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose)
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
    from trialfleet.commands.deadletters import drop_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose)
    drop_command(names, broker or environment.broker_url, every=every, yes=yes, as_json=as_json)


#: What the program has of this theme.
COMMANDS = (deadletters,)
