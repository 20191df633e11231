"""A stream of server-sent events that outlives its connections.

The bookkeeping alone: `EventStream` says what to ask for and how long to pause, and reads the
lines; `Client` and `AsyncClient` do the talking, each in its own way.
"""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from clients import _job_calls
from clients._call import Call, failure
from clients._exceptions import InvalidInput, UnexpectedResponse
from clients._exchange import connection_failure
from clients._retry import backoff, retry_after
from server.schemas.jobs import JobEvent

DONE = "[DONE]"
QUIET_SECONDS = 60.0
"""A stream says every 15 seconds that it lives; one that is silent this long is broken."""


class EventStream:
    """The events of one job, from a place on.

    Args:
        job_id: The job.
        after: Id of the last event that is known already; None starts at the first.
        patience: Seconds of pauses between connections that bring nothing, until it is given up.

    Raises:
        InvalidInput: If the patience is negative.
    """

    def __init__(self, job_id: str, after: str | None, patience: float) -> None:
        if patience < 0:
            raise InvalidInput("patience must not be negative.")
        self._job_id = job_id
        self._last = after
        self._patience = patience
        self._data: list[str] = []
        self._attempt = 0
        self._paused = 0.0
        self.done = False

    def call(self) -> Call[JobEvent]:
        """What to ask for next."""
        self._data = []
        return _job_calls.stream(self._job_id, self._last)

    def feed(self, line: str) -> JobEvent | None:
        """Takes one line without its end; returns the event that it completes, if it does."""
        if line:
            # A line without a colon is a field without a value; comments begin with one.
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            return None
        text, self._data = "\n".join(self._data), []
        if not text:
            return None
        if text == DONE:
            self.done = True
            return None
        try:
            event = JobEvent.model_validate_json(text)
        except ValidationError:
            raise UnexpectedResponse("The stream of events cannot be read.") from None
        self._last = event.id
        self._attempt, self._paused = 0, 0.0
        return event

    def pause_after(self, response: httpx.Response) -> float:
        """Seconds until the next connection, after one that ended without `DONE`.

        Raises:
            StatusError: If the server refuses for good, or for longer than the patience.
            UnexpectedResponse: If there is no stream of events.
        """
        if response.is_success:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise UnexpectedResponse(f"{response.url} did not answer with a stream of events.")
            pause = None
        elif response.status_code in (429, 502, 503, 504):
            pause = retry_after(response.headers)
        else:
            raise failure(response)
        pause = backoff(self._attempt) if pause is None else pause
        if self._spend(pause):
            return pause
        if response.is_success:
            raise UnexpectedResponse("The stream of events ended again and again before the job.")
        raise failure(response)

    def pause_after_break(self, request: httpx.Request, error: httpx.TransportError) -> float:
        """Seconds until the next connection, after one that broke or never came about.

        Raises:
            ConnectionFailed: If the patience is at its end.
        """
        pause = backoff(self._attempt)
        if not self._spend(pause):
            raise connection_failure(request, error)
        return pause

    def _spend(self, pause: float) -> bool:
        """Whether the patience has room for this pause."""
        self._attempt += 1
        self._paused += pause
        return self._paused <= self._patience
