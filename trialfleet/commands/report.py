"""`trialfleet report` and `trialfleet studies`: what is recorded is read, nothing is run."""

from pathlib import Path

from trialfleet.commands.finding import found_report, found_runs
from trialfleet.commands.output import error_console, results_only, say
from trialfleet.environment import Environment
from trialfleet.home import Home
from trialfleet.recorded import studies
from trialfleet.rendering import finite, print_json, print_report, render_studies, report_document
from trialfleet_shared.errors import TrialfleetError


def report_command(study: str, environment: Environment, *, as_json: bool, html: Path | None) -> None:
    """Print what came of the study so far, or write it as a page.

    Raises:
        TrialfleetError: the page can not be written.
    """
    report, figures, home = found_report(study, environment)
    if html is not None:
        from trialfleet import html_report  # noqa: PLC0415  # Optuna only here
        from trialfleet.exporting import importances  # noqa: PLC0415

        # What the report alone does not tell, the store does, where it is here.
        shares = {} if home is None else importances(home.store, study)
        page = html_report.render(report, figures, shares, found_runs(study, environment))
        try:
            html.write_text(page, encoding="utf-8")
        except OSError as error:
            raise TrialfleetError(f"{html} can not be written: {error.strerror or error}") from error
        say(error_console(), f"the report of {study} is in {html}")
        if as_json:
            with results_only() as results:
                print_json(results, {"study": study, "html": str(html)})
        return
    place = None if home is None else home.path
    with results_only() as results:
        if as_json:
            print_json(results, report_document(report, figures, place))
        else:
            print_report(results, report, figures, place)


def studies_command(environment: Environment, *, as_json: bool) -> None:
    """List the studies of the home."""
    summaries = studies(Home(environment.home))
    with results_only() as results:
        if as_json:
            print_json(results, finite(summaries))
        elif summaries:
            results.print(render_studies(summaries))
        else:
            say(results, f"There are no studies in {environment.home} yet.")
