"""Finds what is recorded of a study: at the coordinator that TRIALFLEET_URL names, else in the home's store."""

from trialfleet.coordinator_files import CoordinatorFiles
from trialfleet.environment import Environment
from trialfleet.home import Home
from trialfleet.recorded import cache_figures_of, recorded_report, recorded_runs
from trialfleet.rendering import CacheFigures
from trialfleet_coordinator.report import StudyReport
from trialfleet_coordinator.runs import Run
from trialfleet_shared.errors import TrialfleetError, UnknownStudyError


def found_report(study: str, environment: Environment) -> tuple[StudyReport, CacheFigures, Home | None]:
    """The report, how the study used the result cache, and the home that it is in; None: it is elsewhere.

    Raises:
        UnknownStudyError: there is no such study.
        StudyBusyError: a running coordinator has it, and no record of it yet.
        TrialfleetError: the coordinator can not be reached.
    """
    if environment.url is None:
        home = Home(environment.home)
        try:
            report, figures = recorded_report(home, study)
        except UnknownStudyError:
            _ask_coordinator(study, environment)
            raise
        return _with_end(report, environment), figures, home
    from trialfleet.commands.service import connect  # noqa: PLC0415  # HTTP only with a fleet

    with connect(environment) as coordinator:
        report = coordinator.report(study)
    return report, cache_figures_of(report), None


def _ask_coordinator(study: str, environment: Environment) -> None:
    """Raise what a running coordinator of the home says of a study without a record."""
    if CoordinatorFiles(environment.home).url() is None:
        return
    from trialfleet.commands.service import running_coordinator  # noqa: PLC0415  # HTTP only with a fleet

    coordinator = running_coordinator(environment)
    if coordinator is not None:
        with coordinator:
            coordinator.report(study)


def _with_end(report: StudyReport, environment: Environment) -> StudyReport:
    """The report, with what the record does not tell: how the study ended, where a coordinator runs that knows."""
    if CoordinatorFiles(environment.home).url() is None:
        return report
    from trialfleet.commands.service import running_coordinator  # noqa: PLC0415  # HTTP only with a fleet

    try:
        coordinator = running_coordinator(environment)
        if coordinator is None:
            return report
        with coordinator:
            return coordinator.report(report.study)
    except TrialfleetError:  # it has no such study, or is ending: the record is here
        return report


def found_runs(study: str, environment: Environment) -> list[Run]:
    """When and where its evaluations ran. Raises as `found_report`."""
    if environment.url is None:
        return recorded_runs(Home(environment.home), study)
    from trialfleet.commands.service import connect  # noqa: PLC0415  # as above

    with connect(environment) as coordinator:
        return coordinator.runs(study)
