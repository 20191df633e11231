"""`POST /v1/chat/completions`: a question about images, answered under the defence."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from purifier.answer import Answer
from server import answering
from server.certifying import certify_of
from server.engine import Job, Serving
from server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    ImageDimensions,
    ImageMissing,
    ImageTooLarge,
    ImageUndecodable,
    InvalidPrompt,
    InvalidSetting,
    ModelNotFound,
    NotReady,
    QueueFull,
    TooManyImages,
    UnsupportedImage,
)
from server.routes.access import ConfigHere, EngineHere, RequestId, Require, TraceHere, json_only
from server.routes.admission import admitted, answered
from server.routes.chat_certified import certified
from server.routes.chat_stream import STREAM, Events, streamed
from server.routes.description import refusals
from server.routes.waiting import disconnected
from server.schemas import ChatRequest, ChatResponse
from server.security.keys import Principal
from server.turns import check_turns

router = APIRouter(prefix="/v1/chat")

REFUSALS = refusals(
    ModelNotFound,
    InvalidSetting,
    InvalidPrompt,
    ImageMissing,
    ContextLengthExceeded,
    ImageDimensions,
    TooManyImages,
    ImageTooLarge,
    UnsupportedImage,
    ImageUndecodable,
    QueueFull,
    NotReady,
    Draining,
    DeadlineExceeded,
    GenerationFailed,
)


@router.post(
    "/completions",
    dependencies=[Depends(json_only)],
    response_model=ChatResponse,
    responses={200: STREAM, **REFUSALS},
)
async def create(
    body: ChatRequest,
    request: Request,
    principal: Annotated[Principal, Depends(Require("infer"))],
    engine: EngineHere,
    config: ConfigHere,
    request_id: RequestId,
    trace: TraceHere,
) -> ChatResponse | Response:
    """Answers one question, whole or as a stream.

    What can be wrong with the question is found before it is queued.
    """
    start = time.monotonic()
    serving = engine.serving()
    trace.checkpoint = serving.checkpoint
    answering.check_model(body, serving)
    answering.check_scope(body, principal, config)
    generation = answering.generation_of(body, config.generation)
    masking = answering.masking_of(body, config.masking)
    masking = answering.scored_in_full(masking, generation, principal, config)
    answering.check_cost(generation, masking, config)
    check_turns(body, config)
    certify = certify_of(body, generation, config)
    if certify is not None:
        masking = None

    def prepare(serving: Serving) -> Job:
        return answering.prepare(body, serving, generation, masking, config, request_id)

    def respond(answer: Answer) -> ChatResponse:
        now = time.monotonic()
        trace.checkpoint = ticket.serving.checkpoint
        return answering.response_of(
            body,
            ticket,
            answer,
            prepare_seconds=ticket.submitted - start,
            total_seconds=now - start,
        )

    events = Events() if body.stream else None
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        if certify is not None:
            return await certified(
                body, engine, prepare, certify, config, request.app.state.preparing, gone, trace
            )
        ticket = await admitted(
            engine,
            prepare,
            None if events is None else events.put,
            request.app.state.preparing,
            gone,
        )
        trace.checkpoint = ticket.serving.checkpoint
        if events is not None:
            return await streamed(body, engine, ticket, events, gone, respond, trace.sends_text)
        return respond(await answered(engine, ticket, gone))
    finally:
        gone.cancel()
