"""Which errors of a database pass by themselves, and methods that are tried again for them."""

from __future__ import annotations

import functools
import logging
import sqlite3
import time
from collections.abc import Callable
from inspect import isfunction
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from server.errors import DatabaseUnavailable

_log = logging.getLogger("disp.store")

T = TypeVar("T")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0

_SQLITE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_POSTGRESQL = (
    "08",  # connection exception
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53300",  # too many connections
    "55P03",  # a lock was not free in time
    "57P01",  # shut down by its operator
    "57P02",  # crashed
    "57P03",  # is starting
    "57P05",  # the session was idle for too long
    "25P03",  # the transaction was idle for too long
)


def is_transient(error: SQLAlchemyError) -> bool:
    """Whether the same may succeed a moment later: the database is away, starting, or locked."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE
    state = getattr(cause, "sqlstate", None)
    if state is None:
        # The connection was not made, or broke, before the server could say anything.
        return error.connection_invalidated or type(cause).__name__ in (
            "OperationalError",
            "ConnectionTimeout",
        )
    return str(state).startswith(_POSTGRESQL)


def patiently(work: Callable[[], T], patience: float) -> T:
    """Does something with the database, again and again while it is away.

    Args:
        work: One transaction; it is undone or done, whatever happens (`Database.transaction`).
        patience: Seconds after which nothing is tried again.

    Raises:
        DatabaseUnavailable: If the database stays away for longer.
    """
    deadline = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            return work()
        except DatabaseUnavailable as error:
            if time.monotonic() + pause > deadline:
                raise
            cause = type(error.__cause__).__name__
            _log.warning("The database does not answer (%s); trying again.", cause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def retried(method: F) -> F:
    """A method that is one transaction of `self._database`, with its patience."""

    @functools.wraps(method)
    def again(self: Any, *arguments: Any, **more: Any) -> Any:
        return patiently(lambda: method(self, *arguments, **more), self._database.patience)

    return again  # type: ignore[return-value]


def all_retried(kind: C) -> C:
    """A class whose public methods are all `retried`."""
    for name, method in list(vars(kind).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(kind, name, retried(method))
    return kind
