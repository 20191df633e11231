"""Whether `Retry-After` is true: the queue is full, and who is refused waits and asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.load_arrivals import End, send
from benchmarks.served import Served

_TRIES = 5
_MORE = 8
_AGAIN = 0.05
_PATIENCE = 120.0


@dataclass(frozen=True)
class Promise:
    """What a refusal promised and what came of it.

    Attributes:
        retry_after: Seconds it named.
        free_after: Seconds until the queue had a place, as the server's status says.
        again: How the repetition after `retry_after` ended, nobody else asking.
    """

    retry_after: int
    free_after: float
    again: End


async def promise(
    server: Served, client: httpx.AsyncClient, bodies: Iterator[bytes], size: int, batch: int
) -> Promise:
    """Fills the queue, asks once more, waits as long as the refusal says, and asks again.

    Those who fill it go away in the end, so the next one finds an idle server.

    Args:
        server: Is asked.
        client: Asks.
        bodies: What is asked.
        size: Places of the queue.
        batch: Requests that run beside it.

    Raises:
        RuntimeError: If a place was free whenever it was asked.
    """
    for _ in range(_TRIES):
        full = asyncio.Event()

        async def fill(body: bytes, full: asyncio.Event) -> None:
            while (await send(client, body))[0] == "refused" and not full.is_set():
                await asyncio.sleep(_AGAIN)

        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(fill(next(bodies), full)) for _ in range(size + batch + _MORE)
        ]
        try:
            await _until(server, client, lambda waiting: waiting >= size)
            # Places come free all the time: of so many at once, one finds none.
            more = [asyncio.create_task(send(client, next(bodies))) for _ in range(_MORE)]
            tasks += more
            refusal = await _first_refusal(more)
            full.set()
            if refusal is not None:
                return await _kept(server, client, next(bodies), size, refusal)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.until_idle(client)
    raise RuntimeError("The queue was never full when it was asked.")


async def _first_refusal(
    asked: Sequence[asyncio.Task[tuple[End, httpx.Response | None]]],
) -> httpx.Response | None:
    """The first refusal among requests under way, if there is one."""
    for ended in asyncio.as_completed(asked):
        end, response = await ended
        if end == "refused":
            return response
    return None


async def _kept(
    server: Served, client: httpx.AsyncClient, body: bytes, size: int, refusal: httpx.Response
) -> Promise:
    at, retry_after = time.monotonic(), int(refusal.headers["retry-after"])
    freed = asyncio.create_task(_until(server, client, lambda waiting: waiting < size))
    await asyncio.sleep(retry_after)
    again, _ = await send(client, body)
    return Promise(retry_after, round(max(0.0, await freed - at), 3), again)


async def _until(
    server: Served, client: httpx.AsyncClient, reached: Callable[[int], bool]
) -> float:
    """The monotonic time at which so many wait."""
    async with asyncio.timeout(_PATIENCE):
        while not reached((await server.status(client))["waiting"]):
            await asyncio.sleep(0.02)
    return time.monotonic()
