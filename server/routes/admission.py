"""Getting a request into the engine, whichever checkpoint serves by then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio.to_thread

from purifier.answer import Answer
from server.engine import Engine, Job, Serving, Ticket
from server.engine.job import Progress
from server.routes.waiting import Gone, awaited, while_there

_PREPARATIONS = 3
"""Times that a request is prepared, where another checkpoint begins to serve during each."""


async def admitted(
    engine: Engine,
    prepare: Callable[[Serving], Job],
    progress: Progress | None,
    preparing: anyio.CapacityLimiter,
    gone: Gone,
) -> Ticket:
    """Prepares a request and queues it, in a place that is its own from the beginning.

    If another checkpoint begins to serve meanwhile, the request is prepared again for that one.

    Raises:
        ServerError: If there is no place, or the request is refused.
        ClientDisconnected: If the client goes away before; its place is free again.
    """
    with engine.reserve() as place:
        with while_there(gone):
            for _ in range(_PREPARATIONS):
                serving = engine.serving()
                job = await anyio.to_thread.run_sync(prepare, serving, limiter=preparing)
                if engine.serving() is serving:
                    break
        return place.submit(job, progress, serving)


async def answered(engine: Engine, ticket: Ticket, gone: Gone) -> Answer:
    """Waits for the answer; cancels the job if the wait ends before it."""
    try:
        return await awaited(asyncio.wrap_future(ticket.future), ticket, gone)
    finally:
        if not ticket.future.done():
            engine.cancel(ticket)
