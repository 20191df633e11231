"""What routes find in a request: the engine, the settings, and who asks."""

from __future__ import annotations

from typing import Annotated, TypeVar, cast

from fastapi import Depends, Request

from server.config import ServerConfig
from server.engine import Engine
from server.errors import InvalidKey, NotFound, ScopeMissing, UnsupportedMediaType
from server.metrics import Metrics, Trace
from server.security.keys import Principal, Scope
from server.services import Services

_Service = TypeVar("_Service")


class Require:
    """A dependency that lets a key pass if it has a scope.

    Attributes:
        scope: The scope.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, request: Request) -> Principal:
        """Returns who asks.

        Raises:
            InvalidKey: If the gate let the request pass without a key.
            ScopeMissing: If the key lacks the scope.
        """
        principal = getattr(request.state, "principal", None)
        if not isinstance(principal, Principal):
            raise InvalidKey
        if self.scope not in principal.scopes:
            raise ScopeMissing(f"This key lacks the scope {self.scope}.")
        return principal


def engine_of(request: Request) -> Engine:
    """The engine behind this application."""
    return cast("Engine", request.app.state.engine)


def config_of(request: Request) -> ServerConfig:
    """The settings of this application."""
    return cast("ServerConfig", request.app.state.config)


def services_of(request: Request) -> Services:
    """What this application keeps."""
    return cast("Services", request.app.state.services)


def needed(service: _Service | None) -> _Service:
    """A service that this route cannot do without.

    Raises:
        NotFound: If the server runs without it.
    """
    if service is None:
        raise NotFound("This server runs without a data folder, so it keeps no files or jobs.")
    return service


def owner_of(principal: Principal) -> str | None:
    """The key whose files and jobs somebody sees: their own; None, everybody's, for an admin."""
    return None if "models:admin" in principal.scopes else principal.key_id


def metrics_of(request: Request) -> Metrics:
    """What this application tells about itself."""
    return cast("Metrics", request.app.state.metrics)


def trace_of(request: Request) -> Trace:
    """Where a route notes what the metrics tell about this request."""
    return cast("Trace", request.state.trace)


def request_id_of(request: Request) -> str:
    """The id that the gate gave to this request."""
    return cast("str", request.state.request_id)


def json_only(request: Request) -> None:
    """Refuses a body that is not declared as JSON.

    Raises:
        UnsupportedMediaType: If it is not.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType


EngineHere = Annotated[Engine, Depends(engine_of)]
ConfigHere = Annotated[ServerConfig, Depends(config_of)]
ServicesHere = Annotated[Services, Depends(services_of)]
MetricsHere = Annotated[Metrics, Depends(metrics_of)]
TraceHere = Annotated[Trace, Depends(trace_of)]
RequestId = Annotated[str, Depends(request_id_of)]
