"""`GET /health` (the process lives) and `GET /health/ready` (the model has answered)."""

from __future__ import annotations

from fastapi import APIRouter

from server.errors import Draining, NotReady
from server.routes.access import EngineHere
from server.routes.description import refusals
from server.schemas import Health

router = APIRouter()


@router.get("/health")
async def live() -> Health:
    """Says that the process is up, whatever the model does."""
    return Health(status="ok")


@router.get("/health/ready", responses=refusals(NotReady, Draining))
async def ready(engine: EngineHere) -> Health:
    """Says that the model is loaded and has answered a first question, defended."""
    if engine.state in ("draining", "stopped"):
        raise Draining(retry_after=5)
    if engine.state != "ready":
        raise NotReady(retry_after=5)
    return Health(status="ready")
