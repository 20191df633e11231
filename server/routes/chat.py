"""`POST /v1/chat/completions`: a question about images, answered under the defence."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response

from purifier.answer import Answer
from server import answering
from server.engine import Engine, Ticket
from server.errors import ClientDisconnected
from server.routes.access import ConfigHere, EngineHere, RequestId, Require, TraceHere, json_only
from server.routes.chat_stream import Events, streamed
from server.schemas import ChatRequest, ChatResponse
from server.security.keys import Principal

router = APIRouter(prefix="/v1/chat")


@router.post("/completions", dependencies=[Depends(json_only)], response_model=ChatResponse)
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
    answering.check_cost(generation, masking, config)
    answering.check_turns(body, config)
    with engine.reserve(serving) as place:
        job = await anyio.to_thread.run_sync(
            partial(answering.prepare, body, serving, generation, masking, config, request_id),
            limiter=request.app.state.preparing,
        )
        prepared = time.monotonic()
        events = Events() if body.stream else None
        ticket = place.submit(job, None if events is None else events.put)

    def respond(answer: Answer) -> ChatResponse:
        total = time.monotonic() - start
        trace.checkpoint = ticket.serving.checkpoint
        return answering.response_of(
            body, ticket, answer, prepare_seconds=prepared - start, total_seconds=total
        )

    if events is not None:
        return await streamed(request, body, engine, ticket, events, respond, trace.sends_text)
    return respond(await _answer_or_disconnect(engine, ticket, request))


async def _answer_or_disconnect(engine: Engine, ticket: Ticket, request: Request) -> Answer:
    """Waits for the answer; gives the job up when the client goes away."""
    answer = asyncio.wrap_future(ticket.future)
    gone = asyncio.create_task(_disconnected(request))
    either: set[asyncio.Future[Any]] = {answer, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnected
        return answer.result()
    finally:
        gone.cancel()
        if not answer.done():
            engine.cancel(ticket)
            answer.cancel()


async def _disconnected(request: Request) -> None:
    """Ends when the client has gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
