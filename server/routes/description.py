"""The OpenAPI document of the service: every route, what it takes, and all it can answer.

FastAPI describes parameters, bodies and successes from the routes themselves. What it cannot
know is added here: which errors a route can raise (said at the route by `refusals`), those that the
gate and the validation raise in front of every route, the scope it needs, and the headers of
every answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

from server import errors as every_error
from server.chunks import DONE
from server.errors import (
    BodyTooLarge,
    DatabaseUnavailable,
    HostRefused,
    HttpError,
    InvalidBody,
    InvalidKey,
    InvalidRequest,
    MissingKey,
    NotFound,
    OriginRefused,
    ScopeMissing,
    ServerError,
    UnsupportedMediaType,
)
from server.gate import PUBLIC
from server.routes.access import Require, json_only
from server.schemas import ChatChunk, ErrorEnvelope

Document = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

OPENAPI_VERSION = "3.1.0"
KEY = "key"
"""Name of the security scheme."""

_REFUSALS = "x-refusals"
_SCHEMAS = "#/components/schemas/"
_ABOUT = """\
Questions about images to a diffusion language model, answered under a defence against backdoors,
and jobs that heal the model.

Every error has the same shape, `ErrorEnvelope`; its `code` is for programs. Every answer carries
`x-request-id`. What `security` names beside a route is the scope that its key needs. A server that
runs without keys, with public metrics or a public description needs none there. An id never has a
slash in it, except that of a model."""
_REQUEST_ID = {
    "description": "Id of the request: the one that was sent, if it is valid, or a new one.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    "required": True,
}
_RETRY_AFTER = {
    "description": "Seconds after which the request may be sent again.",
    "schema": {"type": "integer", "minimum": 0},
    "required": True,
}
_SHOULD_RETRY = {
    "description": "OpenAI's clients do not send the request again.",
    "schema": {"type": "string", "const": "false"},
    "required": True,
}


def refusals(*errors: type[ServerError]) -> Responses:
    """What a route can raise, for the argument `responses` of its registration.

    Errors that every route of its kind can raise are added to the document by `describe`.
    """
    return {
        status: {"description": "", _REFUSALS: [error.__name__ for error in group]}
        for status, group in _by_status(errors)
    }


def content(kinds: dict[str, dict[str, Any]], description: str) -> dict[str, Any]:
    """A success with its media types.

    Args:
        kinds: Media type -> JSON schema.
        description: What it is.
    """
    return {
        "description": description,
        "content": {kind: {"schema": schema} for kind, schema in kinds.items()},
    }


def events(item: type[BaseModel], description: str) -> dict[str, Any]:
    """A success that is a stream of server-sent events, as OpenAPI 3.2 describes their items.

    Args:
        item: What the data of an event are.
        description: When the stream ends, and what else it holds.
    """
    kinds = {"$ref": f"{_SCHEMAS}{item.__name__}"}, {"$ref": f"{_SCHEMAS}{ErrorEnvelope.__name__}"}
    told = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": list(kinds)},
    }
    data = {
        "anyOf": [told, {"const": DONE}],
        "description": f"{description} The last event's data are `{DONE}`.",
    }
    fields = {"event": {"enum": ["message", "error"]}, "id": {"type": "string"}, "data": data}
    return {
        "text/event-stream": {
            "itemSchema": {"type": "object", "properties": fields, "required": ["data"]}
        }
    }


def describe(routes: Sequence[BaseRoute], routers: Iterable[APIRouter]) -> Document:
    """Makes the document.

    Args:
        routes: Of the application, which FastAPI describes.
        routers: The same by router, whose guards say what else a route can answer.
    """
    document = get_openapi(
        title="DiSP Server",
        version="1",
        openapi_version=OPENAPI_VERSION,
        description=_ABOUT,
        routes=routes,
    )
    schemas = document["components"]["schemas"]
    for route in _routes_of(routers):
        operation = document["paths"][route.path_format]
        for method in route.methods or ():
            _complete(operation[method.lower()], route)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (ErrorEnvelope, ChatChunk):
        schema = model.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
        schemas.update(schema.pop("$defs"))
        schemas[model.__name__] = schema
    document["components"]["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
    return document


def operation_id(route: APIRoute) -> str:
    """A name of a route that is unique and stays: its resource and what it does."""
    return f"{_resource(route)}_{route.name}"


def scope_of(route: APIRoute) -> str | None:
    """The scope that a route needs; None if it is public."""
    guards = (item.call for item in route.dependant.dependencies)
    return next((guard.scope for guard in guards if isinstance(guard, Require)), None)


def _routes_of(routers: Iterable[APIRouter]) -> Iterator[APIRoute]:
    for router in routers:
        yield from (route for route in router.routes if isinstance(route, APIRoute))


def _resource(route: APIRoute) -> str:
    return str(route.endpoint.__module__).rpartition(".")[2]


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    """Adds to one operation what FastAPI does not know of it."""
    operation["tags"] = [_resource(route)]
    scope = scope_of(route)
    if scope is not None:
        operation["security"] = [{KEY: [scope]}]
    responses = operation["responses"]
    said: list[type[ServerError]] = [
        getattr(every_error, name)
        for response in responses.values()
        for name in response.get(_REFUSALS, ())
    ]
    for status in [status for status in responses if int(status) >= 400]:
        del responses[status]
    for response in responses.values():
        response["headers"] = {"x-request-id": _REQUEST_ID} | response.get("headers", {})
    for number, errors in _by_status([*said, *_common(operation, route)]):
        responses[str(number)] = _refusal(errors)
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" and ":path" not in route.path:
            parameter["schema"] = {"type": "string", "pattern": "^[^/]+$"}


def _common(operation: dict[str, Any], route: APIRoute) -> Iterator[type[ServerError]]:
    """What the gate, the framework and the validation can raise in front of a route."""
    yield from (HttpError, HostRefused, OriginRefused, BodyTooLarge, ServerError)
    if route.path not in PUBLIC:
        yield from (MissingKey, InvalidKey, ScopeMissing, DatabaseUnavailable)
    parameters = operation.get("parameters", [])
    if any(parameter["in"] == "path" for parameter in parameters):
        yield NotFound
    if any(parameter["in"] != "path" for parameter in parameters) or route.body_field:
        yield InvalidRequest
    if route.body_field:
        yield InvalidBody
    if any(item.call is json_only for item in route.dependant.dependencies):
        yield UnsupportedMediaType


def _by_status(
    errors: Iterable[type[ServerError]],
) -> list[tuple[int, list[type[ServerError]]]]:
    groups: dict[int, list[type[ServerError]]] = {}
    for error in dict.fromkeys(errors):
        groups.setdefault(error.status, []).append(error)
    return sorted(groups.items())


def _refusal(errors: Sequence[type[ServerError]]) -> dict[str, Any]:
    """The answer of one status: which codes it can carry, and what they mean."""
    lines = [f"- `{error.code}`: {(error.__doc__ or '').splitlines()[0]}" for error in errors]
    codes = {"properties": {"code": {"enum": [error.code for error in errors]}}}
    schema = {
        "allOf": [
            {"$ref": f"{_SCHEMAS}{ErrorEnvelope.__name__}"},
            {"properties": {"error": codes}},
        ]
    }
    headers: dict[str, Any] = {"x-request-id": _REQUEST_ID}
    if all(error.retryable for error in errors):
        headers["retry-after"] = _RETRY_AFTER
    elif not any(error.retryable for error in errors):
        headers["x-should-retry"] = _SHOULD_RETRY
    return {
        "description": "\n".join(lines),
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }
