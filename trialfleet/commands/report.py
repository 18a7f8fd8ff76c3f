"""`trialfleet report` and `trialfleet studies`: the store is read, nothing is run."""

import msgspec

from trialfleet.commands.output import results_only
from trialfleet.engine import Home, recorded_report, studies
from trialfleet.environment import Environment
from trialfleet.rendering import finite, print_json, print_report, render_studies, report_document


def report_command(study: str, environment: Environment, *, as_json: bool) -> None:
    """Print what came of the study so far."""
    report, figures = recorded_report(Home(environment.home), study)
    with results_only() as results:
        if as_json:
            print_json(results, report_document(report, figures, environment.home))
        else:
            print_report(results, report, figures, environment.home)


def studies_command(environment: Environment, *, as_json: bool) -> None:
    """List the studies."""
    summaries = studies(Home(environment.home))
    with results_only() as results:
        if as_json:
            print_json(results, finite(msgspec.to_builtins(summaries)))
        elif summaries:
            results.print(render_studies(summaries))
        else:
            results.print(f"There are no studies in {environment.home} yet.", highlight=False)
