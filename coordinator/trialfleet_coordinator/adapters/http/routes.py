"""The verbs of the API, as data: what each is called, takes and answers. Routes and OpenAPI document come from here."""

import http
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from trialfleet_coordinator.report import BestTrial, StudyReport, TrialSummary, best_of
from trialfleet_coordinator.runs import Run
from trialfleet_coordinator.serving import StudyService, StudyStatus, Submission, WorkerStatus
from trialfleet_shared.errors import (
    ConfigurationError,
    StudyBusyError,
    StudyChangedError,
    TrialfleetError,
    UnknownStudyError,
)

#: Where this version of the API is.
PREFIX = "/api/v1"
#: Trials, or runs, of one page at most, and when nobody says how many.
LONGEST_PAGE = 1000


class TrialPage(msgspec.Struct, frozen=True):
    """Some of a study's trials, by number."""

    trials: tuple[TrialSummary, ...]
    #: Trials that the study has.
    total: int


class RunPage(msgspec.Struct, frozen=True):
    """Some of a study's evaluations that ran, by when they began."""

    runs: tuple[Run, ...]
    #: Evaluations that ran.
    total: int


class Paging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which trials, or runs, are wanted."""

    #: How many come before the first one.
    offset: Annotated[int, Meta(ge=0, le=2**31)] = 0
    limit: Annotated[int, Meta(ge=1, le=LONGEST_PAGE)] = LONGEST_PAGE


class Asked(NamedTuple):
    """A request, read."""

    #: The study of the path; empty for a path without one.
    study: str
    body: Submission | None
    query: Paging


class Route(NamedTuple):
    """One verb."""

    method: str
    path: str
    #: Name of the operation.
    name: str
    summary: str
    #: What is answered: a struct, a sequence of structs, or nothing.
    answer: Any
    #: Does it; raises TrialfleetError.
    carry_out: Callable[[StudyService, Asked], Any]
    status: http.HTTPStatus = http.HTTPStatus.OK
    #: What it may raise, beside what every request may.
    errors: tuple[type[TrialfleetError], ...] = ()
    takes_body: bool = False
    takes_query: bool = False


def _submit(service: StudyService, asked: Asked) -> StudyStatus:
    assert asked.body is not None
    return service.submit(asked.body)


def _trials(report: StudyReport, query: Paging) -> TrialPage:
    return TrialPage(report.trials[query.offset :][: query.limit], len(report.trials))


def _runs(runs: Sequence[Run], query: Paging) -> RunPage:
    return RunPage(tuple(runs[query.offset :][: query.limit]), len(runs))


_ONE = "/studies/{study}"
ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/studies",
        "list_studies",
        "All studies, the oldest submission first.",
        list[StudyStatus],
        lambda service, _: service.studies(),
    ),
    Route(
        "POST",
        "/studies",
        "submit_study",
        "Queue a study.",
        StudyStatus,
        _submit,
        http.HTTPStatus.CREATED,
        (ConfigurationError, StudyBusyError, StudyChangedError),
        takes_body=True,
    ),
    Route(
        "GET",
        _ONE,
        "get_study",
        "One study.",
        StudyStatus,
        lambda service, asked: service.status(asked.study),
        errors=(UnknownStudyError,),
    ),
    Route(
        "DELETE",
        _ONE,
        "delete_study",
        "Forget a study that has ended, and its record.",
        None,
        lambda service, asked: service.delete(asked.study),
        http.HTTPStatus.NO_CONTENT,
        (UnknownStudyError, StudyBusyError),
    ),
    Route(
        "POST",
        f"{_ONE}/pause",
        "pause_study",
        "Start nothing new of it.",
        StudyStatus,
        lambda service, asked: service.pause(asked.study),
        errors=(UnknownStudyError, StudyBusyError),
    ),
    Route(
        "POST",
        f"{_ONE}/resume",
        "resume_study",
        "Go on with a paused study.",
        StudyStatus,
        lambda service, asked: service.resume(asked.study),
        errors=(UnknownStudyError, StudyBusyError),
    ),
    Route(
        "POST",
        f"{_ONE}/cancel",
        "cancel_study",
        "End a study.",
        StudyStatus,
        lambda service, asked: service.cancel(asked.study),
        errors=(UnknownStudyError,),
    ),
    Route(
        "GET",
        f"{_ONE}/report",
        "get_report",
        "What came of a study so far.",
        StudyReport,
        lambda service, asked: service.report(asked.study),
        errors=(UnknownStudyError, StudyBusyError),
    ),
    Route(
        "GET",
        f"{_ONE}/best",
        "get_best",
        "The best trial so far.",
        BestTrial,
        lambda service, asked: best_of(service.report(asked.study)),
        errors=(UnknownStudyError, StudyBusyError),
    ),
    Route(
        "GET",
        f"{_ONE}/trials",
        "list_trials",
        "A study's trials, by number.",
        TrialPage,
        lambda service, asked: _trials(service.report(asked.study), asked.query),
        errors=(UnknownStudyError, StudyBusyError, ConfigurationError),
        takes_query=True,
    ),
    Route(
        "GET",
        f"{_ONE}/runs",
        "list_runs",
        "When and in which slot a study's evaluations ran.",
        RunPage,
        lambda service, asked: _runs(service.runs(asked.study), asked.query),
        errors=(UnknownStudyError, StudyBusyError, ConfigurationError),
        takes_query=True,
    ),
    Route(
        "GET",
        "/workers",
        "list_workers",
        "The workers heard of within the last minutes.",
        list[WorkerStatus],
        lambda service, _: service.workers(),
    ),
)
