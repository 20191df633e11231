from __future__ import annotations

import email.utils
import time

import httpx
import pytest

from clients._retry import LONGEST_BACKOFF, backoff, pause_before_retry, retry_after


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3.0), ("0.25", 0.25), ("-1", 0.0), ("soon", None), ("", None)]
)
def test_retry_after_in_seconds(text: str, seconds: float | None) -> None:
    assert retry_after(httpx.Headers({"retry-after": text})) == seconds


def test_retry_after_as_a_date() -> None:
    past = email.utils.formatdate(0, usegmt=True)
    future = email.utils.formatdate(time.time() + 1000, usegmt=True)
    assert retry_after(httpx.Headers({"retry-after": past})) == 0.0
    seconds = retry_after(httpx.Headers({"retry-after": future}))
    assert seconds is not None
    assert 0 < seconds <= 1000


@pytest.mark.parametrize("attempt", range(12))
def test_backoff_doubles_up_to_a_limit(attempt: int) -> None:
    full = min(LONGEST_BACKOFF, 0.5 * 2**attempt)
    assert all(0.75 * full <= backoff(attempt) <= full for _ in range(50))


@pytest.mark.parametrize(
    ("status", "headers", "again"),
    [
        (429, {}, True),
        (503, {}, True),
        (500, {}, False),
        (400, {}, False),
        (429, {"x-should-retry": "false"}, False),
        (503, {"x-should-retry": "false"}, False),
        (409, {"x-should-retry": "true"}, True),
        (429, {"retry-after": "60"}, True),
        (429, {"retry-after": "61"}, False),
    ],
)
def test_which_answers_are_worth_another_try(
    status: int, headers: dict[str, str], again: bool
) -> None:
    response = httpx.Response(status, headers=headers)
    assert (pause_before_retry(response, 0, 60.0) is not None) is again


def test_the_server_names_the_pause() -> None:
    response = httpx.Response(429, headers={"retry-after": "7"})
    assert pause_before_retry(response, 0, 60.0) == 7.0
