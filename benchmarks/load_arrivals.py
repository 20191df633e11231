"""An open-loop client: requests come when the schedule says, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import httpx
import numpy as np

from benchmarks.served import CHAT

End = Literal["answered", "refused", "failed", "broken", "hung"]
"""200; 429; another status; no answer at all; no end within the client's patience."""

_AGAIN = 0.5


@dataclass
class Shot:
    """One request; times are seconds from the schedule's start.

    Attributes:
        due: When it had to be sent.
        sent: When it was sent; much later than `due` means that the client was too slow.
        ended: When it was answered.
        end: How it ended.
        status: HTTP status; None without an answer.
        retry_after: Seconds that a refusal named.
        again: How the one repetition after that time ended; None if there was none.
    """

    due: float
    sent: float = 0.0
    ended: float = 0.0
    end: End = "hung"
    status: int | None = None
    retry_after: int | None = None
    again: End | None = None

    @property
    def latency(self) -> float:
        """Seconds from when it was due, so that a late client hides nothing."""
        return self.ended - self.due


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process with `rate` arrivals a second, from 0 to `seconds`."""
    generator = np.random.default_rng(seed)
    times: list[float] = []
    now = float(generator.exponential(1 / rate))
    while now < seconds:
        times.append(now)
        now += float(generator.exponential(1 / rate))
    return times


async def send(client: httpx.AsyncClient, body: bytes) -> tuple[End, httpx.Response | None]:
    """Sends one request; tells how it ended."""
    try:
        response = await client.post(CHAT, content=body)
    except httpx.TimeoutException:
        return "hung", None
    except httpx.HTTPError:
        return "broken", None
    if response.status_code == 200:
        return "answered", response
    return "refused" if response.status_code == 429 else "failed", response


async def fire(
    client: httpx.AsyncClient,
    bodies: Iterator[bytes],
    due: list[float],
    *,
    repeated: float,
    seed: int,
) -> list[Shot]:
    """Sends a request at every time that is due.

    Args:
        client: Asks.
        bodies: What is asked.
        due: Seconds from now.
        repeated: Share of refused requests that are repeated, once, after `Retry-After`.
        seed: Of who repeats.

    Returns:
        What became of each.
    """
    repeats = np.random.default_rng(seed).random(len(due)) < repeated
    start = time.monotonic()

    async def shoot(at: float, body: bytes, repeat: bool) -> Shot:
        shot = Shot(at, sent=time.monotonic() - start)
        shot.end, response = await send(client, body)
        shot.ended = time.monotonic() - start
        if response is not None:
            shot.status = response.status_code
            if shot.end == "refused":
                shot.retry_after = int(response.headers["retry-after"])
        if shot.retry_after is not None and repeat:
            await asyncio.sleep(shot.retry_after)
            shot.again, _ = await send(client, body)
        return shot

    tasks = []
    for at, repeat in zip(due, repeats, strict=True):
        await asyncio.sleep(max(0.0, at - (time.monotonic() - start)))
        tasks.append(asyncio.create_task(shoot(at, next(bodies), bool(repeat))))
    return list(await asyncio.gather(*tasks))


async def capacity(
    client: httpx.AsyncClient, bodies: Iterator[bytes], *, clients: int, seconds: float
) -> float:
    """Answers a second with so many clients that each ask anew once they are answered.

    The first answers, as many as there are clients, are not counted: the batch has to fill. Who
    finds the queue full asks again a little later.

    Args:
        client: Asks.
        bodies: What is asked.
        clients: How many ask at a time.
        seconds: For how long, or longer until there are answers enough.

    Raises:
        RuntimeError: If a request fails.
    """
    until = time.monotonic() + seconds
    ends: list[float] = []

    async def ask() -> None:
        while time.monotonic() < until or len(ends) < 3 * clients:
            end, _ = await send(client, next(bodies))
            if end == "answered":
                ends.append(time.monotonic())
            elif end == "refused":
                await asyncio.sleep(_AGAIN)
            else:
                raise RuntimeError(f"A request was {end} while the capacity was measured.")

    await asyncio.gather(*(ask() for _ in range(clients)))
    # The last ones were answered by a batch that was no longer full.
    counted = ends[clients - 1 : len(ends) - clients + 1]
    return (len(counted) - 1) / (counted[-1] - counted[0])
