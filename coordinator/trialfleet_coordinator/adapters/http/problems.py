"""Errors as application/problem+json (RFC 9457)."""

import http
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from trialfleet_shared.errors import (
    ConfigurationError,
    StoreError,
    StudyBusyError,
    StudyChangedError,
    TrialfleetError,
    UnknownStudyError,
)


class Problem(msgspec.Struct, frozen=True):
    """What went wrong."""

    #: A URI reference that identifies the kind of problem.
    type: str
    title: str
    status: int
    #: One line for people.
    detail: str


class ProblemError(TrialfleetError):
    """A request can not be answered."""

    def __init__(self, status: http.HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


#: By kind of error, most special first: the status that it is answered with.
STATUSES: Mapping[type[TrialfleetError], http.HTTPStatus] = {
    UnknownStudyError: http.HTTPStatus.NOT_FOUND,
    StudyBusyError: http.HTTPStatus.CONFLICT,
    StudyChangedError: http.HTTPStatus.CONFLICT,
    ConfigurationError: http.HTTPStatus.UNPROCESSABLE_ENTITY,
    StoreError: http.HTTPStatus.SERVICE_UNAVAILABLE,
}


def problem_response(error: Exception) -> Response:
    """The answer to a request that raised; of an unexpected error no more than that it happened."""
    if isinstance(error, ProblemError):
        return problem(error.status, str(error), headers=error.headers)
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return problem(status, str(error), kind=kind.__name__)
    return problem(http.HTTPStatus.INTERNAL_SERVER_ERROR, "the coordinator failed; its log says more")


def problem(
    status: http.HTTPStatus, detail: str, *, kind: str = "about:blank", headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that says what went wrong."""
    body = Problem(type=kind, title=status.phrase, status=status.value, detail=" ".join(detail.split()))
    return Response(
        msgspec.json.encode(body), status.value, media_type="application/problem+json", headers=dict(headers or {})
    )
