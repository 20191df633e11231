"""When a request is worth another try, and how long to wait before it."""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass

import httpx

FIRST_PAUSE = 0.5
LONGEST_BACKOFF = 8.0
# Not the global generator: a program that seeds that one the same in all its processes would make
# its clients come back together.
_CHANCE = random.SystemRandom()


@dataclass(frozen=True)
class Retries:
    """How often a request may be tried again.

    Attributes:
        limit: Tries after the first one.
        max_wait: Longest pause in seconds that `Retry-After` may ask for; a longer one ends
            the tries.
        repeatable: Whether a request may be sent again although it may have arrived.
    """

    limit: int
    max_wait: float
    repeatable: bool = False


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds named by `Retry-After`, as a number or as a date; None if there are none."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def backoff(attempt: int) -> float:
    """Seconds before try number `attempt + 1`: doubling, with up to a quarter taken off.

    Clients that failed together must not come back together, hence the chance in it.
    """
    pause = min(LONGEST_BACKOFF, FIRST_PAUSE * 2.0**attempt)
    return pause * (1.0 - 0.25 * _CHANCE.random())


def pause_before_retry(response: httpx.Response, attempt: int, max_wait: float) -> float | None:
    """Seconds to wait before the next try; None if this answer is final.

    The server's `x-should-retry` decides where it is sent; otherwise 429 and 503 are tried
    again.

    Args:
        response: The answer to the try.
        attempt: Number of the try, from 0.
        max_wait: Longest pause in seconds that is worth waiting.
    """
    verdict = response.headers.get("x-should-retry", "").lower()
    again = verdict == "true" or (verdict != "false" and response.status_code in (429, 503))
    if not again:
        return None
    pause = retry_after(response.headers)
    if pause is None:
        return backoff(attempt)
    return pause if pause <= max_wait else None
