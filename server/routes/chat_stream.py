"""A streamed answer: server-sent events in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from purifier.answer import Answer
from server.chunks import Chunks
from server.engine import Engine, Ticket
from server.errors import ServerError
from server.routes.description import events
from server.routes.waiting import Gone, awaited, disconnected
from server.schemas import ChatChunk, ChatRequest, ChatResponse

_log = logging.getLogger("disp.server")

STREAM = {
    "description": "The answer, whole, or with `stream` true as server-sent events",
    "content": events(
        ChatChunk, "What fails after the beginning is an event `error`, the last one."
    ),
}

QUIET_SECONDS = 15.0
"""After how long a stream without chunks says that it lives."""

Event = str | Future[Answer] | None
"""Text that is certain; the end of the answer; None: the client has gone."""


class Events:
    """What happens to an answer, handed from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Adds what has happened; from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self) -> Event:
        """Waits for what happens next."""
        return await self._queue.get()


async def streamed(
    body: ChatRequest,
    engine: Engine,
    ticket: Ticket,
    events: Events,
    gone: Gone,
    respond: Callable[[Answer], ChatResponse],
    sends_text: Callable[[], None],
) -> EventSourceResponse:
    """Waits until the answer is begun, then streams it.

    Args:
        body: What was asked.
        engine: Where the answer comes from.
        ticket: The answer on its way.
        events: Where its progress arrives.
        gone: Ends when the client goes away before the stream begins.
        respond: Makes the whole answer, whose parts end the stream.
        sends_text: Hears of every chunk with text before it is sent.

    Raises:
        ServerError: If the answer fails before it is begun, nobody is there to read it, or its
            time is over.
    """
    ticket.future.add_done_callback(events.put)

    def end() -> None:
        if not ticket.future.done():
            engine.cancel(ticket)

    try:
        first = await awaited(events.get(), ticket, gone)
        if isinstance(first, Future):
            first.result()
        content = _content(Chunks(body, ticket, sends_text), first, events, respond)
    except BaseException:
        end()
        raise
    return _Response(content, events, end)


class _Response(EventSourceResponse):
    """A stream that gives its answer up if it is not read to the end."""

    def __init__(
        self, content: AsyncIterator[bytes], events: Events, end: Callable[[], None]
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(content, headers=headers)
        self._events = events
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._watch(receive))
        try:
            await super().__call__(scope, receive, send)
        finally:
            watching.cancel()
            self._end()

    async def _watch(self, receive: Receive) -> None:
        await disconnected(receive)
        self._events.put(None)


async def _content(
    chunks: Chunks, first: Event, events: Events, respond: Callable[[Answer], ChatResponse]
) -> AsyncIterator[bytes]:
    """Every chunk as it becomes certain; after an error nothing but the error."""
    event = first
    yield format_sse_event(data_str=chunks.opening())
    try:
        while isinstance(event, str):
            if event:
                yield format_sse_event(data_str=chunks.piece(event))
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    event = await events.get()
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                event = ""
        if event is not None:
            for chunk in chunks.closing(respond(event.result())):
                yield format_sse_event(data_str=chunk)
    except ServerError as error:
        yield _error(error)
    except Exception:
        _log.exception("A streamed answer failed.")
        yield _error(ServerError())


def _error(error: ServerError) -> bytes:
    return format_sse_event(event="error", data_str=error.envelope.model_dump_json())
