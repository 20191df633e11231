"""Builds the application: the gate, the routes, and one shape for every error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from server.config import ServerConfig
from server.engine import Engine
from server.errors import (
    BodyTooLarge,
    HttpError,
    InvalidBody,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServerError,
)
from server.gate import PUBLIC, Gate
from server.metrics import Metrics, ObservedRequests
from server.routes import (
    audit,
    chat,
    checkpoints,
    docs,
    files,
    health,
    inspect,
    job_events,
    jobs,
    metrics,
    models,
    reports,
    status,
)
from server.routes.access import Require
from server.routes.description import describe, operation_id
from server.security.keys import Authenticator
from server.security.media import guard_pillow
from server.services import Services

_log = logging.getLogger("disp.server")

ROUTERS = (
    chat.router,
    inspect.router,
    models.router,
    files.uploads,
    files.router,
    files.datasets,
    jobs.router,
    job_events.router,
    reports.router,
    checkpoints.router,
    audit.router,
    status.router,
    metrics.router,
    docs.router,
    health.router,
)
"""Every router of the service."""

_PLACES = ("body", "query", "header", "path")
_PART_TYPES = ("text", "image_url")
_LONGEST_PARAM = 200
_LONGEST_SAID = 300


def create_app(
    engine: Engine,
    config: ServerConfig,
    keys: Authenticator | None,
    services: Services | None = None,
) -> FastAPI:
    """Builds the application around an engine that the caller starts and closes.

    Args:
        engine: Answers.
        config: Settings and limits.
        keys: Who may ask; None, which `config.insecure_no_auth` must allow, is everybody on
            this machine.
        services: What keeps files, jobs and checkpoints; None is a server that only answers.
    """
    if keys is None and not config.insecure_no_auth:
        raise ValueError("A server without keys needs insecure_no_auth.")
    guard_pillow(config.media)
    app = FastAPI(
        title="DiSP Server",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
    )
    app.state.engine = engine
    app.state.config = config
    app.state.services = services = services or Services()
    app.state.metrics = told = Metrics(engine, services)
    app.state.preparing = anyio.CapacityLimiter(config.preparing)
    app.state.larger_bodies = larger = _larger_bodies(config)
    for router in ROUTERS:
        check_closed(router)
        limit = config.upload.file_bytes if router is files.uploads else config.max_body
        app.include_router(router, max_body_size=limit)
    app.add_middleware(
        Gate,
        keys=keys,
        max_body=config.max_body,
        larger=larger,
        public_metrics=config.public_metrics,
        public_docs=config.public_docs,
    )
    app.add_middleware(ObservedRequests, metrics=told.requests)
    app.state.description = cache(lambda: describe(app.routes, ROUTERS))
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


def _larger_bodies(config: ServerConfig) -> dict[tuple[str, str], int]:
    """Bytes of a body where that is not `max_body`, by method and path."""
    routes = [route for route in files.uploads.routes if isinstance(route, APIRoute)]
    limit = config.upload.file_bytes
    return {(method, route.path): limit for route in routes for method in route.methods or ()}


def check_closed(router: APIRouter) -> None:
    """Checks that every route of a router is public on purpose or needs a scope.

    Raises:
        RuntimeError: If one is open by oversight.
    """
    for route in router.routes:
        if isinstance(route, APIRoute):
            guards = [item.call for item in route.dependant.dependencies]
            if route.path in PUBLIC or any(isinstance(guard, Require) for guard in guards):
                continue
        raise RuntimeError(f"A route is neither public nor guarded by a scope: {route}")


async def _server_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServerError)
    return _answer(error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(refusal_of(error.errors()))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Errors of the framework itself; their texts are replaced."""
    assert isinstance(error, HTTPException)
    classes: dict[int, type[ServerError]] = {
        400: InvalidBody,
        404: NotFound,
        405: MethodNotAllowed,
        413: BodyTooLarge,
    }
    refusal = classes.get(error.status_code, HttpError)()
    if isinstance(refusal, BodyTooLarge):
        state, address = request.app.state, (request.method, request.url.path)
        limit = state.larger_bodies.get(address, state.config.max_body)
        refusal = BodyTooLarge(f"A body may have at most {limit:,} bytes.")
    return _answer(refusal, headers=dict(error.headers or {}))


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    request_id = getattr(request.state, "request_id", "-")
    _log.error("Request %s failed.", request_id, exc_info=error)
    return _answer(ServerError(), headers={"x-request-id": request_id})


def _answer(error: ServerError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(
        error.envelope.model_dump(),
        status_code=error.status,
        headers={**(headers or {}), **error.headers},
    )


def refusal_of(errors: Sequence[dict[str, Any]]) -> InvalidRequest:
    """Says in the service's shape what is wrong with a body; the input is not repeated.

    Args:
        errors: From pydantic; the first one is told.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidBody()
    param = param_of(first["loc"])
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{param} is not known; remove it or check its name.", param=param)
    if first["type"] == "missing":
        return InvalidRequest(f"{param or 'The body'} is missing.", param=param)
    said = shown(first["msg"].removesuffix("."), _LONGEST_SAID)
    return InvalidRequest(f"{param or 'The body'}: {said}.", param=param)


def shown(text: str, longest: int) -> str:
    """A text as an error may repeat it: cut short, and without what cannot be written."""
    legible = text.encode("utf-8", "replace").decode("utf-8")
    return legible if len(legible) <= longest else f"{legible[:longest]}..."


def param_of(location: Sequence[str | int]) -> str | None:
    """Writes a place in the request as a path, such as `messages[0].content[1].image_url.url`."""
    steps = location[1:] if location[:1] and location[0] in _PLACES else location
    path = ""
    for index, step in enumerate(steps):
        names_part = index >= 2 and steps[index - 2] == "content" and step in _PART_TYPES
        if names_part:
            continue  # pydantic's tag of the kind of part; no step of the body
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return shown(path.lstrip("."), _LONGEST_PARAM) or None
