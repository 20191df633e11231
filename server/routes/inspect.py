"""`POST /v1/defense/inspect`: what the detectors find in a question about images."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Request

from server import answering, inspecting
from server.config import ServerConfig
from server.engine import Job, Serving
from server.routes.access import ConfigHere, EngineHere, RequestId, Require, TraceHere, json_only
from server.routes.admission import admitted, answered
from server.routes.chat import REFUSALS
from server.routes.waiting import disconnected
from server.schemas import ChatRequest
from server.schemas.inspection import Finding, Inspection, InspectRequest
from server.security.keys import Principal
from server.turns import check_turns

router = APIRouter(prefix="/v1/defense")


@router.post("/inspect", dependencies=[Depends(json_only)], responses=REFUSALS)
async def inspect(
    body: InspectRequest,
    request: Request,
    principal: Annotated[Principal, Depends(Require("infer:undefended"))],
    engine: EngineHere,
    config: ConfigHere,
    request_id: RequestId,
    trace: TraceHere,
) -> Inspection:
    """Answers a question undefended and under levels of effort, and says what each masked.

    What can be wrong with the question is found before any of them is queued.
    """
    asked = inspecting.questions(body)
    prepares = [_prepare(question, config, request_id) for _, question in asked]
    answering.check_model(asked[0][1], engine.serving())
    limiter = request.app.state.preparing
    gone = asyncio.create_task(disconnected(request.receive))
    findings: list[Finding] = []
    undefended = ""
    try:
        for (effort, _), prepare in zip(asked, prepares, strict=True):
            ticket = await admitted(engine, prepare, None, limiter, gone)
            answer = await answered(engine, ticket, gone)
            trace.checkpoint = ticket.serving.checkpoint
            if effort is None:
                undefended = answer.text
                continue
            draw = partial(
                inspecting.finding, effort, ticket, answer, undefended, overlays=body.overlays
            )
            findings.append(await anyio.to_thread.run_sync(draw, limiter=limiter))
        return inspecting.inspection(body, ticket, undefended, findings)
    finally:
        gone.cancel()


def _prepare(
    question: ChatRequest, config: ServerConfig, request_id: str
) -> Callable[[Serving], Job]:
    """What makes the job of a question, its settings checked."""
    generation = answering.generation_of(question, config.generation)
    masking = answering.masking_of(question, config.masking)
    answering.check_cost(generation, masking, config)
    check_turns(question, config)

    def prepare(serving: Serving) -> Job:
        return answering.prepare(question, serving, generation, masking, config, request_id)

    return prepare
