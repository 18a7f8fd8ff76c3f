"""The OpenAPI 3.1 document of the API, made from its routes and from the structs that they take and answer."""

import http
from importlib.metadata import version
from typing import Any

import msgspec

from trialfleet_coordinator.adapters.http.problems import STATUSES, Problem
from trialfleet_coordinator.adapters.http.routes import PREFIX, ROUTES, Paging, Route
from trialfleet_coordinator.serving import Submission

_REFERENCE = "#/components/schemas/{name}"
#: What any request may be answered.
_ALWAYS = (
    http.HTTPStatus.BAD_REQUEST,
    http.HTTPStatus.UNAUTHORIZED,
    http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    http.HTTPStatus.TOO_MANY_REQUESTS,
    http.HTTPStatus.SERVICE_UNAVAILABLE,
)


def document() -> dict[str, Any]:
    """The document."""
    types = [Problem, Submission, *(route.answer for route in ROUTES if route.answer is not None)]
    shapes, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schemas = {str(kind): shape for kind, shape in zip(types, shapes, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "trialfleet coordinator", "version": version("trialfleet")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": route.summary}
    if route.answer is not None:
        answer["content"] = {"application/json": {"schema": schemas[str(route.answer)]}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {str(route.status.value): answer, **_problems(route, schemas[str(Problem)])},
    }
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if route.takes_body:
        content = {"application/json": {"schema": schemas[str(Submission)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _problems(route: Route, schema: dict[str, Any]) -> dict[str, Any]:
    own = [STATUSES[kind] for kind in route.errors]
    return {
        str(status.value): {
            "description": status.phrase,
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in sorted({*_ALWAYS, *own})
    }


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if "{study}" in route.path:
        schema = {"type": "string", "minLength": 1, "maxLength": 200}
        parameters.append({"name": "study", "in": "path", "required": True, "schema": schema})
    if route.takes_query:
        fields = msgspec.json.schema(Paging)["$defs"]["Paging"]["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    return parameters
