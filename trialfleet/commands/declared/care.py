"""Commands that look after a home: `doctor`, `backup` and `restore`."""

from pathlib import Path

import click

from trialfleet.commands.declared.options import EPILOG, begin, home_option, json_option, verbose_option


@click.command(epilog=EPILOG)
@click.option("--repair", is_flag=True, help="Mend what can be mended; see ops/README.md for what that means.")
@json_option
@home_option
@verbose_option
def doctor(*, repair: bool, as_json: bool, home: Path | None, verbose: bool) -> int:
    """Look whether everything in the home is as it was written: exit status 0 when it is, 1 when not.

    1 also when something can not be read, for want of permission say: that is told apart from damage.

    It may be run while studies run.
    """
    from trialfleet.commands.care import doctor_command  # noqa: PLC0415  # see the package

    return doctor_command(begin(home, verbose=verbose), repair=repair, as_json=as_json)


@click.command(epilog=EPILOG)
@click.argument("target", type=click.Path(path_type=Path))
@json_option
@home_option
@verbose_option
def backup(target: Path, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Copy the studies of the home, running or not, to the new folder TARGET."""
    from trialfleet.commands.care import backup_command  # noqa: PLC0415  # see the package

    backup_command(begin(home, verbose=verbose), target, as_json=as_json)


@click.command(epilog=EPILOG)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the studies that are there.")
@json_option
@home_option
@verbose_option
def restore(source: Path, *, force: bool, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Put the backup SOURCE into the home, which nobody may use meanwhile."""
    from trialfleet.commands.care import restore_command  # noqa: PLC0415  # see the package

    restore_command(begin(home, verbose=verbose), source, force=force, as_json=as_json)


#: What the program has of this theme.
COMMANDS = (doctor, backup, restore)
