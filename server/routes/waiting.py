"""Waiting for something only as long as a client is there to hear of it, and has time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
from starlette.types import Receive

from server.engine import Ticket
from server.errors import ClientDisconnected

Wanted = TypeVar("Wanted")

Gone = asyncio.Task[None]
"""Ends when the client has gone."""


async def disconnected(receive: Receive) -> None:
    """Ends when the client has gone; the body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def while_there(gone: Gone) -> Iterator[None]:
    """Cancels what is awaited inside once the client has gone; a thread is waited for.

    Raises:
        ClientDisconnected: If it has gone.
    """
    with anyio.CancelScope() as scope:
        gone.add_done_callback(lambda _: scope.cancel())
        yield
    if scope.cancel_called:
        raise ClientDisconnected


async def awaited(wanted: Awaitable[Wanted], ticket: Ticket, gone: Gone) -> Wanted:
    """Waits for something of a request that is in the engine.

    The deadline is the engine's as well, but its thread may be busy for longer than a step,
    as with loading another model.

    Raises:
        ClientDisconnected: If the client has gone.
        DeadlineExceeded: If the request's time is over.
    """
    future = asyncio.ensure_future(wanted)
    either: set[asyncio.Future[Any]] = {future, gone}
    try:
        seconds = max(0.0, ticket.seconds_left)
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        raise ClientDisconnected if gone.done() else ticket.overdue
    finally:
        future.cancel()
