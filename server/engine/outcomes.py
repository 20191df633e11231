"""How jobs end: with an answer, or with an error that says no more than it should."""

from __future__ import annotations

import logging
from typing import Protocol

from purifier.answer import Answer
from purifier.errors import InvalidPrompt as PromptError
from purifier.errors import InvalidSetting as SettingError
from server.engine.counters import Counting
from server.engine.frames import free_frames
from server.engine.job import Job, Ticket
from server.engine.queue import AdmissionQueue
from server.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    GenerationFailed,
    InvalidSetting,
    ServerError,
)

_log = logging.getLogger("disp.engine")


class Observer(Protocol):
    """Hears what the engine does; on the engine's thread, so it must not wait."""

    def answered(self, ticket: Ticket, answer: Answer) -> None:
        """A request has its answer and will be told."""


class Outcomes:
    """Ends tickets, each of them once, and counts how.

    Args:
        queue: Where running tickets are listed until they end.
        counting: Where they are counted.
    """

    def __init__(self, queue: AdmissionQueue, counting: Counting) -> None:
        self._queue = queue
        self._counting = counting
        self.observers: tuple[Observer, ...] = ()
        """Hear of every answer."""

    def answered(self, ticket: Ticket, answer: Answer) -> None:
        """A running ticket has its answer."""
        self._counting.add_answer(answer)
        for observer in self.observers:
            try:
                observer.answered(ticket, answer)
            except Exception:
                _log.exception("An observer has failed; the answer is not touched by it.")
        self._queue.done(ticket)
        ticket.succeed(answer)

    def failed(self, ticket: Ticket, error: Exception) -> None:
        """A running ticket ends in an error."""
        self._queue.done(ticket)
        self.refused(ticket, error)

    def refused(self, ticket: Ticket, error: Exception) -> None:
        """A ticket that does not run, or no longer, ends in an error."""
        told = _judge(error, ticket.job)
        if isinstance(told, ClientDisconnected):
            self._counting.add("cancelled")
        elif isinstance(told, DeadlineExceeded):
            self._counting.add("failed", "expired")
        else:
            self._counting.add("failed")
        # The client's side keeps the error for a while; the memory is wanted at once.
        free_frames(error)
        ticket.fail(told)


def _judge(error: Exception, job: Job) -> ServerError:
    """What the client is told; what it is not told goes into the log."""
    if isinstance(error, ServerError):
        return error
    if isinstance(error, SettingError | PromptError):
        return InvalidSetting(error.message, param=error.param)
    _log.error("Request %s failed in the engine.", job.request_id, exc_info=error)
    return GenerationFailed()
