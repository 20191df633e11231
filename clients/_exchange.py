"""One request and its retries as a conversation, without doing any of the talking.

`exchange` yields what is to be done next, a request to send or a pause to keep, and is sent
what came of it. `Client` and `AsyncClient` do the sending and the pausing, each in its own
way, and share everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import httpx

from clients._exceptions import ConnectionFailed, RequestTimedOut
from clients._retry import Retries, backoff, pause_before_retry

T = TypeVar("T")

UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)
"""Failures before anything was sent."""


@dataclass(frozen=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


Step = httpx.Request | Pause
Outcome = httpx.Response | httpx.TransportError | None
Exchange = Generator[Step, Outcome, T]


def exchange(
    request: httpx.Request,
    read: Callable[[httpx.Response], T],
    retries: Retries,
) -> Exchange[T]:
    """Sends a request until its answer is final.

    A connection that could not be opened is tried again, for nothing was sent. One that broke
    later is tried again only if the request is repeatable: the server may be working on it.

    Args:
        request: The request.
        read: Turns the final answer into the result, or raises the error it tells of.
        retries: How often it may be tried again.

    Raises:
        RequestTimedOut: If no answer came in time.
        ConnectionFailed: If no answer came.
    """
    for attempt in range(retries.limit + 1):
        outcome = yield request
        last = attempt == retries.limit
        if isinstance(outcome, httpx.Response):
            pause = None if last else pause_before_retry(outcome, attempt, retries.max_wait)
            if pause is None:
                return read(outcome)
        elif last or not (retries.repeatable or isinstance(outcome, UNSENT)):
            raise connection_failure(request, outcome)
        else:
            pause = backoff(attempt)
        yield Pause(pause)
    raise AssertionError("the last attempt always ends the exchange")


def connection_failure(
    request: httpx.Request, outcome: httpx.TransportError | None
) -> ConnectionFailed:
    """The error for a request that no answer came to."""
    where = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
    if isinstance(outcome, UNSENT):
        return ConnectionFailed(f"No server answers at {where}. Is `disp serve` running there?")
    if isinstance(outcome, httpx.TimeoutException):
        return RequestTimedOut(f"No answer from {where} in time; raise the client's timeout.")
    return ConnectionFailed(f"The connection to {where} broke before the answer was complete.")
