"""Finds what is recorded of a study: at the coordinator that TRIALFLEET_URL names, else in the home's store."""

from trialfleet.engine import Home, cache_figures_of, recorded_report, recorded_runs
from trialfleet.environment import Environment
from trialfleet.rendering import CacheFigures
from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.runs import Run


def found_report(study: str, environment: Environment) -> tuple[StudyReport, CacheFigures, Home | None]:
    """The report, how the study used the result cache, and the home that it is in; None: it is elsewhere.

    Raises:
        UnknownStudyError: there is no such study.
        TrialfleetError: the coordinator can not be reached.
    """
    if environment.url is None:
        home = Home(environment.home)
        return *recorded_report(home, study), home
    from trialfleet.commands.service import connect  # noqa: PLC0415  # HTTP only with a fleet

    with connect(environment) as coordinator:
        report = coordinator.report(study)
    return report, cache_figures_of(report), None


def found_runs(study: str, environment: Environment) -> list[Run]:
    """When and where its evaluations ran. Raises as `found_report`."""
    if environment.url is None:
        return recorded_runs(Home(environment.home), study)
    from trialfleet.commands.service import connect  # noqa: PLC0415  # as above

    with connect(environment) as coordinator:
        return coordinator.runs(study)
