"""`trialfleet doctor`, `trialfleet backup` and `trialfleet restore`."""

from pathlib import Path

import msgspec
from rich.table import Table

from trialfleet.backup import Manifest, back_up, restore
from trialfleet.commands.output import error_console, results_only, say
from trialfleet.doctor import examine
from trialfleet.environment import Environment
from trialfleet.home import Home
from trialfleet.rendering import print_json
from trialfleet.words import words
from trialfleet_shared.clock import SystemClock


def doctor_command(environment: Environment, *, repair: bool, as_json: bool) -> int:
    """Say of everything in the home whether it is whole; the exit status: 0 when all is, or was repaired, else 1."""
    home = Home(environment.home)
    with results_only() as results:
        items = list(examine(home, repair=repair))
        damaged, unreadable = (sum(item.state == state for item in items) for state in ("damaged", "unreadable"))
        if as_json:
            document = {
                "home": str(home.path),
                "whole": not damaged and not unreadable,
                "items": msgspec.to_builtins(items),
            }
            print_json(results, document)
        else:
            table = Table("what", "name", "state", "detail", box=None, header_style="bold")
            for item in items:
                table.add_row(*map(words, (item.kind, item.name, item.state, item.detail)))
            results.print(table)
    if damaged:
        say(
            error_console(),
            f"{damaged} of {len(items)} are damaged" + ("" if repair else "; --repair mends what it can"),
        )
    if unreadable:
        say(error_console(), f"{unreadable} of {len(items)} could not be read, so nothing is known of them")
    return 1 if damaged or unreadable else 0


def backup_command(environment: Environment, target: Path, *, as_json: bool) -> None:
    """Copy the home's studies, running or not."""
    manifest = back_up(Home(environment.home), target, now=SystemClock().time())
    _tell_copied(manifest, environment.home, target, as_json=as_json)


def restore_command(environment: Environment, source: Path, *, force: bool, as_json: bool) -> None:
    """Put a backup into the home."""
    manifest = restore(Home(environment.home), source, force=force)
    _tell_copied(manifest, source, environment.home, as_json=as_json)


def _tell_copied(manifest: Manifest, source: Path, target: Path, *, as_json: bool) -> None:
    count = len(manifest.studies)
    what, are = ("study", "is") if count == 1 else ("studies", "are")
    say(error_console(), f"{count} {what} of {source} {are} in {target}")
    if as_json:
        with results_only() as results:
            print_json(results, {"source": str(source), "target": str(target), "studies": sorted(manifest.studies)})
