"""Commands on what is recorded of studies: `studies`, `report`, `best`, `export`, `delete`, `dashboard`."""

from pathlib import Path
from typing import Any

import click

from trialfleet.commands.declared.options import EPILOG, begin, home_option, json_option, verbose_option


@click.command(epilog=EPILOG)
@json_option
@home_option
@verbose_option
def studies(*, as_json: bool, home: Path | None, verbose: bool) -> None:
    """List the studies that are recorded in the home, running or not."""
    from trialfleet.commands.report import studies_command  # noqa: PLC0415  # see the package

    studies_command(begin(home, verbose=verbose), as_json=as_json)


@click.command(epilog=EPILOG)
@click.argument("study")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it as a page, with charts."
)
@json_option
@home_option
@verbose_option
def report(study: str, *, html: Path | None, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Show what came of STUDY so far, running or not."""
    from trialfleet.commands.report import report_command  # noqa: PLC0415  # see the package

    report_command(study, begin(home, verbose=verbose), as_json=as_json, html=html)


@click.command(epilog=EPILOG)
@click.argument("study")
@json_option
@home_option
@verbose_option
def best(study: str, *, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Show the best trial of STUDY so far."""
    from trialfleet.commands.recorded import best_command  # noqa: PLC0415  # see the package

    best_command(study, begin(home, verbose=verbose), as_json=as_json)


@click.command(epilog=EPILOG)
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
@home_option
@verbose_option
def export(study: str, *, kind: Any, output: str | None, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Write the trials of STUDY for other tools."""
    from trialfleet.commands.recorded import export_command  # noqa: PLC0415  # see the package

    export_command(study, begin(home, verbose=verbose), kind=kind, output=output, as_json=as_json)


@click.command(epilog=EPILOG)
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@home_option
@verbose_option
def delete(study: str, *, yes: bool, as_json: bool, home: Path | None, verbose: bool) -> None:
    """Delete STUDY, which nobody runs, and its record."""
    from trialfleet.commands.recorded import delete_command  # noqa: PLC0415  # see the package

    delete_command(study, begin(home, verbose=verbose), yes=yes, as_json=as_json)


@click.command(epilog=EPILOG)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: any free one.")
@home_option
@verbose_option
def dashboard(*, host: str, port: int, home: Path | None, verbose: bool) -> None:
    """Show all studies in a browser, running ones too: optuna-dashboard, which can change nothing here.

    Needs the extra: pip install 'trialfleet[dashboard]'.
    """
    from trialfleet.commands.dashboard import dashboard_command  # noqa: PLC0415  # see the package

    dashboard_command(begin(home, verbose=verbose), host=host, port=port)


#: What the program has of this theme.
COMMANDS = (studies, report, best, export, delete, dashboard)
