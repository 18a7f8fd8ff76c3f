"""Commands on recorded studies, of the home or of the coordinator that TRIALFLEET_URL names: best, export, delete."""

import io
import sys
from pathlib import Path
from typing import Literal

import click
import msgspec

from trialfleet.commands.finding import found_report
from trialfleet.commands.output import error_console, results_only, say
from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.environment import Environment
from trialfleet.home import Home
from trialfleet.recorded import delete_study
from trialfleet.rendering import CacheFigures, finite, print_best, print_json, report_document
from trialfleet_coordinator.report import StudyReport, best_of
from trialfleet_shared.errors import ConfigurationError, StudyBusyError, TrialfleetError
from trialfleet_shared.visible import visible, visible_in_json

ExportFormat = Literal["csv", "parquet", "json", "optuna"]


def best_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Print the best trial so far."""
    best = best_of(found_report(study, environment)[0])
    with results_only() as results:
        if as_json:
            print_json(results, finite(best))
        else:
            print_best(results, best)


def export_command(
    study: str, environment: Environment, *, kind: ExportFormat, output: str | None, as_json: bool
) -> None:
    """Write the study's trials to a file, a storage, or standard output.

    Raises:
        ConfigurationError: the format needs an output.
        TrialfleetError: it can not be written.
    """
    from trialfleet import exporting  # noqa: PLC0415  # Optuna only here

    if output is None and as_json:
        raise ConfigurationError("--json needs --output: standard output is for one thing")
    if output is None and kind in ("parquet", "optuna"):
        wanted = "a file" if kind == "parquet" else "a storage's URL, sqlite:///study.db say"
        raise ConfigurationError(f"--format {kind} needs --output: {wanted}")
    report, figures, home = found_report(study, environment)
    if kind == "optuna":
        assert output is not None
        if home is None:
            raise ConfigurationError(
                "--format optuna reads the store: run it on the coordinator's machine, on its home"
            )
        exporting.copy_to_optuna(home.store, study, output)
    else:
        _write(report, figures, home, kind, output)
    if as_json:
        with results_only() as results:
            # Not where: a storage's URL may hold a password.
            print_json(results, {"study": study, "format": kind, "trials": len(report.trials)})


def _write(
    report: StudyReport, figures: CacheFigures, home: Home | None, kind: ExportFormat, output: str | None
) -> None:
    from trialfleet import exporting  # noqa: PLC0415  # as above

    text = io.StringIO(newline="")
    if kind == "csv":
        exporting.write_csv(report, text)
    elif kind == "json":
        document = report_document(report, figures, None if home is None else home.path)
        text.write(visible_in_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()) + "\n")
    if output is None:
        sys.stdout.write(text.getvalue())
        return
    try:
        if kind == "parquet":
            exporting.write_parquet(report, Path(output))
        else:
            Path(output).write_text(text.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        raise TrialfleetError(f"{output} can not be written: {error.strerror or error}") from error


def delete_command(study: str, environment: Environment, *, yes: bool, as_json: bool) -> None:
    """Delete a study that nobody runs.

    Raises:
        ConfigurationError: nobody can be asked whether it is meant.
        StudyLockedError: it is being run.
        StudyBusyError: a running coordinator has it, and it has not ended.
    """
    trials, home = 0, None
    try:
        report, _, home = found_report(study, environment)
        trials = len(report.trials)
    except StudyBusyError:  # the coordinator has it, and it came to nothing
        pass
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError("nobody can be asked whether that is meant; give --yes")
        click.confirm(f"Delete {visible(study)} and its {trials} trials?", abort=True, err=True)
    if not _deleted_by_coordinator(study, environment) and home is not None:
        delete_study(home, study)
    say(error_console(), f"{study} is deleted")
    if as_json:
        with results_only() as results:
            print_json(results, {"study": study, "deleted_trials": trials})


def _deleted_by_coordinator(study: str, environment: Environment) -> bool:
    """Have a running coordinator delete the study, if it is one of its own."""
    if environment.url is None and CoordinatorFiles(environment.home).url() is None:
        return False
    from trialfleet.commands.service import running_coordinator  # noqa: PLC0415  # HTTP only with a fleet

    coordinator = running_coordinator(environment)
    if coordinator is None:
        return False
    with coordinator:
        if all(status.study != study for status in coordinator.studies()):
            return False
        coordinator.delete(study)
        return True
