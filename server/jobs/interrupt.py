"""What ends a step before it is done."""

from __future__ import annotations


class Interrupted(BaseException):
    """Ends a step between two batches; nothing half done is kept.

    Not an `Exception`, so that no handler of errors takes it for one.
    """


class JobStopped(Interrupted):
    """The job was cancelled, paused, or goes on under a later attempt."""


class DatabaseLost(Interrupted):
    """The database was away for too long; the worker ends, and another one does the step."""


class WorkerStopping(Interrupted):
    """This worker stops; another one does the step."""
