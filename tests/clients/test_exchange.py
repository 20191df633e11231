from __future__ import annotations

import httpx
import pytest

from clients import ConnectionFailed, RequestTimedOut
from clients._exchange import Pause, exchange
from clients._retry import Retries

REQUEST = httpx.Request("GET", "http://server.test/health")


def status(response: httpx.Response) -> int:
    return response.status_code


def test_a_final_answer_ends_it() -> None:
    steps = exchange(REQUEST, status, Retries(2, 60.0))
    assert next(steps) is REQUEST
    with pytest.raises(StopIteration) as done:
        steps.send(httpx.Response(500))
    assert done.value.value == 500


def test_a_busy_server_is_asked_again_after_its_pause_until_the_tries_are_used_up() -> None:
    steps = exchange(REQUEST, status, Retries(2, 60.0))
    busy = httpx.Response(429, headers={"retry-after": "3"})
    next(steps)
    for _ in range(2):
        assert steps.send(busy) == Pause(3.0)
        assert steps.send(None) is REQUEST
    with pytest.raises(StopIteration) as done:
        steps.send(busy)
    assert done.value.value == 429


@pytest.mark.parametrize("failure", [httpx.ConnectError("x"), httpx.ConnectTimeout("x")])
def test_a_connection_that_did_not_open_is_tried_again(failure: httpx.TransportError) -> None:
    steps = exchange(REQUEST, status, Retries(1, 60.0))
    next(steps)
    assert isinstance(steps.send(failure), Pause)
    assert steps.send(None) is REQUEST
    with pytest.raises(ConnectionFailed, match=r"No server answers at http://server.test\."):
        steps.send(failure)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ReadTimeout("secret detail"), RequestTimedOut),
        (httpx.ReadError("secret detail"), ConnectionFailed),
        (httpx.RemoteProtocolError("secret detail"), ConnectionFailed),
    ],
)
def test_a_connection_that_broke_later_is_not(
    failure: httpx.TransportError, kind: type[ConnectionFailed]
) -> None:
    steps = exchange(REQUEST, status, Retries(5, 60.0))
    next(steps)
    with pytest.raises(kind) as caught:
        steps.send(failure)
    assert "secret" not in str(caught.value)
