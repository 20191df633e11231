"""`GET /v1/status`: what the engine has done and is doing, for operators."""

from __future__ import annotations

import resource
import sys

from fastapi import APIRouter, Depends

from server.errors import NotReady
from server.routes.access import EngineHere, Require, ServicesHere
from server.schemas import EngineStatus

router = APIRouter(prefix="/v1/status", dependencies=[Depends(Require("models:admin"))])

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


@router.get("")
async def status(engine: EngineHere, services: ServicesHere) -> EngineStatus:
    """Reports the engine's state and counters."""
    counters = engine.counters
    try:
        checkpoint = engine.serving().checkpoint
    except NotReady:
        checkpoint = None
    return EngineStatus(
        state=engine.state,
        checkpoint=checkpoint,
        waiting=engine.waiting,
        running=engine.running,
        admitted=counters.admitted,
        completed=counters.completed,
        failed=counters.failed,
        cancelled=counters.cancelled,
        refused=counters.refused,
        steps=counters.steps,
        request_steps=counters.request_steps,
        largest_batch=counters.largest_batch,
        shared_defences=counters.shared,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT,
        worker=None if services.worker is None else services.worker.state,
        worker_restarts=0 if services.worker is None else services.worker.restarts,
    )
